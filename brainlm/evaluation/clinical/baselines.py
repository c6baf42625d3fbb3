"""What a sceptical reviewer would try first, on the features of :mod:`.views`.

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
