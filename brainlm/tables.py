"""The one reader and writer of tab-separated tables.

A line is a row, a tab is the end of a cell, and nothing else has a meaning: a quotation mark is a
character like any other, and there is no escape. A cell with a tab or a line break is refused on
writing, so whatever was written is read back as it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BrainLMError
from .files import atomic_path, write_text

if TYPE_CHECKING:
    import pandas as pd

MISSING = "n/a"  # of BIDS
#: How tables of vectors and predictions can be written.
FORMATS = ("parquet", "tsv", "npy")
_BREAK = re.compile(r"[\t\n\r]")


@dataclass(frozen=True)
class Table:
    """Cells of a table, all text; every row is as long as `columns`."""

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]

    def records(self) -> list[dict[str, str]]:
        """Rows as column -> cell."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def frame(self) -> pd.DataFrame:
        """The cells as text: names like ``007`` and ``NA`` stay what they are."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.columns), dtype=str)


def read_tsv(path: str | os.PathLike, *needed: str, hint: str = "") -> Table:
    """Read a table: UTF-8 with or without a byte order mark, lines ending in LF or CRLF.

    Parameters
    ----------
    needed : str
        Columns that must be there.
    hint : str
        What to do where there is no such file.

    Raises
    ------
    BrainLMError
        No such file, not UTF-8, empty, two columns without a name, a column named twice or
        missing, or a row that is longer or shorter than the header. Empty lines are skipped where
        there is more than one column.
    """
    path = Path(path)
    return parse_tsv(_read_text(path, hint), path, *needed)


def _read_text(path: Path, hint: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise BrainLMError(f"{path}: not found" + (f"; {hint}" if hint else "")) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BrainLMError(
            f"{path}: line {line} has the byte 0x{error.object[error.start]:02x}, which is not "
            "UTF-8; save the table as UTF-8"
        ) from None


def parse_tsv(text: str, path: Path, *needed: str) -> Table:
    """The table that is written in `text`; errors name `path`. See :func:`read_tsv`."""
    text = text.replace("\r\n", "\n")
    refuse_carriage_returns(path, text)
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines or not lines[0]:
        raise BrainLMError(f"{path}: empty, expected a table whose first line names its columns")
    header, *rows = [line.split("\t") for line in lines]
    if header.count("") > 1:  # pandas writes its index under no name; that is one column
        raise BrainLMError(
            f"{path}: column {header.index('') + 1} of {len(header)} has no name; name it, or "
            "remove the tabs at the end of the lines"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BrainLMError(f"{path}: columns named more than once: {', '.join(twice)}")
    missing = [name for name in needed if name not in header]
    if missing:
        raise BrainLMError(f"{path}: expected a column {missing[0]!r}, found: {', '.join(header)}")
    width, ragged = len(header), False
    for number, row in enumerate(rows, start=2):
        if len(row) != width:
            if row != [""]:
                raise BrainLMError(
                    f"{path}: line {number} has {len(row)} cells, expected {width} as in the "
                    "first line; check its tabs"
                )
            ragged = True
    return Table(path, tuple(header), [row for row in rows if row != [""]] if ragged else rows)


def refuse_carriage_returns(path: Path, text: str) -> None:
    """Raise BrainLMError for a carriage return within a line."""
    if "\r" not in text:
        return
    line = text.count("\n", 0, text.index("\r")) + 1
    raise BrainLMError(
        f"{path}: line {line} holds a carriage return; save the table with lines that end in LF "
        "or CRLF"
    )


def format_tsv(columns: Sequence[str], rows: Iterable[Sequence[Any]], name: object = "") -> str:
    """The text of a table; None is ``n/a``.

    Raises
    ------
    BrainLMError
        A cell with a tab or a line break; `name` says of which table.
    """
    lines = []
    for row in (columns, *rows):
        cells = [MISSING if cell is None else str(cell) for cell in row]
        line = "\t".join(cells)
        if line.count("\t") != len(columns) - 1 or "\n" in line or "\r" in line:
            odd = next((cell for cell in cells if _BREAK.search(cell)), None)
            if odd is None:
                raise ValueError(f"{name}: a row of {len(cells)} cells for {len(columns)} columns")
            raise BrainLMError(
                f"{name}: {odd[:200]!r} has a tab or a line break and cannot stand in a table; "
                "rename what it comes from"
            )
        lines.append(line)
    return "\n".join(lines) + "\n"


def write_tsv(
    path: str | os.PathLike,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    mtime_ns: int | None = None,
) -> None:
    """Write a table that appears whole; as :func:`format_tsv`."""
    write_text(path, format_tsv(columns, rows, path), mtime_ns=mtime_ns)


def as_number(cell: str) -> Any:
    """A cell as a number where it is one; ``n/a`` is None."""
    if cell == MISSING:
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, without its index; it appears whole."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
