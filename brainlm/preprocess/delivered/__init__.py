"""Recordings that somebody else preprocessed: images in template space, and parcel series."""
