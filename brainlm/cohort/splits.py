"""Train, validation, test: a stable hash of the participant."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "validation", "test")


def split_of(participant_id: str) -> str:
    """80/10/10 by the participant's name alone.

    The same person in two sessions or two cohorts falls on the same side, and adding people
    never moves one.
    """
    digest = hashlib.sha256(f"brainlm split 1:{participant_id}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"
