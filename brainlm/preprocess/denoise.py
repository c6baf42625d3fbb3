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
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RecordingError
from .filter import clean_columns, filter_basis

if TYPE_CHECKING:
    import pandas as pd

    from .template import Template

GRID_MM = 4.0
SMOOTH_FWHM_MM = 6.0
EDGE_MM = 6.0
MAX_COMPONENTS = 60
MAX_ITERATIONS = 200
TOLERANCE = 1e-4
NUM_SPLITS = 1000
#: Published thresholds: fraction in CSF, high-frequency content, and the hyperplane
#: offset + a * max_rp_corr + b * edge_fraction > 0.
CSF_FRACTION = 0.10
HIGH_FREQUENCY = 0.35
HYPERPLANE = (-19.9751070082159, 9.95127547670627, 24.8333160239175)


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
class Grid:
    """Points of template space at which a run is decomposed, and what lies there.

    Attributes
    ----------
    mask : ndarray [Z, Y, X]
        Where the points are; all other arrays are [N], in its C order.
    affine : ndarray [4, 4]
    points : ndarray [N, 3]
        Template mm.
    brain, edge, csf, white : ndarray [N]
        bool. Edge: within 6 mm of the outside or of CSF. CSF: ventricles only.
    """

    mask: np.ndarray
    affine: np.ndarray
    points: np.ndarray
    brain: np.ndarray
    edge: np.ndarray
    csf: np.ndarray
    white: np.ndarray


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


def make_grid(template: Template) -> Grid:
    """Every n-th voxel of the template, in and one step around its brain mask."""
    from scipy import ndimage as ndi

    size = float(np.abs(np.linalg.det(template.affine[:3, :3])) ** (1 / 3))
    step = max(1, round(GRID_MM / size))
    mask = template.mask.astype(bool)
    depth = ndi.distance_transform_edt(mask) * size  # mm below the surface
    ventricles = _ventricles(template, depth)
    tissue = mask & ~ventricles
    edge = tissue & (ndi.distance_transform_edt(tissue) * size <= EDGE_MM)
    white = ndi.gaussian_filter(template.white.astype(np.float32), 2.0 / size) > 0.9
    near = ndi.binary_dilation(mask, iterations=step)
    coarse = tuple([slice(step // 2, None, step)] * 3)
    where = near[coarse]
    affine = template.affine.astype(np.float64).copy()
    affine[:3, 3] += affine[:3, :3] @ np.full(3, step // 2)
    affine[:3, :3] *= step
    points = np.argwhere(where)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    brain, rim, csf, inner = (m[coarse][where] for m in (mask, edge, ventricles, white))
    return Grid(where, affine, points, brain, rim, csf, inner)


@lru_cache(maxsize=2)
def load_grid(space: str) -> Grid:
    """The grid of a template space (kept in memory; do not write to its arrays)."""
    from .template import load_template

    return make_grid(load_template(space))


def _ventricles(template: Template, depth: np.ndarray) -> np.ndarray:
    """CSF that is not the rim: the largest deep pieces of the CSF map."""
    from scipy import ndimage as ndi

    pieces, count = ndi.label((template.csf > 0.5) & (depth > 15))
    if not count:
        return np.zeros(depth.shape, bool)
    sizes = np.bincount(pieces.ravel())[1:]
    large = np.flatnonzero(sizes > 0.1 * sizes.max()) + 1
    return np.isin(pieces, large)


def smooth_grid(samples: np.ndarray, grid: Grid, fwhm_mm: float) -> np.ndarray:
    """Gaussian smoothing of [T, N] grid samples within the grid's mask; NaN where no data."""
    from scipy import ndimage as ndi

    usable = np.isfinite(samples).all(0)
    if fwhm_mm <= 0:
        return np.where(usable, samples, np.float32(np.nan))
    step = abs(np.linalg.det(grid.affine[:3, :3])) ** (1 / 3)
    sigma = fwhm_mm / 2.3548 / step
    volume = np.zeros((len(samples) + 1, *grid.mask.shape), np.float32)
    volume[:-1, grid.mask] = np.where(usable, samples, 0)
    volume[-1, grid.mask] = usable
    # a radius of one step holds all weight that matters at these widths
    ndi.gaussian_filter(
        volume, (0, sigma, sigma, sigma), output=volume, mode="constant", radius=(0, 1, 1, 1)
    )
    out = volume[:-1, grid.mask] / np.maximum(volume[-1, grid.mask], 1e-6)
    out[:, ~usable] = np.nan
    return out


def fit_ica(
    samples: np.ndarray,
    tr_s: float,
    parameters: np.ndarray,
    grid: Grid,
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
    classify(features)
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


def count_resels(data: np.ndarray, grid: Grid, usable: np.ndarray) -> float:
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


def measure_features(
    mixing: np.ndarray,
    maps: np.ndarray,
    parameters: np.ndarray,
    tr_s: float,
    grid: Grid,
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


def classify(features: pd.DataFrame) -> None:
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
