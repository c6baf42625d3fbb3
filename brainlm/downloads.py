"""Files that are fetched once, checked, and kept whole or not at all."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from .errors import BrainLMError
from .files import atomic_path


def download(url: str, path: Path, digest: Callable[[Path], str], expected: str) -> None:
    """Fetch `url` to `path`, where nothing appears unless its digest is the expected one.

    Raises
    ------
    BrainLMError
        No network, a folder that cannot be written, or another file than expected.
    """
    try:
        with atomic_path(path) as temporary:
            with urllib.request.urlopen(url, timeout=60) as response:
                temporary.write_bytes(response.read())
            found = digest(temporary)
            if found != expected:
                raise BrainLMError(
                    f"{url}: expected sha256 {expected[:16]}…, found {found[:16]}…; not kept"
                )
    except (urllib.error.URLError, OSError) as error:
        raise BrainLMError(
            f"{path}: not found, and {url} cannot be fetched ({error}); on a machine without "
            "network copy the file there by hand"
        ) from None
