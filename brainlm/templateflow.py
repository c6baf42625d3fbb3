"""The files of MNI152NLin6Asym, fetched once from TemplateFlow.

They are kept where templateflow's own client and fMRIPrep keep them: in ``TEMPLATEFLOW_HOME``, or
in the user's cache folder.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

from .downloads import download as fetch
from .errors import BrainLMError
from .files import describe_absent

SPACE = "MNI152NLin6Asym"
SOURCE = "https://templateflow.s3.amazonaws.com"
#: The T1-weighted image and its brain mask at 2 mm, and the sha256 of each image without its
#: compression, in which copies differ.
FILES = {
    f"tpl-{SPACE}/tpl-{SPACE}_res-02_T1w.nii.gz":
        "d348934c75459c8eafc398215ff78985daeb9c8a0566c9a305e0f69de0a55e11",
    f"tpl-{SPACE}/tpl-{SPACE}_res-02_desc-brain_mask.nii.gz":
        "bf52c966d17c482391ecf41a1f08731038015a74bed21824813832bfe74176be",
}  # fmt: skip


def find_home() -> Path:
    """The folder of all templates."""
    from platformdirs import user_cache_dir  # as the client does

    return Path(os.environ.get("TEMPLATEFLOW_HOME") or user_cache_dir("templateflow"))


def get_files(*, download: bool = True) -> tuple[Path, Path]:
    """The T1-weighted image and its brain mask; what is not there is downloaded.

    Raises
    ------
    BrainLMError
        A file that is not there and cannot be had, or another image than its name says.
    """
    home = find_home()
    for name, expected in FILES.items():
        path, url = home / name, f"{SOURCE}/{name}"
        if absent := describe_absent(path):
            raise BrainLMError(f"{path}: {absent}")
        if not path.exists() or not path.stat().st_size:  # the client's skeleton has empty files
            if not download:
                raise BrainLMError(
                    f"{path}: not found; raw images under an atlas in {SPACE} are fitted to it: "
                    f"brainlm doctor --fetch downloads {url} there"
                )
            try:
                fetch(url, path, _digest, expected)
            except BrainLMError as error:
                raise BrainLMError(
                    f"{error}, or set TEMPLATEFLOW_HOME to a folder that has {name}: raw images "
                    f"under an atlas in {SPACE} are fitted to it"
                ) from None
        elif (found := _digest(path)) != expected:
            raise BrainLMError(
                f"{path}: expected an image with sha256 {expected[:16]}… (uncompressed), found "
                f"{found[:16]}…: this is not TemplateFlow's file; remove it, and it is fetched "
                "again"
            )
    t1w, mask = (home / name for name in FILES)
    return t1w, mask


def _digest(path: Path) -> str:
    """Hex SHA-256 of what is in a .gz file."""
    try:
        with gzip.open(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return "no gzip file"
