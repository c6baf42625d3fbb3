"""Train, validation, test: a stable hash of the participant."""

from __future__ import annotations

import hashlib

#: Frozen: another salt would move participants. This one also gives small cohorts that are
#: numbered sub-01, sub-02, … their share of test subjects (48 participants: 38, 5, 5).
_SALT = "brainlm split 2425"


def split_of(participant_id: str) -> str:
    """80/10/10 by the participant's name alone.

    The same participant in two sessions or two cohorts falls on the same side, and adding
    participants never moves one.
    """
    share = _hash(f"{_SALT}:{participant_id}")
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def in_share(participant_id: str, share: float) -> bool:
    """Whether a participant is in this share (0..1] of all; smaller shares lie inside larger."""
    return _hash(f"brainlm share:{participant_id}") < share


def _hash(text: str) -> float:
    """A number in 0..1 that is the same everywhere and always."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
