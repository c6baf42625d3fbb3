"""A simulated cohort on disk: raw BIDS, with the truth under sourcedata/truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import BrainLMError
from ..files import write_json, write_text
from ..tables import read_tsv, write_tsv
from .activity import draw_patterns, make_activity
from .anatomy import Head, make_head
from .damage import DAMAGE_KINDS, damage_file, sidecar_path, write_image
from .demo_atlas import NUM_PARCELS, parcellate_template
from .signals import (
    NEURAL_SD,
    Individual,
    draw_individual,
    make_artefacts,
    make_breath,
    make_motion,
    make_parcel_series,
)
from .truth import Truth, save_truth

_NECK = np.array([[0.0, -20.0, -60.0]])  # template mm: what the head turns about
_README = """Simulated recordings
====================

Made by brainlm.simulate: heads drawn from the MNI template, scanned by a simulated scanner.
Motion, networks, artefacts and the effect of age are known and stand in sourcedata/truth, one
file per recording. No participant was scanned; nothing here says anything about brains.
"""


@dataclass(frozen=True)
class Participant:
    """A row of participants.tsv."""

    participant_id: str
    age: float
    sex: str
    site: str


@dataclass(frozen=True)
class Protocol:
    """How every recording of a cohort is made."""

    seed: int
    sessions: int
    tr_s: float
    duration_s: float
    voxel_mm: float
    tsnr: float
    with_t1w: bool
    conditions: int = 0

    @property
    def task(self) -> str:
        return "blocks" if self.conditions else "rest"

    @property
    def times_s(self) -> np.ndarray:
        return self.tr_s * np.arange(round(self.duration_s / self.tr_s))


def simulate_cohort(
    folder: str | Path,
    *,
    num_subjects: int,
    seed: int = 0,
    sessions: int = 1,
    tr_s: float = 2.0,
    duration_s: float = 240.0,
    voxel_mm: float = 4.0,
    tsnr: float = 60.0,
    with_t1w: bool = False,
    conditions: int = 0,
    damage: Mapping[str, str] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    first_subject: int = 1,
) -> None:
    """Write a raw BIDS dataset whose truth is known.

    A subject depends on `seed`, its number and the protocol, nothing else: calling again with a
    later `first_subject` adds participants to the folder and leaves the others as they are.

    Parameters
    ----------
    folder : str or Path
    num_subjects : int
        Subjects `first_subject` … `first_subject` + `num_subjects` − 1, as ``sub-01`` …
    sessions : int
        1 writes no session folders.
    tr_s, duration_s, voxel_mm : float
        Seconds, seconds, mm.
    tsnr : float
        Grey-matter signal over thermal noise; the measured figure is lower (physiology, motion).
    with_t1w : bool
        Also write an anatomical image, aligned with the recordings of the (first) session.
    conditions : int
        Blocks of so many conditions are shown in every run (``task-blocks``), each with a pattern
        of activity of its own, the same in all participants; ``events.tsv`` says when. 0: rest.
    damage : mapping of str to str
        Subject (``"03"``) to one of :data:`~brainlm.simulate.damage.DAMAGE_KINDS`.
    workers : int
        Processes.
    progress : callable
        Called with (subjects done, subjects in all).

    Raises
    ------
    BrainLMError
        An unknown damage, or one for a subject that is not made.
    """
    folder = Path(folder)
    protocol = Protocol(seed, sessions, tr_s, duration_s, voxel_mm, tsnr, with_t1w, conditions)
    numbers = range(first_subject, first_subject + num_subjects)
    damage = {label.removeprefix("sub-"): kind for label, kind in (damage or {}).items()}
    _check(protocol, [f"{number:02d}" for number in numbers], damage)
    for done, _ in enumerate(_write_all(folder, protocol, numbers, damage, workers), start=1):
        if progress is not None:
            progress(done, num_subjects)
    write_descriptions(folder, [draw_participant(seed, number) for number in numbers])


def _check(protocol: Protocol, labels: list[str], damage: Mapping[str, str]) -> None:
    for label, kind in damage.items():
        if label not in labels:
            raise BrainLMError(f"damage: no subject {label!r}; expected {labels[0]}..{labels[-1]}")
        if kind not in DAMAGE_KINDS:
            raise BrainLMError(f"damage: {kind!r} is not one of {', '.join(DAMAGE_KINDS)}")
    if len(protocol.times_s) < 20:
        raise BrainLMError(
            f"duration_s {protocol.duration_s:g} at tr_s {protocol.tr_s:g} gives "
            f"{len(protocol.times_s)} volumes; expected at least 20"
        )


def _write_all(
    folder: Path, protocol: Protocol, numbers: range, damage: Mapping[str, str], workers: int
) -> Iterator[None]:
    jobs = [(folder, protocol, number, damage.get(f"{number:02d}")) for number in numbers]
    if workers <= 1:
        yield from map(_write_subject, jobs)
        return
    import multiprocessing  # spawn: the parent may hold threads, which a fork does not survive
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_write_subject, jobs)


def draw_participant(seed: int, number: int) -> Participant:
    """Age 20 to 80, spread evenly over any run of subjects (golden-ratio steps); sex and site."""
    rng = np.random.default_rng([seed, number, 0])
    start = np.random.default_rng([seed, 0]).uniform()
    age = 20 + 60 * ((start + 0.6180339887 * number) % 1)
    return Participant(
        f"sub-{number:02d}",
        round(age, 1),
        str(rng.choice(["F", "M"])),
        str(rng.choice(["A", "B"])),
    )


def _write_subject(job: tuple[Path, Protocol, int, str | None]) -> None:
    folder, protocol, number, damage = job
    participant = draw_participant(protocol.seed, number)
    rng = np.random.default_rng([protocol.seed, number, 1])
    head = make_head(rng, protocol.voxel_mm)
    individual = draw_individual(rng, participant.age)
    for session in range(1, protocol.sessions + 1):
        entities = [participant.participant_id] + [f"ses-{session}"] * (protocol.sessions > 1)
        place, stem = folder.joinpath(*entities), "_".join(entities)
        rng = np.random.default_rng([protocol.seed, number, 1 + session])
        bold = place / "func" / f"{stem}_task-{protocol.task}_bold.nii.gz"
        truth = _record(bold, rng, head, protocol, individual)
        save_truth(folder, stem, truth)
        if protocol.with_t1w and session == 1:
            _write_t1w(place / "anat" / f"{stem}_T1w.nii.gz", rng, head)
        if damage:
            damage_file(bold, damage)


def _record(
    path: Path,
    rng: np.random.Generator,
    head: Head,
    protocol: Protocol,
    individual: Individual,
) -> Truth:
    """Scan one run, write it with its sidecar and return its truth."""
    from .scanner import make_scene, scan  # compiles: only where a scan is made

    times = protocol.times_s
    courses, series = make_parcel_series(rng, times, parcellate_template().networks, individual)
    if protocol.conditions:
        series = series + NEURAL_SD * _show(path, protocol, rng.spawn(1)[0])
    pivot = head.placement.to_head(_NECK)[0]
    motion = make_motion(rng, times, make_breath(rng, times), pivot)
    artefacts = make_artefacts(rng, times, motion)
    scene = make_scene(rng, head)
    bold = scan(rng, head, scene, series, artefacts, motion, protocol.tsnr)
    write_image(path, _image(bold, head.affine, protocol.tr_s))
    write_json(sidecar_path(path), _sidecar(protocol))
    return Truth(
        transforms=motion,
        networks=courses,
        series=series,
        strength=individual.strength,
        coupling=individual.coupling,
        artefacts=artefacts,
        artefact_maps=scene.map_artefacts(head),
        affine=head.affine,
        placement=head.placement,
    )


def _show(path: Path, protocol: Protocol, rng: np.random.Generator) -> np.ndarray:
    """Write the events of a run and return what they add to its series [T, R]."""
    patterns = draw_patterns(protocol.seed, protocol.conditions, NUM_PARCELS)
    activity = make_activity(rng, protocol.times_s, patterns)
    events = path.with_name(path.name.replace("_bold.nii.gz", "_events.tsv"))
    write_tsv(events, ("onset", "duration", "trial_type"), activity.events)
    return activity.series


def _image(data: np.ndarray, affine: np.ndarray, tr_s: float | None = None):
    """A NIfTI image of [(T,) Z, Y, X] data, with sform and qform in scanner space."""
    import nibabel

    image = nibabel.Nifti1Image(data.T, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    if tr_s is not None:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr_s))
    return image


def _sidecar(protocol: Protocol) -> dict:
    return {
        "TaskName": protocol.task,
        "TaskDescription": f"Simulated {protocol.task}; every volume is read at one instant",
        "RepetitionTime": protocol.tr_s,
        "EchoTime": 0.03,
        "FlipAngle": 80,
        "MagneticFieldStrength": 3,
        "PhaseEncodingDirection": "j-",
        "Manufacturer": "Simulated",
        "ManufacturersModelName": "brainlm.simulate",
    }


def _write_t1w(path: Path, rng: np.random.Generator, head: Head) -> None:
    clean = 600 * head.draw("t1w")
    noise = 12 * rng.standard_normal((2, *clean.shape), dtype=np.float32)
    image = np.rint(np.hypot(clean + noise[0], noise[1])).astype(np.int16)
    write_image(path, _image(image, head.fine_affine))
    write_json(sidecar_path(path), {"MagneticFieldStrength": 3, "Manufacturer": "Simulated"})


def write_descriptions(folder: Path, participants: list[Participant]) -> None:
    """The files at the top of the dataset; participants who are there already stay."""
    write_json(
        folder / "dataset_description.json",
        {
            "Name": "Simulated resting-state recordings",
            "BIDSVersion": "1.9.0",
            "DatasetType": "raw",
            "License": "CC0",
            "Authors": ["brainlm.simulate"],
        },
    )
    write_text(folder / "README", _README)
    write_json(
        folder / "participants.json",
        {
            "age": {"Description": "Age; network coupling depends on it", "Units": "year"},
            "sex": {"Description": "No effect", "Levels": {"F": "female", "M": "male"}},
            "site": {"Description": "No effect", "Levels": {"A": "site A", "B": "site B"}},
        },
    )
    rows = _read_participants(folder / "participants.tsv")
    rows |= {p.participant_id: {k: str(v) for k, v in asdict(p).items()} for p in participants}
    columns = list(asdict(participants[0]))
    cells = [[rows[key][column] for column in columns]
             for key in sorted(rows, key=lambda key: (len(key), key))]  # fmt: skip
    write_tsv(folder / "participants.tsv", columns, cells)


def _read_participants(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    return {row["participant_id"]: row for row in read_tsv(path, "participant_id").records()}
