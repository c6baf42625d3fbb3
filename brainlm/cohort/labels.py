"""What is known of the participants: participants.tsv or any table joined by subject."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from ..config import Cohort
from ..errors import BrainLMError
from ..files import describe_absent
from ..tables import read_tsv, refuse_carriage_returns
from .layouts import ID_COLUMNS, LAYOUTS

#: What tables write for a missing value; None is a class (of patients without a diagnosis, say).
_MISSING = ["", "n/a", "N/A", "NA", "#N/A", "NaN", "nan", "<NA>", "NULL", "null"]
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
#: A class with fewer training participants is left out, and counted.
SMALLEST_CLASS = 5
#: More different values than this are numbers, not classes.
_MOST_CLASSES = 20


def participants_path(cohort: Cohort) -> Path | None:
    """The cohort's table, or None when it has none and config.yaml names none."""
    if cohort.participants is not None:
        path = cohort.participants
        return path if path.is_absolute() or path.exists() else cohort.folder / path
    path = cohort.folder / "participants.tsv"
    return path if os.path.lexists(path) else None


def read_participants(cohort: Cohort, columns: Collection[str] | None = None) -> pd.DataFrame:
    """The participants table indexed by participant_id (``sub-<label>``).

    Ids are in the first of :data:`ID_COLUMNS` that the table has; the cohort's layout knows how
    they become labels. ``n/a`` is missing, as BIDS says, and so is what other programs write for
    it; ``None`` is a word. Without a table the frame is empty.

    Parameters
    ----------
    columns : collection of str, optional
        Only these are read, where the table has them: a table of 500,000 participants may be wide.

    Raises
    ------
    BrainLMError
        The named table is missing, has no column of ids, a row without one, or names a participant
        twice.
    """
    path = participants_path(cohort)
    if path is None:
        return pd.DataFrame(index=pd.Index([], name="participant_id"))
    if not os.path.lexists(path):
        raise BrainLMError(f"{path}: participants table not found")
    header = _header(cohort)
    column = next((name for name in ID_COLUMNS if name in header), None)
    if column is None:
        raise BrainLMError(
            f"{path}: expected a column participant_id (or {', '.join(ID_COLUMNS[1:])}), found: "
            + (", ".join(header) or "nothing")
            + ("; write the table without quotation marks" if any(map(_quoted, header)) else "")
        )
    wanted = header if columns is None else [n for n in header if n == column or n in columns]
    table = _read_table(path, header, wanted)
    ids = table.pop(column).str.strip().replace("", np.nan)
    if ids.isna().any():
        raise BrainLMError(f"{path}: row {int(ids.isna().argmax()) + 2} has no {column}")
    ids = ids.str.replace(r"^(\d+)\.0+$", r"\1", regex=True)  # numbers that were floats once
    table.index = pd.Index("sub-" + ids.map(LAYOUTS[cohort.layout].label))
    table.index.name = "participant_id"
    twice = table.index[table.index.duplicated()]
    if len(twice):
        rows = int((table.index == twice[0]).sum())
        raise BrainLMError(f"{path}: {twice[0]} appears in {rows} rows; keep one")
    return table


def _quoted(name: str) -> bool:
    return name[:1] == name[-1:] == '"'


def describe_match(cohort: Cohort, participants: Set[str]) -> str | None:
    """How many of `participants` (``sub-01``, with recordings) have a row, and the reverse.

    None without a table.

    Raises
    ------
    BrainLMError
        No participant has a row: the ids are of another kind.
    """
    path = participants_path(cohort)
    if path is None:
        return None
    rows = set(read_participants(cohort, ()).index)
    without = sorted(participants - rows)
    if rows and participants and len(without) == len(participants):
        raise BrainLMError(
            f"{path}: no row matches a participant with a recording (rows: {min(rows)}, ...; "
            f"recordings: {min(participants)}, ...); correct the ids"
        )
    known = len(participants) - len(without)
    text = f"{known} of {len(participants)} participants with recordings are in {path}"
    if without:
        text += f" (not: {', '.join(without[:3])}{', ...' if len(without) > 3 else ''})"
    return text + f"; {len(rows - participants)} of its {len(rows)} rows have no recording"


def check_columns(cohorts: Sequence[Cohort], wanted: Mapping[str, Collection[str]]) -> None:
    """Refuse a task that needs a column which no participants table has, before anything is
    computed. `wanted` has the columns by the task's name."""
    columns = {cohort.name: _header(cohort) for cohort in cohorts}
    for task, asked in wanted.items():
        for column in asked:
            if any(column in names for names in columns.values()):
                continue
            known = "; ".join(f"{c}: {', '.join(n) or 'no table'}" for c, n in columns.items())
            raise BrainLMError(
                f"task {task}: no participants table has a column {column!r} ({known}); name "
                "another column in the task's file, or leave the task out of tasks"
            )


def read_columns(cohorts: Sequence[Cohort]) -> set[str]:
    """Columns that any participants table has."""
    return {name for cohort in cohorts for name in _header(cohort)}


def _read_table(path: Path, header: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a table, as numbers where all values are; every row must be as long as `header`.

    Arrow's reader and not pandas': that one moves or drops cells of rows that are too long. In a
    table with tabs a quotation mark is a character, as in :mod:`brainlm.tables`.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    separator = _separator(path)
    quotes = '"' if separator == "," else False
    try:
        cells = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(
                use_threads=False,  # with threads no row is named
                column_names=list(header), skip_rows=1,
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator, quote_char=quotes, newlines_in_values=bool(quotes)
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(columns), null_values=_MISSING, strings_can_be_null=True,
                quoted_strings_can_be_null=True, column_types=dict.fromkeys(columns, pa.string()),
            ),
        ).to_pandas()  # fmt: skip
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            read_tsv(path)  # which names the line
        raise BrainLMError(f"{path}: not a readable table ({error}); correct that row") from None
    for name in columns:
        cells[name] = cells[name].str.strip().replace("", np.nan)
        numbers = _as_numbers(cells[name])
        if name not in ID_COLUMNS and numbers.notna().equals(cells[name].notna()):
            cells[name] = numbers
    return cells


def _as_numbers(words: pd.Series) -> pd.Series:
    """Finite numbers as they are usually written; NaN for every other word."""
    plain = words.where(words.astype(str).str.fullmatch(_NUMBER))
    return pd.to_numeric(plain, errors="coerce").replace([np.inf, -np.inf], np.nan)


def _separator(path: Path) -> str:
    """A tab where the first line has one, else a comma, whatever the file is called."""
    return "\t" if "\t" in _first_line(path) else ","


def _first_line(path: Path) -> str:
    if absent := describe_absent(path):
        raise BrainLMError(f"{path}: {absent}")
    try:
        with open(path, "rb") as handle:
            line = handle.readline().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise BrainLMError(f"{path}: not UTF-8; save the table as UTF-8") from None
    except OSError as error:
        raise BrainLMError(f"{path}: participants table cannot be read ({error})") from None
    refuse_carriage_returns(path, line)
    return line


def _header(cohort: Cohort) -> list[str]:
    path = participants_path(cohort)
    if path is None or not os.path.lexists(path):
        return []
    line = _first_line(path)
    cells = line.split("\t") if "\t" in line else next(csv.reader([line]), [])
    # pandas writes its index under no name, and spreadsheets end lines in separators
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BrainLMError(f"{path}: columns named more than once: {', '.join(twice)}; keep one")
    return names


def describe_shortage(labels: Labels, train: pd.Index, least: int = 10) -> str | None:
    """Why `labels` cannot be learnt, or None: too few training participants, or one class.

    `train` is who could be trained on: (cohort, participant_id) with a usable recording.
    """
    values = labels.values.reindex(train).dropna()
    if len(values) < least:
        return (
            f"{len(values)} of {len(train)} training participants with a usable recording have a "
            f"value; at least {least} are needed"
        )
    if labels.classes:
        counts = values.value_counts()
        if (counts >= SMALLEST_CLASS).sum() < 2:
            found = ", ".join(f"{labels.classes[int(k)]}: {n}" for k, n in counts.items())
            return (
                f"fewer than two classes have {SMALLEST_CLASS} training participants with a "
                "usable "
                f"recording ({found})"
            )
    elif values.nunique() < 2:
        return f"all {len(values)} training participants have the same value, {values.iloc[0]:g}"
    return None


@dataclass(frozen=True)
class Labels:
    """One column of the participants tables over all cohorts.

    Attributes
    ----------
    values : Series of float
        By (cohort, participant_id); NaN = unknown; for classes their number 0, 1, ...
    classes : tuple of str
        Names in the order of their numbers; empty for a regression.
    refused : mapping
        Of external cohorts whose column cannot be used: why.
    """

    values: pd.Series
    classes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def drop_small_classes(self, train: pd.Index) -> tuple[Labels, pd.Series]:
        """Without classes of fewer than :data:`SMALLEST_CLASS` of the participants `train`.

        Returns the labels, classes numbered anew, and of those who are left out the class.
        """
        if not self.classes:
            return self, pd.Series(dtype=object, index=self.values.index[:0])
        seen = self.values.reindex(train).value_counts()
        kept = [k for k in range(len(self.classes)) if seen.get(k, 0) >= SMALLEST_CLASS]
        values = self.values.map({old: float(new) for new, old in enumerate(kept)})
        lost = self.values[self.values.notna() & ~self.values.isin(kept)]
        names = lost.map(lambda k: self.classes[int(k)])
        return Labels(values, tuple(self.classes[k] for k in kept), self.refused), names


@dataclass(frozen=True)
class LabelTransform:
    """Labels as a network learns them: ``(x - shift) / scale`` of the label or its logarithm.

    Attributes
    ----------
    log : bool
        log(1 + label) first.
    shift, scale : float
        Mean and standard deviation, or minimum and range, of training participants.
    """

    log: bool = False
    shift: float = 0.0
    scale: float = 1.0

    @classmethod
    def fit(cls, name: str, train: np.ndarray) -> LabelTransform:
        """`name`: zscore, minmax, log_minmax or none (classes).

        Raises
        ------
        BrainLMError
            A logarithm of negative labels.
        """
        x = np.asarray(train, np.float64)
        if name == "none":
            return cls()
        log = name == "log_minmax"
        if log:
            if x.min() < 0:
                raise BrainLMError(
                    f"log_minmax needs labels >= 0, found {x.min():g}; use minmax or zscore"
                )
            x = np.log1p(x)
        if name == "zscore":
            return cls(log, float(x.mean()), float(x.std()) or 1.0)
        return cls(log, float(x.min()), float(np.ptp(x)) or 1.0)

    def apply(self, labels):
        values = np.asarray(labels, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((np.log1p(values) if self.log else values) - self.shift) / self.scale

    def invert(self, values):
        """To the label's units."""
        labels = np.asarray(values, np.float64) * self.scale + self.shift
        return np.expm1(labels) if self.log else labels


def read_target(cohorts: Sequence[Cohort], target: str) -> pd.Series:
    """One column over all cohorts, indexed by (cohort, participant_id), as float.

    Cohorts without the column contribute nothing.

    Raises
    ------
    BrainLMError
        No cohort has the column, or it holds something other than numbers.
    """
    parts, seen = {}, {}
    for cohort in cohorts:
        table = read_participants(cohort, [target])
        seen[cohort.name] = [name for name in _header(cohort) if name not in ID_COLUMNS]
        if target in table:
            values = table[target]
            if not pd.api.types.is_numeric_dtype(values):
                values = _as_numbers(values)
            bad = table[target].notna() & values.isna()
            if bad.any():
                raise BrainLMError(
                    f"{participants_path(cohort)}: {target} of {bad.idxmax()} is "
                    f"{table[target][bad.idxmax()]!r}, expected a number or n/a"
                )
            parts[cohort.name] = values.astype(float)
    if not parts:
        columns = "; ".join(f"{name}: {', '.join(c) or 'no table'}" for name, c in seen.items())
        raise BrainLMError(f"no participants table has a column {target!r} ({columns})")
    return pd.concat(parts, names=["cohort", "participant_id"]).rename(target)


def read_labels(
    cohorts: Sequence[Cohort],
    target: str,
    kind: str,
    transform: str = "none",
    spellings: Mapping[str, str] = MappingProxyType({}),
) -> Labels:
    """The column of a task; classes keep their names (words, or numbers as written).

    Parameters
    ----------
    spellings : mapping
        What is written -> the class that it means.

    Raises
    ------
    BrainLMError
        No reference cohort has the column, it is constant, it is not of the kind, a number is far
        from all others and looks like a code for a missing value, or a participant's value has no
        logarithm where one is learnt (a code such as -3 for "prefer not to answer"); or a class
        has several spellings. Of an external cohort such a thing is no error: its participants
        have no label, and :attr:`Labels.refused` says why.
    """
    trained = [cohort for cohort in cohorts if cohort.role == "reference"] or list(cohorts)
    if kind == "regression":
        values = read_target(trained, target)
        _refuse_codes(values.dropna())
        _refuse_negative(values, transform)
    else:
        values = _read_names(trained, target, spellings)
        _refuse_spellings(target, values.value_counts(), spellings)
    found = values.dropna()
    if found.nunique() == 1:  # or no value at all: the table says so (describe_shortage)
        raise BrainLMError(
            f"{target} is {as_word(found.iloc[0])} for all {len(found)} participants: "
            "there is nothing to predict; leave its task out"
        )
    parts, refused = [values], {}
    for cohort in cohorts:
        if cohort in trained:
            continue
        try:  # what is wrong is of this cohort alone: the others are evaluated
            if target not in _header(cohort):
                raise BrainLMError(f"its participants table has no column {target!r}")
            if kind == "regression":
                part = read_target([cohort], target)
                _refuse_other_numbers(part.dropna(), found)
                _refuse_negative(part, transform)
            else:
                part = _read_names([cohort], target, spellings)
                _refuse_other_names(part.dropna(), found)
            parts.append(part)
        except BrainLMError as error:
            refused[cohort.name] = str(error)
    every = pd.concat(parts).rename(target)
    if kind == "regression":
        return Labels(every, refused=refused)
    classes = sorted(every.dropna().unique(), key=_as_written)
    if len(classes) > _MOST_CLASSES:
        raise BrainLMError(
            f"{target} has {len(classes)} different values ({', '.join(classes[:4])}, ...), "
            f"at most {_MOST_CLASSES} can be classes; use kind: regression"
        )
    numbers = {name: float(k) for k, name in enumerate(classes)}
    return Labels(every.map(numbers).astype(float), tuple(classes), refused)


def _read_names(cohorts: Sequence[Cohort], target: str, spellings: Mapping[str, str]) -> pd.Series:
    columns = [read_column(cohort, target) for cohort in cohorts]
    names = pd.concat(columns or [pd.Series(dtype=object)])
    return names.map(lambda name: spellings.get(name, name), na_action="ignore").rename(target)


def _refuse_negative(values: pd.Series, transform: str) -> None:
    if transform == "log_minmax" and (values < 0).any():
        who = values.idxmin()
        raise BrainLMError(
            f"{values.name} of {who[1]} in {who[0]} is {values[who]:g}, log_minmax needs "
            "labels >= 0; write n/a where a number is a code, or use minmax or zscore"
        )


def _refuse_other_names(names: pd.Series, known: pd.Series) -> None:
    """Refuse classes that are named otherwise than in the training: 1 and 2 for F and M."""
    there, trained = (sorted(part.unique(), key=_as_written) for part in (names, known))
    strange = [name for name in there if name not in trained]
    codes = all(map(_is_number, [*there, *trained]))
    if strange and (codes or len(strange) == len(there)):
        raise BrainLMError(
            f"{names.name} is {', '.join(there[:4])}, where the model learnt "
            f"{', '.join(trained[:4])}: use the same words, or add spellings: to the task's file"
        )


def _is_number(name: str) -> bool:
    return re.fullmatch(_NUMBER, name) is not None


#: What tables write for "missing" among numbers, where it lies far from all others.
_CODE = r"(-(9+|8+|7+)|999+|888+|777+)(\.0*)?"
#: Units that are mistaken for each other, by their ratio.
_UNITS = {12.0: "months for years", 365.25: "days for years", 1 / 12: "years for months"}


def _refuse_codes(values: pd.Series, known: pd.Series | None = None) -> None:
    """Refuse numbers such as -9999 that are far from all others, or from the `known` ones."""
    is_code = values.map(lambda v: re.fullmatch(_CODE, f"{v:g}") is not None)
    others = values[~is_code] if known is None else known
    if not len(others) or not is_code.any():
        return
    low, high = others.min(), others.max()
    width = max(high - low, 1e-9)
    far = values[is_code & ((values < low - width) | (values > high + width))]
    if len(far):
        raise BrainLMError(
            f"{values.name} is {far.iloc[0]:g} for {len(far)} participants ({far.index[0][1]} in "
            f"{far.index[0][0]}, ...), where others have {low:g} to {high:g}: if it stands for a "
            "missing value, write n/a"
        )


def _refuse_other_numbers(values: pd.Series, known: pd.Series) -> None:
    """Refuse numbers of a cohort that look like those of the training in another unit or code."""
    if not len(values) or not len(known):
        return
    _refuse_codes(values, known)
    low, high = known.min(), known.max()
    if values.max() >= low and values.min() <= high:
        return
    for ratio, words in _UNITS.items():
        if low <= values.median() / ratio <= high:
            raise BrainLMError(
                f"{values.name} is {values.min():g} to {values.max():g}, where the model learnt "
                f"{low:g} to {high:g} ({words}?): convert it to the same unit"
            )


#: Words for one thing that tables mix.
_SAME = ({"f", "female", "woman", "w", "girl"}, {"m", "male", "man", "boy"},
         {"y", "yes", "true"}, {"n", "no", "false"})  # fmt: skip


def _refuse_spellings(target: str, counts: pd.Series, spellings: Mapping[str, str]) -> None:
    """Refuse classes that look like one, but for those that the task itself names."""
    groups: dict[object, list[str]] = {}
    for name in counts.index:
        groups.setdefault(_meaning(name), []).append(name)
    mixed = [
        sorted(g) for g in groups.values() if len({*g} - {*spellings.values()}) and len(g) > 1
    ]
    if mixed:
        found = "; ".join(", ".join(f"{n} ({counts[n]})" for n in group) for group in mixed)
        mapping = {n: max(g, key=lambda n: counts[n]) for g in mixed for n in g}
        text = json.dumps({n: to for n, to in mapping.items() if n != to}, ensure_ascii=False)
        raise BrainLMError(
            f"{target} has one class in several spellings: {found}; add to the task's file "
            f"spellings: {text} (or a class's own name, if they differ)"
        )


def _meaning(name: str) -> object:
    """The same for words that differ in case, punctuation or digits after the point only."""
    plain = re.sub(r"[\W_]", "", name).casefold()
    known = next((k for k, words in enumerate(_SAME) if plain in words), None)
    if known is not None:
        return known
    try:
        return float(name)
    except ValueError:
        return plain or name


def read_column(cohort: Cohort, column: str) -> pd.Series:
    """One column as text (:func:`as_word`) by (cohort, participant_id)."""
    table = read_participants(cohort, [column])
    values = table[column] if column in table else pd.Series(dtype=object, index=table.index[:0])
    text = values.map(as_word, na_action="ignore")
    index = pd.MultiIndex.from_product(
        [[cohort.name], text.index], names=["cohort", "participant_id"]
    )
    return pd.Series(text.to_numpy(object), index, name=column)


def as_word(value) -> str:
    """A value as a word; whole numbers without ``.0``, with all digits."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _as_written(name: str) -> tuple[bool, float, str]:
    """Numbers by size before words by letters."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
