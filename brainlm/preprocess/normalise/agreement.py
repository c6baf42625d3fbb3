"""How well a normalisation agrees with the template, and what is refused; for both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import RecordingError
from ..motion.brain_mask import brain_mask
from .pose import MIN_INTERIOR, SURE_INTERIOR, Turned, describe_turn
from .template import Template
from .tissue_fit import Image, Problem, State, grid_of, smooth_tissues

ASSESSED_FWHM_MM = 8.0  # smoothing of image and maps under `correlate`
MIN_CORRELATION = 0.5  # image with tissue mixture inside the brain, after the affine part
MIN_DICE = 0.9  # of the two brain masks, inside the field of view
MAX_BEND_MM = 8.0  # RMS: 2 to 5 in participants; a ball is bent by 9
ZOOM_RANGE = (0.7, 1.3)  # of the affine part along any direction
ZOOM_RATIO = 1.3  # of its largest to its smallest
MIN_VOLUME_ML, MAX_VOLUME_ML = 250.0, 3000.0


#: A brain that is cut by a face of the field of view, by at least this share of its largest
#: section, goes on at the opposite face where the tissue there has the outline of the cut (Dice).
MIN_CUT, WRAPPED_DICE = 0.5, 0.6


class RefusedFit(RecordingError):
    """A fit that does not pass the checks; it is kept so that the recording's page can show it.

    Parameters
    ----------
    reason : str
    fit : callable
        Template mm [N, 3] -> reference world mm, with ``save``.
    """

    def __init__(self, reason: str, fit: Any):
        super().__init__("registration_failed", reason)
        self.fit = fit


def check_image(
    reference: np.ndarray, affine: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The image [Z, Y, X] scaled to its brightest tissue, and its brain; an error if empty."""
    image = np.nan_to_num(np.asarray(reference, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    try:
        mask = brain_mask(image, affine) if mask is None else np.asarray(mask, bool)
    except RecordingError as error:
        raise RecordingError("registration_failed", error.reason) from None
    volume = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    if not MIN_VOLUME_ML <= volume <= MAX_VOLUME_ML:
        raise RecordingError(
            "registration_failed",
            f"the brain mask holds {volume:.0f} ml, expected {MIN_VOLUME_ML:.0f} to "
            f"{MAX_VOLUME_ML:.0f}: the image is empty or not a head",
        )
    check_wrapping(image, mask)
    high = np.percentile(image[mask], 98)
    return np.clip(image, 0, high) / high, mask


def check_wrapping(image: np.ndarray, mask: np.ndarray) -> None:
    """An error if the brain leaves the field of view [Z, Y, X] and comes back on the other side.

    A part that is merely outside is what ``coverage`` is for; here the part is in the image, in
    the wrong place, and what is left is fitted as if it were the whole.
    """
    rest = (image > 0.5 * np.median(image[mask])) & ~mask
    for axis, name in enumerate("zyx"):
        sections = mask.sum(axis=tuple({0, 1, 2} - {axis}))
        for face in (0, -1):
            cut, beyond = mask.take(face, axis), rest.take(-1 - face, axis)
            dice = 2 * (cut & beyond).sum() / max(1, cut.sum() + beyond.sum())
            if cut.sum() >= MIN_CUT * sections.max() and dice >= WRAPPED_DICE:
                raise RecordingError(
                    "registration_failed",
                    f"the brain leaves the image along {name} (of its voxels) and goes on at the "
                    "opposite side: it is wrapped around; shift it back, or exclude it",
                )


def check_pose(agreement: float, turned: Turned | None, upright: Any) -> None:
    """Raise unless the inside of the brain agrees in the stated pose, and in no other better.

    Parameters
    ----------
    agreement : float
        Inside the brain, where the stated pose led to; `upright` is that fit.
    turned : (str, float) or None
        The best of the other poses, where they were tried.
    """
    best, seen = agreement, f"{agreement:.2f}"
    way = describe_turn(upright.affine) if agreement >= MIN_INTERIOR else ""
    if not way and turned is not None and turned[1] >= MIN_INTERIOR and turned[1] > agreement:
        way, best = turned
        seen = f"{best:.2f}, as its header says {agreement:.2f}"
    if way:
        advice = "its orientation is wrong in the header; correct it, or convert the image again"
        if best < SURE_INTERIOR:  # parts of heads, and necks, agree so well in some pose
            advice = "its orientation is wrong in the header, or it is no whole brain: look at it"
        raise RefusedFit(f"the image fits {way} (inside the brain r = {seen}): {advice}", upright)
    if agreement < MIN_INTERIOR:
        raise RefusedFit(
            f"the image inside the outline does not look like a brain (r = {agreement:.2f}, "
            f"of a head at least {MIN_INTERIOR}): look at the image, and exclude it",
            upright,
        )


def correlate(match: type[Problem], image: Image, template: Template, state: State) -> float:
    """Correlation of the image with the tissue mixture inside the brain."""
    grid = grid_of(template, 4.0, 0.0)
    columns = smooth_tissues(template, grid, ASSESSED_FWHM_MM)
    return match(image, ASSESSED_FWHM_MM, grid, columns).measure(state).correlation


def overlap(
    fit: Callable[[np.ndarray], np.ndarray],
    affine: np.ndarray,
    mask: np.ndarray,
    template: Template,
) -> dict[str, float]:
    """Dice of the two brain masks inside the field of view, and the brain's share inside it.

    Parameters
    ----------
    fit : callable
        Template mm [N, 3] -> reference world mm.
    affine, mask : ndarray
        Of the reference's brain: voxel -> world mm, [Z, Y, X].
    """
    grid = grid_of(template, 4.0, 40.0)
    index = (fit(grid.points) - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    index = np.rint(index).astype(int)
    size = np.array(mask.shape)[::-1]
    inside = ((index >= 0) & (index < size)).all(axis=1)
    found = mask[tuple(np.clip(index, 0, size - 1)[:, ::-1].T)] & inside
    brain = grid.brain & inside
    return {
        "mask_dice": float(2 * (found & brain).sum() / max(1, found.sum() + brain.sum())),
        "coverage": float(inside[grid.brain].mean()),
    }


def check_quality(fit: Any) -> None:
    """Raise, naming every figure of ``fit.quality`` that no brain has."""
    figures, problems = fit.quality, []
    if figures["correlation"] < MIN_CORRELATION:
        problems.append(
            f"correlation with the tissue maps {figures['correlation']:.2f} < {MIN_CORRELATION}"
        )
    if figures["mask_dice"] < MIN_DICE:
        problems.append(f"brain masks overlap by {figures['mask_dice']:.2f} (Dice) < {MIN_DICE}")
    if figures["zoom_min"] < ZOOM_RANGE[0] or figures["zoom_max"] > ZOOM_RANGE[1]:
        problems.append(
            f"zooms of {figures['zoom_min']:.2f} to {figures['zoom_max']:.2f} outside {ZOOM_RANGE}"
        )
    elif figures["zoom_max"] > ZOOM_RATIO * figures["zoom_min"]:
        problems.append(
            f"zooms of {figures['zoom_min']:.2f} to {figures['zoom_max']:.2f} differ by more than "
            f"{ZOOM_RATIO}: the voxel sizes in the header are wrong"
        )
    if figures["bend_rms_mm"] > MAX_BEND_MM:
        problems.append(f"bent by {figures['bend_rms_mm']:.1f} mm (RMS) > {MAX_BEND_MM:g}")
    if problems:
        raise RefusedFit("does not match the template: " + "; ".join(problems), fit)
