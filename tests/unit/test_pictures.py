"""Drawings of a recording say where things are: read back from the SVG's own geometry."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainlm.preprocess.io.derivatives import write_volume
from brainlm.preprocess.normalise.registration import Normalisation
from brainlm.preprocess.normalise.template import load_template
from brainlm.report.pictures import draw_registration, draw_scanner, draw_time


def _images(svg: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Embedded images as (grey pixels [Y, X], matrix [2, 3] from pixels to points), in order."""
    found = []
    for tag in re.findall(r"<image[^>]*>", svg):
        data = base64.b64decode(re.search(r"base64,([^\"]+)", tag)[1])
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA").convert("L"), float)
        known = {
            name: float(value)
            for name, value in re.findall(r' (x|y|width|height)="(-?[\d.]+)', tag)
        }
        matrix = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
        for kind, text in re.findall(r"(matrix|scale|translate)\(([^)]*)\)", tag):
            n = [float(v) for v in re.split(r"[ ,]+", text.strip())]
            step = np.eye(3)
            if kind == "matrix":
                step[:2] = [[n[0], n[2], n[4]], [n[1], n[3], n[5]]]
            elif kind == "scale":
                step[0, 0], step[1, 1] = n[0], n[-1]
            else:
                step[:2, 2] = n
            matrix = matrix @ step
        box = np.array([
            [known["width"] / pixels.shape[1], 0, known.get("x", 0)],
            [0, known["height"] / pixels.shape[0], known.get("y", 0)],
            [0, 0, 1],
        ])  # fmt: skip
        found.append((pixels, (matrix @ box)[:2]))
    return found


def _points(path: str) -> np.ndarray:
    """Vertices [N, 2] of a path's ``d``."""
    return np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path), float)


def _outline(svg: str, colour: str) -> np.ndarray:
    """Vertices of the lines of one colour."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*?style="([^"]*)"', svg)
    return np.vstack([_points(d) for d, look in paths if f"stroke: {colour}" in look])


@pytest.mark.parametrize("size", [(64, 64, 20), (91, 109, 33), (104, 104, 72), (128, 128, 40)])
def test_the_outline_of_the_mask_lies_on_its_image(tmp_path, size):
    """A bright box: its outline must run along its border, in every slice, to half a pixel."""
    brain = np.zeros(size[::-1], bool)
    brain[4:-3, 9:-7, 11:-5] = True
    affine = np.diag([2.0, 2, 3, 1])
    for name in ("boldref", "mask"):
        write_volume(
            tmp_path / f"{name}.nii.gz", brain.astype(np.float32), affine, space="scanner"
        )
    svg = draw_scanner(tmp_path / "boldref.nii.gz", tmp_path / "mask.nii.gz", tmp_path / "none")
    (pixels, matrix), *_ = _images(svg)
    assert pixels.shape == (size[1], 7 * size[0])
    line = _outline(svg, "#ffb000") - matrix[:, 2]
    line = line @ np.linalg.inv(matrix[:, :2]).T  # in pixels of the image
    for number in range(7):
        part = pixels[:, number * size[0] : (number + 1) * size[0]]
        rows, columns = np.nonzero(part > part.max() / 2)
        left, right = columns.min() + number * size[0], columns.max() + 1 + number * size[0]
        near = line[(line[:, 0] > number * size[0]) & (line[:, 0] < (number + 1) * size[0])]
        found = [*near.min(0), *near.max(0)]
        assert np.abs(np.subtract(found, [left, rows.min(), right, rows.max() + 1])).max() < 0.5


def test_the_outline_of_the_template_lies_on_what_was_fitted_to_it(tmp_path):
    """The template's own brain, through a fit that moves nothing, on all eight cuts."""
    template = load_template("MNI152NLin2009aSym")
    brain = template.mask.astype(np.float32)
    write_volume(tmp_path / "boldref.nii.gz", brain, template.affine, space="scanner")
    still = Normalisation(np.eye(4), np.zeros((3, 1, 1, 1)), np.zeros(3), np.ones(3))
    still.save(tmp_path / "xfm.npz")
    svg = draw_registration(tmp_path / "boldref.nii.gz", tmp_path / "xfm.npz", template.space)
    _, (pixels, matrix) = _images(svg)
    line = _outline(svg, "#ffb000") - matrix[:, 2]
    line = line @ np.linalg.inv(matrix[:, :2]).T  # in pixels of the image
    size = np.array([pixels.shape[1] // 4, pixels.shape[0] // 2])
    for cut in np.ndindex(4, 2):
        corner = cut * size
        (x, y), (right, low) = corner, corner + size
        rows, columns = np.nonzero(pixels[y:low, x:right] > pixels.max() / 2)
        near = line[((line > corner) & (line < corner + size)).all(1)] - corner
        found = [*near.min(0), *near.max(0)]
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.subtract(found, box)).max() < 0.51


@pytest.mark.parametrize(
    ("volumes", "tr_s", "length"), [(200, 2.0, 399), (490, 0.735, 360), (1200, 1.0, 1200),
                                    (700, 1.72, 1203)],
)  # fmt: skip
def test_carpets_and_motion_share_their_time_axis(volumes, tr_s, length):
    """Second t is at the same place in the FD plot and in the carpet, to half a sample."""
    rng = np.random.default_rng(0)
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    confounds = pd.DataFrame(rng.normal(size=(volumes, 6)), columns=names)
    confounds["framewise_displacement"] = np.arange(volumes) % 2
    series = rng.normal(size=(length, 300))
    spike = length - 30
    series[spike] += 100.0
    svg = draw_time(confounds, tr_s, {"a": series}, 1.0)
    lines = [_points(d) for d in re.findall(r'<path d="([^"]*)"', svg)]
    fd = max((p for p in lines if len(p) > volumes / 2), key=lambda p: np.ptp(p[:, 0]))[:, 0]
    per_s = (fd.max() - fd.min()) / ((volumes - 1) * tr_s)  # points per second
    pixels, matrix = _images(svg)[-1]
    column = pixels.mean(0).argmax() + 0.5
    x_s = (matrix[0, 0] * column + matrix[0, 2] - fd.min()) / per_s
    pooled = -(-length // 600)
    assert abs(x_s - (spike // pooled * pooled + (pooled - 1) / 2)) < 0.5
