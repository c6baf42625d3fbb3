"""Blocks to files: one folder that needs nothing but itself to be looked at."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..files import atomic_path, write_text
from .blocks import Figure, PagedTable, Section, Table

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
    """Write pages, their data as CSV, the style sheet and the script; index.html last."""
    out = Path(out)
    for asset in sorted((_HERE / "static").iterdir()):
        with atomic_path(out / "static" / asset.name) as temporary:
            shutil.copyfile(asset, temporary)
    environment = make_environment()
    for page in sorted(pages, key=lambda page: page.path == "index.html"):
        target = out / page.path
        root = "../" * page.path.count("/")
        for section in page.sections:
            for block in section.blocks:
                if isinstance(block, PagedTable):
                    write_text(target.parent / "data" / f"{block.name}.js", block.script)
                if isinstance(block, Table | Figure | PagedTable) and block.frame is not None:
                    _write_csv(block, target.parent / "data")
        text = environment.get_template("page.html").render(page=page, root=root)
        write_text(target, text)


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
    return environment


def _write_csv(block: Table | Figure | PagedTable, folder: Path) -> None:
    assert block.frame is not None
    with atomic_path(folder / f"{block.name}.csv") as temporary:
        block.frame.to_csv(temporary, index=False)
