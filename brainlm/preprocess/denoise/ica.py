"""Find artefacts by spatial ICA and tell them from signal by the ICA-AROMA rule.

Method. The run is sampled, motion-corrected and smoothed to 6 mm, on a 4 mm grid in template
space within the subject's brain mask; drifts are removed and every point is scaled to unit
variance. Principal components of the T x T covariance reduce it to the model order at which the
Bayesian information criterion of probabilistic PCA is largest (Minka 2000; Beckmann & Smith
2004), with the resolution elements of the measured smoothness as independent samples; at most 60
and a third of the volumes. Symmetric FastICA with the logcosh contrast (Hyvarinen 1999) separates
spatial maps. Maps are thresholded where a Gaussian-gamma mixture says that a value is more
probably signal than background (Beckmann & Smith 2004). Four features and fixed thresholds decide
(Pruim et al. 2015, NeuroImage 112:267): fraction in CSF, high-frequency content, fraction at the
edge of the brain, correlation with the motion parameters.

What differs from the published tool: the data are high-passed before the decomposition, with the
filter that the series get, and the motion parameters are high-passed alike; masks are built from
the template's tissue maps instead of shipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import RecordingError
from .aroma import (
    CSF_FRACTION,
    HIGH_FREQUENCY,
    HYPERPLANE,
    NUM_SPLITS,
    classify_components,
    measure_features,
)
from .filter import clean_columns, filter_basis
from .ica_grid import GRID_MM, SMOOTH_FWHM_MM, ComponentGrid

if TYPE_CHECKING:
    import pandas as pd

MAX_COMPONENTS = 60
MAX_ITERATIONS = 600
TOLERANCE = 1e-4
#: For the sidecar.
SETTINGS = {
    "GridMm": GRID_MM,
    "SmoothingFWHMMm": SMOOTH_FWHM_MM,
    "MostComponents": MAX_COMPONENTS,
    "MostIterations": MAX_ITERATIONS,
    "Tolerance": TOLERANCE,
    "CsfFraction": CSF_FRACTION,
    "HighFrequencyContent": HIGH_FREQUENCY,
    "Hyperplane": HYPERPLANE,
    "SubsetsOfVolumes": NUM_SPLITS,
    "Seed": 0,
}


@dataclass(frozen=True)
class Components:
    """A decomposition.

    Attributes
    ----------
    mixing : ndarray [T, C]
        Time courses, unit variance, high-passed; sorted by explained variance.
    maps : ndarray [C, N]
        float32 z values above threshold, 0 elsewhere.
    features : DataFrame [C]
        The four features, explained variance, verdict (accepted | rejected) and the rule.
    noise : ndarray [C]
        bool.
    converged : bool
    iterations : int
    """

    mixing: np.ndarray
    maps: np.ndarray
    features: pd.DataFrame
    noise: np.ndarray
    converged: bool
    iterations: int


def fit_ica(
    samples: np.ndarray,
    tr_s: float,
    parameters: np.ndarray,
    grid: ComponentGrid,
    *,
    high_pass_hz: float,
    max_components: int = MAX_COMPONENTS,
    seed: int = 0,
) -> Components:
    """Decompose a run and name the artefacts.

    Parameters
    ----------
    samples : ndarray [T, N]
        Motion-corrected, smoothed, on `grid`; NaN columns are outside the field of view.
    parameters : ndarray [T, 6]
        Motion, mm and radians.
    max_components : int
        Cap of the model order; a third of the volumes is another.

    Raises
    ------
    RecordingError
        ``denoise_failed``: too few points or volumes to decompose.
    """
    basis = filter_basis(len(samples), tr_s, high_pass_hz)
    usable = usable_points(samples, basis)
    data = clean_columns(samples[:, usable], basis)
    data /= np.maximum(data.std(0), 1e-12)
    resels = count_resels(data, grid, usable)
    whitened = _whiten(data, basis.shape[1], resels, max_components)
    maps, converged, iterations = separate(whitened, seed=seed)
    mixing, zmaps, share = _project(data, maps)
    thresholded = np.zeros((len(zmaps), samples.shape[1]), np.float32)
    thresholded[:, usable] = [threshold_map(z) for z in zmaps]
    features = measure_features(
        mixing, thresholded, clean_columns(parameters, basis), tr_s, grid, seed=seed
    )
    features.insert(0, "variance_explained", share)
    classify_components(features)
    noise = (features["classification"] == "rejected").to_numpy()
    return Components(mixing, thresholded, features, noise, converged, iterations)


def usable_points(samples: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Which points [N] of samples [T, N] can be decomposed; an error if they are too few."""
    usable = np.isfinite(samples).all(0)
    usable[usable] = samples[:, usable].std(0) > 0
    if usable.sum() < 1000 or len(samples) - basis.shape[1] < 20:
        raise RecordingError(
            "denoise_failed",
            f"expected at least 1000 grid points and 20 free volumes for ICA, found "
            f"{int(usable.sum())} and {len(samples) - basis.shape[1]}; choose denoise: motion24",
        )
    return usable


def _whiten(data: np.ndarray, num_removed: int, resels: float, cap: int) -> np.ndarray:
    """Reduce [T, N] to K whitened principal components [K, N]."""
    count, points = data.shape
    centred = data - data.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64) / points)
    values, vectors = values[::-1], vectors[:, ::-1]
    free = count - num_removed
    order = choose_order(values[:free], resels, min(cap, count // 3))
    scale = vectors[:, :order] / np.sqrt(values[:order])
    # the sign of an eigenvector is arbitrary: fix it so that results do not depend on the library
    scale *= np.sign(scale[np.abs(scale).argmax(0), np.arange(order)])
    return (scale.T.astype(np.float32)) @ centred


def count_resels(data: np.ndarray, grid: ComponentGrid, usable: np.ndarray) -> float:
    """Number of independent samples in space: points over the volume of a smoothness kernel.

    Noise of unit variance smoothed to a full width at half maximum W correlates by
    exp(-2 ln 2 (d / W)^2) at distance d; W along each axis is solved for from the mean
    correlation of neighbours.

    Parameters
    ----------
    data : ndarray [T, M]
        Unit variance, the points where `usable` [N] is true.
    """
    index = np.full(grid.mask.shape, -1)
    index[grid.mask] = np.where(usable, np.cumsum(usable) - 1, -1)
    kernel = 1.0
    for axis in range(3):
        first = np.moveaxis(index, axis, 0)[:-1].ravel()
        second = np.moveaxis(index, axis, 0)[1:].ravel()
        pairs = np.flatnonzero((first >= 0) & (second >= 0))[::5]
        together = np.einsum("tn,tn->", data[:, first[pairs]], data[:, second[pairs]])
        r = np.clip(together / (len(data) * max(len(pairs), 1)), 0.05, 0.98)
        kernel *= max(1.0, np.sqrt(-2 * np.log(2) / np.log(r)))  # in grid steps
    return data.shape[1] / kernel


def choose_order(eigenvalues: np.ndarray, num_samples: float, cap: int) -> int:
    """Number of components with the largest BIC of probabilistic PCA (Minka 2000, eq. 77).

    Parameters
    ----------
    eigenvalues : ndarray [D]
        Of the covariance, descending, only those that can be non-zero.
    num_samples : float
        Independent samples: resolution elements, not voxels.
    cap : int
    """
    dims = len(eigenvalues)
    k = np.arange(1, min(cap, dims - 1) + 1)
    values = np.maximum(eigenvalues, 1e-12 * eigenvalues[0])
    rest = (values.sum() - np.cumsum(values))[k - 1] / (dims - k)
    likelihood = np.cumsum(np.log(values))[k - 1] + (dims - k) * np.log(rest)
    free_parameters = dims * k - k * (k + 1) / 2 + k
    bic = -num_samples / 2 * likelihood - free_parameters / 2 * np.log(num_samples)
    return int(k[np.argmax(bic)])


def separate(whitened: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, bool, int]:
    """Symmetric FastICA with the logcosh contrast in float32.

    Parameters
    ----------
    whitened : ndarray [K, N]

    Returns
    -------
    sources : ndarray [K, N]
        Unit variance.
    converged : bool
    iterations : int
    """
    order, points = whitened.shape
    data = np.ascontiguousarray(whitened, np.float32)
    weights = _decorrelate(np.random.default_rng(seed).standard_normal((order, order)))
    iteration, change = 0, np.inf
    while change >= TOLERANCE and iteration < MAX_ITERATIONS:
        iteration += 1
        slope = np.tanh(weights.astype(np.float32) @ data)
        curvature = 1 - np.einsum("kn,kn->k", slope, slope) / points
        update = (slope @ data.T).astype(np.float64) / points - curvature[:, None] * weights
        update = _decorrelate(update)
        change = np.abs(np.abs(np.einsum("ij,ij->i", update, weights)) - 1).max()
        weights = update
    return weights.astype(np.float32) @ data, bool(change < TOLERANCE), iteration


def _decorrelate(weights: np.ndarray) -> np.ndarray:
    """Nearest orthogonal matrix."""
    left, _, right = np.linalg.svd(weights)
    return left @ right


def _project(data: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time courses [T, C], z maps [C, N] and shares of variance, largest share first."""
    mixing = data @ maps.T / data.shape[1]
    loadings = np.linalg.pinv(mixing.astype(np.float64)).astype(np.float32) @ data
    residual = (data - mixing @ loadings).std(0)
    share = (mixing**2).sum(0) / len(data)
    skew = np.sign((loadings**3).sum(1))
    order = np.argsort(-share, kind="stable")
    scale = mixing.std(0)
    mixing = (mixing / scale * skew)[:, order].astype(np.float64)
    z = (loadings * (skew * scale)[:, None] / np.maximum(residual, 1e-6))[order]
    z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    return mixing, z.astype(np.float32), share[order].astype(np.float64)


def threshold_map(values: np.ndarray) -> np.ndarray:
    """Keep values that a Gaussian-gamma mixture calls signal with p > 0.5; 0 elsewhere.

    The mixture (background Gaussian, a gamma for each tail) is fitted by moment-matching
    expectation-maximisation to a histogram. A gamma's moments are taken of values outside one
    background standard deviation, so that it cannot turn into the background.
    """
    edges = np.linspace(values.min(), values.max(), 257)
    centre = (edges[1:] + edges[:-1]) / 2
    counts = np.histogram(values, edges)[0].astype(np.float64)
    posterior = _fit_mixture(centre, counts)
    background = posterior[0] >= 0.5
    # background is one interval around the mode: a mixture must not call its middle signal
    mode = np.average(centre, weights=counts * posterior[0])
    low = centre[(centre < mode) & ~background].max(initial=-np.inf)
    high = centre[(centre > mode) & ~background].min(initial=np.inf)
    return np.where((values <= low) | (values >= high), values, 0)


def _fit_mixture(centre: np.ndarray, counts: np.ndarray, iterations: int = 50) -> np.ndarray:
    """Posterior probabilities [3, bins] of background, positive and negative signal."""
    middle = np.average(centre, weights=counts)
    spread = 1.0
    tails = [(2.5, 1.0), (2.5, 1.0)]  # mean, variance
    weight = np.array([0.9, 0.05, 0.05])
    for _ in range(iterations):
        density = np.stack(
            [
                np.exp(-0.5 * ((centre - middle) / spread) ** 2) / (spread * np.sqrt(2 * np.pi)),
                _gamma_density(centre - middle, *tails[0]),
                _gamma_density(middle - centre, *tails[1]),
            ]
        )
        joint = weight[:, None] * density
        posterior = joint / np.maximum(joint.sum(0), 1e-300)
        mass = posterior * counts
        weight = mass.sum(1) / counts.sum()
        middle, variance = _moments(centre, mass[0])
        spread = np.sqrt(variance) + 1e-6
        for tail, sign in enumerate((1, -1)):
            away = sign * (centre - middle)
            portion = mass[tail + 1] * (away > spread)
            if portion.sum() > 1:
                mean, variance = _moments(away, portion)
                tails[tail] = (mean, max(variance, 1e-3))
    return posterior


def _moments(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Weighted mean and variance."""
    total = max(weights.sum(), 1e-300)
    mean = values @ weights / total
    return mean, (values - mean) ** 2 @ weights / total


def _gamma_density(away: np.ndarray, mean: float, variance: float) -> np.ndarray:
    from scipy.special import gammaln

    shape, rate = mean**2 / variance, mean / variance
    positive = np.maximum(away, 1e-9)
    log_density = shape * np.log(rate) + (shape - 1) * np.log(positive) - rate * positive
    return np.where(away > 0, np.exp(log_density - gammaln(shape)), 0.0)
