"""The ICA-AROMA rule: four features of a component, and the published thresholds that judge it.

Source: Pruim et al. 2015, NeuroImage 112:267.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .ica_grid import ComponentGrid

if TYPE_CHECKING:
    import pandas as pd

NUM_SPLITS = 1000
#: Published thresholds: fraction in CSF, high-frequency content, and the hyperplane
#: offset + a * max_rp_corr + b * edge_fraction > 0.
CSF_FRACTION = 0.10
HIGH_FREQUENCY = 0.35
HYPERPLANE = (-19.9751070082159, 9.95127547670627, 24.8333160239175)


def measure_features(
    mixing: np.ndarray,
    maps: np.ndarray,
    parameters: np.ndarray,
    tr_s: float,
    grid: ComponentGrid,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The four features of Pruim et al. 2015, one row per component."""
    import pandas as pd

    size = np.abs(maps)
    total = size.sum(1)
    csf = size[:, grid.csf].sum(1)
    rim = size[:, grid.edge | ~grid.brain].sum(1)
    return pd.DataFrame(
        {
            "max_rp_corr": correlate_motion(mixing, parameters, seed=seed),
            "edge_fraction": rim / np.maximum(total - csf, 1e-12) * (total > 0),
            "high_frequency_content": high_frequency_content(mixing, tr_s),
            "csf_fraction": csf / np.maximum(total, 1e-12),
        },
        index=pd.Index(range(1, len(maps) + 1), name="component"),
    )


def high_frequency_content(mixing: np.ndarray, tr_s: float) -> np.ndarray:
    """Where the power above 0.01 Hz is halved, between 0.01 Hz (0) and Nyquist (1): [C]."""
    hertz = np.fft.rfftfreq(len(mixing), tr_s)
    above = hertz > 0.01
    power = np.abs(np.fft.rfft(mixing, axis=0)[above]) ** 2
    share = np.cumsum(power, axis=0) / power.sum(0)
    half = hertz[above][np.abs(share - 0.5).argmin(0)]
    return (half - 0.01) / (0.5 / tr_s - 0.01)


def expand_motion(parameters: np.ndarray) -> np.ndarray:
    """[T, 36]: parameters and backward differences, and both one volume later and earlier."""
    change = np.diff(parameters, axis=0, prepend=parameters[:1])
    both = np.hstack([parameters, change])
    later, earlier = np.zeros_like(both), np.zeros_like(both)
    later[1:], earlier[:-1] = both[:-1], both[1:]
    return np.hstack([both, later, earlier])


def correlate_motion(mixing: np.ndarray, parameters: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Largest |r| of each component with 36 motion models or their squares: [C].

    The mean over 1000 random subsets of 90 % of the volumes, so that a single volume does not
    decide. All subsets at once: sums over a subset are products with a matrix of zeros and ones.
    """
    models = expand_motion(parameters)
    count = len(mixing)
    generator = np.random.default_rng(seed)
    drawn = generator.random((NUM_SPLITS, count)).argsort(1) < round(0.9 * count)
    subset = drawn.astype(np.float32) / round(0.9 * count)
    plain = _subset_correlations(mixing, models, subset)
    squared = _subset_correlations(mixing**2, models**2, subset)
    return np.maximum(plain, squared).mean(0)


def _subset_correlations(x: np.ndarray, y: np.ndarray, subset: np.ndarray) -> np.ndarray:
    """Largest |r| over columns of y, for every subset and column of x: [S, C]."""
    x = ((x - x.mean(0)) / np.maximum(x.std(0), 1e-12)).astype(np.float32)
    y = ((y - y.mean(0)) / np.maximum(y.std(0), 1e-12)).astype(np.float32)
    mean_x, mean_y = subset @ x, subset @ y
    sd_x = np.sqrt(np.maximum(subset @ x**2 - mean_x**2, 1e-12))
    sd_y = np.sqrt(np.maximum(subset @ y**2 - mean_y**2, 1e-12))
    best = np.zeros((len(subset), x.shape[1]), np.float32)
    for j in range(y.shape[1]):
        product = subset @ (x * y[:, j : j + 1]) - mean_x * mean_y[:, j : j + 1]
        np.maximum(best, np.abs(product / (sd_x * sd_y[:, j : j + 1])), out=best)
    return best


def classify_components(features: pd.DataFrame) -> None:
    """Add ``classification`` and ``rule`` (what decided) by the published thresholds."""
    offset, by_motion, by_edge = HYPERPLANE
    plane = offset + by_motion * features["max_rp_corr"] + by_edge * features["edge_fraction"]
    rules = {
        "csf_fraction": features["csf_fraction"] > CSF_FRACTION,
        "high_frequency_content": features["high_frequency_content"] > HIGH_FREQUENCY,
        "motion_and_edge": plane > 0,
    }
    decided = ["+".join(name for name, hit in rules.items() if hit[row]) for row in features.index]
    features["classification"] = ["rejected" if rule else "accepted" for rule in decided]
    features["rule"] = [rule or "none" for rule in decided]
