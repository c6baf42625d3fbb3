"""What planning costs: seconds, memory and file operations of `snakemake -n` by cohort size.

    python benchmarks/planning.py [--recordings 77000] [--cohorts 5] [--chunk 200]

Makes a study of empty raw BIDS files in a temporary folder (one run, its sidecar and a T1w per
participant; a million recordings are 6 million inodes, 13 GB of them folders, and take minutes),
lets Snakemake index it, stands in for every output with an empty file, and has Snakemake's own
``--touch`` write its metadata. Then it times plans of the finished study and of one with more in
it, each in a process of its own. File operations inside the study are counted by strace in a
further run from the same state, where strace is installed.

A plan's jobs are compared with what they must be; the seconds are printed, not judged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from brainlm.cohort.parts import list_parts
from brainlm.paths import Results

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("motion", "normalise", "denoise", "parcellate", "shard", "pages")
PLAN = [sys.executable, "-m", "snakemake", "--cores", "2", "-n", "--quiet"]
FAST_TOUCH = (
    "import sys; from snakemake.executors import touch; touch.Executor.SLEEPING_TIME = 0; "
    "from snakemake.cli import main; main()"
)
_TEXTS = {"scaling.json": '{"atlas": "demo424"}', "shards.tsv": "shard\tsize\tmtime_ns\tsha256\n"}
_FILE_CALLS = (
    "open,openat,stat,lstat,newfstatat,statx,access,faccessat,faccessat2,readlink,readlinkat,"
    "unlink,unlinkat,rename,mkdir,utimensat"
)


class Study:
    """Cohorts c1, c2, ... of empty recordings in a folder that looks like a clone."""

    def __init__(self, folder: Path, cohorts: int, chunk: int):
        self.folder, self.chunk = folder, chunk
        self.paths = Results(folder / "results", "r1")
        self.watch = {f"c{k + 1}": "auto" for k in range(cohorts)}
        for name in ("workflow", "rules", "slurm", "envs"):
            shutil.copytree(ROOT / name, folder / name)
        self.configure()

    def configure(self, **watch: str) -> None:
        self.watch |= watch
        cohorts = "".join(
            f"  - {{name: {name}, folder: data/{name}, watch: {how}}}\n"
            for name, how in self.watch.items()
        )
        (self.folder / "config.yaml").write_text(
            f"results: results\ncohorts:\n{cohorts}atlas: {{name: demo424, folder: atlas}}\n"
            f"chunks: {{recordings: {self.chunk}}}\ntasks: []\n"
        )

    def add(self, cohort: str, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            name = f"sub-{number:07d}"
            subject = f"{self.folder}/data/{cohort}/{name}"
            os.makedirs(f"{subject}/func")
            os.mkdir(f"{subject}/anat")
            for file in ("func/{}_task-rest_bold.nii.gz", "func/{}_task-rest_bold.json",
                         "anat/{}_T1w.nii.gz"):  # fmt: skip
                os.close(os.open(f"{subject}/{file.format(name)}", os.O_CREAT | os.O_WRONLY))

    def let_a_day_pass(self) -> None:
        """The next run looks at the known recordings whose turn it is."""
        for path in self.folder.glob("results/index/*/looked.json"):
            day, what = json.loads(path.read_text())
            path.write_text(json.dumps([day - 1, what]))

    def snakemake(self, *options: str, code: str | None = None) -> subprocess.CompletedProcess:
        start = ["-c", code] if code else ["-m", "snakemake"]
        done = subprocess.run(
            [sys.executable, *start, "--cores", "2", *options],
            cwd=self.folder, env=_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    def pretend_done(self) -> None:
        """Every output as an empty file, with Snakemake's metadata; of the scaling, the atlas."""
        for table in self.folder.glob("results/index/*/chunks/*.tsv"):
            cohort, chunk = table.parts[-3], table.stem
            work = self.folder / "results/work" / cohort / chunk
            work.mkdir(parents=True, exist_ok=True)
            for stage in (*STAGES[:-2], "pages"):
                (work / f"{stage}.tsv").touch()
            shards = self.folder / "results/shards" / cohort
            shards.mkdir(parents=True, exist_ok=True)
            (shards / f"{chunk}.parquet").touch()
            (shards / f"{chunk}.quantiles.parquet").touch()
        for name in (
            "releases/r1/shards.tsv", "releases/r1/scaling.json",
            "models/r1/pretrain/model.safetensors", "summary.tsv", "report/index.html",
        ):  # fmt: skip
            path = self.folder / "results" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_TEXTS.get(path.name, ""))
        for cohort in self.watch:
            for part in ("", *list_parts(self.paths.list_chunks(cohort))):
                table = self.paths.embeddings(cohort, part)
                table.parent.mkdir(parents=True, exist_ok=True)
                table.touch()
        # with two cores it would choose among all jobs anew for every two
        self.snakemake(
            "--touch", "--forceall", "--cores", "9999", "--quiet", "all", code=FAST_TOUCH
        )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def measure(study: Study, total: int, expected: dict[str, int]) -> str:
    """One row: wall s of the first and the best of three runs, and of that one processor s and
    peak MB; file operations per recording."""
    index, before = study.folder / "results/index", study.folder / "index-before"
    if index.exists():
        shutil.copytree(index, before)

    def restore() -> None:
        if index.exists():
            shutil.rmtree(index)
        if before.exists():
            shutil.copytree(before, index)

    # each from the same state; the first reads folders that may be on disk only. Quiet in both: a
    # run, unlike a dry run, does not describe each job before it starts
    runs = []
    for _ in range(3):
        runs.append(_plan(study, [*PLAN, "rules", "progress"]))
        restore()
    operations = count_operations(study, [*PLAN, "rules", "progress"])
    restore()
    text = _plan(study, [*PLAN, "rules"])[-1]  # what it has looked at stays looked at
    shutil.rmtree(before, ignore_errors=True)
    assert "missing provenance" not in text, f"planned without what earlier runs noted: {text}"
    jobs = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}
    jobs = {k: n for k, n in jobs.items() if k not in ("all", "total", "summary", "report")}
    assert jobs == expected, f"{text}planned {jobs}, expected {expected}"
    each = "–" if operations is None else f"{operations / total:.2f}"
    wall, cpu, peak_mb, _ = min(runs)
    row = f"{runs[0][0]:.1f} | {wall:.1f} | {cpu:.1f} | {peak_mb:.0f} | {each}"
    return f"{row} | {sum(expected.values())}"


def _plan(study: Study, command: list[str]) -> tuple[float, float, float, str]:
    """Wall s, processor s, peak MB and what one plan says."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=study.folder, env=_environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, text
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text


def count_operations(study: Study, command: list[str]) -> int | None:
    """Calls on paths inside the study and listings, by strace; None where it is missing."""
    if shutil.which("strace") is None:
        return None
    log = study.folder / "strace.log"
    subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-y", "-o", log, "-e", f"trace={_FILE_CALLS}", *command],
        cwd=study.folder, env=_environment(), capture_output=True, check=True,
    )  # fmt: skip
    inside = f"{study.folder}/"
    with open(log, encoding="utf-8", errors="replace") as lines:
        count = sum(_is_operation(line, inside) for line in lines)
    log.unlink()
    return count


def _is_operation(line: str, inside: str) -> bool:
    """A call on a path of the study; what asks an open file about itself costs no round trip."""
    if '"", ' in line or " resumed>" in line:
        return False
    return any(part in line for part in (inside, '"results/', '".snakemake', '"data/'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=77_000)
    parser.add_argument("--cohorts", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=200, help="recordings per chunk (auto: 200)")
    parser.add_argument("--folder", type=Path, help="where to make the study (a local disk)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(f"{args.recordings} recordings in {args.cohorts} cohorts, chunks of {args.chunk}")
        print("| plan | first: wall s | best of 3: wall s | CPU s | peak MB | "
              "file operations per recording | jobs |")  # fmt: skip
        print("|---|---|---|---|---|---|---|")
        for name, row in cases(Path(folder), args):
            print(f"| {name} | {row} |", flush=True)


def cases(folder: Path, args: argparse.Namespace):
    study = Study(folder, args.cohorts, args.chunk)
    each, total = args.recordings // args.cohorts, args.recordings
    for cohort in study.watch:
        study.add(cohort, each)
    chunks = args.cohorts * -(-each // args.chunk)
    parts = len(list_parts(f"{k:05d}" for k in range(-(-each // args.chunk))))
    embed = {"embed": 1, "embed_part": parts} if parts else {"embed": 1}
    everything = dict.fromkeys(STAGES, chunks) | {"release": 1, "pretrain": 1}
    everything |= {job: args.cohorts * count for job, count in embed.items()}
    yield "first contact: everything", measure(study, total, everything)
    study.pretend_done()
    study.let_a_day_pass()
    yield "up to date, every night", measure(study, total, {})
    yield "up to date, again that day", measure(study, total, {})
    study.configure(**dict.fromkeys(study.watch, "full"))
    yield "up to date, watch: full", measure(study, total, {})
    study.configure(**dict.fromkeys(study.watch, "auto"))
    study.add("c1", 100, first=each)
    study.let_a_day_pass()
    added = dict.fromkeys(STAGES, -(-100 // args.chunk)) | dict.fromkeys(embed, 1)
    yield "100 recordings more", measure(study, total, added)
    study.pretend_done()
    study.configure(**dict.fromkeys(study.watch, "sealed"))
    study.configure(**{list(study.watch)[-1]: "auto"})
    study.snakemake("-n", "-q")  # seals
    study.let_a_day_pass()
    yield "all but one sealed", measure(study, total, {})


if __name__ == "__main__":
    main()
