"""Every method of a clinical task, fitted on the same participants of a fold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from ...config import Finetune
from ...shards import Corpus
from ...training.ridge import Kernel
from ...training.windows import Windows
from ..job import make_untrained
from . import baselines, views
from .baselines import Known, Predictor

#: Kernel methods grow with participants squared, in time and memory (10 GB for 424 parcels at this
#: number): of more training participants so many are drawn.
MOST_PARTICIPANTS = 4000
#: Begins the names of views through the model's network with random weights.
UNTRAINED = "untrained "
#: Participants whose features are held at a time while predicting.
_CHUNK = 500

FitMethod = Callable[[Known], Predictor]


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes
    ----------
    name : str
    view : str
        What it sees; see :class:`Fold`.
    fit : callable
        :class:`~brainlm.evaluation.clinical.baselines.Known` -> predictor.
    random : bool
        Whether it is fitted once for each seed of the task.
    """

    name: str
    view: str
    fit: FitMethod
    random: bool = False


def fit_constant(known: Known) -> Predictor:
    """The mean of the training participants; every class alike."""
    if known.classes:
        return lambda features: np.full((len(features), known.classes), 1 / known.classes)
    return lambda features: np.full(len(features), known.y.mean())


def list_methods(
    kind: str, options: Finetune, windows: Windows | None, networks: Sequence[str] = ()
) -> list[Method]:
    """All methods; those on windows need recordings as long as the model's window."""
    from .deep_networks import fit_network

    logistic = [Method("connectivity + logistic", "connectivity", baselines.fit_logit)]
    svm = "SVR" if kind == "regression" else "SVC"
    methods = [
        Method("mean" if kind == "regression" else "chance", "no features", fit_constant),
        Method("mean FD", "mean FD", baselines.fit_ridge),
        Method("site", "site", baselines.fit_ridge),
        Method("demographics", "demographics", baselines.fit_ridge),
        Method("connectivity + ridge", "connectivity", baselines.fit_ridge),
        *(logistic if kind == "classification" else []),
        Method(f"connectivity + {svm}", "connectivity", baselines.fit_svm),
        Method("tangent connectivity + ridge", "tangent", baselines.fit_ridge),
        Method("connectivity less confounds + ridge", "cleaned", baselines.fit_ridge),
    ]
    if windows is None:
        return methods
    deep = partial(fit_network, windows=windows, options=options)
    methods += [
        Method(f"raw series + {svm}", "raw series", baselines.fit_svm),
        *(Method(name, "rows", partial(deep, name), random=True) for name in networks),
        Method("k-NN on CLS, zero-shot", "CLS", baselines.fit_neighbours),
        Method("k-NN on mean token, zero-shot", "mean token", baselines.fit_neighbours),
        Method("linear probe on CLS", "CLS", baselines.fit_ridge),
        Method("linear probe on mean token", "mean token", baselines.fit_ridge),
        Method("linear probe on latent connectivity", "latent connectivity", baselines.fit_ridge),
        Method(
            "linear probe on latent connectivity, untrained",
            f"{UNTRAINED}latent connectivity",
            baselines.fit_ridge,
        ),
        Method("connectivity and latent connectivity + ridge", "both", baselines.fit_ridge),
    ]
    return methods


class Fold:
    """Features of one split of participants into training, validation and test.

    Parameters
    ----------
    corpus : Corpus
    train, validation : DataFrame
        Rows of the participants table: ``rows``, ``y``, ``mean_fd_mm``, and questionnaires.
    model : BrainLM or None
        The frozen, pretrained model, for embeddings.
    cache : dict, optional
        Shared by folds of the same participants, who are then embedded once.
    """

    def __init__(self, corpus: Corpus, train: pd.DataFrame, validation: pd.DataFrame, model=None,
                 windows: Windows | None = None, cache: dict | None = None):  # fmt: skip
        self.corpus, self.model, self.windows = corpus, model, windows
        self.everyone = train, validation
        many = len(train) > MOST_PARTICIPANTS
        self.train = train.sample(MOST_PARTICIPANTS, random_state=0) if many else train
        self.validation = validation.head(MOST_PARTICIPANTS)
        self._keep, self._cache = cache is not None, {} if cache is None else cache

    def view(self, name: str, participants: pd.DataFrame) -> np.ndarray | None:
        """Features [N, ...] of participants, before anything is fitted; None if none is known."""
        rows = participants["rows"]
        if name == "no features":
            return np.zeros((len(participants), 0))
        if name == "rows":
            out = np.empty(len(participants), object)
            out[:] = [np.array(some) for some in rows]
            return out
        if name == "mean FD":
            return participants[["mean_fd_mm"]].to_numpy(float)
        if name in ("site", "demographics"):
            wanted = ["site"] if name == "site" else ["age", "sex"]
            some = [c for c in wanted if f"is:{c}" in participants]
            named = [f"is:{c}" for c in some]
            return views.one_hot(participants[named], self.train[named]) if some else None
        if name in ("connectivity", "tangent", "cleaned"):
            return self._per_participant("connectivity", participants)
        if name == "both":  # does the model add to what connectivity knows?
            latent = self._per_participant("latent connectivity", participants)
            plain = self._per_participant("connectivity", participants)
            return None if latent is None else np.concatenate([plain, latent], 1)  # type: ignore[list-item]
        if name == "raw series":
            assert self.windows is not None
            scaling, window = self.model.scaling, self.model.config.window
            return views.raw_series(self.corpus, scaling, window, rows)
        return self._per_participant(name, participants)

    def count_trained_on(self, methods: list[Method]) -> dict[str, int]:
        """Training participants by method: networks that learn from windows get all of them."""
        return {m.name: len(self._learners(m.view)[0]) for m in methods}

    def _learners(self, view: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Training and validation participants that methods of a view are fitted on."""
        return self.everyone if view == "rows" else (self.train, self.validation)

    def _known(self, name: str, participants: pd.DataFrame) -> np.ndarray:
        features = self.view(name, participants)
        assert features is not None  # it was known of the training participants
        return features

    def _per_participant(self, name: str, participants: pd.DataFrame) -> np.ndarray | None:
        """Features that are dear and belong to a participant whatever the fold: kept."""
        missing = [i for i, key in enumerate(participants.index) if (name, key) not in self._cache]
        if missing:
            rows = participants["rows"].iloc[missing]
            if name == "connectivity":
                found = {name: views.connectivity_of(self.corpus, list(rows))}
            else:
                start = UNTRAINED if name.startswith(UNTRAINED) else ""
                model = make_untrained(self.model) if start else self.model
                made = views.embed(model, self.corpus, list(rows))
                found = {start + view: values for view, values in made.items()}
            for view, values in found.items():
                for key, value in zip(rows.index, values, strict=True):
                    self._cache[view, key] = value
        if (name, participants.index[0]) not in self._cache:
            return None
        return np.stack([self._cache[name, key] for key in participants.index])

    def _fitted(self, name: str) -> Callable[[pd.DataFrame], np.ndarray] | None:
        """The view with what it fits; a wide one as its axes, at most as many as participants.

        Not tokens: neighbours are found among their dimensions, and of as many axes as
        participants every training participant would be as far from every other.
        """
        features = self.view(name, self.train)
        if features is None or (features.dtype != object and name != "no features"
                                and not np.isfinite(features).any()):  # fmt: skip
            return None
        step: Callable[[np.ndarray, pd.DataFrame], np.ndarray]
        if name == "tangent":
            tangent = views.Tangent(features)
            step = lambda f, participants: tangent(f)  # noqa: E731
        elif name == "cleaned":
            if not self._confounds(self.train).shape[1]:
                return None
            cleaned = views.Cleaned(features, self._confounds(self.train))
            step = lambda f, participants: cleaned(f, self._confounds(participants))  # noqa: E731
        elif name == "both":
            scale = np.repeat(
                [np.nanstd(half) for half in np.split(features, 2, axis=1)], features.shape[1] // 2
            )
            step = lambda f, participants: f / scale.astype(f.dtype)  # noqa: E731
        else:
            step = lambda f, participants: f  # noqa: E731
        features = step(features, self.train)
        tokens = name.removeprefix(UNTRAINED) in ("CLS", "mean token")
        if tokens or features.dtype == object or features.shape[1] <= len(features):
            return lambda participants: step(self._known(name, participants), participants)
        axes = Kernel.of(features).axes()
        return lambda participants: axes(step(self._known(name, participants), participants))

    def _confounds(self, participants: pd.DataFrame) -> np.ndarray:
        sites = self.view("site", participants)
        motion = participants[["mean_fd_mm"]].to_numpy(float)
        motion = motion if np.isfinite(self.train["mean_fd_mm"]).any() else motion[:, :0]
        return motion if sites is None else np.concatenate([motion, sites], 1)

    def predict(
        self, methods: list[Method], test: pd.DataFrame, classes: int, seeds: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """Predictions [N, seeds], or scores [N, seeds, C], of the participants `test` by method.

        A method whose view has no data at all (no motion estimate, no such column) is left out.
        """
        fitted = list(self._fit(methods, classes, seeds)) if len(test) else []
        parts: dict[str, list[np.ndarray]] = {}
        for first in range(0, len(test), _CHUNK):
            participants = test.iloc[first : first + _CHUNK]
            for features, predictors in fitted:
                some = features(participants)
                for method, fits in predictors.items():
                    predicted = np.stack([predict(some) for predict in fits], 1)
                    parts.setdefault(method, []).append(predicted)
            if not self._keep:
                used = set(participants.index)
                self._cache = {k: v for k, v in self._cache.items() if k[1] not in used}
        return {method: np.concatenate(chunks) for method, chunks in parts.items()}

    def _fit(self, methods, classes: int, seeds) -> Iterator[tuple[Callable, dict]]:
        """(features of participants, predictors of every seed by method) for each view."""
        for name in dict.fromkeys(method.view for method in methods):
            features = self._fitted(name)
            if features is None:
                continue
            participants, others = self._learners(name)
            train = features(participants)
            known = Known(
                train, participants["y"].to_numpy(float),
                features(others) if len(others) else train[:0],
                others["y"].to_numpy(float), classes,
            )  # fmt: skip
            yield (
                features,
                {
                    method.name: [
                        method.fit(replace(known, seed=seed))
                        for seed in (seeds if method.random else seeds[:1])
                    ]
                    for method in methods
                    if method.view == name
                },
            )
