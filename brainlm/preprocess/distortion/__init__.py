"""Susceptibility distortion: the field, from images that tell of it, and what it does to a run."""
