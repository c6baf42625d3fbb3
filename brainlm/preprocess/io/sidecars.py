"""JSON sidecars: found by the BIDS inheritance principle, each field checked where it is read.

A sidecar is written by hand or by dozens of programs. :data:`_FIELDS` is the one statement of what
a field must be; whoever needs a field gets a value that is that, or a reason to refuse the
recording. Fields that are not used are not checked.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from ...errors import RecordingError
from ...files import describe_absent


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


_Number = Annotated[float, Field(strict=True), AfterValidator(_finite)]
_Direction = Literal["i", "j", "k", "i-", "j-", "k-"]
_AXIS = "i, j, k, i-, j- or k-"
_Names = str | list[str]
#: What each field must be, for the check and in words.
_FIELDS: dict[str, tuple[TypeAdapter[Any], str]] = {
    "RepetitionTime": (TypeAdapter(_Number), "seconds"),
    "VolumeTiming": (
        TypeAdapter(Annotated[list[_Number], Field(min_length=2)]),
        "the start of every volume, a list of seconds",
    ),
    # some programs write words here: those state nothing
    "SamplingFrequency": (TypeAdapter(Annotated[_Number, Field(gt=0)] | str), "Hz"),
    "SliceTiming": (
        TypeAdapter(
            Annotated[
                list[Annotated[_Number, Field(ge=0)]], Field(min_length=1, max_length=10_000)
            ]
        ),
        "the start of every slice, a list of seconds",
    ),
    "EchoTime": (TypeAdapter(_Number), "seconds"),
    "EchoTime1": (TypeAdapter(_Number), "seconds"),
    "EchoTime2": (TypeAdapter(_Number), "seconds"),
    "SliceEncodingDirection": (TypeAdapter(_Direction), _AXIS),
    "PhaseEncodingDirection": (TypeAdapter(_Direction), _AXIS),
    "TotalReadoutTime": (TypeAdapter(_Number), "seconds"),
    "EffectiveEchoSpacing": (TypeAdapter(_Number), "seconds"),
    "IntendedFor": (TypeAdapter(_Names), "paths of images"),
    "B0FieldIdentifier": (TypeAdapter(_Names), "names of field maps"),
    "B0FieldSource": (TypeAdapter(_Names), "names of field maps"),
    "Units": (TypeAdapter(str), "a unit"),
}


class Sidecar(dict[str, Any]):
    """All inherited metadata of a file, as written.

    Attributes
    ----------
    sources : dict
        The file that each key came from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, Path] = {}

    def add(self, path: Path) -> None:
        """Take over what a file says; it replaces what is there."""
        values = _read_object(path)
        self.update(values)
        self.sources.update(dict.fromkeys(values, path))

    def read(self, name: str) -> Any:
        """:func:`read_field` of this sidecar."""
        return read_field(self, name)


def read_field(values: Mapping[str, Any], name: str) -> Any:
    """A field's value; None where it is absent or null.

    Raises
    ------
    RecordingError
        ``bad_metadata``: it is not what the field must be.
    """
    value = values.get(name)
    if value is None:
        return None
    kind, expected = _FIELDS[name]
    try:
        return kind.validate_python(value)
    except (ValidationError, OverflowError):  # an integer beyond any float
        source = values.sources[name] if isinstance(values, Sidecar) else "sidecar"
        raise RecordingError(
            "bad_metadata",
            f"{source}: {name} is {_brief(value)}, expected {expected}; correct it or take it out",
        ) from None


def read_sidecar(path: Path) -> Sidecar:
    """Metadata of a file by the BIDS inheritance principle, the closest file last.

    A sidecar applies when its entities are a subset of the file's; only names that the file's
    own entities can form are looked up, so a dataset of 40,000 subjects costs no listing.

    Raises
    ------
    RecordingError
        ``bad_metadata``: a sidecar is a link without content, or is not a JSON object.
    """
    merged = Sidecar()
    for candidate in _candidates(path):
        if os.path.lexists(candidate):
            merged.add(candidate)
    return merged


def _candidates(path: Path) -> Iterator[Path]:
    stem = path.name.removesuffix(".gz")
    stem = stem[: stem.rindex(".")] if "." in stem else stem
    stem = stem.removesuffix(".ptseries")  # CIFTI-2 has two
    *entities, suffix = stem.split("_")
    subject = next((p for p in path.parents if p.name == (entities or [""])[0]), path.parent)
    folders = [folder for folder in reversed(path.parents) if folder.is_relative_to(subject)]
    for folder in [subject.parent, *folders] if subject != path.parent else [path.parent]:
        for count in range(len(entities) + 1):
            for chosen in itertools.combinations(entities, count):
                yield folder / ("_".join([*chosen, suffix]) + ".json")


def _read_object(path: Path) -> dict[str, Any]:
    """The object in one JSON file: UTF-8 or UTF-16, with or without a byte order mark.

    Raises
    ------
    RecordingError
        ``bad_metadata``.
    """
    if absent := describe_absent(path):
        raise RecordingError("bad_metadata", f"{path}: {absent}")
    try:
        values = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise RecordingError(
            "bad_metadata", f"{path}: expected a JSON sidecar in UTF-8; save it as UTF-8"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordingError(
            "bad_metadata",
            f"{path}: expected a JSON sidecar, found something else ({error}); correct the file",
        ) from None
    if not isinstance(values, dict):
        raise RecordingError(
            "bad_metadata", f"{path}: expected a JSON object, found a {type(values).__name__}"
        )
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once, or twice with the same value."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values and values[key] != value:
            raise ValueError(f"{key} appears twice, with different values")
        values[key] = value
    return values


def _brief(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a very large number"
    return text if len(text) <= 40 else text[:37] + "..."
