"""What a sceptical reviewer would try first: the mean, head motion, and connectivity.

Everything that is fitted (imputation, centring, penalty) is fitted on training subjects only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..shards import Corpus

#: Penalties tried, as multiples of the mean eigenvalue of the training kernel.
PENALTIES = np.logspace(-3, 3, 25)


def connectivity(series: np.ndarray) -> np.ndarray:
    """Fisher z of the correlations between parcels.

    Parameters
    ----------
    series : ndarray [T, R]
        NaN columns are parcels without data.

    Returns
    -------
    ndarray [R (R - 1) / 2] float32
        Upper triangle, row by row; NaN where either parcel is missing or constant.
    """
    values = np.asarray(series, np.float32)
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
            z = connectivity(corpus.series(index))
            total += np.nan_to_num(z)
            seen += np.isfinite(z)
        with np.errstate(invalid="ignore"):
            out[subject] = total / seen  # 0 / 0: no recording has this pair
    return out


@dataclass
class Kernel:
    """Linear kernel of training features, centred and imputed with the training means.

    Ridge and logistic regression need the features only through it, so the cost grows with the
    subjects squared and not with the 89,676 pairs of 424 parcels.
    """

    features: np.ndarray  # [S, F], centred, zero where missing
    mean: np.ndarray  # [F]
    eigenvalues: np.ndarray  # [S]
    vectors: np.ndarray  # [S, S]

    @classmethod
    def of(cls, features: np.ndarray) -> Kernel:
        seen = np.isfinite(features)
        total = np.where(seen, features, 0).sum(0, dtype=np.float64)
        mean = (total / np.maximum(seen.sum(0), 1)).astype(np.float32)
        centred = np.where(seen, features - mean, 0)
        values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        return cls(centred, mean, np.maximum(values, 0), vectors)

    def against(self, features: np.ndarray) -> np.ndarray:
        """[N, S] kernel of other features [N, F] with the training ones."""
        return np.where(np.isfinite(features), features - self.mean, 0) @ self.features.T


Predictor = Callable[[np.ndarray], np.ndarray]  # features [N, F] -> predictions


def fit_ridge(features: np.ndarray, target: np.ndarray) -> Predictor:
    """Ridge regression, the penalty chosen by leave-one-out on the training subjects.

    The left-out errors come in closed form from one eigendecomposition: with hat matrix H of the
    centred problem, ``e_i = (y - Hy)_i / (1 - 1/n - H_ii)``; the 1/n is the intercept's share.
    """
    kernel, n = Kernel.of(features), len(target)
    offset = target - target.mean()
    rotated = kernel.vectors.T @ offset
    scale = kernel.eigenvalues.mean() or 1.0
    best_error, weights = np.inf, np.zeros(n)
    for penalty in PENALTIES * scale:
        share = kernel.eigenvalues / (kernel.eigenvalues + penalty)
        leverage = kernel.vectors**2 @ share
        left_out = (offset - kernel.vectors @ (share * rotated)) / (1 - 1 / n - leverage)
        error = float(np.mean(left_out**2))
        if error < best_error:
            best_error = error
            weights = kernel.vectors @ (rotated / (kernel.eigenvalues + penalty))
    return lambda others: target.mean() + kernel.against(others) @ weights


def fit_logistic(features: np.ndarray, labels: np.ndarray, seed: int) -> Predictor:
    """Logistic regression with an L2 penalty chosen by inner 5-fold cross-validation.

    Features are rotated to the axes of the training kernel, which leaves the solution unchanged.

    Returns
    -------
    callable
        features [N, F] -> class probabilities [N, C], classes in sorted order.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    kernel = Kernel.of(features)
    keep = kernel.eigenvalues > 1e-9 * kernel.eigenvalues.max()
    scale = np.sqrt(kernel.eigenvalues[keep])
    unit = np.sqrt(kernel.eigenvalues.mean() or 1.0)
    axes = kernel.vectors[:, keep]
    folds = min(5, int(np.unique(labels, return_counts=True)[1].min()))
    model = LogisticRegression(max_iter=2000)
    if folds > 1:
        inner = StratifiedKFold(folds, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"C": np.logspace(-2, 2, 9)}, cv=inner, scoring="neg_log_loss")
    model.fit(axes * scale / unit, labels)
    return lambda others: model.predict_proba(kernel.against(others) @ axes / scale / unit)
