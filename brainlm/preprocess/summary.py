"""What became of every recording: counts by cohort and status, and the table of failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..cohort.index import read_entries, read_refused
from ..cohort.labels import describe_match
from ..config import Cohort, Config
from ..paths import Results
from ..steps import stages_of
from ..tables import write_tsv
from .chunk import read_stage_table

#: A recording that ended so did not fail: it is as it should be, or nothing can be done about it.
HARMLESS = ("ok", "too_short", "excluded")


@dataclass(frozen=True)
class Summary:
    """Counts of recordings by (cohort, status); ``pending`` are not through yet.

    `participants` says of each cohort with a participants table who is in it; `short` counts the
    ok recordings in which no window of `window` time points fits; `warnings` counts recordings by
    kind of warning.
    """

    counts: dict[str, Counter]
    failures: Path
    participants: dict[str, str]
    short: dict[str, int]
    window: int
    warnings: dict[str, Counter] = field(default_factory=dict)

    @property
    def failed_fraction(self) -> float:
        """Share of processed recordings that failed; short and excluded ones did not fail."""
        done: Counter = Counter()
        for counter in self.counts.values():
            done.update(counter)
        total = sum(n for status, n in done.items() if status != "pending")
        failed = sum(n for s, n in done.items() if s not in (*HARMLESS, "pending"))
        return failed / total if total else 0.0

    def text(self) -> str:
        lines = []
        for cohort, counter in self.counts.items():
            parts = [f"{n} {status}" for status, n in counter.most_common()]
            lines.append(f"{cohort}: {sum(counter.values())} recordings: {', '.join(parts)}")
            if self.short.get(cohort):
                lines.append(
                    f"{cohort}: {self.short[cohort]} of the ok recordings have fewer than "
                    f"{self.window} time points (model.window) and are not used by the model"
                )
            if kinds := _list_kinds(self.warnings.get(cohort)):
                lines.append(f"{cohort}: recordings with warnings: {kinds}")
            if cohort in self.participants:
                lines.append(f"{cohort}: {self.participants[cohort]}")
        return "\n".join([*lines, f"what failed and why: {self.failures}"])


def summarise_outcomes(config: Config) -> Summary:
    """Read the stage tables of all chunks; write ``failures.tsv`` and ``summary.tsv``."""
    counts, failures, participants = {}, [], {}
    warned: dict[str, dict[str, Counter]] = {}
    short: Counter = Counter()
    for cohort in config.cohorts:
        counter: Counter = Counter()
        seen = set()
        for chunk in config.paths.list_chunks(cohort.name):
            outcomes = last_outcomes(config.paths, cohort.name, chunk, cohort.layout)
            for entry in read_entries(config.paths.chunk_table(cohort.name, chunk), cohort.folder):
                row = outcomes.get(entry.recording_id)
                seen.add(entry.participant_id)
                status = row["status"] if row else "pending"
                counter[status] += 1
                words = (row or {}).get("warnings") or []
                odd = list(dict.fromkeys(word.split(":")[0] for word in words))
                warned.setdefault(cohort.name, {}).setdefault(status, Counter()).update(odd)
                if status == "ok":
                    length = row.get("num_timepoints") if row else None
                    short[cohort.name] += length is not None and length < config.model.window
                if row and status != "ok":
                    failures.append(
                        (cohort.name, entry.recording_id, status, row["reason"], entry.source)
                    )
        refused = read_refused(config.paths.refused(cohort.name))
        counter["bad_metadata"] += len(refused)
        failures += [(cohort.name, "n/a", "bad_metadata", w, s) for s, w in refused.items()]
        counts[cohort.name] = +counter
        match = describe_match(cohort, seen)
        if match:
            participants[cohort.name] = match
    path = config.paths.failures
    write_tsv(path, ("cohort", "recording_id", "status", "reason", "source"), failures)
    rows = [
        (c, s, n, _list_kinds(warned.get(c, {}).get(s)))
        for c, counter in counts.items()
        for s, n in counter.items()
    ]
    write_tsv(config.paths.summary, ("cohort", "status", "recordings", "warnings"), rows)
    kinds = {c: sum(by_status.values(), Counter()) for c, by_status in warned.items()}
    return Summary(counts, path, participants, short, config.model.window, kinds)


def _list_kinds(kinds: Counter | None) -> str | None:
    """``time from the header: 3; orientation: 1``: recordings by kind of warning."""
    return "; ".join(f"{kind}: {n}" for kind, n in kinds.most_common()) if kinds else None


def find_failed(config: Config, cohort: Cohort) -> set[str]:
    """Recordings of a cohort that failed at some stage."""
    return {
        recording
        for chunk in config.paths.list_chunks(cohort.name)
        for recording, row in last_outcomes(
            config.paths, cohort.name, chunk, cohort.layout
        ).items()
        if row["status"] not in HARMLESS
    }


def last_outcomes(paths: Results, cohort: str, chunk: str, layout: str) -> dict[str, dict]:
    """Outcome of the latest stage that has run, or of the one where a recording failed."""
    outcomes: dict[str, dict] = {}
    order = stages_of(layout)
    for stage in order:
        path = paths.stage_table(cohort, chunk, stage)
        if not path.exists():
            return {key: row for key, row in outcomes.items() if row["status"] != "ok"}
        outcomes.update((row["recording_id"], row) for row in read_stage_table(path))
    return outcomes
