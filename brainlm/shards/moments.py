"""Second moments of scaled series in space and time, mergeable like the quantiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Sums of products over all recordings seen; the sums of two parts are the sums of both.

    Attributes
    ----------
    products, pairs : ndarray [R, R]
        Σ x_i x_j over the time points at which both parcels have data, and how many there are.
    lagged, lagged_pairs : ndarray [L]
        Σ x(t) x(t + l) over parcels and time points, and how many there are; l from 0.
    """

    products: np.ndarray
    pairs: np.ndarray
    lagged: np.ndarray
    lagged_pairs: np.ndarray

    @classmethod
    def of(cls, series: Iterable[np.ndarray], num_parcels: int, lags: int) -> Moments:
        """Of scaled series [T, R], NaN where there is no data; about 2 T R² operations each."""
        square = (num_parcels, num_parcels)
        out = cls(np.zeros(square), np.zeros(square), np.zeros(lags), np.zeros(lags))
        for values in series:
            known = np.isfinite(values)
            x = np.nan_to_num(values).astype(np.float32, copy=False)
            out.products += x.T @ x
            out.lagged += _lag(x, lags)
            if known.all():
                out.pairs += len(x)
                out.lagged_pairs += num_parcels * np.maximum(len(x) - np.arange(lags), 0)
            else:
                out.pairs += known.T.astype(np.float32) @ known.astype(np.float32)
                out.lagged_pairs += _lag(known.astype(np.float32), lags)
        return out

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    @property
    def parts(self) -> tuple[np.ndarray, ...]:
        """The four sums, in the order of the constructor."""
        return self.products, self.pairs, self.lagged, self.lagged_pairs

    def covariance(self) -> np.ndarray:
        """[R, R] mean products about zero (the scaled median), without negative eigenvalues; 0
        for a parcel that never has data."""
        mean = self.products / np.maximum(self.pairs, 1)
        values, vectors = np.linalg.eigh((mean + mean.T) / 2)
        return (vectors * np.maximum(values, 0)) @ vectors.T

    def autocorrelation(self) -> np.ndarray:
        """[L] of all parcels together, 1 at lag 0, that of a possible process: lags that few
        recordings hold count for less."""
        taper = self.lagged_pairs / max(self.lagged_pairs[0], 1)
        raw = self.lagged / np.maximum(self.lagged_pairs, 1) * taper
        return raw / raw[0] if raw[0] > 0 else np.eye(1, len(raw))[0]


def _lag(x: np.ndarray, lags: int) -> np.ndarray:
    """[L] Σ x(t) x(t + l) over time and parcels, by Fourier transforms."""
    length = 1 << (2 * len(x) - 1).bit_length()
    power = np.abs(np.fft.rfft(x, length, axis=0)) ** 2
    sums = np.fft.irfft(power.sum(1), length)[: min(lags, len(x))]
    return np.pad(sums, (0, lags - len(sums)))
