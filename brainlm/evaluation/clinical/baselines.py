"""What a sceptical reviewer would try first, on the features of :mod:`.views`.

A fit takes training and validation features with their targets and gives a predictor. Everything
that is fitted (imputation, centring, weights) is fitted on training participants; penalties are
chosen by cross-validation among them or on validation participants, never on test participants.
Regression targets are what a network learns (:class:`~brainlm.cohort.labels.LabelTransform`);
classes are 0, 1, ... and come back as scores [N, C] that sum to 1, as if the classes were equally
common, so that the largest is the decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...training.ridge import Kernel, Ridge

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
        """The one of least loss on validation participants; the middle one if there are none."""
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


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> Predictor:
    """Logistic regression with an L2 penalty chosen by inner 5-fold cross-validation.

    Parameters
    ----------
    groups : ndarray [N], optional
        Participants, where they have several rows each: no fold shares one with another.

    Returns
    -------
    callable
        features [N, F] -> class probabilities [N, C], classes in sorted order.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    axes = Kernel.of(features).axes()
    model = LogisticRegression(max_iter=2000)
    if inner := inner_folds(labels, seed, groups):
        grid = {"C": np.logspace(-2, 2, 9)}
        model = GridSearchCV(model, grid, cv=inner, scoring="neg_log_loss")
    model.fit(axes(features), labels)
    return lambda others: model.predict_proba(axes(others))


def inner_folds(
    labels: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """At most five folds (rows to fit on, rows to choose by) that have all classes on both sides,
    and whole groups on one; none where there cannot be two."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    count = min(5, int(np.unique(labels, return_counts=True)[1].min()))
    if groups is not None:
        count = min(count, len(np.unique(groups)))
    if count < 2:
        return []
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = kind(count, shuffle=True, random_state=seed).split(labels, labels, groups)
    return [fold for fold in folds if all(set(labels[p]) == set(labels) for p in fold)]


def fit_ridge(known: Known) -> Predictor:
    """Ridge; for classes on an indicator of each (a least-squares classifier)."""
    if not known.classes:
        ridge = Ridge.fit(known.train, known.y[:, None])
        return lambda features: ridge(features)[:, 0]
    ridge = Ridge.fit(known.train, np.eye(known.classes)[known.y.astype(int)])
    return lambda features: soften(4 * (ridge(features) - ridge.intercept))


def soften(values: np.ndarray) -> np.ndarray:
    """Scores [N, C] that sum to 1, the order of the values kept."""
    power = np.exp(values - values.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


def fit_logit(known: Known) -> Predictor:
    """Logistic regression."""
    model = fit_logistic(known.train, known.y, known.seed)
    return lambda features: balance(model(features), known.y)


def fit_svm(known: Known) -> Predictor:
    """Linear support-vector machine in the dual, the cost chosen on validation participants."""
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
    """k nearest training participants by cosine, k chosen on validation ones: no training."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    mean, spread = known.train.mean(0), known.train.std(0) + 1e-6

    def fit(k: int) -> Predictor:
        kind = KNeighborsClassifier if known.classes else KNeighborsRegressor
        model = kind(k, metric="cosine").fit((known.train - mean) / spread, known.y)
        if not known.classes:
            return lambda features: model.predict((features - mean) / spread)
        return lambda features: balance(model.predict_proba((features - mean) / spread), known.y)

    return known.best([fit(k) for k in NEIGHBOURS if k <= len(known.y)])
