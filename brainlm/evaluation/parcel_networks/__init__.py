"""Functional networks read from what a model makes of each parcel."""
