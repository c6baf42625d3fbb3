"""Recordings that came preprocessed: images in template space, and parcel series."""
