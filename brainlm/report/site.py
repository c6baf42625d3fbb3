"""Blocks to files: one folder that needs nothing but itself to be looked at."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import atomic_path, write_text
from .page_blocks import Choice, Figure, PagedTable, Section, Table

_HERE = Path(__file__).resolve().parent


@dataclass
class Page:
    """A page of the site.

    Attributes
    ----------
    path : str
        Relative to the site's folder, e.g. ``index.html`` or ``demo/sub-01.html``.
    title, subtitle : str
    sections : list of Section
    trail : list of (text, address)
        Pages above this one.
    """

    path: str
    title: str
    subtitle: str
    sections: list[Section]
    trail: list[tuple[str, str]]


def write_site(pages: list[Page], out: Path) -> None:
    """Write pages, their data as CSV and Parquet, the style sheet and the script; index.html last.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    out = Path(out)
    for asset in sorted((_HERE / "static").iterdir()):
        with atomic_path(out / "static" / asset.name) as temporary:
            shutil.copyfile(asset, temporary)
    template = make_environment().get_template("page.html")
    for page in sorted(pages, key=lambda page: page.path == "index.html"):
        target = out / page.path
        for section in page.sections:
            for block in _flatten(section.blocks):
                if isinstance(block, PagedTable):
                    write_text(target.parent / "data" / f"{block.name}.js", block.script)
                if _has_own_data(block):
                    _write_data(block.name, block.frame, target.parent / "data")
        write_text(target, template.render(page=page, root="../" * page.path.count("/")))


@lru_cache(maxsize=1)
def make_environment():
    """Jinja with everything escaped: names and reasons come from datasets and are hostile."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = Markup  # SVG from figures.py, whose text is escaped there
    environment.filters["downloads"] = list_downloads
    return environment


def list_downloads(block: Any) -> list[tuple[str, str]]:
    """(label, address) of the data behind a block."""
    own = ("CSV", "csv"), ("Parquet", "parquet")
    made = [(label, f"data/{block.name}.{suffix}") for label, suffix in own]
    return (made if _has_own_data(block) else []) + list(getattr(block, "files", {}).items())


def write_figures(page: Page, folder: Path) -> None:
    """Each figure of a page as an SVG that stands alone, and its caption as reStructuredText.

    For papers and for Snakemake's own report. The folder is made anew.
    """
    style = (_HERE / "static" / "style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--[\w-]+): (#\w+);", style[: style.index("@media")]))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for block in [b for section in page.sections for b in _flatten(section.blocks)]:
        if isinstance(block, Figure):
            svg = re.sub(r"var\((--[\w-]+)\)", lambda m: colours[m[1]], block.svg)
            write_text(folder / f"{block.name}.svg", svg)
            made = f"{block.caption} Made by: {block.command or 'brainlm report'}."
            # every punctuation mark escaped: a dataset's words are no markup
            write_text(folder / f"{block.name}.txt", re.sub(r"([^\w\s])", r"\\\1", made))
            block.files = {"SVG": f"{folder.name}/{block.name}.svg"} | block.files


def _flatten(blocks: list[Any]) -> list[Any]:
    """Blocks with the figures of each choice in its place."""
    return [
        item
        for block in blocks
        for item in ([f for _, f in block.figures] if isinstance(block, Choice) else [block])
    ]


def _has_own_data(block: Any) -> bool:
    known = isinstance(block, Table | Figure | PagedTable) and block.frame is not None
    return known and getattr(block, "saved", True)


def _write_data(name: str, frame: pd.DataFrame, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(folder / f"{name}.csv") as temporary:
        frame.to_csv(temporary, index=False)
    table = pa.table({str(column): _one_kind(frame[column]) for column in frame})
    with atomic_path(folder / f"{name}.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _one_kind(values: pd.Series):
    """A column as Arrow wants it; one that mixes numbers and words becomes words."""
    import pyarrow as pa

    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])
