"""From the images that tell of the field to the displacement of a run's reference image.

Everything is brought to the field in Hz, which belongs to the head and not to an image: the head
is found in the reference image rigidly, and the run's own readout says how far and which way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import RecordingError
from ..io.read import read_image
from ..kernels.sampling import sample
from ..motion.brain_mask import brain_mask
from .align import Field, Scan, align
from .pepolar import LEVELS, Lines, estimate_field
from .shift import Shift, from_lines, pull, read_linear, to_lines, world_of
from .sources import PARALLEL, Map, Pair, Readout, find_sources, read_readout

MARGIN_MM = 4.0  # around the brain, where edges are
ROUNDS = 2  # of alignment and correction, each made better by the other
WORSE = 0.005  # of agreement with the image that the field was measured with: refused
LARGEST_MEAN_MM = 20.0


@dataclass(frozen=True)
class Correction:
    """A displacement, what it was made from and what it does.

    Attributes
    ----------
    method : str
        ``pepolar``, ``phasediff``, ``phases`` or ``fieldmap``.
    figures : dict
        ``distortion_mean_mm`` and ``distortion_peak_mm`` over the brain, and the agreement with
        the image that the field was measured with ``before`` and ``after``.
    """

    shift: Shift
    method: str
    files: list[Path]
    figures: dict[str, float]


def find_correction(
    run: Path, reference: np.ndarray, affine: np.ndarray, mask: np.ndarray, method: str
) -> tuple[Correction | None, list[str]]:
    """How to undo a run's distortion, if the dataset says so; and why not, where it should.

    Parameters
    ----------
    run : Path
        Its image (of a multi-echo run the first echo).
    reference, mask : [Z, Y, X]
        Reference image of motion correction, and its brain.
    method : str
        ``auto``, ``pepolar``, ``fieldmap`` or ``none``.

    Returns
    -------
    correction : Correction or None
    warnings : list of str
        Nothing that is wrong with field maps costs a recording.
    """
    if method == "none":
        return None, []
    try:
        sources, refused = find_sources(run, method)
    except RecordingError as error:
        sources, refused = [], [error.reason]
    made = None
    for source in sources:
        try:
            own = read_readout(run)
            by = _by_pair if isinstance(source, Pair) else _by_map
            made = by(source, own, reference, affine, mask)  # type: ignore[arg-type]
            break
        except RecordingError as error:
            refused.append(error.reason)
        except ValueError as error:  # of numbers that lead nowhere
            refused.append(f"{source.files[0]}: expected a field map, found that {error}")
    what = "not corrected" if made is None else "another field map is used"
    return made, [f"distortion: {what}: {reason}" for reason in refused]


def _by_pair(source: Pair, own: Readout, reference, affine, mask) -> Correction:
    opposite = Scan(*read_image(source.opposite.path, average=True))
    if source.same is None:
        field = measure_pair(Scan(reference, affine), own, opposite, source.opposite, mask)
        mm = (field.hz * own.mm_per_hz).astype(np.float32)
        return _describe(Shift(mm, affine, own.axis), "pepolar", source.files, mask, {})
    same = Scan(*read_image(source.same.path, average=True))
    inside = brain_mask(same.data, same.affine)
    field = measure_pair(same, source.same, opposite, source.opposite, inside)
    return place(field, own, reference, affine, mask, "pepolar", source.files)


def _by_map(source: Map, own: Readout, reference, affine, mask) -> Correction:
    from .field_map import read_field_map

    field, files = read_field_map(source), source.files
    # a magnitude image shows the scalp, which the run's contrast suppresses: only the brain counts
    return place(field, own, reference, affine, mask, source.kind, files, margin_mm=0)


def measure_pair(
    first: Scan, of_first: Readout, second: Scan, of_second: Readout, mask: np.ndarray
) -> Field:
    """The field on the grid of `first`, from two images of opposite readout.

    Raises
    ------
    RecordingError
        ``bad_metadata``: their axes are not opposite.
    """
    if of_first.vector @ of_second.vector > -PARALLEL:
        raise RecordingError(
            "bad_metadata",
            f"{of_second.path}: expected phase encoding against that of {of_first.path.name} "
            f"({of_first.direction}), found {of_second.direction} along another axis or the same; "
            "correct PhaseEncodingDirection",
        )
    axis, sizes = of_first.axis, list(first.zooms)
    along = float(sizes.pop(2 - axis))
    zooms = (float(sizes[0]), float(sizes[1]), along)
    unit = (abs(of_first.mm_per_hz) + abs(of_second.mm_per_hz)) / 2
    scales = [of_first.mm_per_hz / unit, -of_first.sign * abs(of_second.mm_per_hz) / unit]
    lines, points = to_lines(first.data, axis), world_of(first.data.shape, first.affine)
    wide = _widen(mask, first.zooms)
    move = np.eye(4)
    for levels in [LEVELS[:-1]] * ROUNDS + [LEVELS]:
        there = _read(second, points, move).reshape(first.data.shape)
        there = np.where(np.isfinite(there), there, first.data * _ratio(there, first.data))
        pair = (Lines(lines, scales[0]), Lines(to_lines(there, axis), scales[1]))
        mm = estimate_field(*pair, zooms, levels)
        shifts = mm / np.float32(along)
        undone = [
            from_lines(pull(one.lines, shifts, one.scale), axis)
            * (1 + one.scale * np.gradient(from_lines(shifts, axis), axis=2 - axis))
            for one in pair
        ]
        if levels != LEVELS:
            turn, _ = align(*_between(undone, first.affine, wide))
            move = move @ turn
    head = Scan((undone[0] + undone[1] / _ratio(there, first.data)) / 2, first.affine)
    return Field(from_lines(mm, axis) / unit, head)


def place(
    field: Field, own: Readout, reference, affine, mask, method: str, files: list[Path],
    margin_mm: float = MARGIN_MM,
) -> Correction:  # fmt: skip
    """Find the head of a field in the reference image, and displace as the run's readout does.

    Raises
    ------
    RecordingError
        ``bad_metadata``: the corrected image agrees less with the field's than the uncorrected.
    """
    points = world_of(reference.shape, affine)
    wide = _widen(mask, Scan(reference, affine).zooms, margin_mm)
    move, before = align(Scan(reference, affine), wide, field.head)
    for _ in range(ROUNDS):
        hz = read_linear(field.hz, field.head.affine, points @ move[:3, :3].T + move[:3, 3])
        mm = (hz.reshape(reference.shape) * own.mm_per_hz).astype(np.float32)
        shift = Shift(mm, affine, own.axis)
        move, after = align(Scan(shift.undo(reference), affine), wide, field.head, move)
    hz = read_linear(field.hz, field.head.affine, points @ move[:3, :3].T + move[:3, 3])
    mm = (hz.reshape(reference.shape) * own.mm_per_hz).astype(np.float32)
    if after < before - WORSE:
        raise RecordingError(
            "bad_metadata",
            f"{files[0]}: expected the corrected image to agree better with the one that the "
            f"field was measured with, found correlation {after:.3f}, uncorrected {before:.3f}; "
            "check PhaseEncodingDirection and TotalReadoutTime of both",
        )
    figures = {"distortion_before": before, "distortion_after": after}
    return _describe(Shift(mm, affine, own.axis), method, files, mask, figures)


def _describe(shift: Shift, method: str, files: list[Path], mask, figures) -> Correction:
    size = np.abs(shift.mm[mask])
    if size.mean() > LARGEST_MEAN_MM:
        raise RecordingError(
            "bad_metadata",
            f"{files[0]}: expected displacements of some mm, found {size.mean():.0f} mm on "
            "average; check TotalReadoutTime, echo times and units",
        )
    sizes = {"distortion_mean_mm": float(size.mean()), "distortion_peak_mm": float(size.max())}
    return Correction(shift, method, files, sizes | figures)


def _between(images: list[np.ndarray], affine: np.ndarray, mask: np.ndarray):
    """Two images of one grid, as :func:`align` takes them."""
    return Scan(images[0], affine), mask, Scan(images[1], affine)


def _read(image: Scan, points: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Values at world points moved, cubic; NaN outside the field of view."""
    return sample(image.data[None], image.affine, points, move[None])[0]


def _ratio(values: np.ndarray, of: np.ndarray) -> np.float32:
    known = np.isfinite(values)
    return np.float32(values[known].mean() / max(of[known].mean(), 1e-12))


def _widen(mask: np.ndarray, zooms: np.ndarray, margin_mm: float = MARGIN_MM) -> np.ndarray:
    from scipy import ndimage

    if not margin_mm:
        return mask
    return ndimage.distance_transform_edt(~mask, sampling=zooms) <= margin_mm
