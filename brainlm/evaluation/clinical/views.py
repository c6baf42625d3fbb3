"""What a method sees of a participant: connectivity, series, embeddings, motion, questionnaires.

A view turns rows of the participants table into features [N, F]; NaN is missing. A participant's
recordings are averaged. Views that are fitted (:class:`Tangent`) are fitted on training
participants only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ...shards import Corpus, Scaling
from ...shards.censored import drop_censored

#: Windows per recording that embeddings and networks average when they predict.
WINDOWS = 3


def correlate_parcels(series: np.ndarray) -> np.ndarray:
    """Fisher z of the correlations between parcels.

    Parameters
    ----------
    series : ndarray [T, R]
        NaN columns are parcels without data, NaN rows censored time points.

    Returns
    -------
    ndarray [R (R - 1) / 2] float32
        Upper triangle, row by row; NaN where either parcel is missing or constant.
    """
    values = np.asarray(drop_censored(series), np.float32)
    values = values - values.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.linalg.norm(values, axis=0)
        values = values / np.where(spread > 1e-6 * np.sqrt(len(values)), spread, np.nan)
    r = values.T @ values
    upper = r[np.triu_indices(len(r), 1)]
    return np.arctanh(np.clip(upper, -0.999, 0.999))  # duplicate parcels stay finite


def connectivity_of(corpus: Corpus, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """[S, F] connectivity per subject, the mean over the recordings (rows of the corpus)."""
    parcels = corpus.info.num_parcels
    out = np.empty((len(rows), parcels * (parcels - 1) // 2), np.float32)
    for subject, indices in enumerate(rows):
        total, seen = np.zeros(out.shape[1]), np.zeros(out.shape[1])
        for index in indices:
            z = correlate_parcels(corpus.series(index))
            total += np.nan_to_num(z)
            seen += np.isfinite(z)
        with np.errstate(invalid="ignore"):
            out[subject] = total / seen  # 0 / 0: no recording has this pair
    return out


class Tangent:
    """Connectivity as a step away from the training participants' mean, in the tangent space.

    Correlation matrices lie on a curved surface; ``log(M^-1/2 C M^-1/2)`` flattens it around the
    mean M, and distances become those between brains (Varoquaux et al., MICCAI 2010; the best of
    the embeddings compared by Dadi et al., NeuroImage 2019). Matrices are shrunk towards no
    correlation so that short recordings have a logarithm; a missing parcel correlates with none.

    nilearn's ConnectivityMeasure refuses a missing parcel and fits the geometric mean,
    iteratively; here it is the arithmetic one, which is quicker and exists for every set.

    Parameters
    ----------
    z : ndarray [S, F]
        Connectivity of training participants.
    """

    SHRINKAGE = 0.2

    def __init__(self, z: np.ndarray):
        self.parcels = int((1 + np.sqrt(1 + 8 * z.shape[1])) / 2)
        self._upper = np.triu_indices(self.parcels, 1)
        mean = sum(self._matrix(row) for row in z) / len(z)
        values, vectors = np.linalg.eigh(mean)
        values = np.maximum(values, self.SHRINKAGE / 2)  # of correlations: at least SHRINKAGE
        self._whiten = (vectors / np.sqrt(values)) @ vectors.T

    def _matrix(self, z: np.ndarray) -> np.ndarray:
        out = np.zeros((self.parcels, self.parcels))
        out[self._upper] = (1 - self.SHRINKAGE) * np.tanh(np.nan_to_num(z))
        return out + out.T + np.eye(self.parcels)

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """[N, F] float32 upper triangles of the logarithms."""
        out = np.empty(z.shape, np.float32)
        for row, values in enumerate(z):
            w, v = np.linalg.eigh(self._whiten @ self._matrix(values) @ self._whiten)
            out[row] = ((v * np.log(np.maximum(w, 1e-6))) @ v.T)[self._upper]
        return out


class Cleaned:
    """Features without what confounds explain of them, fitted on training participants.

    Parameters
    ----------
    features : ndarray [S, F]
    confounds : ndarray [S, C]
        Motion and the like; missing values count as the mean.
    """

    def __init__(self, features: np.ndarray, confounds: np.ndarray):
        self._mean = np.nanmean(confounds, 0)
        self._features_mean = np.nanmean(features, 0)
        filled = np.where(np.isfinite(features), features, self._features_mean)
        self._slopes = np.linalg.pinv(self._design(confounds)) @ (filled - self._features_mean)

    def _design(self, confounds: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(confounds), confounds, self._mean) - self._mean

    def __call__(self, features: np.ndarray, confounds: np.ndarray) -> np.ndarray:
        return features - (self._design(confounds) @ self._slopes).astype(features.dtype)


def one_hot(table: pd.DataFrame, like: pd.DataFrame) -> np.ndarray:
    """Numbers as they are, words as a column per word that the training participants have."""
    columns = []
    for name in like:
        if pd.api.types.is_numeric_dtype(like[name]):
            columns.append(table[name].to_numpy(float))
        else:
            words = sorted(like[name].dropna().unique())
            columns += [(table[name] == word).to_numpy(float) for word in words]
    return np.stack(columns, 1) if columns else np.zeros((len(table), 0))


def raw_series(corpus: Corpus, scaling: Scaling, window: int, rows) -> np.ndarray:
    """[S, R * T] the first window of each participant's first recording, scaled."""
    starts = [int(corpus.starts(r[0], window)[0]) for r in rows]
    windows = [corpus.scaled(r[0], scaling)[s : s + window]
               for r, s in zip(rows, starts, strict=True)]  # fmt: skip
    return np.stack([window.T.ravel() for window in windows])


def embed(model, corpus: Corpus, rows) -> dict[str, np.ndarray]:
    """A frozen model's summaries per participant, averaged over windows and recordings.

    Returns
    -------
    dict
        ``CLS`` [S, D], ``mean token`` [S, D] and, of a model with a token per parcel,
        ``latent connectivity`` [S, R (R - 1) / 2]: Fisher z between the parcels' encodings.
    """
    from ...training.device import get_device, prepare
    from ...training.windows import Windows

    model, device = prepare(model).eval(), get_device()
    flat = np.array([row for some in rows for row in some], int)
    windows = Windows(corpus, model.scaling, model.config.window, flat)
    participants = []
    for some in rows:
        parts = [_summarise(model, windows.even(int(row), WINDOWS).to(device)) for row in some]
        participants.append([_mean_of_known(same) for same in zip(*parts, strict=True)])
    names = ("CLS", "mean token", "latent connectivity")
    return {
        name: np.stack(values).astype(np.float32)
        for name, values in zip(names, zip(*participants, strict=True), strict=False)
    }


def _mean_of_known(arrays) -> np.ndarray:
    """Mean [F] over recordings of what is known; NaN where no recording knows it."""
    values = np.stack(arrays)
    seen = np.isfinite(values)
    total = np.where(seen, values, 0).sum(0)
    return np.where(seen.any(0), total / np.maximum(seen.sum(0), 1), np.nan)


def _summarise(model, signal) -> list[np.ndarray]:
    """Mean over one recording's windows [K, R, T] of CLS, mean token and latent connectivity."""
    from ...model.pooling import summarise_tokens

    tokens = model.tokens(signal)
    pools = ["cls", "mean"] + ["connectivity"] * (model.config.family == "parcel")
    made = [summarise_tokens(tokens, pool, model.components) for pool in pools]
    return [values.mean(0).float().cpu().numpy() for values in made]
