"""``brainlm-bids BIDS_DIR OUT_DIR participant|group``: the pipeline called as BIDS Apps are.

Source: Gorgolewski et al. 2017, PLoS Comput Biol 13:e1005209. Writes a configuration into the
output folder and runs the workflow there; other settings come from a configuration of your own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from . import __version__
from .errors import BrainLMError
from .files import shipped, write_text
from .paths import Results

#: What each level makes, below the output folder.
TARGETS = {"participant": [str(Results(Path("results")).summary)], "group": []}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the BIDS App's command line, write its configuration, become Snakemake."""
    args = build_parser().parse_args(arguments)
    try:
        prepare_folder(args.bids_dir, args.output_dir, args.participant_label)
    except BrainLMError as error:
        print(f"brainlm-bids: {error}", file=sys.stderr)
        return 1
    command = ["--cores", str(args.n_cpus or "all"), "--directory", str(args.output_dir)]
    files = [args.output_dir.absolute() / "config.yaml", *(c.absolute() for c in args.config)]
    run_workflow([*command, "--configfile", *map(str, files), "--", *TARGETS[args.level]])
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brainlm-bids",
        description="BIDS App: raw fMRI to parcel series (participant), and on to a trained and "
        "evaluated model with a report (group).",
    )
    parser.add_argument("--version", action="version", version=f"brainlm-bids {__version__}")
    parser.add_argument("bids_dir", type=Path, help="folder of the raw BIDS dataset")
    parser.add_argument("output_dir", type=Path, help="folder for all output")
    parser.add_argument("level", choices=list(TARGETS), metavar="participant|group",
                        help="participant: preprocess; group: preprocess what is left, train, "
                        "evaluate and report")  # fmt: skip
    parser.add_argument("--participant-label", nargs="+", default=[], metavar="LABEL",
                        help="only these participants (with or without sub-), in addition to "
                             "those of earlier calls; default: all")  # fmt: skip
    parser.add_argument("--n-cpus", "--n_cpus", type=int, help="CPU cores (default: all)")
    parser.add_argument("--config", type=Path, action="append", default=[], metavar="YAML",
                        help="your own settings; may be repeated")  # fmt: skip
    return parser


def prepare_folder(bids: Path, out: Path, labels: Sequence[str]) -> None:
    """Write OUT_DIR/config.yaml, and OUT_DIR/bids with links to the participants to process.

    Raises
    ------
    BrainLMError
        The dataset has no participants, or not the ones asked for.
    """
    there = {path.name: path for path in sorted(bids.absolute().glob("sub-*")) if path.is_dir()}
    wanted = [f"sub-{label.removeprefix('sub-')}" for label in labels] or list(there)
    if not there:
        raise BrainLMError(f"{bids}: expected folders named sub-*, found none; is it BIDS?")
    if missing := [name for name in wanted if name not in there]:
        raise BrainLMError(f"{bids}: no folder {', '.join(missing)}")
    links = out / "bids"
    links.mkdir(parents=True, exist_ok=True)
    tables = [path for path in bids.absolute().iterdir() if path.is_file()]
    for path in (*tables, *(there[name] for name in wanted)):
        if not (links / path.name).is_symlink():
            (links / path.name).symlink_to(path)
    cohort = {"name": "bids", "folder": "bids", "layout": "bids", "role": "reference"}
    settings = {"results": "results", "cohorts": [cohort], "tasks": ["reconstruction"]}
    write_text(out / "config.yaml", yaml.safe_dump(settings))


def run_workflow(options: Sequence[str]) -> None:
    """Become Snakemake on the workflow that came with this package; does not return."""
    profiles = {"slurm": str(shipped("slurm"))}  # a clone has it in the working folder
    named = [profiles.get(o, o) if not Path(o).is_dir() else o for o in options]
    sys.stdout.flush()
    os.execv(sys.executable, [*snakemake_command(), *named])


def snakemake_command() -> list[str]:
    """Snakemake of this environment, on the workflow that came with this package."""
    snakefile = str(shipped("workflow") / "Snakefile")
    return [sys.executable, "-m", "snakemake", "--snakefile", snakefile]


if __name__ == "__main__":
    raise SystemExit(main())
