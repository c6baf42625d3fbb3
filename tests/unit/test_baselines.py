"""Baselines against independent fits, the protocol, and the known figures of real data."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from brainlm.evaluation.clinical import baselines, views
from brainlm.training.ridge import Ridge


def test_connectivity_is_fisher_z_of_the_upper_triangle_with_missing_parcels_missing():
    rng = np.random.default_rng(0)
    series = rng.normal(size=(50, 5)) + rng.normal(size=(50, 1))
    series[:, 2] = np.nan
    series[:, 4] = 7.0  # constant
    z = views.correlate_parcels(series)
    whole = np.corrcoef(series[:, [0, 1, 3]].T)
    assert z.shape == (10,)
    np.testing.assert_allclose(z[[0, 2, 5]], np.arctanh(whole[np.triu_indices(3, 1)]), atol=1e-5)
    assert np.isnan(z[[1, 3, 4, 6, 7, 8, 9]]).all()


def test_logistic_on_the_kernel_axes_is_logistic_on_the_features():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 8))
    y = (x[:, 0] + rng.normal(size=30) > 0).astype(float)
    centred = x - x.mean(0)
    unit = np.linalg.eigvalsh(centred @ centred.T).mean()
    best = min(
        np.abs(
            LogisticRegression(C=c / unit, max_iter=5000, tol=1e-8).fit(centred, y)
            .predict_proba(centred) - baselines.fit_logistic(x, y, seed=0)(x)
        ).max()
        for c in np.logspace(-2, 2, 9)
    )  # fmt: skip
    assert best < 2e-3


def test_age_from_connectivity_in_real_data(shared):
    """804 participants of 15 sites: r about .77 over five folds; the mean's MAE is 5.9 y."""
    root = shared / "data" / "abide_cc200"
    participants = pd.read_csv(root / "participants.tsv", sep="\t", dtype={"participant_id": str})
    participants = participants.iloc[::2]  # every second one: a test, not the benchmark
    files = (next((root / p / "func").glob("*.npy")) for p in participants["participant_id"])
    features = np.array([views.correlate_parcels(np.load(path)) for path in files])
    age = participants["age"].to_numpy(float)
    predicted = np.empty(len(age))
    for seen, unseen in KFold(5, shuffle=True, random_state=0).split(features):
        predicted[unseen] = Ridge.fit(features[seen], age[seen, None])(features[unseen])[:, 0]
    assert np.corrcoef(predicted, age)[0, 1] > 0.65
