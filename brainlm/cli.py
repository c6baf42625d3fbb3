"""``brainlm <verb>``: one verb per stage, each usable alone.

Exit codes: 0 done, 1 an error the user can fix (one line on standard error), 2 wrong arguments,
3 more recordings failed than ``max_failed_fraction`` allows, 75 interrupted but resumable.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from . import __version__, templateflow
from .config import Config, LayoutName, load_config, sweep_point
from .errors import BrainLMError
from .files import describe_disk_error, is_disk_error
from .output import logged
from .paths import ModelFolder
from .steps import STEPS, describe_series, load, needs_template
from .tables import FORMATS

if TYPE_CHECKING:
    from .atlas import Atlas

Verb = Callable[[argparse.Namespace], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    args, others = parser.parse_known_args(arguments)
    args.others = others
    if others and args.verb != "run":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    with logged(getattr(args, "log_file", None)):
        return _run_verb(args)


def _run_verb(args: argparse.Namespace) -> int:
    try:
        return int(args.run(args) or 0)
    except BrainLMError as error:
        if args.debug:
            traceback.print_exc()
        print(f"brainlm {args.verb}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
    except OSError as error:
        if args.debug or not is_disk_error(error):
            raise
        print(f"brainlm {args.verb}: {describe_disk_error(error)}", file=sys.stderr)
        return 1
    except Exception:
        if getattr(args, "log_file", None) is None:
            raise
        traceback.print_exc()  # into the log too
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brainlm", description="From BIDS fMRI recordings to a trained, evaluated BrainLM."
    )
    parser.add_argument("--version", action="version", version=f"brainlm {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Verb, text: str, example: str, *parents) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name, help=text, parents=parents, description=text, epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.add_argument("--debug", action="store_true", help="show the traceback of errors")
        sub.add_argument("--config", type=Path, action="append", metavar="YAML",
                         help="configuration; may be repeated (default: config.yaml)")  # fmt: skip
        sub.set_defaults(run=run)
        return sub

    def step_verb(name: str, run: Verb, *parents) -> argparse.ArgumentParser:
        return verb(name, run, STEPS[name].help, STEPS[name].example, *parents)

    _add_data_verbs(verb)
    _add_chunk_verbs(verb)
    _add_study_verbs(verb, step_verb)
    return parser


def _add_data_verbs(verb) -> None:
    sub = verb("simulate", _simulate, "simulate a raw BIDS cohort whose true values are known",
               "brainlm simulate data/demo --subjects 48 --seed 1")  # fmt: skip
    sub.add_argument("folder", type=Path)
    sub.add_argument("--subjects", type=int, default=24)
    sub.add_argument("--first-subject", type=int, default=1, help="number of the first subject")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--duration", type=float, default=240.0, metavar="S", help="s per run")
    sub.add_argument("--tr", type=float, default=2.0, metavar="S", help="repetition time, s")
    sub.add_argument("--t1w", action="store_true", help="also a T1-weighted image per subject")
    sub.add_argument("--conditions", type=int, default=0, metavar="N",
                     help="blocks of N conditions in every run")  # fmt: skip
    sub.add_argument("--damage", nargs="*", default=[], metavar="LABEL=KIND",
                     help="damage recordings, e.g. 07=truncated")  # fmt: skip
    sub.add_argument("--series", action="store_true",
                     help="parcel series of atlas demo424 instead of images")  # fmt: skip
    sub.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    sub.add_argument("--index-only", action="store_true",
                     help="write only the index of a cohort of this size, no images")  # fmt: skip

    sub = verb("index", _index, "find the recordings of each cohort and assign them to chunks",
               "brainlm index --config config.yaml")  # fmt: skip
    sub.add_argument("--cohort", help="only this cohort")
    sub.add_argument("--accept-removed", action="store_true",
                     help="continue although many recordings are gone (they were removed on "
                          "purpose)")  # fmt: skip
    sub.add_argument("--explain", action="store_true",
                     help="print how each file is classified, and why; write nothing")  # fmt: skip


def _add_chunk_verbs(verb) -> None:
    for step in STEPS.values():
        if step.of == "study":
            continue
        example, run = f"brainlm {step.name} --cohort demo --chunk 00000", _chunk
        if step.of == "recording":
            example += (
                f"   (or: brainlm {step.name} data/demo/sub-01/func/sub-01_task-rest_bold.nii.gz)"
            )
            run = _stage
        sub = verb(step.name, run, step.help, example)
        whole = step.of == "chunk"
        sub.add_argument("--cohort", required=whole)
        sub.add_argument("--chunk", required=whole)
        sub.add_argument("--workers", type=int, default=1, help="recordings to process at a time")
        if not whole:
            sub.add_argument("file", nargs="?", type=Path,
                             help="one recording of a configured cohort")  # fmt: skip
            sub.add_argument("--retry-failed", action="store_true",
                             help="try failed recordings again")  # fmt: skip


def _add_study_verbs(verb, step_verb) -> None:
    step_verb("release", _release)
    sub = step_verb("summary", _summary)
    sub.add_argument("--check", action="store_true",
                     help="exit 3 when more than max_failed_fraction failed")  # fmt: skip
    sub = verb("status", _status, "show progress, failures and what to do next",
               "brainlm status --watch")  # fmt: skip
    sub.add_argument("--watch", action="store_true", help="redraw until the run ends")
    verb("run", _run, "run the whole workflow in this folder; further options are Snakemake's",
         "brainlm run --cores 8   (in a clone the same as: snakemake --cores 8)")  # fmt: skip
    sub = verb("doctor", _doctor, "check that this machine has what the configuration needs",
               "brainlm doctor --config config.yaml")  # fmt: skip
    sub.add_argument("--fetch", action="store_true",
                     help="download the atlas and the template before jobs need them")  # fmt: skip
    sub = verb("config", _config, "check the configuration and print it in full",
               "brainlm config --config config.yaml")  # fmt: skip
    sub.add_argument("--schema", action="store_true", help="print the JSON schema instead")
    log = argparse.ArgumentParser(add_help=False)
    log.add_argument("--log-file", type=Path, help="also append the output to this file")
    sub = step_verb("pretrain", _pretrain, log)
    sub.add_argument("--sweep", nargs=3, metavar=("PRESET", "SHARE", "SEED"),
                     help="train one model of a scaling task instead")  # fmt: skip
    fit = argparse.ArgumentParser(add_help=False)
    fit.add_argument("--task", help="a regression or classification task")
    fit.add_argument("--seed", type=int, default=1, help="one of the task's seeds")
    fit.add_argument(
        "--from-scratch",
        action="store_true",
        help="start from random weights, not from the pretrained model",
    )
    step_verb("finetune", _finetune, fit, log)
    scans = _scan_arguments()
    sub = step_verb("embed", _embed, scans)
    sub.add_argument("source", metavar="INPUT", help="a file, a folder, or a cohort's name")
    sub.add_argument("--pool", default="auto",
                     help="cls, mean, all, cls+mean, connectivity or components (default: that "
                     "of the model's head, else components, else mean)")  # fmt: skip
    sub = step_verb("predict", _predict, fit, scans)
    sub.add_argument("source", metavar="INPUT", nargs="?",
                     help="as for embed; without it: the external cohorts, with the model of "
                          "--task")  # fmt: skip
    sub = step_verb("evaluate", _evaluate)
    sub.add_argument("--task", required=True, help="a name in workflow/tasks or config.yaml")
    sub = step_verb("report", _report)
    sub.add_argument("--open", action="store_true", help="open it in the browser")


def _scan_arguments() -> argparse.ArgumentParser:
    """What `embed` and `predict` share: the model, the table, what the scans do not say."""
    scans = argparse.ArgumentParser(add_help=False)
    scans.add_argument("--model", metavar="PATH|HUB_ID[/SUBFOLDER]",
                       help="default for a cohort of the study: its own model")  # fmt: skip
    scans.add_argument(
        "--out", type=Path, help="the table (default: named after INPUT, in this folder)"
    )
    scans.add_argument("--format", choices=FORMATS, default="parquet")
    scans.add_argument(
        "--layout", choices=get_args(LayoutName), help="default: detected from the files"
    )
    scans.add_argument(
        "--tr", type=float, metavar="S", help="repetition time, if no file states it"
    )
    scans.add_argument("--units", choices=["scanner", "percent", "as delivered"],
                       help="units of parcel series: scanner for raw means")  # fmt: skip
    scans.add_argument(
        "--confounds", help="confounds to remove from images in template space, or none"
    )
    scans.add_argument("--space", help="template space of images whose names do not state it")
    scans.add_argument("--short", choices=["refuse", "pad"], default="refuse",
                       help="recordings shorter than the model's window")  # fmt: skip
    scans.add_argument("--scaling", type=Path, help="for a model without its own")
    scans.add_argument("--workers", type=int, default=os.cpu_count() or 1,
                       help="recordings to process at a time")  # fmt: skip
    scans.add_argument("--part", default="", help="of a large cohort: this part of it only")
    scans.add_argument("--gather", type=Path, nargs="*", metavar="FILE",
                       help="tables of a cohort's parts to put together")  # fmt: skip
    return scans


# ---- data ---------------------------------------------------------------------------------------


def _simulate(args) -> None:
    if args.index_only:
        from .cohort.index import simulate_index

        simulate_index(args.folder, args.subjects)
        return
    from .simulate import simulate_cohort, simulate_series

    if args.series:
        simulate_series(args.folder, num_subjects=args.subjects, seed=args.seed, tr_s=args.tr,
                        duration_s=args.duration, first_subject=args.first_subject)  # fmt: skip
        return
    damage = dict(item.partition("=")[::2] for item in args.damage)
    simulate_cohort(
        args.folder,
        num_subjects=args.subjects,
        first_subject=args.first_subject,
        seed=args.seed,
        tr_s=args.tr,
        duration_s=args.duration,
        with_t1w=args.t1w,
        conditions=args.conditions,
        damage=damage,
        workers=args.workers,
        progress=lambda done, total: print(f"simulated {done}/{total} recordings", flush=True),
    )


def _index(args) -> None:
    from .cohort.exclusions import describe_strangers
    from .cohort.index import read_participant_ids, update_index
    from .cohort.labels import describe_match

    config = _load(args)
    if args.explain:
        from .cohort.explain import explain_files

        chosen = [c for c in config.cohorts if args.cohort in (None, c.name)]
        for cohort in chosen:
            for name, words in explain_files(cohort):
                print(f"{cohort.name}\t{name}\t{words}")
        return
    for cohort in config.cohorts:
        if args.cohort in (None, cohort.name):
            change = update_index(
                cohort, config.results, config.chunks.recordings,
                accept_removed=args.accept_removed, everything=True,
            )  # fmt: skip
            if not change.total:
                print(f"{cohort.name}: sealed, not searched")
                continue
            print(
                f"{cohort.name}: {change.total} recordings in {change.chunks} chunks "
                f"({change.added} new, {change.changed} changed, {change.removed} removed)"
            )
            for line in change.left_out:
                print(f"{cohort.name}: {line}")
            index = config.paths.index(cohort.name)
            lines = (
                describe_match(cohort, read_participant_ids(index)),
                describe_strangers(cohort, index),
            )
            for line in filter(None, lines):
                print(f"{cohort.name}: {line}")


def _load(args) -> Config:
    return load_config(*(args.config or [os.environ.get("BRAINLM_CONFIG", "config.yaml")]))


def _atlas(config: Config) -> Atlas:
    from .atlas import load_atlas

    return load_atlas(config.atlas.name, config.atlas.folder)


def _stage(args) -> None:
    from .preprocess.chunk import make_task, run_stage

    if args.file is None:
        if not (args.cohort and args.chunk):
            raise BrainLMError("name a recording's file, or --cohort and --chunk")
        options = {"workers": args.workers, "retry_failed": args.retry_failed}
        run_stage(args.verb, args.chunk, _context(args), **options)
        return
    args.cohort, entry = _find_entry(_load(args), args.file)
    for name, value in make_task(args.verb, _context(args)).run(entry).items():
        print(f"{name}\t{value}")


def _context(args):
    from .preprocess.stages.context import Context

    config = _load(args)
    return Context(config, config.cohort(args.cohort), _atlas(config))


def _find_entry(config: Config, file: Path):
    from .cohort.index import read_entries, update_index

    wanted = file.absolute()
    for cohort in config.cohorts:
        if wanted.is_relative_to(cohort.folder.absolute()):
            update_index(cohort, config.results, config.chunks.recordings, everything=True)
            table = config.paths.index(cohort.name)
            for entry in read_entries(table, cohort.folder):
                if entry.path == wanted:
                    return cohort.name, entry
    raise BrainLMError(
        f"{file}: not a recording of any cohort in {config.results}'s configuration"
    )


def _chunk(args) -> None:
    load(STEPS[args.verb].run)(args.chunk, _context(args), workers=args.workers)


def _shards(config: Config, role: str | None = None) -> list[Path]:
    """Shards of all indexed chunks, optionally of cohorts with one role."""
    return [
        config.paths.shard(cohort.name, chunk)
        for cohort in config.cohorts
        if role in (None, cohort.role)
        for chunk in config.paths.list_chunks(cohort.name)
    ]


def _release(args) -> None:
    from .shards.release import freeze_release

    config = _load(args)
    shards = _shards(config, "reference")
    quantiles = [path.with_suffix(".quantiles.parquet") for path in shards]
    scaling = freeze_release(shards, quantiles, config.paths)
    print(
        f"release {config.release}: {len(shards)} shards; scaling fitted on "
        f"{scaling.num_recordings} training recordings, {scaling.usable.sum()} of "
        f"{scaling.num_parcels} parcels usable"
    )


def _summary(args) -> int:
    from .preprocess.summary import summarise_outcomes

    config = _load(args)
    summary = summarise_outcomes(config)
    print(summary.text())
    if not args.check or summary.failed_fraction <= config.max_failed_fraction:
        return 0
    print(
        f"{summary.failed_fraction:.0%} of the recordings failed, max_failed_fraction is "
        f"{config.max_failed_fraction:.0%}",
        file=sys.stderr,
    )
    return 3


def _status(args) -> None:
    from .progress import running_since
    from .status import read_plan, read_status, watch

    config, files = _load(args), args.config or []
    stored = config.paths.config
    if not files and stored.exists():
        last = load_config(stored)
        if not {c.name for c in last.cohorts} & {c.name for c in config.cohorts}:
            print(f"of the study in {stored}, which the last run was of (another: --config)")
            config, files = last, [stored]
    if args.watch:
        watch(config)
        return
    plan = None
    if running_since() is None:
        try:
            plan = read_plan(files)  # which looks for new recordings first
        except BrainLMError as error:
            print(f"snakemake would refuse to start: {error}")
    print(read_status(config).text(plan))


def _run(args) -> None:
    from .bids_app import run_workflow

    given = [f"--configfile={path}" for path in args.config or ()]
    cores = [] if any(o.startswith(("--cores", "-c", "--jobs", "-j")) for o in args.others) else [
        "--cores=all"]  # fmt: skip
    run_workflow([*cores, *given, *args.others])


def _doctor(args) -> int:
    from .doctor import examine_setup

    config, findings = _load(args), []
    if args.fetch:
        _atlas(config)
        if needs_template(config):
            templateflow.get_files()
    for finding in examine_setup(config):
        print(finding, flush=True)
        findings.append(finding)
    return int(any(finding.ok is False for finding in findings))


def _config(args) -> None:
    import json

    if args.schema:
        print(json.dumps(Config.model_json_schema(), indent=2))
    else:
        print(_load(args).model_dump_json(indent=2))


# ---- model --------------------------------------------------------------------------------------


def _pretrain(args) -> None:
    from .shards.release import read_release
    from .training.pretrain import pretrain

    config = _load(args)
    out = config.paths.pretrained
    if config.takes_model and not args.sweep:
        from .training.given_model import take_model

        period, scaling = config.preprocess.sample_period_s, config.paths.scaling
        take_model(str(config.model.start), out, _atlas(config), period, scaling)
        print(f"{out}: the model {config.model.start}, as it is")
        return
    if args.sweep:
        config, out = sweep_point(config, *args.sweep), config.paths.sweep(*args.sweep)
    trained_on = [cohort for cohort in config.cohorts if cohort.role == "reference"]
    pretrain(
        read_release(config.paths),
        config.paths.scaling,
        out,
        model=config.model,
        options=config.pretrain,
        atlas=_atlas(config),
        preprocess=describe_series(config, trained_on),
    )


def _job(config: Config, name: str):
    """A task of the study with what its evaluator needs."""
    from .evaluation.job import Job
    from .evaluation.tasks import find_task

    return Job.of(find_task(config.tasks, name), config, _shards(config, "external"))


def _fit_folder(config: Config, args) -> Path:
    start = "scratch" if args.from_scratch else "finetune"
    return config.paths.fit(start, args.task, args.seed)


def _finetune(args) -> None:
    from .evaluation.clinical.fine_tuned import fit_task
    from .evaluation.tasks import CLINICAL
    from .training.device import choose_device

    config = _load(args)
    choose_device(config.pretrain)
    job = _job(config, args.task)
    if not isinstance(job.task, CLINICAL):
        raise BrainLMError(
            f"task {args.task} is of kind {job.task.kind}, which has no fine-tuning"
        )
    fit_task(
        job, _fit_folder(config, args), _atlas(config),
        seed=args.seed, from_scratch=args.from_scratch,
    )  # fmt: skip


def _predict(args) -> None:
    from .inference.vectors import check_head, gather_parts, predict_corpus
    from .training.device import choose_device
    from .training.predict import predict

    if args.source is None:
        config = _load(args)
        choose_device(config.pretrain)
        folder = _fit_folder(config, args)
        out = ModelFolder(folder).external
        table = predict(folder, _shards(config, "external"), out)
        print(f"{out}: {len(table)} recordings")
    elif args.model is None:
        from .inference.cohort_predictions import predict_cohort

        config = _load(args)
        choose_device(config.pretrain)
        out = args.out or config.paths.predicted(args.source)
        table = (
            gather_parts(args.gather, out)
            if args.gather
            else predict_cohort(config, args.source, out, args.part)
        )
        print(f"{len(table)} predictions of {args.source}")
    else:
        method = partial(predict_corpus, short=args.short)
        _run_session(args, method, "predict", partial(check_head, form=args.format))


def _embed(args) -> None:
    from .inference.vectors import choose_pool, embed_corpus

    embed = partial(embed_corpus, pool=args.pool, short=args.short)
    _run_session(args, embed, "embed", partial(choose_pool, pool=args.pool))


def _run_session(args, method, verb: str, check) -> None:
    from .inference.session import Session
    from .inference.vectors import gather_parts

    given = {"layout": args.layout, "repetition_time_s": args.tr, "units": args.units,
             "confounds": args.confounds, "space": args.space}  # fmt: skip
    config = args.config or [p for p in [os.environ.get("BRAINLM_CONFIG")] if p]
    study = load_config(*config) if config else None
    session = Session(
        args.source, args.model, study, given, args.scaling, args.short, args.workers, args.part
    )
    what = {"embed": "embedding", "predict": "prediction"}[verb]
    out = args.out or Path(f"{session.name}_{what}.{args.format}")
    if args.gather:
        print(f"{out}: {len(gather_parts(args.gather, out))} rows of {len(args.gather)} parts")
    else:
        session.run(verb, method, out, args.format, check)


def _evaluate(args) -> None:
    from .evaluation.job import evaluate
    from .training.device import choose_device

    config = _load(args)
    choose_device(config.pretrain)
    _print_results(evaluate(_job(config, args.task)))


def _print_results(table) -> None:
    """The pooled R² (AUC for classes) and absolute error of each method, a line each."""

    def known(value) -> bool:
        return value is not None and value == value  # tables hold None and NaN alike

    shown = table[(table["level"] == "pooled") & ~table["method"].str.contains(" minus ")]
    for row in shown.itertuples():
        if known(row.metric) and row.metric in ("r", "mse", "balanced_accuracy"):
            continue
        figure = f"{row.metric} {row.value:.3f}" if known(row.value) else "not evaluated"
        if known(row.low):
            figure += f" [{row.low:.3f}, {row.high:.3f}]"
        note = f" ({row.note})" if known(row.note) else ""
        target = row.target if known(row.target) else ""
        print(f"{row.cohort} {target} {row.method}: {figure}, n = {row.n}{note}")


def _report(args) -> None:
    from .preprocess.summary import summarise_outcomes
    from .report import build_report

    config = _load(args)
    summarise_outcomes(config)  # the pages name every failure
    build_report(config)
    page = config.paths.report_page.absolute()
    print(page)
    if args.open:
        import webbrowser

        webbrowser.open(page.as_uri())
