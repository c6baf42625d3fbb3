"""What a page is made of: text, figures that can be big, tables, drawings. No HTML here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

#: Rows of one table on a page; the file to download always has all of them.
MAX_ROWS = 1000
#: Rows of a paged table that the page itself holds.
FIRST_ROWS = 100


@dataclass
class Text:
    """Paragraphs; `tone` is plain or missing (something is not there, and why)."""

    paragraphs: list[str]
    tone: str = "plain"
    kind: str = "text"


@dataclass
class Cautions:
    """Limitations, as a list."""

    title: str
    items: list[str]
    kind: str = "cautions"


@dataclass
class Cards:
    """A few headline figures: (label, value with interval, what to compare it with)."""

    items: list[tuple[str, str, str]]
    kind: str = "cards"


@dataclass
class Picture:
    """A small drawing in a cell of a table: SVG made here, or an image as a data address."""

    alt: str
    svg: str = ""
    address: str = ""


@dataclass
class Table:
    """A table and the file it can be downloaded as.

    Parameters
    ----------
    name : str
        Names ``data/<name>.csv``.
    caption : str
    frame : DataFrame
        Raw values, all rows: what is downloaded.
    shown : DataFrame, optional
        What the page shows, if it is not `frame` as it is.
    command : str
        What made it.
    sortable : bool
        Long tables can be sorted and filtered on the page.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    shown: pd.DataFrame | None = None
    command: str = "brainlm report"
    sortable: bool = False
    links: dict[str, str] = field(default_factory=dict)  # text of the first column -> address
    files: dict[str, str] = field(default_factory=dict)  # what to download -> address
    config: str = ""  # fingerprint of the configuration that made it
    saved: bool = True  # `frame` is written next to the page; False if it is elsewhere
    kind: str = "table"

    @property
    def head(self) -> list[tuple[str, bool]]:
        """Column names as (text, holds numbers)."""
        frame = self._visible
        kinds = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
        return [(str(name), kind) for name, kind in zip(frame.columns, kinds, strict=True)]

    @property
    def rows(self) -> list[list[tuple[Any, str]]]:
        """Cells as (text or Picture, number | interval | picture | ""), at most MAX_ROWS rows."""
        records = self._visible.head(MAX_ROWS).itertuples(index=False, name=None)
        return [[(show(value), style_of(value)) for value in record] for record in records]

    @property
    def hidden_rows(self) -> int:
        return max(0, len(self._visible) - MAX_ROWS)

    @property
    def _visible(self) -> pd.DataFrame:
        return self.frame if self.shown is None else self.shown


@dataclass
class PagedTable:
    """A table of any length: the page holds the first rows, a script file all of them.

    Browsers do not let a page from ``file://`` fetch a file, but let it run one: the rows are a
    script that assigns them.

    Parameters
    ----------
    links : list of str
        One address per row for the first column; empty where there is no page.
    cohort : str
        Flags are kept in the browser under this name.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    shown: pd.DataFrame
    links: list[str]
    cohort: str
    command: str = "brainlm report"
    config: str = ""
    kind: str = "paged"

    @property
    def head(self) -> list[str]:
        return [str(column) for column in self.shown.columns]

    @property
    def rows(self) -> list[tuple[str, list[str]]]:
        """The first rows as (address, cells)."""
        cells = self.shown.head(FIRST_ROWS).astype(str).to_numpy().tolist()
        return list(zip(self.links, cells, strict=False))

    @property
    def script(self) -> str:
        cells = self.shown.astype(str).to_numpy().tolist()
        data = json.dumps({"rows": cells, "links": self.links}, ensure_ascii=False)
        return f"(window.brainlmTables ??= {{}})[{json.dumps(self.name)}] = {data};\n"


@dataclass
class Figure:
    """A drawing as SVG text (made by :mod:`brainlm.report.figures`, so safe) with its caption.

    Parameters
    ----------
    frame : DataFrame, optional
        The data in it, to download.
    files : dict
        What to download -> address; data that lie elsewhere already.
    fade : str
        Label of a slider that fades the drawing's upper layer (its group ``over``).
    """

    name: str
    caption: str
    svg: str
    alt: str
    command: str = "brainlm report"
    frame: pd.DataFrame | None = None
    files: dict[str, str] = field(default_factory=dict)
    config: str = ""
    fade: str = ""
    kind: str = "figure"


@dataclass
class Choice:
    """Figures of which the reader chooses one; without scripts all are shown.

    Parameters
    ----------
    label : str
        Label of the list.
    figures : list of (option, Figure)
    """

    label: str
    figures: list[tuple[str, Figure]]
    kind: str = "choice"


@dataclass
class Details:
    """Long text that opens on demand."""

    title: str
    text: str
    kind: str = "details"


@dataclass
class Section:
    """A titled part of a page."""

    id: str
    title: str
    blocks: list[Any]


def style_of(value: Any) -> str:
    """How a cell is set: numbers to the right, ``0.41 [0.35, 0.47]`` on one line."""
    if isinstance(value, Picture):
        return "picture"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    is_interval = isinstance(value, str) and value.endswith("]") and len(value) < 30
    return "interval" if is_interval else ""


def show(value: Any) -> Any:
    """A cell as a reader wants it: three significant digits, a dash for what is not known."""
    if isinstance(value, Picture):
        return value
    if value is None or value is pd.NA or value is pd.NaT:
        return "–"
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        if value.is_integer() and abs(value) < 1e6:
            return f"{value:.0f}".replace("-", "−")
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:.{min(digits, 4)}f}" if abs(value) < 1e6 else f"{value:.3g}"
        text = text.removeprefix("-") if float(text) == 0 else text
        return text.replace("-", "−")
    return str(value)


def show_interval(value: float | None, low: float | None, high: float | None) -> str:
    """``0.41 [0.35, 0.47]``; without an interval just the value."""
    if value is None or pd.isna(value):
        return "–"
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return f"{show(float(value))} (no interval)"
    # Two digits of the interval's width are all that it tells; the three numbers share them.
    width = float(high) - float(low)
    digits = min(3, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3
    texts = (f"{float(number):.{digits}f}".replace("-", "−") for number in (value, low, high))
    return "{} [{}, {}]".format(*texts)


def count(number: int, noun: str) -> str:
    """``1 participant``, ``2 recordings``."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def join_words(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
