"""Attention of CLS to the parcels: the maps, and their contrasts between groups."""
