"""What Snakemake plans, as exact sets of jobs. Nothing is executed: outputs are stood in by empty
files that Snakemake's own ``--touch`` marks as made."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import warm
import yaml
import yte
from fakes import plant, plant_runs
from runs import make_series
from snakemake.iocontainers import ResourceList, Wildcards
from snakemake_executor_plugin_slurm.submit_string import get_submit_command

from brainlm import workflow
from brainlm.cohort.finished import read_finished
from brainlm.config import Pretrain, parse_config
from brainlm.preprocess.chunk import read_stage_table
from brainlm.resources import growing, launch_line, training_resources
from brainlm.status import read_plan
from brainlm.steps import STEPS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
results: results
release: r1
cohorts:
  - {name: a, folder: bids_a, layout: bids, role: reference}
atlas: {name: demo424, folder: atlas}
chunks: {recordings: 4}
model: {preset: tiny}
tasks: [reconstruction, age.yaml]
finetune: {epochs: 2}
"""
CHUNK_STAGES = ("motion", "normalise", "denoise", "parcellate", "shard", "pages")
REPORTING = {("summary", ""), ("report", "")}


class Clone:
    """A working folder with the workflow in it, as a clone has."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("workflow", "rules", "slurm", "envs"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / "age.yaml").write_text("{kind: regression, target: age, seeds: [1]}")
        self.configure()

    def configure(self, old: str = "", new: str = "") -> None:
        path = self.folder / "config.yaml"
        text = path.read_text() if path.exists() else CONFIG
        assert old in text
        path.write_text(text.replace(old, new) if old else text)

    def snakemake(self, *options: str, paths=()) -> str:
        if paths:  # what they change is changed before anything is imported
            done = subprocess.run(
                [sys.executable, "-m", "snakemake", "--cores", "2", *options],
                cwd=self.folder, capture_output=True, text=True, timeout=300, check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(
                    [*map(str, paths), os.environ.get("PYTHONPATH", "")])},
            )  # fmt: skip
        else:
            done = warm.snakemake(self.folder, *options)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    def plan(self, *options: str, paths=()) -> set[tuple[str, str]]:
        """(rule, cohort/chunk or target) of every planned job but `all`."""
        text = self.snakemake("--dry-run", *options, paths=paths)
        jobs = set()
        for block in re.split(r"\n\s*(?=rule \w+:\n)", text)[1:]:
            rule = re.match(r"rule (\w+):", block)[1]
            words = re.search(r"wildcards: (.*)", block)
            values = re.findall(r"=([^,\s]+)", words[1]) if words else []
            jobs.add((rule, "/".join(values)))
        return jobs - {("all", "")}

    def pretend_done(self) -> None:
        """Make every planned output as an empty file and let Snakemake mark it."""
        text = self.snakemake("--dry-run")
        for line in re.findall(r"^\s+output: (.*)", text, re.MULTILINE):
            for name in line.split(", "):
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch() if path.suffix else path.mkdir(exist_ok=True)
                if path.name == "shards.tsv":
                    path.write_text("shard\tsize\tmtime_ns\tsha256\n")
                if path.parent.parent.parent.name == "work":
                    path.write_text("recording_id\tstatus\treason\tseconds\n")
                if path.name == "scaling.json":
                    path.write_text('{"atlas": "demo424"}')
        self.snakemake("--touch", "--forceall", "--quiet", "all")
        assert self.plan() == set()


def chunk_jobs(*chunks: str) -> set[tuple[str, str]]:
    """All stages of some chunks, and the embeddings of their cohorts."""
    return {(stage, chunk) for stage in CHUNK_STAGES for chunk in chunks} | embed_jobs(*chunks)


def embed_jobs(*chunks: str) -> set[tuple[str, str]]:
    return {("embed", chunk.partition("/")[0]) for chunk in chunks}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A clone whose cohort `a` of 8 recordings (2 chunks) is through."""
    folder = tmp_path_factory.mktemp("plan") / "clone"
    folder.mkdir()
    plant_runs(folder / "bids_a", range(10, 18))
    (folder / "bids_a/participants.tsv").write_text("participant_id\tage\n")
    clone = Clone(folder)
    everything = clone.plan()
    assert everything == chunk_jobs("a/00000", "a/00001") | REPORTING | {
        ("release", ""), ("pretrain", ""),
        ("finetune", "finetune/age/1"), ("finetune", "scratch/age/1"),
        ("evaluate", "reconstruction"), ("evaluate", "age"),
    }  # fmt: skip
    clone.pretend_done()
    return folder


@pytest.fixture
def clone(finished, tmp_path) -> Clone:
    folder = tmp_path / "clone"
    shutil.copytree(finished, folder)  # copy2: times are kept
    clone = Clone.__new__(Clone)
    clone.folder = folder
    return clone


def bytes_and_times(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*.parquet")
    }


def test_a_new_subject_plans_only_its_chunk(clone):
    before = bytes_and_times(clone.folder / "results/shards")
    plant_runs(clone.folder / "bids_a", [5])  # sorts before the known ones
    assert clone.plan() == chunk_jobs("a/00002") | REPORTING
    assert bytes_and_times(clone.folder / "results/shards") == before


def test_a_new_external_cohort_plans_its_chunks_and_its_evaluation(clone):
    plant_runs(clone.folder / "bids_b", range(5))
    clone.configure(
        "atlas:", "  - {name: b, folder: bids_b, layout: bids, role: external}\natlas:"
    )
    assert clone.plan() == chunk_jobs("b/00000", "b/00001") | REPORTING | {
        ("evaluate", "reconstruction"), ("evaluate", "age"),
        ("predict", "finetune/age/1"), ("predict", "scratch/age/1"),
    }  # fmt: skip
    clone.pretend_done()  # and then nothing: what stands for its shards is no newer than they are
    plant_runs(clone.folder / "bids_b", [7])
    again = clone.plan()
    assert {job for job in again if job[0] in CHUNK_STAGES} | embed_jobs("b/00002") == chunk_jobs(
        "b/00002"
    )
    assert {"embed", "evaluate", "predict"} <= {rule for rule, _ in again}


def test_a_large_cohort_is_embedded_and_predicted_in_parts(clone):
    """A growing cohort's last part only; nothing of a study that had no parts."""
    make = "sub-{0}/func/sub-{0}_task-rest_atlas-demo424_timeseries.tsv".format
    plant(clone.folder / "many", *map(make, range(10, 18)))
    cohort = "{name: m, folder: many, layout: parcels, role: predict}"
    clone.configure("\natlas:", f"\n  - {cohort}\natlas:")
    together = {("embed", "m"), ("predict_cohort", "m")} | REPORTING

    def part(number: int) -> set[tuple[str, str]]:
        return {("embed_part", f"m/{number:03d}"), ("predict_part", f"m/{number:03d}")}

    def made(number: int) -> set[tuple[str, str]]:
        return {(step, f"m/{number:05d}") for step in ("series", "shard", "pages")}

    assert clone.plan() == made(0) | made(1) | together
    index = clone.folder / "results/index/m"  # now as if 31 chunks stood between the two
    table = index / "recordings.tsv"
    table.write_text(table.read_text().replace("\t00001\n", "\t00032\n"))
    (index / "chunks/00001.tsv").rename(index / "chunks/00032.tsv")
    assert clone.plan() == made(0) | made(32) | part(0) | part(1) | together
    clone.pretend_done()
    again = clone.plan("--forcerun", "pretrain")
    assert (part(0) | part(1) | together) - {("summary", "")} <= again
    folders = [clone.folder / f"results/{kind}/r1/m" for kind in ("embeddings", "predictions")]
    for folder in folders:  # as a version made it that had no parts
        folder.rename(folder.with_name("aside"))
    assert clone.plan() == set()
    for folder in folders:
        folder.with_name("aside").rename(folder)
    plant(clone.folder / "many", make(90))
    assert clone.plan() == made(33) | part(1) | together


def test_a_scaling_task_plans_a_pretraining_for_each_of_its_points(clone):
    task = "{kind: scaling, presets: [tiny, 13m], shares: [0.5, 1], seeds: [3]}"
    (clone.folder / "sizes.yaml").write_text(task)
    clone.configure("age.yaml]", "age.yaml, sizes.yaml]")
    sweep = {("sweep", f"{p}/{s}/3") for p in ("tiny", "13m") for s in ("0.5", "1")}
    assert clone.plan() == sweep | {("evaluate", "sizes"), ("report", "")}


def test_cohorts_that_enter_later_skip_the_rules_before(clone):
    func = clone.folder / "done/sub-01/func"
    func.mkdir(parents=True)
    for name in (
        "space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz",
        "space-MNI152NLin6Asym_seg-demo424_stat-mean_timeseries.tsv",
    ):
        (func / f"sub-01_task-rest_{name}").write_bytes(b"x")
    cohorts = """
  - {name: b, folder: done, layout: fmriprep}
  - {name: c, folder: done, layout: xcpd}
"""
    clone.configure("\natlas:", f"{cohorts}atlas:")
    entered = {(s, "b/00000") for s in ("volumes", "shard", "pages")}
    series = {(s, "c/00000") for s in ("series", "shard", "pages")}
    assert clone.plan() == entered | series | embed_jobs("b", "c") | REPORTING
    clone.pretend_done()
    clone.configure("layout: fmriprep", "layout: fmriprep, space: MNI152NLin6Asym")
    assert (
        clone.plan() == entered | embed_jobs("b") | REPORTING
    )  # what a cohort says of its files counts


def test_a_new_reference_cohort_does_not_disturb_the_release(clone):
    plant_runs(clone.folder / "bids_b", range(3))
    clone.configure(
        "atlas:", "  - {name: b, folder: bids_b, layout: bids, role: reference}\natlas:"
    )
    assert clone.plan() == chunk_jobs("b/00000") | REPORTING


def test_status_tells_what_the_next_run_would_do(clone, monkeypatch, capsys):
    from brainlm.cli import main

    def say() -> str:
        assert main(["status"]) == 0
        said = capsys.readouterr().out
        assert "refuse" not in said, said
        return next(s for s in said.splitlines() if s.startswith("next: "))

    monkeypatch.chdir(clone.folder)
    monkeypatch.delenv("BRAINLM_CONFIG", raising=False)
    assert say() == "next: nothing"
    clone.configure("epochs: 2", "epochs: 3")  # its results are there, and out of date
    assert say() == "next: finetune, evaluate, report"
    plant_runs(clone.folder / "bids_a", [5])
    rules = read_plan(folder=clone.folder)
    assert sorted(rules) == sorted({rule for rule, _ in clone.plan()}) and rules[0] == "motion"


def test_a_sealed_cohort_is_one_node_and_is_not_looked_at(clone):
    before = bytes_and_times(clone.folder / "results/shards")
    clone.configure("role: reference", "role: reference, watch: sealed")
    assert clone.plan() == set()
    plant_runs(clone.folder / "bids_a", [5])
    (clone.folder / "bids_a/sub-16/func/sub-16_task-rest_bold.nii.gz").write_bytes(b"another")
    clone.configure("chunks:", "preprocess: {min_coverage: 0.7}\nchunks:")
    assert clone.plan() == set()
    assert bytes_and_times(clone.folder / "results/shards") == before
    everything = {rule for rule, _ in clone.plan("--forceall")}
    assert everything.isdisjoint(CHUNK_STAGES)
    clone.configure("preprocess: {min_coverage: 0.7}\n", "")
    clone.configure(", watch: sealed", "")  # unsealed: what came meanwhile is found
    assert clone.plan() == chunk_jobs("a/00001", "a/00002") | REPORTING


def test_a_cohort_is_sealed_when_its_last_chunk_is_made(clone):
    plant_runs(clone.folder / "bids_a", [5])
    assert clone.plan() == chunk_jobs("a/00002") | REPORTING
    clone.configure("role: reference", "role: reference, watch: sealed")
    assert clone.plan() == chunk_jobs("a/00002") | REPORTING
    clone.pretend_done()
    assert (clone.folder / "results/shards/a/sealed.tsv").read_text().count("\n") == 4


def test_a_large_cohort_is_looked_at_in_turn(clone):
    (clone.folder / "sitecustomize.py").write_text(
        "from brainlm.cohort import watch\nwatch.NEWEST = 4\n"
    )
    (clone.folder / "bids_a/sub-12/func/sub-12_task-rest_bold.nii.gz").write_bytes(b"another")
    assert clone.plan(paths=[clone.folder]) == set()  # looked at today already
    (clone.folder / "bids_a/sub-16/func/sub-16_task-rest_bold.nii.gz").write_bytes(b"another")
    newest = chunk_jobs("a/00001") | REPORTING
    assert clone.plan(paths=[clone.folder]) == newest
    looked = clone.folder / "results/index/a/looked.json"
    day, what = json.loads(looked.read_text())
    looked.write_text(json.dumps([day - 6, what]))
    late = clone.plan(paths=[clone.folder])  # six sevenths
    looked.write_text(json.dumps([day - 7, what]))
    assert clone.plan(paths=[clone.folder]) == newest | chunk_jobs("a/00000")
    assert late in (newest, newest | chunk_jobs("a/00000"))


def test_retry_failed_plans_the_chunks_with_failures_once(clone):
    table = clone.folder / "results/work/a/00001/motion.tsv"
    status = table.stat()
    table.write_text(
        "recording_id\tstatus\treason\tseconds\nsub-15_task-rest\tcrashed\ta bug\t1.0\n"
        "sub-16_task-rest\ttoo_short\t20 s\t1.0\n"
    )
    os.utime(table, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert clone.plan() == set()
    clone.configure("tasks:", "retry_failed: 1\ntasks:")
    assert clone.plan() == chunk_jobs("a/00001") | REPORTING
    rows = (clone.folder / "results/index/a/chunks/00001.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows if "\t1\t00001" in row] == ["sub-15_task-rest"]
    assert clone.plan() == chunk_jobs("a/00001") | REPORTING  # until they are made


def test_a_raised_version_reruns_its_stage_and_what_follows(clone):
    path = clone.folder / "sitecustomize.py"
    path.write_text(
        "from dataclasses import replace\nfrom brainlm.steps import STEPS\n"
        "STEPS['denoise'] = replace(STEPS['denoise'], version=STEPS['denoise'].version + 1)\n"
    )
    jobs = clone.plan(paths=[clone.folder])
    stages = {(s, f"a/{c}") for s in CHUNK_STAGES[2:] for c in ("00000", "00001")}
    assert jobs == stages | embed_jobs("a") | REPORTING


def test_a_new_release_trains_and_preprocesses_nothing(clone):
    clone.configure("release: r1", "release: r2")
    assert clone.plan() == {
        ("release", ""), ("pretrain", ""), ("embed", "a"),
        ("finetune", "finetune/age/1"), ("finetune", "scratch/age/1"),
        ("evaluate", "reconstruction"), ("evaluate", "age"), ("report", ""),
    }  # fmt: skip


def test_a_replaced_recording_plans_its_chunk(clone):
    path = clone.folder / "bids_a/sub-16/func/sub-16_task-rest_bold.nii.gz"
    path.write_bytes(b"another recording")
    assert clone.plan() == chunk_jobs("a/00001") | REPORTING


def test_a_removed_recording_plans_its_chunk(clone):
    shutil.rmtree(clone.folder / "bids_a/sub-12")
    assert clone.plan() == chunk_jobs("a/00000") | REPORTING


def test_a_deleted_shard_is_made_again_from_what_is_there(clone):
    (clone.folder / "results/shards/a/00001.parquet").unlink()
    assert clone.plan() == {
        ("shard", "a/00001"), ("pages", "a/00001"), ("embed", "a"),
    } | REPORTING  # fmt: skip


def test_chunks_that_are_through_leave_the_graph(clone):
    noted = clone.folder / "results/shards/a/finished.tsv"
    assert [line[:5] for line in noted.read_text().splitlines()[2:]] == ["00000", "00001"]
    shards = (clone.folder / "results/shards/a").glob("?????.parquet")
    assert noted.stat().st_mtime_ns == max(shard.stat().st_mtime_ns for shard in shards)
    assert ":motion" not in clone.snakemake("--summary").replace("\t", ":")
    forced = clone.plan("--forceall")
    assert chunk_jobs("a/00000", "a/00001") <= forced
    assert clone.plan("--forcerun", "parcellate") == REPORTING | embed_jobs("a") | {
        (s, f"a/{c}") for s in ("parcellate", "shard", "pages") for c in ("00000", "00001")
    }
    assert clone.plan() == set()


@pytest.mark.parametrize(
    ("file", "jobs"),
    [
        ("work/a/00001/normalise.tsv", CHUNK_STAGES[2:]),
        ("shards/a/00001.parquet", CHUNK_STAGES[5:]),
    ],
)
def test_what_was_made_anew_by_hand_counts_as_before(clone, file, jobs):
    (clone.folder / "results" / file).write_bytes(b"another")
    stages = {(stage, "a/00001") for stage in jobs}
    assert clone.plan() == stages | embed_jobs("a") | REPORTING
    assert "00001" not in (clone.folder / "results/shards/a/finished.tsv").read_text()


def test_a_chunk_with_work_left_stays_in_the_graph(clone, monkeypatch):
    monkeypatch.chdir(clone.folder)
    noted = clone.folder / "results/shards/a/finished.tsv"
    noted.unlink()
    config = parse_config(yaml.safe_load((clone.folder / "config.yaml").read_text()))

    def job(rule: str, chunk: str = "00000"):
        wildcards = {"cohort": "a", "chunk": chunk} if chunk else {}
        return SimpleNamespace(rule=SimpleNamespace(name=rule), wildcards=wildcards)

    left = job("shard", "00001")
    dag = SimpleNamespace(
        jobs=[job("pages"), left, job("pages", "00001"), job("report", "")],
        needrun_jobs=lambda: iter([left, job("report", "")]),
    )
    workflow._note_finished(config, dag)
    assert set(read_finished(config.results, "a")) == {"00000"}
    dag.jobs = [left]  # a run up to shards: it says nothing of pages
    dag.needrun_jobs = lambda: iter([])
    workflow._note_finished(config, dag)
    assert set(read_finished(config.results, "a")) == {"00000"}
    noted.write_text("of another version\n")
    assert clone.plan() == set()
    assert read_finished(config.results, "a") == {}


MODEL = {("pretrain", "")}
FITS = {("finetune", "finetune/age/1"), ("finetune", "scratch/age/1")}
AGE = {("evaluate", "age")}


@pytest.mark.parametrize(
    ("lost", "jobs"),
    [
        ("work/a/00000/motion.tsv", chunk_jobs("a/00000")),
        (
            "work/a/00001/denoise.tsv",
            {(s, "a/00001") for s in CHUNK_STAGES[2:]} | embed_jobs("a"),
        ),
        (
            "models/r1/pretrain/model.safetensors",
            MODEL | FITS | AGE | {("evaluate", "reconstruction")} | embed_jobs("a"),
        ),
        (
            "models/r1/finetune-age/seed-1/predictions.parquet",
            {("finetune", "finetune/age/1")} | AGE,
        ),
    ],
)
def test_what_a_failed_job_lost_is_planned_again(clone, lost, jobs):
    (clone.folder / "results" / lost).unlink()
    planned = clone.plan() - {("summary", "")}
    assert planned == jobs | {("report", "")}


def test_who_is_left_out_counts(clone, monkeypatch):
    clone.configure("role: reference", "role: reference, exclude: out.tsv")
    table = clone.folder / "out.tsv"

    def leave_out(*rows: str) -> None:
        table.write_text("\n".join(["recording_id\treason", *rows]) + "\n")

    leave_out("sub-10_task-rest\tartefacts")
    assert clone.plan() == chunk_jobs("a/00000") | REPORTING  # and not the other chunk
    monkeypatch.chdir(clone.folder)
    config = parse_config(yaml.safe_load((clone.folder / "config.yaml").read_text()))

    def trigger(stage: str, chunk: str = "00000") -> str:
        return workflow.Triggers(config, {}).of(stage, "a", chunk=chunk)

    before = trigger("motion"), trigger("normalise")
    leave_out("sub-10_task-rest\tartefacts", "sub-99_task-rest\tnot here")
    assert (trigger("motion"), trigger("normalise")) == before
    leave_out("sub-10_task-rest\tmoved")
    assert trigger("motion") != before[0]
    assert trigger("normalise") == before[1]
    leave_out("sub-17_task-rest\tmoved")
    assert "exclude" in trigger("motion", "00001")
    assert "exclude" not in trigger("motion")


def test_a_corrected_participants_table_repeats_what_read_it(clone):
    results, table = clone.folder / "results", clone.folder / "bids_a/participants.tsv"
    participants = [f"sub-{n}" for n in range(10, 18)]

    def write(**changes: str) -> None:
        rows = [
            f"{name}\t{20 + k}\tF\tblue" if name not in changes else f"{name}\t{changes[name]}"
            for k, name in enumerate([*participants, *(set(changes) - set(participants))])
        ]
        table.write_text("\n".join(["participant_id\tage\tsex\teyes", *rows]) + "\n")

    frozen = results / "releases/r1/shards.tsv"  # pretended: it names its shards now
    when = frozen.stat()
    text = "".join(f"results/shards/a/{k}.parquet\t0\t0\t0\n" for k in ("00000", "00001"))
    frozen.write_text("shard\tsize\tmtime_ns\tsha256\n" + text)
    os.utime(frozen, ns=(when.st_mtime_ns, when.st_mtime_ns))
    write()
    assert clone.plan() != set()  # the table had no row when this release was first planned
    (results / "releases/r1/labels.json").unlink()
    assert clone.plan() == set()
    write(**{"sub-12": "77\tF\tblue"})
    assert clone.plan() == FITS | AGE | {("report", "")}
    write(**{"sub-12": "22\tM\tblue"})  # sex is what baselines are told
    assert clone.plan() == AGE | {("report", "")}
    write(**{"sub-12": "22\tF\tgreen", "sub-99": "50\tF\tblue"})
    assert clone.plan() == set()


def test_a_new_step_is_an_entry_a_function_and_a_rule(tmp_path):
    clone = Clone(tmp_path)
    make_series(tmp_path / "bids_a", 3)
    clone.configure("layout: bids", "layout: parcels")
    clone.configure("[reconstruction, age.yaml]", "[]")
    (tmp_path / "sitecustomize.py").write_text(
        "from brainlm.steps import STEPS, Cost, Step\n"
        "STEPS['tally'] = Step('tally', 'count the points in time', of='recording',\n"
        "    run='tally:count', enters='series', makes=lambda options: ('series',),\n"
        "    cost=Cost(seconds=600))\n"
    )
    (tmp_path / "tally.py").write_text(
        "import numpy as np\n"
        "def count(entry, context):\n"
        "    path, = context.made(entry, ['series'])\n"
        "    return {'points': len(np.load(path)['series'])}\n"
    )
    rule = (tmp_path / "rules/pages.smk").read_text()
    rule = rule.replace("rules.shard.output.shard", 'PATHS.stage_table(*CHUNK, "series")')
    (tmp_path / "rules/tally.smk").write_text(rule.replace("pages", "tally"))
    with open(tmp_path / "workflow/Snakefile", "a") as file:
        file.write('\ninclude: "../rules/tally.smk"\n')

    text = clone.snakemake("--dry-run", "--profile", "slurm", paths=[tmp_path])
    block = next(b for b in text.split("\n\n") if "rule tally:" in b)
    assert "cpus_per_task=8" in block
    assert "runtime=18" in block  # 10 min, and twice 3 x 10 min on 8 processors
    clone.snakemake("results/shards/a/00000.parquet", paths=[tmp_path])
    rows = read_stage_table(tmp_path / "results/work/a/00000/tally.tsv")
    assert [(row["status"], row["points"]) for row in rows] == [("ok", 240)] * 3
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-m", "brainlm", "--help"], env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert "count the points in time" in done.stdout


def test_a_rule_of_a_chunk_states_only_what_is_its_own():
    rules = "".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    found = dict(re.findall(r"^use rule chunk as (\w+) with:\n((?: .*\n|\n(?= ))+)", rules, re.M))
    steps = [step.name for step in STEPS.values() if step.of != "study"]
    assert sorted(found) == sorted(steps)
    assert max(text.count("\n") + 1 for text in found.values()) <= 15
    profile = (ROOT / "slurm/config.yaml").read_text()
    asked = re.split(r"set-resources:", profile)[1]
    assert not [name for name in steps if re.search(rf"\b{name}\b", asked)]


def test_a_setting_reruns_its_stage_and_what_follows(clone):
    clone.configure("chunks:", "preprocess: {min_coverage: 0.7}\nchunks:")
    stages = {(s, f"a/{c}") for s in ("parcellate", "shard", "pages") for c in ("00000", "00001")}
    assert clone.plan() == stages | embed_jobs("a") | REPORTING


def test_settings_that_do_not_change_results_plan_nothing(clone):
    clone.configure("chunks:", "preprocess: {time_limit_min: 90}\nchunks:")
    clone.configure("finetune:", "pretrain: {checkpoint_every_min: 3, cpus: 3}\nfinetune:")
    assert clone.plan() == set()


def test_a_task_more_and_a_seed_more_plan_only_themselves(clone):
    (clone.folder / "age.yaml").write_text("{kind: regression, target: age, seeds: [1, 2]}")
    assert clone.plan() == {
        ("finetune", "finetune/age/2"), ("finetune", "scratch/age/2"),
        ("evaluate", "age"), ("report", ""),
    }  # fmt: skip


def test_snakemakes_own_report_has_the_figures_with_their_captions(clone):
    folder = clone.folder / "results/report/figures"
    (folder / "curve.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (folder / "curve.txt").write_text(r"R² of \<b\>hidden\</b\> points\.")
    clone.snakemake("--report", "report.html")
    text = (clone.folder / "report.html").read_text(encoding="utf-8")
    assert "R\\u00b2 of &lt;b&gt;hidden&lt;/b&gt; points." in text
    assert "how well it does against honest baselines" in text


def test_an_edited_comment_in_a_rule_plans_nothing(clone):
    for path in clone.folder.glob("rules/*.smk"):
        path.write_text("# a remark\n" + path.read_text())
    assert clone.plan() == set()


def test_the_slurm_profile_resolves_in_a_clone_with_an_empty_home(clone, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    plant_runs(clone.folder / "bids_a", [5])
    assert clone.plan("--profile", "slurm") == chunk_jobs("a/00002") | REPORTING


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("results: results", "resuls: results", "did you mean 'results'"),
        ("folder: bids_a", "folder: nowhere", "folder not found"),
        ("folder: bids_a", "folder: empty", "no recording found"),
        ("age.yaml", "gad7", "no participants table has a column 'gad7'"),
        ("age.yaml", "ages", "did you mean 'age'"),
        ("age.yaml", "bids_a/task.yaml", "target: Field required"),
        ("name: demo424", "name: a425", "did you mean 'a424'"),
    ],
)
def test_bad_configuration_ends_in_one_clear_line(clone, old, new, words):
    (clone.folder / "empty").mkdir()
    shutil.copy(clone.folder / "bids_a/participants.tsv", clone.folder / "empty")
    (clone.folder / "bids_a/task.yaml").write_text("kind: regression")
    clone.configure(old, new)
    done = warm.snakemake(clone.folder, "-n")
    assert done.returncode != 0
    line = [x for x in done.stderr.splitlines() if x.startswith("brainlm:")]
    assert len(line) == 1
    assert words in line[0]
    assert "Traceback" not in done.stderr


def test_the_workflow_passes_snakemakes_linter(clone):
    assert "good condition" in clone.snakemake("--lint")


@pytest.mark.parametrize(
    ("options", "line", "resources"),
    [
        ({"gpus": 0}, "brainlm", {"cpus_per_task": 8, "runtime": 24 * 60}),
        ({"gpus": 1, "hours": 4}, "brainlm", {"gpu": 1, "cpus_per_task": 12, "runtime": 240}),
        (
            {"gpus": 8},
            "env TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 torchrun --standalone --nproc-per-node 8 "
            "-m brainlm",
            {"gpu": 8, "cpus_per_task": 96},
        ),
        (
            {"nodes": 8, "gpus": 4, "cpus": 32},
            "env TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 bash slurm/torchrun.sh 8 4 32 gpu",
            {"nodes": 8, "tasks": 8, "mpi": "srun", "cpus_per_task": 32,
             "slurm_extra": "'--ntasks-per-node=1 --gpus-per-node=4'"},
        ),
    ],
)  # fmt: skip
def test_how_training_is_launched(options, line, resources):
    training = Pretrain(**options)
    assert launch_line(training) == line
    given = training_resources("pretrain", training)
    assert resources.items() <= given.items()
    if training.nodes == 1:
        assert "mpi" not in given  # a single node must leave it out


def test_a_type_of_gpu(monkeypatch):
    monkeypatch.setenv("BRAINLM_GPU_TYPE", "h100")
    one, many = (training_resources("pretrain", Pretrain(nodes=n, gpus=8)) for n in (1, 2))
    assert (one["gpu"], one["gpu_model"]) == (8, "h100")
    assert many["slurm_extra"] == "'--ntasks-per-node=1 --gpus-per-node=h100:8'"
    assert "gpu_model" not in training_resources("pretrain", Pretrain())


def read_profile(monkeypatch, **environment) -> dict:
    for name in [name for name in os.environ if name.startswith("BRAINLM_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return yte.process_yaml((ROOT / "slurm/config.yaml").read_text())


def test_what_a_site_sets_reaches_its_jobs(monkeypatch):
    plain = read_profile(monkeypatch)
    assert plain["default-resources"] == {"mem_mb": 4000, "runtime": 60, "cpus_per_task": 1}
    assert "pretrain" not in plain["set-resources"]
    site = read_profile(
        monkeypatch, BRAINLM_PARTITION="cpu", BRAINLM_QOS="low", BRAINLM_CONSTRAINT="zen4",
        BRAINLM_GPU_PARTITION="h100", BRAINLM_GPU_QOS="long",
    )  # fmt: skip
    assert site["default-resources"].items() >= {
        "slurm_partition": "cpu", "qos": "low", "constraint": "zen4"
    }.items()  # fmt: skip
    for rule in ("pretrain", "sweep", "finetune", "predict", "evaluate", "embed", "embed_part",
                 "predict_cohort", "predict_part"):  # fmt: skip
        assert site["set-resources"][rule] == {"slurm_partition": "h100", "qos": "long"}
    assert "slurm_partition" not in site["set-resources"]["motion"]
    # as the executor submits it: a SLURM without a database of accounts does not tell it back
    calls = {rule: submit_command(site, rule) for rule in ("pretrain", "motion")}
    assert "--qos=long " in calls["pretrain"] and "--qos=low" not in calls["pretrain"]
    assert "--qos=low " in calls["motion"] and "-C zen4 " in calls["motion"]
    assert "--qos" not in submit_command(plain, "pretrain")


def submit_command(profile: dict, rule: str) -> str:
    """What the executor gives to a shell for a job of this rule."""
    asked = profile["default-resources"] | profile["set-resources"].get(rule, {})
    job = SimpleNamespace(resources=ResourceList(fromdict=asked), threads=1)
    where = {"run_uuid": "u", "slurm_logfile": "l", "comment_str": "c", "account": "",
             "partition": "", "workdir": "w"}  # fmt: skip
    return get_submit_command(job, where)


@pytest.mark.parametrize(
    ("words", "memory", "time"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.", 2, 1),
        ("slurmstepd: error: StepId=7.0 exceeded memory limit (300 > 250), being killed", 2, 1),
        ("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-30 DUE TO TIME LIMIT ***", 1, 2),
        ("torch.OutOfMemoryError: CUDA out of memory.", 1, 1),  # of the GPU's
        ("brainlm pretrain: the loss is not finite", 1, 1),
    ],
)
@pytest.mark.parametrize("folder", ["rule_motion/a_00001", "group_chunk"])
def test_only_what_ran_out_is_doubled(tmp_path, monkeypatch, words, memory, time, folder):
    monkeypatch.chdir(tmp_path)
    wildcards = Wildcards(fromdict={"cohort": "a", "chunk": "00001"})
    given = growing("motion", lambda w: 100, lambda w: 10)
    logs = tmp_path / ".snakemake/slurm_logs" / folder
    logs.mkdir(parents=True)
    shown = "rule motion:\n    wildcards: cohort=a, chunk={}\n{}\n"
    (logs / "9.log").write_text(shown.format("00001", "of an earlier run: oom_kill time limit"))
    (logs / "10.log").write_text(shown.format("00001", words))
    (logs / "11.log").write_text(shown.format("00001", "no words of SLURM's"))
    if folder == "group_chunk":
        (logs / "12.log").write_text(shown.format("00002", "oom_kill, another chunk's"))
    assert [given["mem_mb"](wildcards, attempt) for attempt in (1, 2)] == [100, 100]
    assert given["mem_mb"](wildcards, attempt=3) == 100 * memory
    assert given["runtime"](wildcards, attempt=3) == 10 * time


def test_eight_nodes_are_planned_and_launched_as_one_step(clone, tmp_path):
    """An 8-node job, planned but not run; srun and scontrol are stand-ins that say their words."""
    clone.configure("finetune:", "pretrain: {nodes: 8, gpus: 8, cpus: 64}\nfinetune:")
    text = clone.snakemake("--dry-run", "--printshellcmds", "--forcerun", "pretrain", "--",
                           "results/models/r1/pretrain/model.safetensors")  # fmt: skip
    launch = re.search(r"Shell command: exec (env .*?) --log-file", text)[1]
    patient = "env TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600"
    assert launch == f"{patient} bash {clone.folder}/slurm/torchrun.sh 8 8 64 gpu pretrain"
    resources = re.search(r"resources: (.*nodes=.*)", text)[1].split(", ")
    assert {"nodes=8", "tasks=8", "mpi=srun", "cpus_per_task=64"} <= set(resources)
    words = {
        "scontrol": 'case "$2" in job) echo "   NodeList=n[1-8]";; '
        'hostnames) printf "n%s\\n" 1 2 3 4 5 6 7 8;; node) echo "NodeAddr=10.0.0.1 x";; esac',
        "srun": 'echo "$@"',
    }
    for name, body in words.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "SLURM_JOB_ID": "777", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(launch.split(), cwd=clone.folder, env=environment, text=True,
                          capture_output=True, check=True)  # fmt: skip
    expected = (
        "--nodes=8 --ntasks=8 --ntasks-per-node=1 --cpus-per-task=64 --gpus-per-node=8 "
        "--kill-on-bad-exit=1 torchrun --nnodes=8 --nproc-per-node=8 --rdzv-backend=c10d "
        "--rdzv-endpoint=10.0.0.1:20777 --rdzv-id=777 -m brainlm pretrain"
    )
    assert done.stdout.strip() == expected


def test_memory_and_time_follow_the_chunk_and_the_attempt(tmp_path):
    from brainlm.cohort.index import update_index
    from brainlm.resources import CHUNK_CPUS, chunk_resources, site_commands

    plant_runs(tmp_path / "bids", range(8))
    for number in range(4, 8):  # the second chunk's images have 2 GB (sparse files)
        image = next((tmp_path / f"bids/sub-{number:02d}").rglob("*_bold.nii.gz"))
        os.truncate(image, 2_000_000_000)
    cohort = {"name": "a", "folder": str(tmp_path / "bids")}
    config = parse_config({"results": str(tmp_path / "results"), "cohorts": [cohort]})
    update_index(config.cohorts[0], config.results, 4)
    small, large = (SimpleNamespace(cohort="a", chunk=chunk) for chunk in ("00000", "00001"))
    given = chunk_resources(config, "motion")
    more = given["mem_mb"](large, 1) - given["mem_mb"](small, 1)
    assert more == pytest.approx(12 * 2000 * CHUNK_CPUS, rel=0.01)
    assert given["runtime"](large, 1) > given["runtime"](small, 1)
    assert site_commands({}) == ""
    words = site_commands({"BRAINLM_MODULES": "fsl cuda", "BRAINLM_SCRATCH": "/scratch/$USER"})
    assert words == "module load fsl cuda; mkdir -p /scratch/$USER; export TMPDIR=/scratch/$USER; "


def move_clone(clone: Clone) -> None:
    clone.folder = clone.folder.rename(clone.folder.with_name('a "clone"\'s new place'))


def link_results(clone: Clone) -> None:
    disk = clone.folder.parent / "other disk"
    (clone.folder / "results").rename(disk)
    (clone.folder / "results").symlink_to(disk)


def name_results_otherwise(clone: Clone) -> None:
    (clone.folder / "links").mkdir()
    clone.configure("results: results", "results: ./links/../results/")


@pytest.mark.parametrize("change", [move_clone, link_results, name_results_otherwise])
def test_a_finished_study_is_finished_wherever_it_lies(clone, change):
    change(clone)
    assert clone.plan() == set()


@pytest.mark.parametrize(("setting", "rules"), [
    ("preprocess: {high_pass_hz: 0.02}", set(CHUNK_STAGES)),
    ("evaluate: {bootstrap: 300}", {"evaluate", "report"}),
    ("max_failed_fraction: 0.5", set()),
])  # fmt: skip
def test_settings_are_compared_where_snakemake_has_no_records(clone, setting, rules):
    """In another clone, say: what is stored beside the results tells."""
    shutil.rmtree(clone.folder / ".snakemake")
    assert clone.plan() == set()
    clone.configure("preset: tiny}", f"preset: tiny}}\n{setting}")
    planned = {rule for rule, _ in clone.plan()}
    assert planned >= rules if rules else not planned
    assert "pretrain" not in planned and ("motion" in planned) == ("motion" in rules)
    assert {rule for rule, _ in clone.plan()} == planned  # and until it is made


def test_a_clone_in_a_folder_with_braces_is_refused_in_words(clone):
    clone.folder = clone.folder.rename(clone.folder.with_name('{lab} of "ours"'))
    done = warm.snakemake(clone.folder, "-n")
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("brainlm:")]
    assert done.returncode and '{lab} of "ours": Snakemake takes braces' in line


def test_a_renamed_cohort_is_told_that_its_release_has_the_old_name(clone):
    frozen = clone.folder / "results/releases/r1/shards.tsv"
    frozen.write_text(frozen.read_text() + "shards/a/00000.parquet\t0\t0\t0\n")
    clone.configure("name: a,", "name: renamed,")
    done = warm.snakemake(clone.folder, "-n")
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("brainlm:")]
    assert done.returncode and "release" in line and "renamed" in line


def test_a_cohort_that_left_the_configuration_disturbs_no_other(clone):
    plant_runs(clone.folder / "bids_b", range(3))
    other = "  - {name: b, folder: bids_b, layout: bids, role: external}\natlas:"
    clone.configure("atlas:", other)
    clone.pretend_done()
    clone.configure(other, "atlas:")
    assert {rule for rule, _ in clone.plan()} <= {"evaluate", "report", "summary"}
