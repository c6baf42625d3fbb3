"""Ridge regression in closed form against independent fits, and as the start of a head."""

from __future__ import annotations

import numpy as np
import torch
from sklearn import linear_model
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from brainlm.model import PredictionHead
from brainlm.training.ridge import PENALTIES, Ridge, linear_readout


def test_it_chooses_the_penalty_that_leave_one_out_chooses_for_each_target():
    rng = np.random.default_rng(1)
    x, unseen = rng.normal(3, 1, (24, 40)), rng.normal(3, 1, (6, 40))
    y = np.stack([x[:, :5].sum(1) + rng.normal(0, 2, 24), rng.normal(5, 1, 24)], 1)
    scale = np.linalg.eigvalsh((x - x.mean(0)) @ (x - x.mean(0)).T).mean()
    ridge = Ridge.fit(x, y)
    for k, target in enumerate(y.T):
        models = [linear_model.Ridge(alpha=a) for a in PENALTIES * scale]
        left_out = [cross_val_predict(m, x, target, cv=LeaveOneOut()) for m in models]
        best = int(np.argmin([np.mean((guess - target) ** 2) for guess in left_out]))
        np.testing.assert_allclose(ridge.left_out[:, k], left_out[best], rtol=1e-6)
        expected = models[best].fit(x, target).predict(unseen)
        np.testing.assert_allclose(ridge(unseen)[:, k], expected, rtol=1e-6)
    theirs = linear_model.RidgeCV(PENALTIES * scale, alpha_per_target=True).fit(x, y)
    np.testing.assert_allclose(ridge(unseen), theirs.predict(unseen), rtol=1e-6)


def test_it_imputes_with_training_means_only():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 6))
    ridge = Ridge.fit(x, x[:, :1])
    holes = x[:3].copy()
    holes[:, 4] = np.nan
    filled = holes.copy()
    filled[:, 4] = x[:, 4].mean()
    np.testing.assert_allclose(ridge(holes), ridge(filled), rtol=1e-5)
    assert np.isfinite(Ridge.fit(np.where(x > 1, np.nan, x), x[:, :1])(holes)).all()


def test_a_head_begins_as_the_ridge_regression():
    rng = np.random.default_rng(3)
    x = rng.normal(2, 3, (30, 200)).astype(np.float32)
    y = x[:, :9].sum(1) + rng.normal(0, 3, 30)
    head = PredictionHead(200, 8, linear=True).eval()
    head.fit_scale(torch.from_numpy(x[:10]))
    head.start_linear(*map(torch.from_numpy, linear_readout(x, y, 0)))
    said = head(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(said, Ridge.fit(x, y[:, None])(x), rtol=1e-3, atol=1e-3)


def test_classes_come_as_log_odds_that_are_no_surer_than_left_out_participants_allow():
    """Far more features than participants: within the training set everything would be certain."""
    rng = np.random.default_rng(4)
    labels = rng.permutation(np.repeat([0, 1, 2], [40, 20, 20]))
    noise = rng.normal(size=(80, 2000)).astype(np.float32)
    weights, bias = linear_readout(noise, labels, 3)
    unseen = rng.normal(size=(200, 2000)).astype(np.float32)
    shares = torch.from_numpy(unseen @ weights + bias).softmax(1).numpy()
    assert np.abs(shares.mean(0) - [0.5, 0.25, 0.25]).max() < 0.05 and shares.max() < 0.9
    told = noise + 2 * rng.normal(size=(3, 2000)).astype(np.float32)[labels]
    weights, bias = linear_readout(told, labels, 3)
    assert ((told @ weights + bias).argmax(1) == labels).all()
    weights, bias = linear_readout(told[labels < 2], labels[labels < 2], 2)
    assert weights.shape == (2000, 1)  # of the larger class
    assert (((told[labels < 2] @ weights + bias)[:, 0] > 0) == labels[labels < 2]).all()
