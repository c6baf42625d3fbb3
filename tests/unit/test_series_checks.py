"""Series that no scan can give are refused; what is odd in real ones is not."""

from __future__ import annotations

import numpy as np
import pytest

from brainlm.errors import RecordingError
from brainlm.preprocess.delivered.parcel_series import settle_series
from brainlm.preprocess.delivered.series_checks import read_outliers

T, R = 200, 30


def make(count: int = T, parcels: int = R, seed: int = 0) -> np.ndarray:
    """Smooth in time, as BOLD is."""
    white = np.random.default_rng(seed).normal(size=(count + 9, parcels))
    smooth = np.stack([white[k : k + 10].mean(0) for k in range(count)])
    return (smooth / smooth.std(0)).astype(np.float32)


def settle(series: np.ndarray, units: str = "as delivered"):
    return settle_series(
        series, 1.0, units=units, num_parcels=series.shape[1], sample_period_s=1.0
    )


def fill(rows, value=None):
    def change(series):
        series[rows] = series[rows.start - 1] if value is None else value
        return series

    return change


def spike(rows, parcels, size):
    def change(series):
        series[rows, parcels] += size
        return series

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fill(slice(40, 60)), "20 of 200 time points repeat the one before in every parcel"),
        (fill(slice(40, 41)), "1 of 200 time points repeat"),
        (lambda s: np.repeat(s[::2], 2, axis=0), "100 of 200"),
        (fill(slice(40, 41), 0.0), "one value in every parcel (first 40)"),
        (fill(slice(40, 50), 0.0), "time points repeat"),
        (spike(slice(0, 3), 4, np.nan), "NaN or infinite values at 3 of 200"),
        (spike(50, 3, 1e5), "the series explode: at time point 50"),
        (spike(50, slice(None), 300), "the series explode: at time point 50"),
        (spike(slice(50, 60), slice(0, 20), -1e4), "the series explode"),
        (lambda s: make(R, R).T.copy(), "transposed"),
    ],
)
def test_what_no_scan_can_give_is_refused(change, words):
    with pytest.raises(RecordingError) as caught:
        settle(change(make()))
    assert caught.value.status == "bad_data" and words in caught.value.reason
    assert len(caught.value.reason) < 300


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s,
        lambda s: make(R, R),
        spike(50, slice(None), 15),  # the head moved
        spike(slice(50, 53), 4, 60),
        lambda s: s * 1e6,
        lambda s: s * 1e-9,
        lambda s: np.where(np.arange(R) < 5, 0, s),  # dead parcels
        lambda s: np.round(s * 20),  # integers
    ],
)
def test_what_real_series_have_is_not(change):
    settled = settle(change(make()))
    assert settled.series.shape[1] == R


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 200, 1e6])
def test_amplitudes_that_are_no_percent(scale):
    assert settle(make(), "percent").units == "percent"
    with pytest.raises(RecordingError, match=r"standard deviation is .* percent"):
        settle(make() * scale, "percent")


def test_a_runaway_scanner(tmp_path):
    series = 1000 + 10 * make()
    assert settle(series, "scanner").units == "percent"
    series[50, 3] = 1e6
    with pytest.raises(RecordingError):
        settle(series, "scanner")


@pytest.mark.parametrize(
    ("marks", "rows", "words"),
    [
        ([5, 6, 7], T, None),
        ([], T, None),
        (range(150), T, "150 of 200 time points were censored"),
        ([5], T - 3, "197 volumes in x_outliers.tsv"),
    ],
)
def test_censored_frames_are_counted(tmp_path, marks, rows, words):
    path = tmp_path / "x_outliers.tsv"
    cells = ["1" if k in marks else "0" for k in range(rows)]
    path.write_text("\n".join(["framewise_displacement", *cells]) + "\n")
    if words is None:
        assert np.flatnonzero(read_outliers(path, T)).tolist() == marks
    else:
        with pytest.raises(RecordingError, match=words):
            read_outliers(path, T)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(RecordingError, match="get its content"):
        read_outliers(path, T)
