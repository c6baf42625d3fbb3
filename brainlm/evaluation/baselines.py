"""What a sceptical reviewer would try first, on the features of :mod:`brainlm.evaluation.views`.

A fit takes training and validation features with their targets and gives a predictor. Everything
that is fitted (imputation, centring, weights) is fitted on training people; penalties are chosen
by cross-validation among them or on validation people, never on test people. Regression targets
are what a network learns (:class:`~brainlm.cohort.labels.LabelTransform`); classes are 0, 1, ...
and come back as scores [N, C] that sum to 1, as if the classes were equally common, so that the
largest is the decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Penalties tried, as multiples of the mean eigenvalue of the training kernel.
PENALTIES = np.logspace(-3, 3, 25)
#: Costs of a support-vector machine tried, on a kernel of mean eigenvalue 1.
COSTS = np.logspace(-3, 2, 6)
NEIGHBOURS = (1, 3, 5, 10, 20, 50)

Predictor = Callable[[np.ndarray], np.ndarray]  # features [N, F] -> [N] or scores [N, C]


@dataclass(frozen=True)
class Known:
    """What a fit is given.

    Attributes
    ----------
    train, validation : ndarray [S, F]
    y, y_validation : ndarray [S]
    classes : int
        C; 0 for a regression.
    seed : int
    """

    train: np.ndarray
    y: np.ndarray
    validation: np.ndarray
    y_validation: np.ndarray
    classes: int = 0
    seed: int = 1

    def best(self, predictors: list[Predictor]) -> Predictor:
        """The one with the least loss on validation people; the middle one if there are none."""
        if not len(self.y_validation):
            return predictors[len(predictors) // 2]
        return min(
            predictors,
            key=lambda p: prediction_loss(p(self.validation), self.y_validation, self.classes),
        )


def prediction_loss(predicted: np.ndarray, y: np.ndarray, classes: int) -> float:
    """Squared error, or cross-entropy with the classes weighed equally."""
    if not classes:
        return float(np.mean((predicted - y) ** 2))
    picked = predicted[np.arange(len(y)), y.astype(int)]
    weight = 1 / np.bincount(y.astype(int), minlength=classes)[y.astype(int)]
    return float(-(np.log(np.maximum(picked, 1e-6)) * weight).sum() / weight.sum())


def balance(probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Class probabilities [..., C] as if the classes of `y` had been equally common."""
    share = np.bincount(y.astype(int), minlength=probabilities.shape[-1]) / len(y)
    scores = probabilities / np.maximum(share, 1e-9)
    return scores / scores.sum(-1, keepdims=True)


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
        """A rotation of features [N, F] to the axes of the training people, in unit scale.

        Nothing of the training features is lost, and linear solutions are unchanged.
        """
        keep = self.eigenvalues > 1e-9 * self.eigenvalues.max()
        turn = self.vectors[:, keep] / np.sqrt(self.eigenvalues[keep] * self.unit)
        return lambda features: self.against(features) @ turn


def fit_ridge(features: np.ndarray, target: np.ndarray) -> Predictor:
    """Ridge regression, the penalty chosen by leave-one-out on the training subjects.

    The left-out errors come in closed form from one eigendecomposition: with hat matrix H of the
    centred problem, ``e_i = (y - Hy)_i / (1 - 1/n - H_ii)``; the 1/n is the intercept's share.
    """
    kernel, n = Kernel.of(features), len(target)
    offset = target - target.mean()
    rotated = kernel.vectors.T @ offset
    best_error, weights = np.inf, np.zeros(n)
    for penalty in PENALTIES * kernel.unit:
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

    Returns
    -------
    callable
        features [N, F] -> class probabilities [N, C], classes in sorted order.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    axes = Kernel.of(features).axes()
    folds = min(5, int(np.unique(labels, return_counts=True)[1].min()))
    model = LogisticRegression(max_iter=2000)
    if folds > 1:
        inner = StratifiedKFold(folds, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"C": np.logspace(-2, 2, 9)}, cv=inner, scoring="neg_log_loss")
    model.fit(axes(features), labels)
    return lambda others: model.predict_proba(axes(others))


def fit_linear(known: Known) -> Predictor:
    """Ridge; for classes on an indicator of each (a least-squares classifier)."""
    if not known.classes:
        return fit_ridge(known.train, known.y)
    indicators = np.eye(known.classes)[known.y.astype(int)]
    fits = [fit_ridge(known.train, column) for column in indicators.T]
    share = indicators.mean(0)

    def score(features: np.ndarray) -> np.ndarray:
        return soften(4 * (np.stack([fit(features) for fit in fits], 1) - share))

    return score


def soften(values: np.ndarray) -> np.ndarray:
    """Scores [N, C] that sum to 1, the order of the values kept."""
    power = np.exp(values - values.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


def fit_logit(known: Known) -> Predictor:
    """Logistic regression."""
    model = fit_logistic(known.train, known.y, known.seed)
    return lambda features: balance(model(features), known.y)


def fit_svm(known: Known) -> Predictor:
    """Linear support-vector machine in the dual, the cost chosen on validation people."""
    from sklearn.svm import SVC, SVR

    kernel = Kernel.of(known.train)
    inner = kernel.against(known.train) / kernel.unit

    def fit(cost: float) -> Predictor:
        if not known.classes:
            spread = float(known.y.std()) or 1.0
            svr = SVR(kernel="precomputed", C=cost * spread, epsilon=0.1 * spread)
            svr.fit(inner, known.y)
            return lambda features: svr.predict(kernel.against(features) / kernel.unit)
        svc = SVC(kernel="precomputed", C=cost, class_weight="balanced").fit(inner, known.y)

        def score(features: np.ndarray) -> np.ndarray:
            margin = svc.decision_function(kernel.against(features) / kernel.unit)
            if known.classes == 2:
                margin = np.stack([-margin, margin], 1) / 2
            return soften(margin)

        return score

    return known.best([fit(cost) for cost in COSTS])


def fit_neighbours(known: Known) -> Predictor:
    """k nearest training people by cosine, k chosen on validation people: nothing is trained."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    mean, spread = known.train.mean(0), known.train.std(0) + 1e-6

    def fit(k: int) -> Predictor:
        kind = KNeighborsClassifier if known.classes else KNeighborsRegressor
        model = kind(k, metric="cosine").fit((known.train - mean) / spread, known.y)
        if not known.classes:
            return lambda features: model.predict((features - mean) / spread)
        return lambda features: balance(model.predict_proba((features - mean) / spread), known.y)

    return known.best([fit(k) for k in NEIGHBOURS if k <= len(known.y)])
