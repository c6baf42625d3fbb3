"""Artefacts: independent components, confounds, and the temporal filter they go through."""
