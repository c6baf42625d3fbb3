"""Drawings of one recording. Same style as :mod:`brainlm.report.figures`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from .figures import _DASHES, _QUIET, SERIES, style, to_svg

_MAX_LINES = 1200  # pixels of a carpet; more are not seen
_SLICES = {"axial": (2, (-30, 0, 30, 55)), "coronal": (1, (-50, 0)), "sagittal": (0, (-35, 2))}
_STEP_MM = 2.0


def draw_time(
    confounds: pd.DataFrame, tr_s: float, series: np.ndarray | None, sample_period_s: float
) -> str:
    """Motion, FD, DVARS and global signal above the carpet [T, R], on one time axis."""
    from matplotlib.figure import Figure

    time = np.arange(len(confounds)) * tr_s
    heights = [1, 1, 1, 1, 1, 3.2 if series is not None else 0.01]
    with style("time"):
        figure = Figure(figsize=(9, 8.2), layout="constrained")
        axes = figure.subplots(6, 1, sharex=True, height_ratios=heights)
        motion = (("trans", "shift (mm)", 1.0), ("rot", "turn (°)", 180 / np.pi))
        for ax, (kind, label, factor) in zip(axes, motion, strict=False):
            for number, axis in enumerate("xyz"):
                ax.plot(time, confounds[f"{kind}_{axis}"] * factor, color=SERIES[number],
                        ls=_DASHES[number], lw=1.2, label=axis)  # fmt: skip
            ax.set_ylabel(label)
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1.1))
        lines = {"framewise_displacement": "FD (mm)", "std_dvars": "DVARS (std.)",
                 "global_signal": "global signal"}  # fmt: skip
        for ax, (name, label) in zip(axes[2:5], lines.items(), strict=True):
            if name in confounds:
                ax.plot(time, confounds[name], color=SERIES[0], lw=1.2)
            ax.set_ylabel(label)
        if series is not None:
            _paint_carpet(axes[5], series, sample_period_s)
        axes[5].set_xlabel("time (s)")
        for ax in axes[:5]:
            ax.grid(True)
        figure.align_ylabels(axes)
        return to_svg(figure, "time")


def _paint_carpet(ax, series: np.ndarray, sample_period_s: float) -> None:
    values = np.asarray(series, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (values - values.mean(0)) / values.std(0)
    image = np.clip((values.T + 3) / 6, 0, 1)
    image = image[:: max(1, len(image) // _MAX_LINES)]
    end = len(series) * sample_period_s
    grey = np.round(255 * np.nan_to_num(image, nan=0.5)).astype(np.uint8)
    alpha = np.where(np.isnan(image), 0, 255).astype(np.uint8)
    ax.imshow(np.dstack([grey, grey, grey, alpha]), aspect="auto", interpolation="nearest",
              extent=(0, end, series.shape[1], 0))  # fmt: skip
    ax.set_ylabel("parcel")
    ax.set_xlim(0, end)


def draw_registration(boldref: Path, normalisation: Path, space: str | None) -> str:
    """Slices of the reference image in template space, under the template's outlines."""
    from matplotlib.figure import Figure

    from ..preprocess.derivatives import read_volume
    from ..preprocess.template import load_template
    from ..preprocess.warp import load_normalisation

    image, affine = read_volume(boldref)
    fit, template = load_normalisation(normalisation), load_template(space or "")
    cuts = [(axis, at) for axis, places in _SLICES.values() for at in places]
    bright = np.percentile(image[image > image.mean()], 99) if (image > image.mean()).any() else 1
    with style("registration"):
        figure = Figure(figsize=(9, 5), layout="constrained")
        for ax, (axis, at) in zip(figure.subplots(2, 4).ravel(), cuts, strict=True):
            points, shape, extent = _slice_points(axis, at)
            flat = _sample(image, affine, fit(points)).reshape(shape)
            ax.imshow(flat, cmap="gray", vmin=0, vmax=bright, origin="lower", extent=extent)
            for number, part in enumerate((template.mask, template.white > 0.5)):
                outline = _sample(part.astype(np.float32), template.affine, points).reshape(shape)
                ax.contour(outline, [0.5], colors=[SERIES[(4, 5)[number]]], linewidths=1,
                           extent=extent)  # fmt: skip
            ax.set_title(f"{'xyz'[axis]} = {at} mm", fontsize=8)
            ax.set_axis_off()
        return to_svg(figure, "registration")


def _slice_points(axis: int, at: float) -> tuple[np.ndarray, tuple[int, int], tuple]:
    """Template points [N, 3] of one slice, its shape (rows, columns) and extent in mm."""
    ranges = [np.arange(-90, 91, _STEP_MM), np.arange(-126, 91, _STEP_MM),
              np.arange(-72, 109, _STEP_MM)]  # fmt: skip
    across, up = [ranges[i] for i in range(3) if i != axis]
    grid_up, grid_across = np.meshgrid(up, across, indexing="ij")
    columns = [grid_across, grid_up]
    columns.insert(axis, np.full_like(grid_up, at, dtype=float))
    points = np.stack([column.ravel() for column in columns], axis=1)
    return points, grid_up.shape, (across[0], across[-1], up[0], up[-1])


def _sample(volume: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Linear interpolation of [Z, Y, X] at world points [N, 3]; 0 outside."""
    from scipy.ndimage import map_coordinates

    inverse = np.linalg.inv(affine)
    voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
    return map_coordinates(volume, voxels[:, ::-1].T, order=1, mode="constant")


def draw_components(table: pd.DataFrame, mixing: np.ndarray) -> str:
    """Motion correlation against edge fraction with the rule's line, and the spectra."""
    from matplotlib.figure import Figure

    from ..preprocess.denoise import HYPERPLANE

    offset, by_motion, by_edge = HYPERPLANE
    with style("components"):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        rule, spectrum = figure.subplots(1, 2, width_ratios=[1, 1.3])
        for number, (verdict, label) in enumerate((("accepted", "kept"), ("rejected", "removed"))):
            part = table[table["classification"] == verdict]
            rule.plot(part["max_rp_corr"], part["edge_fraction"], "os"[number], ms=4.5,
                      color=SERIES[number], label=label, alpha=0.8)  # fmt: skip
        x = np.array([0.0, 1.0])
        rule.plot(x, -(offset + by_motion * x) / by_edge, color=_QUIET, lw=1, ls="--")
        rule.set(xlabel="correlation with motion", ylabel="fraction at the edge",
                 xlim=(0, 1), ylim=(0, 1))  # fmt: skip
        rule.legend()
        rule.grid(True)
        order = np.argsort(table["classification"].to_numpy() == "rejected", kind="stable")
        power = np.abs(np.fft.rfft(mixing - mixing.mean(0), axis=0))[1:] ** 2
        share = (power / np.maximum(power.max(0), 1e-12)).T[order]
        spectrum.imshow(share, aspect="auto", cmap="cividis", interpolation="nearest",
                        extent=(0, 1, len(share), 0))  # fmt: skip
        kept = int((table["classification"] == "accepted").sum())
        spectrum.axhline(kept, color=SERIES[1], lw=1.5)
        spectrum.set(xlabel="frequency (share of Nyquist)", ylabel="component, kept first")
        return to_svg(figure, "components")


def draw_connectivity(series: np.ndarray) -> str:
    """Correlation matrix [R, R] of a series [T, R], blue to red, blank where there is no data."""
    from matplotlib.figure import Figure

    values = np.asarray(series, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (values - values.mean(0)) / values.std(0)
        r = np.round(20 * values.T @ values / len(values)) / 20  # 41 colours: a file of a tenth
    with style("connectivity"):
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        ax = figure.subplots()
        shown = ax.imshow(r, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.set(xlabel="parcel", ylabel="parcel")
        figure.colorbar(shown, ax=ax, label="r")
        return to_svg(figure, "connectivity")
