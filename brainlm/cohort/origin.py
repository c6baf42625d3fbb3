"""Where a cohort's files come from: the commit that is checked out, and the dataset's DOI."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from ..errors import BrainLMError
from ..files import read_json

COMMIT = "dataset.commit"
DOI = "dataset.doi"


class _Description(BaseModel):
    doi: str | None = Field(None, alias="DatasetDOI")


def read_origin(folder: str | os.PathLike) -> dict[str, str]:
    """What is known of a dataset: `COMMIT` and `DOI`, as far as the folder states them.

    One look at the folder, whatever the number of its files: whether they differ from the commit
    is not asked.

    Parameters
    ----------
    folder : path
        Of a cohort: a git or DataLad dataset, or a folder that such a dataset tracks. A folder
        that merely lies in a repository, untracked, is of no commit.
    """
    found = {COMMIT: _read_commit(folder), DOI: _read_doi(Path(folder))}
    return {name: value for name, value in found.items() if value}


def _read_commit(folder: str | os.PathLike) -> str | None:
    # a group's folder belongs to a colleague; `HEAD:./` is there if the commit has this folder
    command = ["git", "-c", "safe.directory=*", "-C", os.fspath(folder), "rev-parse", "--verify"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    values = []
    for what in ("HEAD", "HEAD:./"):
        try:
            done = subprocess.run([*command, what], capture_output=True, text=True, timeout=60,
                                  check=True, env=inherited)  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
        values.append(done.stdout.strip())
    return values[0]


def _read_doi(folder: Path) -> str | None:
    """Without the prefixes that are in use: ``doi:`` and a resolver's address."""
    path = folder / "dataset_description.json"
    if not path.exists():
        return None
    try:
        doi = _Description.model_validate(read_json(path)).doi
    except (BrainLMError, ValidationError):  # it states nothing that can be read
        return None
    bare = (doi or "").strip()
    for prefix in ("https://doi.org/", "http://dx.doi.org/", "https://dx.doi.org/", "doi:"):
        if bare.lower().startswith(prefix):
            bare = bare[len(prefix) :].strip()
    return bare or None
