"""Train, validation, test: a stable hash of the participant."""

from __future__ import annotations

import hashlib

#: Frozen: another salt would move people. This one also gives small cohorts that are numbered
#: sub-01, sub-02, … their share of test subjects (48 people: 38, 5, 5).
_SALT = "brainlm split 2425"


def split_of(participant_id: str) -> str:
    """80/10/10 by the participant's name alone.

    The same person in two sessions or two cohorts falls on the same side, and adding people
    never moves one.
    """
    digest = hashlib.sha256(f"{_SALT}:{participant_id}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"
