"""Participants of the training set that come again in an external cohort: left out of its figures.

The same participant_id, or a recording with the very same series, is taken for the same
participant.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from ..shards import Corpus

#: Status, in memory, of an external participant's recordings where the model has seen that
#: participant.
SEEN = "seen in training"
#: Equal wherever series are; cheap, so that few series have to be read.
_ALIKE = ["num_timepoints", "duration_s", "mean_fd_mm", "mean_dvars", "tsnr"]


def open_corpus(shards: Iterable[str | os.PathLike], roles: Mapping[str, str] | None) -> Corpus:
    """The corpus of these shards, in which no participant who was trained on is external.

    Their recordings have the status :data:`SEEN`, so nothing uses them, and tables count them; a
    line says who they are.
    """
    corpus = Corpus(shards)
    table = corpus.table
    external = table["cohort"].map(lambda name: (roles or {}).get(name) == "external")
    usable = table["status"] == "ok"
    learnt = table[usable & ~external & table["split"].isin(["train", "validation"])]
    others = table[usable & external]
    known = set(learnt["participant_id"])
    seen = others["participant_id"].isin(known) | _with_series_of(corpus, others, learnt)
    for cohort, part in others[seen].groupby("cohort", sort=False):
        participants = sorted(set(part["participant_id"]))
        print(
            f"caution: {len(participants)} participants of the external cohort {cohort} were "
            f"trained on (by participant_id or by their series: {', '.join(participants[:3])}"
            f"{', ...' if len(participants) > 3 else ''}); they are left out of its figures"
        )
        same = (table["cohort"] == cohort) & table["participant_id"].isin(participants)
        table.loc[same & usable, "status"] = SEEN
    return corpus


def _with_series_of(corpus: Corpus, others: pd.DataFrame, learnt: pd.DataFrame) -> pd.Series:
    """Which rows of `others` have the series of a row of `learnt`."""
    keys = [
        pd.util.hash_pandas_object(part[_ALIKE].astype(float), index=False).to_numpy()
        for part in (others, learnt)
    ]
    both = np.intersect1d(*keys)
    theirs, ours = (
        {row: _hash(corpus, row) for row in part.index[np.isin(key, both)]}
        for part, key in zip((others, learnt), keys, strict=True)
    )
    known = set(ours.values())
    again = [row for row, text in theirs.items() if text in known]
    return pd.Series(others.index.isin(again), index=others.index)


def _hash(corpus: Corpus, row: int) -> bytes:
    return hashlib.blake2b(corpus.series(row).tobytes(), digest_size=16).digest()
