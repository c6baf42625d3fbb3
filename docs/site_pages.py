"""For mkdocs: pages of the site that stand elsewhere in the clone, and links between them."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
#: Page of the site -> file of the clone. Everything else is a page of docs/.
ELSEWHERE = {
    "index.md": "README.md",
    "atlases.md": "atlases/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
#: What is meant to be imported: their docstrings are the reference.
PUBLIC = (
    "brainlm.model", "brainlm.model.hub", "brainlm.shards", "brainlm.atlas", "brainlm.config",
    "brainlm.inference.vectors", "brainlm.evaluation.statistics", "brainlm.evaluation.rows",
    "brainlm.simulate", "brainlm.errors",
)  # fmt: skip


def on_files(files: Files, config) -> Files:
    """Add the pages that are not in docs/."""
    texts = {page: (ROOT / source).read_text("utf-8") for page, source in ELSEWHERE.items()}
    texts["reference.md"] = "# Python reference\n\n" + "\n".join(
        f"::: {name}\n" for name in PUBLIC
    )
    for path in sorted((ROOT / "docs/tutorials").glob("*.py")):
        texts[f"tutorials/{path.stem}.md"] = _lay_out(path.read_text("utf-8"))
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def _lay_out(script: str) -> str:
    """A script in cells (``# %%``) as a page."""
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "markdown" in kind:
            parts.append(re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip())
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turn links between files of the clone into links between pages; code is only named."""
    here = page.file.src_uri
    folder = PurePosixPath(ELSEWHERE.get(here, f"docs/{here}")).parent

    def change(link: re.Match) -> str:
        words, path, anchor = link[1], link[2], link[3] or ""
        target = os.path.normpath(folder / path)
        found = {source: name for name, source in ELSEWHERE.items()}.get(target)
        if found is None and target.startswith("docs/"):
            found = re.sub(r"^docs/(tutorials/\w+)\.py$", r"\1.md", target).removeprefix("docs/")
        if found is None or files.get_file_from_path(found) is None:
            assert (ROOT / target).exists(), f"{here}: {path} is not in the clone"
            return words
        return f"[{words}]({os.path.relpath(found, PurePosixPath(here).parent)}{anchor})"

    if "docs" not in folder.parts:
        markdown = markdown.replace("](docs/images/", "](images/")
    return re.sub(r"(?<!!)\[([^]]*)\]\((?!http|#)([^)#\s]+)(#[^)\s]+)?\)", change, markdown)
