"""Head motion of raw runs: a rigid transform per volume, the brain mask, figures of quality."""
