"""Files appear whole: a temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import BrainLMError

_READ_THROUGH = 50_000_000  # bytes
_FULL = 1_000_000  # bytes free, on a disk that a writer failed on
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # the names that atomic_path makes
#: What git-annex (unlocked files) and Git LFS leave in place of a file's content.
_POINTER = re.compile(rb"/annex/objects/|version https://git-lfs\.github\.com/")
_POINTER_BYTES = 1024


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is synced and renamed to `path`.

    On any error (a full disk, a kill that Python sees) the temporary file is removed and `path`
    is left as it was. The suffix is kept so that writers which look at it behave the same.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:8]}.tmp{suffix}")
    try:
        try:
            yield temporary
        except (OSError, BrainLMError):
            raise
        except Exception as error:  # writers that say it in their own way (torch, safetensors)
            if shutil.disk_usage(path.parent).free > _FULL:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        _open_to_group(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _open_to_group(path: Path) -> None:
    """Give a file that its writer kept to its owner (safetensors does) the rights of any other."""
    if path.stat().st_mode & 0o077:
        return
    probe = path.with_name(f"{path.name}.mode")
    try:
        probe.touch(0o666)
        path.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink(missing_ok=True)


def describe_absent(path: str | os.PathLike) -> str | None:
    """Why the content of an existing name is not here; None where it is.

    A dataset of git-annex, DataLad or Git LFS names files whose content is fetched on demand: a
    link that leads nowhere, or a few bytes that point to the content.
    """
    advice = "get its content (datalad get, git annex get or git lfs pull)"
    if os.path.islink(path) and not os.path.exists(path):
        return f"a link without content; {advice}"
    try:
        if os.path.getsize(path) > _POINTER_BYTES:
            return None
        with open(path, "rb") as handle:
            first = handle.read(64)
    except OSError:  # whoever reads it says what is wrong
        return None
    return f"a pointer without content; {advice}" if _POINTER.match(first) else None


def is_disk_error(error: OSError) -> bool:
    """The disk is full, over quota or read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def describe_disk_error(error: OSError) -> str:
    """What to tell the user about an error of writing."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}; free some space or allow writing there"


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files that processes killed outright left under `folder`; how many.

    For when nothing writes there: it walks the whole folder.
    """
    count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if _LEFTOVER.match(name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(parent, name))
                    count += 1
    return count


def shipped(name: str) -> Path:
    """A folder that comes with the code, such as ``atlases`` or ``workflow``: a wheel has it in
    the package, a clone next to it."""
    package = Path(__file__).resolve().parent
    inside = package / "share" / name
    return inside if inside.is_dir() else package.parent / name


def keep_compiled() -> None:
    """Where numba can write neither next to the kernels nor below the user's home (an installation
    that is read-only, a container), it keeps what it compiles in a temporary folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    there = next(folder for folder in (home, *home.absolute().parents) if folder.is_dir())
    package = Path(__file__).parent
    if "NUMBA_CACHE_DIR" in os.environ or any(os.access(f, os.W_OK) for f in (package, there)):
        return
    folder = Path(tempfile.gettempdir(), f"brainlm-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()  # numba trusts what it finds there
    if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077 or folder.is_symlink():
        folder = Path(tempfile.mkdtemp(prefix="brainlm-"))
    os.environ["NUMBA_CACHE_DIR"] = str(folder)


def write_text(path: str | os.PathLike, text: str, *, mtime_ns: int | None = None) -> None:
    """Write `text` so that the file appears whole, with another time than now if one is given."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if mtime_ns is not None:
            os.utime(temporary, ns=(mtime_ns, mtime_ns))


def is_whole(path: Path) -> bool:
    """Whether a file or folder is there, not empty, and, where it is compressed, not cut off.

    Compressed files of more than 50 MB are not read through: a denoised image takes ten seconds.
    """
    try:
        if path.is_dir():
            return any(path.iterdir())
        size = path.stat().st_size
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        if path.suffix == ".gz" and 0 < size < _READ_THROUGH:
            with gzip.open(path) as stream:
                while stream.read(1 << 20):
                    pass
        return size > 0
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile):
        return False


def plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """For JSON and tables: no numpy types, None for NaN and infinity."""
    out = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in out.items()
    }


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as readable JSON (NaN refused: JSON has none; write None)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read JSON; the error names the file."""
    try:
        return json.loads(Path(path).read_bytes())  # with or without a byte order mark
    except FileNotFoundError:
        raise BrainLMError(f"{path}: not found") from None
    except (ValueError, RecursionError) as error:
        raise BrainLMError(f"{path}: expected JSON, found something else ({error})") from None


def digest(value: Any) -> str:
    """16 hex digits of a plain value, the same everywhere and always."""
    text = json.dumps(value, sort_keys=True, default=sorted)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
