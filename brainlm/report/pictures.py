"""Drawings of one recording. Same style as :mod:`brainlm.report.figures`.

Images are embedded at the size of the data and quantised: a page is looked at, the numbers behind
it are in the derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..atlas import Atlas
from ..shards.censored import drop_censored
from .figures import _DASHES, _QUIET, SERIES, as_address, style, to_svg

_MAX_ROWS, _MAX_COLUMNS = 220, 600  # of a carpet; more are not seen
_MAX_PAIRS = 150  # rows of a connectivity matrix
_CUTS = ((2, -30), (2, 0), (2, 30), (2, 55), (1, -50), (1, 0), (0, -35), (0, 2))  # axis, mm
_TITLES = tuple(f"{'xyz'[axis]} = {at} mm" for axis, at in _CUTS)
_STEP_MM = 2.0
_SLICES = 7
_LINES = ("#ffb000", "#35d0ff")  # on grey images, which are the same in light and dark
_SHADOW = (128, 128, 128, 60)  # RGBA; of the head behind a component's map


def draw_time(
    confounds: pd.DataFrame, tr_s: float, carpets: dict[str, np.ndarray], sample_period_s: float
) -> str:
    """Motion, FD, DVARS and global signal above carpets [T, R], all on one time axis.

    Parameters
    ----------
    confounds : DataFrame
        One row per volume; empty for a recording that came as a series.
    carpets : dict
        Title -> series.
    """
    from matplotlib.figure import Figure

    lines = {"framewise_displacement": "FD (mm)", "std_dvars": "DVARS (std.)",
             "global_signal": "global signal"}  # fmt: skip
    rows = 5 if len(confounds) else 0
    time = np.arange(len(confounds)) * tr_s
    with style("time"):
        height = 1.05 * rows + 2.6 * len(carpets) + 0.4
        figure = Figure(figsize=(9, height))
        ratios = [1.0] * rows + [2.6] * len(carpets)
        axes = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)
        # a layout engine would measure every label twice: most of the time of a page
        figure.subplots_adjust(0.09, 0.45 / height, 0.93, 1 - 0.1 / height, hspace=0.18)
        for ax, kind in zip(axes[:rows, 0], ("trans", "rot"), strict=False):
            _plot_motion(ax, time, confounds, kind)
        for ax, (name, label) in zip(axes[2:rows, 0], lines.items(), strict=False):
            if name in confounds:
                ax.plot(time, confounds[name], color=SERIES[0], lw=1.2)
            ax.set_ylabel(label)
        for ax, (title, series) in zip(axes[rows:, 0], carpets.items(), strict=True):
            _paint_carpet(ax, series, sample_period_s)
            ax.set_title(title)
        for ax in axes[:rows, 0]:
            ax.grid(True)
        axes[-1, 0].set_xlabel("time (s)")
        figure.align_ylabels(axes[:, 0])
        return to_svg(figure, "time")


def _plot_motion(ax, time: np.ndarray, confounds: pd.DataFrame, kind: str) -> None:
    label, factor = {"trans": ("shift (mm)", 1.0), "rot": ("turn (°)", 180 / np.pi)}[kind]
    for number, axis in enumerate("xyz"):
        ax.plot(time, confounds[f"{kind}_{axis}"] * factor, color=SERIES[number],
                ls=_DASHES[number], lw=1.2, label=axis)  # fmt: skip
    ax.set_ylabel(label)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1.1))


def _paint_carpet(ax, series: np.ndarray, sample_period_s: float) -> None:
    length, parcels = series.shape
    shown = _pool(_pool(_standardise(series).T, _MAX_ROWS).T, _MAX_COLUMNS).T
    levels = np.ma.masked_invalid(np.round(np.clip(shown, -2, 2) * 4) / 4)
    # a sample is centred on its time; the last pooled column may reach past the end
    start, end = -0.5 * sample_period_s, (length - 0.5) * sample_period_s
    painted = start + shown.shape[1] * _pool_size(length, _MAX_COLUMNS) * sample_period_s
    below = shown.shape[0] * _pool_size(parcels, _MAX_ROWS)
    ax.imshow(levels, cmap="gray", vmin=-2, vmax=2, aspect="auto", interpolation="none",
              extent=(start, painted, below, 0))  # fmt: skip
    ax.set_ylabel("parcel")
    ax.set(xlim=(start, end), ylim=(parcels, 0))


def _standardise(series: np.ndarray) -> np.ndarray:
    values = np.asarray(series, np.float32)
    kept = drop_censored(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (values - kept.mean(0)) / kept.std(0)


def _pool_size(count: int, most: int) -> int:
    """How many neighbours are averaged so that at most `most` values are left of `count`."""
    return -(-count // most)


def _pool(values: np.ndarray, most: int) -> np.ndarray:
    """Means of neighbouring rows, so that at most `most` are left; NaN where all are."""
    size = _pool_size(len(values), most)
    if size == 1:
        return values
    padded = np.full((-(-len(values) // size) * size, *values.shape[1:]), np.nan, np.float32)
    padded[: len(values)] = values
    blocks = padded.reshape(-1, size, *values.shape[1:])
    known = np.isfinite(blocks)
    total = np.where(known, blocks, 0).sum(1)
    return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)


# ---- the scanner's space


def draw_scanner(boldref: Path, mask: Path, tsnr: Path) -> str:
    """Axial slices of the reference image with the brain mask's outline, and of the tSNR map."""
    from matplotlib.figure import Figure

    image, origin, step = _read_upright(boldref)
    brain = _read_upright(mask)[0] > 0
    inside = np.flatnonzero(brain.any((0, 1)))
    layers = np.linspace(inside[0], inside[-1], _SLICES + 2)[1:-1].round().astype(int)
    heights = [origin + k * step for k in layers]
    grey = np.round(image / np.percentile(image[brain], 99) * 64)
    with style("scanner"):
        figure = Figure(figsize=(9, 3.1))
        upper, lower = (figure.add_axes((0, y, 0.9, 0.47)) for y in (0.5, 0))
        _paint_montage(upper, [grey[:, :, k].T for k in layers], "gray", 64, _SLICES,
                       [f"z = {z:.0f} mm" for z in heights])  # fmt: skip
        outline = _montage([brain[:, :, k].T.astype(float) for k in layers], _SLICES, 0)
        upper.contour(outline, [0.5], colors=[_LINES[0]], linewidths=1)
        if tsnr.exists():
            values, start, space = _read_upright(tsnr)
            values[values == 0] = np.nan
            top = float(np.nanpercentile(values, 98)) if np.isfinite(values).any() else 1.0
            rows = np.clip(np.round((np.array(heights) - start) / space), 0, values.shape[2] - 1)
            shown = _paint_montage(lower, [values[:, :, int(k)].T for k in rows], "viridis", top,
                                   _SLICES)  # fmt: skip
            figure.colorbar(shown, cax=figure.add_axes((0.91, 0.05, 0.012, 0.38)), label="tSNR")
        lower.set_axis_off()
        return to_svg(figure, "scanner")


def _montage(parts: list[np.ndarray], columns: int, fill: float = np.nan) -> np.ndarray:
    """Slices [rows, columns], each upwards, as one image of `columns` slices a row, upwards."""
    height, width = (max(part.shape[i] for part in parts) for i in (0, 1))
    padded = [
        np.pad(part, ((0, height - part.shape[0]), (0, width - part.shape[1])),
               constant_values=fill) for part in parts
    ]  # fmt: skip
    rows = [np.hstack(padded[i : i + columns]) for i in range(0, len(padded), columns)]
    return np.vstack(rows[::-1])


def _paint_montage(
    ax, parts: list[np.ndarray], colours: str, top: float, columns: int, titles: Sequence[str] = ()
):
    """One image for all slices: an axis each would take ten times as long."""
    grey = colours == "gray"
    whole = np.ma.masked_invalid(_montage(parts, columns, 0 if grey else np.nan))
    shown = ax.imshow(whole, cmap=colours, vmin=0, vmax=top, origin="lower", interpolation="none")
    height = max(part.shape[0] for part in parts)
    width = max(part.shape[1] for part in parts)
    rows = len(whole) // height
    for number, title in enumerate(titles):
        x, y = number % columns, rows - number // columns
        label = ax.text(x * width + 1, y * height - 1, title, fontsize=7, va="top",
                        color="#c8c8c8" if grey else _QUIET)  # fmt: skip
        label.set_gid(f"on-image-{number}" if grey else None)  # whose border is black
    ax.set_axis_off()
    return shown


def _read_upright(path: Path) -> tuple[np.ndarray, float, float]:
    """Voxels [X, Y, Z] turned to right, anterior, superior; z of the first slice, z step, mm."""
    import nibabel as nib

    image: Any = nib.as_closest_canonical(nib.load(path))
    values = image.get_fdata(dtype=np.float32)
    return values, float(image.affine[2, 3]), float(image.header.get_zooms()[2])


# ---- template space


def draw_registration(boldref: Path, normalisation: Path, space: str) -> str:
    """The template of a space under the reference image (group ``over``) under its outlines."""
    from ..preprocess.io.derivatives import read_volume
    from ..preprocess.normalise.warp import load_normalisation

    image, affine = read_volume(boldref)
    fit = load_normalisation(normalisation)
    bright = np.percentile(image[image > image.mean()], 99) if image.any() else 1.0
    t1w, brain, white = _template_slices(space)
    cuts = [
        np.round(_sample(image, affine, fit(points)).reshape(shape) / bright * 64)
        for points, shape in _cut_points()
    ]

    def paint(ax):
        _paint_montage(ax, t1w, "gray", max(part.max() for part in t1w), 4)
        _paint_montage(ax, cuts, "gray", 64, 4, _TITLES).set_gid("over")
        for part, colour in zip((brain, white), _LINES, strict=True):
            ax.contour(_montage(part, 4, 0), [0.5], colors=[colour], linewidths=0.9)

    return _draw_cuts("registration", paint)


def draw_distortion(boldref: Path, normalisation: Path) -> str:
    """The reference image as acquired under the corrected one (group ``over``)."""
    from ..preprocess.io.derivatives import read_volume
    from ..preprocess.normalise.undistorted import place_points
    from ..preprocess.normalise.warp import load_normalisation

    image, affine = read_volume(boldref)
    fit: Any = load_normalisation(normalisation)
    bright = np.percentile(image[image > image.mean()], 99) if image.any() else 1.0
    before, after = [], []
    for points, shape in _cut_points():
        world, gains = place_points(fit, points)
        before.append(_sample(image, affine, fit.fit(points)).reshape(shape))
        after.append((_sample(image, affine, world) * gains).reshape(shape))

    def paint(ax):
        scaled = [[np.round(cut / bright * 64) for cut in cuts] for cuts in (before, after)]
        _paint_montage(ax, scaled[0], "gray", 64, 4)
        _paint_montage(ax, scaled[1], "gray", 64, 4, _TITLES).set_gid("over")

    return _draw_cuts("distortion", paint)


def draw_coverage(labels: Path, coverage: np.ndarray, space: str | None = None) -> str:
    """Parcels of the atlas coloured by the share of each [R] that lies in the field of view, with
    the outline of the brain in a template's space."""
    values = np.concatenate([[np.nan], coverage])

    def paint(ax):
        cuts = [values[part] for part in _label_slices(labels)]
        shown = _paint_montage(ax, cuts, "cividis", 1, 4, _TITLES)
        if space:
            outlines = _montage(_template_slices(space)[1], 4, 0)
            ax.contour(outlines, [0.5], colors=[_QUIET], linewidths=0.8)
        return shown

    return _draw_cuts("coverage", paint, "share in view")


def _draw_cuts(name: str, paint: Callable, bar: str = "") -> str:
    """The slices of template space, painted by ``paint(axes)``."""
    from matplotlib.figure import Figure

    with style(name):
        figure = Figure(figsize=(9, 4.3))
        shown = paint(figure.add_axes((0, 0, 0.88 if bar else 1, 1)))
        if bar:
            figure.colorbar(shown, cax=figure.add_axes((0.9, 0.2, 0.015, 0.6)), label=bar)
        return to_svg(figure, name)


def load_slices(atlas: Atlas, *, raw: bool) -> None:
    """Read the slices of atlas and template that all recordings share."""
    if atlas.image is not None and atlas.space:
        _label_slices(atlas.image)
        if raw:
            _template_slices(atlas.space)


@lru_cache(maxsize=2)
def _template_slices(space: str) -> tuple[list[np.ndarray], ...]:
    """T1-weighted image, brain and white matter on the eight slices."""
    from ..preprocess.normalise.template import load_template

    template = load_template(space)
    return tuple(
        [np.round(_sample(np.asarray(part, np.float32), template.affine, points), 2)
         .reshape(shape) for points, shape in _cut_points()]
        for part in (template.t1w, template.mask, template.white)
    )  # fmt: skip


@lru_cache(maxsize=2)
def _label_slices(path: Path) -> list[np.ndarray]:
    """Labels 0..R on the eight slices."""
    from ..preprocess.io.derivatives import read_volume

    labels, affine = read_volume(path)
    return [
        np.rint(_sample(labels, affine, points, order=0)).astype(int).reshape(shape)
        for points, shape in _cut_points()
    ]


def _cut_points() -> list[tuple[np.ndarray, tuple[int, int]]]:
    return [_slice_points(axis, at) for axis, at in _CUTS]


def _slice_points(axis: int, at: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Template points [N, 3] of one slice and its shape (rows, columns)."""
    ranges = [np.arange(-90, 91, _STEP_MM), np.arange(-126, 91, _STEP_MM),
              np.arange(-72, 109, _STEP_MM)]  # fmt: skip
    across, up = [ranges[i] for i in range(3) if i != axis]
    grid_up, grid_across = np.meshgrid(up, across, indexing="ij")
    columns = [grid_across, grid_up]
    columns.insert(axis, np.full_like(grid_up, at, dtype=float))
    points = np.stack([column.ravel() for column in columns], axis=1)
    return points, grid_up.shape


def _sample(
    volume: np.ndarray, affine: np.ndarray, points: np.ndarray, order: int = 1
) -> np.ndarray:
    """Interpolation of [Z, Y, X] at world points [N, 3]; 0 outside."""
    from scipy.ndimage import map_coordinates

    inverse = np.linalg.inv(affine)
    voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
    return map_coordinates(volume, voxels[:, ::-1].T, order=order, mode="constant")


# ---- components


def draw_rule(table: pd.DataFrame) -> str:
    """Components by motion correlation and edge fraction, with the rule's line."""
    from matplotlib.figure import Figure

    from ..preprocess.denoise.aroma import HYPERPLANE

    offset, by_motion, by_edge = HYPERPLANE
    with style("components"):
        figure = Figure(figsize=(9, 3.2))
        ax = figure.add_axes((0.09, 0.16, 0.5, 0.8))
        for number, (verdict, label) in enumerate((("accepted", "kept"), ("rejected", "removed"))):
            part = table[table["classification"] == verdict]
            ax.plot(part["max_rp_corr"], part["edge_fraction"], "os"[number], ms=4.5,
                    color=SERIES[number], label=label, alpha=0.8)  # fmt: skip
        x = np.array([0.0, 1.0])
        ax.plot(x, -(offset + by_motion * x) / by_edge, color=_QUIET, lw=1, ls="--")
        ax.set(xlabel="correlation with motion", ylabel="fraction at the edge",
               xlim=(0, 1), ylim=(0, 1))  # fmt: skip
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
        ax.grid(True)
        return to_svg(figure, "components")


def draw_spectra(mixing: np.ndarray, tr_s: float, bins: int = 60) -> list[str]:
    """A small power spectrum of each time course [T, C], 0 to the Nyquist frequency."""
    from matplotlib.figure import Figure

    power = np.abs(np.fft.rfft(mixing - mixing.mean(0), axis=0))[1:] ** 2
    power = _pool(power, bins)
    share = power / np.maximum(power.max(0), 1e-12)
    hz = np.linspace(0, 0.5 / tr_s, len(share))
    with style("spectra"):
        figure = Figure(figsize=(1.8, 0.6))
        ax = figure.add_axes((0, 0.02, 1, 0.96))
        line = ax.plot(hz, hz, color=SERIES[0], lw=1)[0]
        ax.set(xlim=(0, hz[-1]), ylim=(0, 1.05), xticks=(), yticks=())
        out = []
        for number, values in enumerate(share.T):
            line.set_ydata(values)
            out.append(to_svg(figure, f"spectrum-{number}"))
        return out


def picture_maps(maps: Path, most_z: float = 8.0) -> list[str]:
    """Each component seen through the brain from three sides, as a PNG's data address.

    Red is positive, blue negative, the largest value along the line of sight; the head is grey.
    """
    import nibabel as nib
    from matplotlib import colormaps

    image: Any = nib.load(maps)
    volumes = np.moveaxis(np.asarray(image.dataobj, np.int16), 3, 0) / 10.0  # z * 10 -> z
    head = (volumes != 0).any(0)
    shadows = [head.any(axis) for axis in range(3)]
    colours = colormaps["RdBu_r"]
    out = []
    for volume in volumes:
        panels = []
        for axis, shadow in enumerate(shadows):
            above, below = volume.max(axis), volume.min(axis)
            seen = np.where(above >= -below, above, below) / most_z
            seen = np.round(np.clip(seen, -1, 1) * 6) / 6
            rgba = (colours((seen + 1) / 2) * 255).astype(np.uint8)
            empty = seen == 0
            rgba[empty] = 0
            rgba[empty & shadow] = _SHADOW
            panels.append(np.flipud(rgba.swapaxes(0, 1)))
        out.append(as_address(_side_by_side(panels)))
    return out


def _side_by_side(panels: list[np.ndarray]) -> np.ndarray:
    height = max(len(panel) for panel in panels)
    return np.hstack([np.pad(p, ((height - len(p), 0), (0, 3), (0, 0))) for p in panels])


# ---- connectivity


def draw_connectivity(series: dict[str, np.ndarray]) -> str:
    """Correlation matrices of series [T, R] and the spread of their values; blank without data."""
    from matplotlib.figure import Figure

    with style("connectivity"):
        figure = Figure(figsize=(9, 3))
        axes = figure.subplots(1, len(series) + 1)
        figure.subplots_adjust(0.07, 0.15, 0.98, 0.88, wspace=0.3)
        for number, (ax, (title, values)) in enumerate(zip(axes, series.items(), strict=False)):
            scaled = _standardise(drop_censored(values))
            r = scaled.T @ scaled / len(scaled)
            pairs = r[np.triu_indices(len(r), 1)]
            few = np.round(10 * _pool(_pool(r, _MAX_PAIRS).T, _MAX_PAIRS).T) / 10  # 21 colours
            edge = len(few) * _pool_size(len(r), _MAX_PAIRS)
            shown = ax.imshow(few, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none",
                              extent=(0, edge, edge, 0))  # fmt: skip
            ax.set(xlabel="parcel", ylabel="parcel" if number == 0 else "", title=title,
                   xlim=(0, len(r)), ylim=(len(r), 0))  # fmt: skip
            short = title.split()[0]
            axes[-1].hist(pairs[np.isfinite(pairs)], np.linspace(-1, 1, 81), histtype="step",
                          color=SERIES[number], ls=_DASHES[number], label=short)  # fmt: skip
        bar = axes[-2].inset_axes((1.04, 0, 0.04, 1))
        figure.colorbar(shown, cax=bar, label="r", ticks=(-1, 0, 1))
        axes[-1].set(xlabel="r", yticks=(), title="pairs of parcels")
        axes[-1].legend(loc="upper left")
        return to_svg(figure, "connectivity")
