"""Fine-tuning for a task: once on the stable split, or once per fold of held-out groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ...atlas import Atlas
from ...cohort.digests import digest_columns
from ...cohort.labels import Labels, read_column, read_labels
from ...errors import BrainLMError
from ...files import read_json, write_json
from ...paths import ModelFolder
from ...shards import Corpus
from ...shards.release import read_release
from ...tables import write_parquet
from ...training.finetune import finetune
from ...training.predict import skip_target
from ..job import Job
from ..participants import Population, hold_out_groups


def fit_task(job: Job, out: Path, atlas: Atlas, *, seed: int, from_scratch: bool) -> None:
    """Fine-tune (or train anew) for a clinical task; `out` gets ``predictions.parquet``.

    With ``groups`` there is a model per fold of whole groups, in ``fold-<k>``, and the
    predictions are those of held-out test participants; else the model itself is in `out`. A fold
    from whose training participants nothing can be learnt is left out: it says so, and so does the
    task's table. ``done.json`` keeps a digest of what was learnt from the participants tables.
    """
    labels = digest_columns(job.config, job.task.learns(), trained=True)
    if ModelFolder(out).done.exists():  # a new fit: finished folds count only if it is interrupted
        for done in [ModelFolder(out).done, *out.glob("fold-*/done.json")]:
            done.unlink(missing_ok=True)
    _fit_all(job, out, atlas, seed, from_scratch)
    done = ModelFolder(out).done
    write_json(done, read_json(done) | {"labels": labels})


def check_fit(job: Job, folder: Path) -> None:
    """Refuse a fit to other labels than the participants tables hold now.

    Raises
    ------
    BrainLMError
        The columns of the task have changed since; fits made before this was kept are taken.
    """
    done = ModelFolder(folder).done
    kept = read_json(done).get("labels") if done.exists() else None
    if kept is not None and kept != digest_columns(job.config, job.task.learns(), trained=True):
        raise BrainLMError(
            f"{folder}: fitted before {' or '.join(job.task.learns())} changed in the "
            f"participants tables; fit again: brainlm finetune --task {job.task.name}"
        )


def _fit_all(job: Job, out: Path, atlas: Atlas, seed: int, from_scratch: bool) -> None:
    task, cohorts = job.task, job.config.cohorts
    known = read_labels(cohorts, task.target, task.kind, task.transform, task.spellings)
    corpus = Corpus(read_release(job.config.paths))
    population = Population.of(corpus, known, job.config.model.window)
    participants, labels = population.participants, population.labels
    if population.shortage:
        print(f"{task.name}: not fine-tuned: {population.shortage}")
        skip_target(out, population.shortage)
        return
    if task.groups is None:
        _fit(job, labels, out, atlas, seed, from_scratch)
        return
    columns = [read_column(cohort, task.groups) for cohort in cohorts]
    groups, tables = pd.concat(columns).reindex(participants.index), []
    for number, split in enumerate(hold_out_groups(participants, groups), 1):
        if why := population.describe_lack(split):
            print(f"{task.name}: fold {number} is left out: {why}")
            continue
        seen = labels.values.copy()  # who is neither trained nor validated on has no label
        seen[~seen.index.isin(split.train.append(split.validation))] = np.nan
        some = Labels(seen, labels.classes)
        table = _fit(job, some, out / f"fold-{number}", atlas, seed, from_scratch)
        keys = pd.MultiIndex.from_frame(table[["cohort", "participant_id"]])
        held = keys.isin(split.test)
        truth = labels.values.reindex(keys[held])
        if labels.classes:
            truth = truth.map(dict(enumerate(labels.classes)))
        tables.append(table[held].assign(label=truth.to_numpy()))
    if not tables:
        skip_target(out, "no fold has training participants to learn from")
        return
    write_parquet(ModelFolder(out).predictions, pd.concat(tables))
    write_json(ModelFolder(out).done, {"target": task.target, "folds": len(tables)})


def _fit(job: Job, labels: Labels, out: Path, atlas: Atlas, seed: int, from_scratch: bool):
    task, config = job.task, job.config
    return finetune(
        None if from_scratch else job.pretrained,
        read_release(job.config.paths),
        config.paths.scaling,
        labels.values,
        out,
        target=task.target,
        kind=task.kind,
        options=config.finetune,
        model=config.model,
        atlas=atlas,
        seed=seed,
        transform=task.transform,
        class_names=labels.classes,
    )
