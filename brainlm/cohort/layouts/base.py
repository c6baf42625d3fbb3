"""What a layout is, and the parts that layouts share.

A layout finds recordings in one pass over directories (``os.scandir``, in threads because
parallel file systems answer in milliseconds); no image is opened. It also says at which stage
its recordings enter the pipeline, and which files belong to an image that enters late.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ...errors import BrainLMError

_THREADS = 16
_BATCH = 64  # subjects per thread's turn: handing over one by one costs more than listing it
_SLOW_S = 1e-3  # s per subject: a local disk takes 0.03 ms, or 0.15 ms at the first time
#: Ends of image files.
IMAGES = (".nii", ".nii.gz")
#: Entities that say what was done to a recording, not which recording it is.
DERIVED = ("space", "cohort", "res", "den", "atlas", "seg", "stat", "desc")
#: BIDS' entities that tell one functional run from another. All others name a version of the same
#: data: what was done to it (desc, space, ...), a reconstruction, a part, an echo.
IDENTIFYING = ("sub", "ses", "task", "acq", "ce", "dir", "run")
#: Columns that may hold participants' ids, the first that is there: of BIDS, UK Biobank, HCP, NIMH
#: Data Archive, ADNI, and common spellings.
ID_COLUMNS = (
    "participant_id", "eid", "Subject", "src_subject_id", "PTID", "subject_id", "subject", "sub",
)  # fmt: skip
#: Ends of tables that results depend on: confounds, motion, censored volumes.
_ABOUT = (
    "desc-confounds_timeseries.tsv", "desc-confounds_regressors.tsv", "_motion.tsv",
    "_outliers.tsv",
)  # fmt: skip
NO_CONTENT = "a link without content; get its content (datalad get or git annex get)"
NOT_IN_FUNC = "not in a func folder"
#: Folders of a subject that hold no BOLD images: the other datatypes of BIDS, and fMRIPrep's.
_OTHER_FOLDERS = set(
    "beh dwi eeg figures fmap ieeg log meg micr motion mrs nirs perf pet xfm".split()  # noqa: SIM905
)
_PART = re.compile(r"[a-zA-Z0-9]+-[a-zA-Z0-9+-]+")
#: The variant of images in the recording's own space: never used, but the recording is counted.
OWN = "own"


@dataclass(frozen=True)
class Found:
    """A file that a layout recognises as a recording.

    `variant` tells forms of the same recording apart: the space of an image
    (``MNI152NLin6Asym:res-2``), the parcellation of a series (``Glasser:space-fsLR``); `versions`
    are the entities of its name that do not identify a run. `companions` are files that it also
    depends on: sidecars, confounds, the T1w image. `left_out` says why a file that looks
    like a recording is none: such files are counted, not indexed. `refused` is one that may be a
    recording, but whose name or place cannot be believed: it is counted as failed.
    """

    recording_id: str
    entities: dict[str, str]
    source: str
    size: int
    mtime_ns: int
    t1w: str | None = None
    variant: str = ""
    left_out: str = ""
    refused: bool = False
    companions: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Companions:
    """The files that belong to a recording which enters late.

    Attributes
    ----------
    space : str or None
        TemplateFlow name of the template that the image, or its warp, is in; None: not said.
    motion : Path or None
        Where motion parameters or framewise displacement are, if the file is there: fMRIPrep's
        confounds, XCP-D's ``motion.tsv``, FSL's ``.par``, HCP's ``Movement_Regressors.txt``.
    outliers : Path or None
        XCP-D's table of volumes that were censored, if it is there.
    warp : Path or None
        FSL warp, template -> image, for an image in its own space.
    denoised : bool
        The image is cleaned already (FIX): no confounds are regressed from it.
    """

    space: str | None = None
    motion: Path | None = None
    outliers: Path | None = None
    warp: Path | None = None
    denoised: bool = False


def plain_label(identifier: str) -> str:
    """``sub-01``, ``01`` or ``NDAR_INV01`` -> the label in ``sub-<label>``."""
    return re.sub("[^a-zA-Z0-9]", "", identifier.strip().removeprefix("sub-"))


@dataclass(frozen=True)
class Layout:
    """How recordings lie in a folder.

    Attributes
    ----------
    enters : str
        The first stage: ``motion`` (raw images), ``volumes`` (images in template space) or
        ``series`` (parcel series).
    tree : str
        The expected paths, for messages and documentation.
    find : callable
        ``(folder, skip) -> recordings`` of all tasks, in any order, and the files that are left
        out; entries of the folder that are named in `skip` are not looked at.
    companions : callable
        The files that belong to a recording's file.
    variants : str
        The cohort's configuration key that chooses among variants.
    label : callable
        A participant's id in a table -> the label in ``sub-<label>``.
    """

    name: str
    enters: Literal["motion", "volumes", "series"]
    tree: str
    find: Callable[[Path, Set[str]], list[Found]]
    companions: Callable[[Path], Companions] = lambda path: Companions()
    variants: str = "space"
    label: Callable[[str], str] = plain_label


def parse_name(name: str) -> tuple[dict[str, str], str]:
    """BIDS entities and suffix of a file name: ``sub-1_task-x_bold.nii.gz`` -> {...}, "bold"."""
    parts = re.sub(r"(\.[a-zA-Z0-9]+)+$", "", name).split("_")
    entities = {}
    for part in parts:
        key, _, value = part.partition("-")
        if value and key.isalnum() and key.isascii():
            entities[key] = value
    return entities, parts[-1]


def identify_run(entities: dict[str, str]) -> dict[str, str]:
    """Which run it is, whatever version of its data: ``run-1`` is ``run-01``."""
    own = {key: entities[key] for key in IDENTIFYING if key in entities}
    if own.get("run", "").isdigit():
        own["run"] = str(int(own["run"]))
    return own


def same_run(first: dict[str, str], second: dict[str, str]) -> bool:
    """Whether the entities of two names are of one run."""
    return identify_run(first) == identify_run(second)


def per_subject(
    folder: Path,
    skip: Set[str],
    scan: Callable[[str], list[Found]],
    participant: Callable[[str], str | None] = lambda name: name,
) -> list[Found]:
    """Call `scan` with the name of every subject's folder, in threads where that is slow.

    A file system that answers at once is read by one thread: more would wait for each other.
    `participant` is ``sub-<label>`` of a folder's name, None where it is no subject's.
    """

    def wanted(name: str) -> bool:
        return name not in skip and (participant(name) or "").startswith("sub-")

    def scan_all(batch: list[str]) -> list[Found]:
        return [found for name in batch for found in scan(name)]

    left: list[Found] = []
    with os.scandir(folder) as items:
        subjects = sorted(i.name for i in items if wanted(i.name) and is_folder(folder, i, left))
    batches = [subjects[k : k + _BATCH] for k in range(0, len(subjects), _BATCH)]
    parts: list[list[Found]] = []
    for batch in batches:
        started = time.monotonic()
        parts.append(scan_all(batch))
        if time.monotonic() - started > _SLOW_S * len(batch):
            break
    with ThreadPoolExecutor(_THREADS) as pool:
        parts += pool.map(scan_all, batches[len(parts) :])
    return left + [found for part in parts for found in part]


def is_folder(folder: Path, item: os.DirEntry, left: list[Found]) -> bool:
    """Whether it is one; a link without content, or an image in its place, goes to `left`."""
    if item.is_dir():
        return True
    if item.is_symlink() and not os.path.exists(item.path):
        left.append(leave(folder, item, NO_CONTENT, refused=True))
    elif is_image(item.name):
        left.append(leave(folder, item, NOT_IN_FUNC))
    return False


def datatypes(
    folder: Path, subject: str, left: list[Found]
) -> Iterator[tuple[str, str, list[os.DirEntry], list[os.DirEntry]]]:
    """(session or "", "func", "anat" or "fmap", its files, tables about them) of a subject.

    Links without content, and images where none should be, go to `left`.
    """
    items = files(f"{folder}/{subject}")
    places = [("", item, tables(items)) for item in items if not item.name.startswith("ses-")]
    for session in items:
        if session.name.startswith("ses-") and is_folder(folder, session, left):
            inner = files(session.path)
            near = tables(items) + tables(inner)
            places += [(session.name, item, near) for item in inner]
    for session_name, item, near in places:
        if item.name in ("func", "anat", "fmap"):
            if is_folder(folder, item, left):
                inner = files(item.path)
                left += [found for i in inner if i.is_dir() for found in _misplaced(folder, i)]
                yield session_name, item.name, inner, near + tables(inner)
        elif is_image(item.name):
            is_folder(folder, item, left)
        elif item.name not in _OTHER_FOLDERS and item.is_dir():
            left += _misplaced(folder, item)


def _misplaced(folder: Path, directory: os.DirEntry) -> list[Found]:
    """BOLD images in a folder where no layout looks for them."""
    images = [item for item in files(directory.path) if is_image(item.name)]
    bold = [image for image in images if parse_name(image.name)[1] == "bold"]
    return [leave(folder, image, NOT_IN_FUNC) for image in bold]


def files(directory: str) -> list[os.DirEntry]:
    """Everything in a folder but hidden files."""
    with os.scandir(directory) as items:
        return [item for item in items if not item.name.startswith(".")]


def functional(
    folder: Path, subject: str, left: list[Found]
) -> Iterator[tuple[os.DirEntry, list[os.DirEntry]]]:
    """Files of all func folders of one subject of a BIDS tree, each with those that may belong to
    it; `left` as in :func:`datatypes`."""
    for _, datatype, items, near in datatypes(folder, subject, left):
        if datatype == "func":
            yield from ((item, near) for item in items)


def tables(items: Iterable[os.DirEntry]) -> list[os.DirEntry]:
    """Sidecars, and tables about a recording."""
    return [item for item in items if item.name.endswith((".json", *_ABOUT))]


def belonging(folder: Path, name: str, near: Iterable[os.DirEntry]) -> tuple[str, ...]:
    """Those of `near` that are about the recording `name`: their entities are among its own."""
    return tuple(relative(item.path, folder) for item in near if belongs(item.name, name))


def belongs(companion: str, name: str) -> bool:
    """Whether a sidecar or table is about the recording `name`, by the names."""
    own, suffix = parse_name(Path(name).name)
    entities, other = parse_name(companion)
    is_table = companion.endswith(_ABOUT)
    if is_table:
        entities.pop("desc", None)
    return (is_table or other in (suffix, "bold")) and entities.items() <= own.items()


def is_image(name: str) -> bool:
    return name.endswith(IMAGES)


def present(*paths: Path) -> Path | None:
    """The first that is there: a link without content is, and whoever reads it says so."""
    return next((path for path in paths if os.path.lexists(path)), None)


def find_companion(path: Path, suffixes: tuple[str, ...], **wanted: str) -> Path | None:
    """The table of the same run in the folder of a recording's file, by entities.

    Parameters
    ----------
    suffixes : tuple of str
        One of these, the first preferred.
    **wanted : str
        Entities that it must have; otherwise it has those of the recording, or fewer.
    """
    own, best = parse_name(path.name)[0], []
    for item in files(str(path.parent)):
        entities, suffix = parse_name(item.name)
        if suffix in suffixes and item.name.endswith(".tsv") and same_run(own, entities):
            more = {k: v for k, v in entities.items() if k not in (*IDENTIFYING, *wanted)}
            if entities.items() >= wanted.items() and own.items() >= more.items():
                best.append((-len(more), suffixes.index(suffix), item.path))
    return Path(min(best)[2]) if best else None


def relative(path: str | Path, folder: Path) -> str:
    """What os.path.relpath says of a path below `folder`, 30 times as fast."""
    return str(path).removeprefix(f"{folder}/")


def make_found(folder: Path, path: str | Path, entities: dict[str, str], **more) -> Found:
    """A recording at `path`; one that cannot be read is listed too, and fails when it is read."""
    try:
        status = os.stat(path)
        size, mtime = status.st_size, status.st_mtime_ns
    except OSError:  # a broken link
        size, mtime = -1, 0
    return Found(
        recording_id="_".join(f"{key}-{value}" for key, value in entities.items()),
        entities=entities,
        source=relative(path, folder),
        size=size,
        mtime_ns=mtime,
        **more,
    )


def found_bids(
    folder: Path, item: os.DirEntry, drop: tuple[str, ...] = (), *, name: str = "", **more
) -> Found:
    """A recording whose entities are in its file's name (or in `name`); refused if they cannot be.

    A session that only the folder has is taken from the folder.
    """
    name = name or item.name
    stem = re.sub(r"\.([dp]tseries\.nii|nii|nii\.gz|tsv|npy|dat)$", "", name)
    *parts, _ = stem.split("_")
    entities, _ = parse_name(stem)
    places = dict(part.split("-", 1) for part in relative(item.path, folder).split("/")[:-1]
                  if part.startswith(("sub-", "ses-")))  # fmt: skip
    if "sub" in entities and "ses" in places:
        entities = {"sub": entities["sub"], "ses": places["ses"]} | entities
    if not all(_PART.fullmatch(part) for part in parts) or "." in stem:
        problem = "part of the name is not a key-value pair of letters and digits; rename the file"
    elif len({part.partition("-")[0] for part in parts}) < len(parts):
        problem = "an entity appears twice in the name; rename the file"
    elif any(entities.get(key) != value for key, value in places.items()):
        problem = "folder and name disagree about the participant or session; rename one of them"
    else:
        versions = {key: value for key, value in entities.items() if key not in IDENTIFYING}
        own = {key: value for key, value in entities.items() if key not in drop}
        return make_found(folder, item.path, own, versions=versions, **more)
    return leave(folder, item, problem, refused=True)


def leave(folder: Path, item: os.DirEntry, reason: str, *, refused: bool = False) -> Found:
    """A file that is no recording; it is not looked at."""
    return Found("", {}, relative(item.path, folder), -1, 0, left_out=reason, refused=refused)


def find_file(folder: Path, file: Path) -> Found:
    """One recording by its file, wherever it is below `folder`, BIDS-named or not.

    Raises
    ------
    BrainLMError
        No such file.
    """
    if not file.is_file():
        raise BrainLMError(f"{file}: file not found")
    entities, _ = parse_name(file.name)
    entities = {key: value for key, value in entities.items() if key not in DERIVED}
    if "sub" not in entities:
        entities = {"sub": plain_label(file.name.split(".")[0]) or "scan"}
    return make_found(folder.absolute(), file.absolute(), entities)


def describe_skipped(items: Iterable[Found]) -> list[str]:
    """One line per reason: how many files, and the first of them."""
    by_reason: dict[tuple[bool, str], list[str]] = {}
    for item in items:
        by_reason.setdefault((item.refused, item.left_out), []).append(item.source)
    return [
        f"{'refused' if refused else 'left out'}, {reason}: {len(names)} "
        f"({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for (refused, reason), names in sorted(by_reason.items())
    ]


def name_variant(entities: dict[str, str], first: str, *more: str) -> str:
    """``MNI152NLin6Asym:res-2``: the value of one entity, and others that are there."""
    return ":".join([first, *(f"{key}-{entities[key]}" for key in more if key in entities)])


def choose_variant(
    recordings: Iterable[Found], wanted: str | None, key: str
) -> tuple[list[Found], list[Found]]:
    """Recordings of one variant, the wanted one or the only one; and the files left out.

    A recording that is there in others only is listed as the file that it lacks: it fails when it
    is read, so that it is counted. Variants of one name (``MNIPediatricAsym:cohort-1``, ``-2``)
    are taken together where no recording has two of them.

    Raises
    ------
    BrainLMError
        There are several and none is chosen, or none is the wanted one.
    """
    recordings = list(recordings)
    names = sorted({item.variant for item in recordings} - {"", OWN})
    chosen = names if wanted is None else _match(names, wanted)
    kept = [item for item in recordings if item.variant in ("", *chosen)]
    several = len(chosen) > 1 and (
        len({name.split(":")[0] for name in chosen}) > 1
        or len({item.recording_id for item in kept}) < len(kept)
    )
    if several and wanted is None:
        raise BrainLMError(
            f"the recordings come in several forms ({', '.join(names)}); choose one for "
            f"the cohort, e.g. {key}: {names[0]}"
        )
    if several or (names and not chosen):
        raise BrainLMError(
            f"{key}: expected one of {', '.join(chosen or names)}, found {wanted}; correct it"
        )
    there = {_run(item) for item in kept}
    like = next((item for item in kept if item.variant), None)
    others = [item for item in recordings if item.variant not in ("", *chosen)]
    if not like:
        return kept, [replace(item, left_out=f"no {key} of a template") for item in others]
    lacking = {_run(item): item for item in others if _run(item) not in there}
    why = f"another {key} than {', '.join(chosen)}"
    return (
        kept + [_absent(item, like) for item in lacking.values()],
        [replace(item, left_out=why) for item in others],
    )


def _run(item: Found) -> tuple[tuple[str, str], ...]:
    return tuple(identify_run(item.entities).items())


def select(
    recordings: Iterable[Found], wanted: Mapping[str, str | None]
) -> tuple[list[Found], list[Found]]:
    """Files whose names have the wanted entities (None: not that entity), and those left out.

    Of complex images the magnitude is taken where no part is wanted.
    """
    kept, left = [], []
    for item in recordings:
        found = {**item.versions, **item.entities}
        other = [f"{k}-{v}" if v else f"no {k}" for k, v in wanted.items() if found.get(k) != v]
        if other:
            left.append(replace(item, left_out=f"not selected (select: {', '.join(other)})"))
        elif "part" not in wanted and found.get("part", "mag") != "mag":
            left.append(replace(item, left_out="phase, real or imaginary part"))
        else:
            kept.append(item)
    return kept, left


def settle_versions(
    recordings: Iterable[Found], *, raw: bool = False
) -> tuple[list[Found], list[Found]]:
    """Runs that are there once, and the files left out or refused where a run is there twice.

    Single echoes are left out where the run is there combined. `raw` ones are one recording,
    which is combined when it is read.
    """
    runs: dict[tuple, list[Found]] = {}
    for item in recordings:
        runs.setdefault(_run(item), []).append(item)
    kept, left = [], []
    for items in runs.values():
        whole = [item for item in items if "echo" not in item.versions] or items
        single = [item for item in items if item not in whole]
        left += [replace(item, left_out="single echoes of a combined run") for item in single]
        differing = _list_differing(whole)
        if len(whole) == 1:
            kept += whole
        elif raw and differing == ["echo"] and all("echo" in item.versions for item in whole):
            kept.append(_join_echoes(whole))
        else:
            why = _describe_versions(whole, differing)
            left += [replace(item, left_out=why, refused=True) for item in whole]
    return kept, left


def _join_echoes(items: list[Found]) -> Found:
    """One recording without an echo in its name: the first echo, on which all others are told."""
    first, *others = sorted(items, key=lambda item: (len(item.versions["echo"]), item.source))
    entities = {key: value for key, value in first.entities.items() if key != "echo"}
    files = [name for item in items for name in item.companions]
    return replace(
        first,
        recording_id="_".join(f"{key}-{value}" for key, value in entities.items()),
        entities=entities,
        versions={key: value for key, value in first.versions.items() if key != "echo"},
        size=sum(item.size for item in items) if min(item.size for item in items) >= 0 else -1,
        mtime_ns=max(item.mtime_ns for item in items),
        companions=tuple(dict.fromkeys([*(item.source for item in others), *files])),
    )


def _list_differing(items: list[Found]) -> list[str]:
    """The entities by which files of one run differ."""
    keys = dict.fromkeys(key for item in items for key in item.versions)
    return [key for key in keys if len({item.versions.get(key) for item in items}) > 1]


def _describe_versions(items: list[Found], differing: list[str]) -> str:
    """What distinguishes the files of one run, and what to do."""
    if not differing:
        return "several files are the same recording; keep one of them in the cohort's folder"
    key = differing[0]
    first = min(item.versions[key] for item in items if key in item.versions)
    choice = f"select: {{{key}: {first}}}"
    if differing == ["echo"]:
        return f"single echoes of a run; combine them, or choose one for the cohort with {choice}"
    return f"versions of the same run (by {', '.join(differing)}-); choose one with {choice}"


def _match(names: list[str], wanted: str) -> list[str]:
    """Exactly `wanted`, else all that have its parts (``Glasser:desc-denoised``)."""
    first, *more = wanted.split(":")
    if wanted in names:
        return [wanted]
    return [n for n in names if n.split(":")[0] == first and set(more) <= set(n.split(":"))]


def _absent(item: Found, like: Found) -> Found:
    """The file of `item` that would be what `like` is."""
    ending = Path(like.source).name.removeprefix(like.recording_id)
    source = Path(item.source).with_name(item.recording_id + ending)
    return replace(item, source=str(source), size=-1, mtime_ns=0, variant=like.variant)
