"""Ridge regression with far more features than participants, in closed form.

scikit-learn's RidgeCV chooses the same penalty and weights (a test says so), but takes penalties
as numbers, while these are relative to the kernel's mean eigenvalue: the kernel would be
decomposed twice. The one decomposition here also serves logistic regression, missing features, and
the predictions of left-out participants at the chosen penalty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Penalties tried, as multiples of the mean eigenvalue of the training kernel.
PENALTIES = np.logspace(-3, 3, 25)


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

    @property
    def unit(self) -> float:
        """Mean eigenvalue."""
        return float(self.eigenvalues.mean()) or 1.0

    def axes(self) -> Callable[[np.ndarray], np.ndarray]:
        """A rotation of features [N, F] to the axes of the training participants, in unit scale.

        Nothing of the training features is lost, and linear solutions are unchanged.
        """
        keep = self.eigenvalues > 1e-9 * self.eigenvalues.max()
        turn = self.vectors[:, keep] / np.sqrt(self.eigenvalues[keep] * self.unit)
        return lambda features: self.against(features) @ turn


@dataclass
class Ridge:
    """A ridge regression of several targets, each with a penalty of its own.

    Attributes
    ----------
    kernel : Kernel
    dual : ndarray [S, K]
        Weights of the training participants.
    intercept : ndarray [K]
    left_out : ndarray [S, K]
        What is predicted of each training participant by a fit without that participant.
    """

    kernel: Kernel
    dual: np.ndarray
    intercept: np.ndarray
    left_out: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, targets: np.ndarray) -> Ridge:
        """Penalties chosen by leave-one-out on the training participants.

        The left-out errors come in closed form from one eigendecomposition: with hat matrix H of
        the centred problem, ``e_i = (y - Hy)_i / (1 - 1/n - H_ii)``; the 1/n is the intercept's
        share.

        Parameters
        ----------
        features : ndarray [S, F]
            NaN counts as the mean.
        targets : ndarray [S, K]
        """
        kernel, n = Kernel.of(features), len(targets)
        intercept = targets.mean(0)
        offset = targets - intercept
        rotated = kernel.vectors.T @ offset
        least = np.full(targets.shape[1], np.inf)
        dual, left_out = np.zeros(targets.shape), np.zeros(targets.shape)
        for penalty in PENALTIES * kernel.unit:
            share = kernel.eigenvalues / (kernel.eigenvalues + penalty)
            room = 1 - 1 / n - kernel.vectors**2 @ share
            errors = (offset - kernel.vectors @ (share[:, None] * rotated)) / room[:, None]
            squared = np.mean(errors**2, 0)
            better = squared < least
            least = np.where(better, squared, least)
            weights = kernel.vectors @ (rotated / (kernel.eigenvalues + penalty)[:, None])
            dual = np.where(better, weights, dual)
            left_out = np.where(better, targets - errors, left_out)
        return cls(kernel, dual, intercept, left_out)

    @property
    def weights(self) -> np.ndarray:
        """[F, K] of the features less their mean."""
        return self.kernel.features.T @ self.dual

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[N, K] predictions for features [N, F]."""
        return self.intercept + self.kernel.against(features) @ self.dual


def linear_readout(
    features: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression as the weights of a linear layer.

    For classes on an indicator of each, whose scores come as log odds: the classes' shares, plus
    as much of the scores as predicts best the participants who were left out. Far more features
    than participants would else be far too sure of themselves.

    Parameters
    ----------
    features : ndarray [S, F]
        NaN counts as the mean.
    labels : ndarray [S]
        Targets, or classes 0, 1, ... as whole numbers.
    classes : int
        C; 0 for a regression.

    Returns
    -------
    weights : ndarray [F, K] float32
        K is 1 for a regression and for two classes (log odds of class 1), else C.
    bias : ndarray [K] float32
    """
    indicators = np.eye(classes)[labels] if classes > 2 else labels[:, None].astype(float)
    ridge = Ridge.fit(features, indicators)
    weights, bias = ridge.weights, ridge.intercept
    if classes:
        share = np.bincount(labels, minlength=classes) / len(labels)
        bias = np.log(share) if classes > 2 else np.log(share[1:] / share[0])
        weights = weights * _sureness(ridge.left_out - ridge.intercept, bias, labels)
    bias = bias - ridge.kernel.mean @ weights
    return weights.astype(np.float32), bias.astype(np.float32)


def _sureness(scores: np.ndarray, bias: np.ndarray, labels: np.ndarray) -> float:
    """The factor >= 0 of scores [S, K] with which cross-entropy is least."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(factor: float) -> float:
        odds = factor * scores + bias
        if odds.shape[1] == 1:
            odds = np.concatenate([np.zeros_like(odds), odds], 1)
        return -float(log_softmax(odds, 1)[np.arange(len(labels)), labels].mean())

    most = 10 / max(float(scores.std()), 1e-9)
    return float(minimize_scalar(loss, bounds=(0.0, most), method="bounded").x)
