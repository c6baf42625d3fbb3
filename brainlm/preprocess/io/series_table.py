"""Tables of parcel series as they are found.

Nothing in such a file says which columns are parcels. A header of column numbers that is read as
a time point, a column of row numbers that is read as a parcel, or an empty cell that is skipped
shifts everything after it, and the numbers look as good as before; each is met in real files.
:mod:`brainlm.tables` reads what has a header and tabs; these files need have neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RecordingError

_MISSING = {"": "nan", "n/a": "nan"}  # cells without a value


def load_table(path: Path) -> tuple[np.ndarray, list[str]]:
    """The numbers [T, R], and the names in the header (none if it has none, or only numbers).

    Cells stand between tabs, where there are any (two tabs in a row: a missing value; a tab may
    end every line), else between blanks. Lines that begin with # are comments.

    Raises
    ------
    OSError, ValueError, EOFError
        No such file, or no such table.
    """
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False), []
    text = path.read_text(encoding="utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip(" ") and line[0] != "#"]
    between = "\t" if any("\t" in line for line in lines) else None
    rows = [[cell.strip() for cell in line.split(between)] for line in lines]
    if all(row[-1] == "" for row in rows):
        rows = [row[:-1] for row in rows]
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError(f"rows have {sorted(widths)[:4]} values")
    header = rows.pop(0) if _is_header(rows[0]) else []
    for number, name in enumerate(header, 1):
        if not name or name.startswith("Unnamed: "):
            raise ValueError(
                f"column {number} has no name; leave out columns that are not parcels"
            )
    table = np.array([[_MISSING.get(cell, cell) for cell in row] for row in rows], np.float64)
    steps = np.diff(table[:, 0])
    if len(steps) > 1 and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-3):
        raise ValueError("column 1 looks like row numbers or times; leave it out")
    return table, [] if all(map(_is_number, header)) else header


def load_parcel_cifti(path: Path) -> tuple[np.ndarray, list[str], float]:
    """Series [T, R] of a ``ptseries.nii``, its parcels' names, and the s between time points.

    Raises
    ------
    OSError, ValueError
        No such file, or no series of parcels; the step is not in seconds.
    """
    import nibabel as nib
    from nibabel.cifti2 import ParcelsAxis, SeriesAxis
    from nibabel.filebasedimages import ImageFileError

    try:
        image: Any = nib.load(path)
        axes = [image.header.get_axis(i) for i in range(image.ndim)]
        values = np.asarray(image.dataobj)
    except (ImageFileError, AttributeError) as error:
        raise ValueError(f"not a CIFTI-2 file: {error}") from None
    kinds = [type(axis) for axis in axes]
    if kinds == [ParcelsAxis, SeriesAxis]:
        axes, values = axes[::-1], values.T
    elif kinds != [SeriesAxis, ParcelsAxis]:
        found = " x ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"expected time x parcels, found {found}")
    time, parcels = axes
    if time.unit != "SECOND":
        raise ValueError(f"steps in {time.unit}, expected seconds")
    return values, [str(name) for name in parcels.name], float(time.step)


def order_parcels(
    series: np.ndarray, found: list[str], parcels: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Series [T, R] and their names in the atlas's order, where they are all of its names.

    Of CIFTI, whose names belong to the format: whoever wrote it knew which parcel is which.
    """
    names, expected = [*map(_plain, found)], [*map(_plain, parcels)]
    if len(set(names)) < len(names) or sorted(names) != sorted(expected):
        return series, found
    order = [names.index(name) for name in expected]
    return series[:, order], [found[k] for k in order]


def check_names(path: Path, found: list[str], parcels: Sequence[str], other_names: bool) -> None:
    """A header's names are the atlas's, but for case and punctuation, or only count the columns.

    Raises
    ------
    RecordingError
        ``bad_data``: they are others (`other_names` is false), or the same in another order.
    """
    names, expected = [*map(_plain, found)], [*map(_plain, parcels)]
    if not expected or len(names) != len(expected) or names == expected or _counts(names):
        return  # the number of columns is checked by who knows the atlas
    moved = sorted(names) == sorted(expected)
    if moved or not other_names:
        k = next(k for k, name in enumerate(names) if name != expected[k])
        raise RecordingError(
            "bad_data",
            f"{path}: column {k + 1} is {found[k]}, the atlas's parcel {k + 1} is {parcels[k]}"
            + (": the parcels are in another order; put them in the atlas's" if moved else
               "; deliver series of this atlas, or accept the names by the cohort's segmentation")
        )  # fmt: skip


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _counts(names: Sequence[str]) -> bool:
    """``parcel0``, ``parcel1``, ...: one word and running numbers."""
    parts = [part for name in names if (part := re.fullmatch(r"(.*?)(\d+)", name))]
    numbers = [int(part[2]) for part in parts]
    one_word = len({part[1] for part in parts}) == 1
    return one_word and numbers == [*range(numbers[0], numbers[0] + len(names))]


def _is_header(row: list[str]) -> bool:
    """It has words, or counts the columns: no parcels' values are 0, 1, 2, ... or 1, 2, 3, ..."""
    filled = [cell for cell in row if cell not in _MISSING]
    if not all(map(_is_number, filled)):
        return True
    numbers = [float(cell) for cell in filled]
    return len(numbers) > 1 and any(
        numbers == [*range(first, first + len(numbers))] for first in (0, 1)
    )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
