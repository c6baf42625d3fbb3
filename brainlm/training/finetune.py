"""Fine-tuning: the encoder and a three-layer head predict a label of a participant.

Everything that is fitted is fitted on training subjects: the label transform, the weights. When
to stop is decided on validation subjects. Test subjects are only predicted.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import __version__, config
from ..atlas import Atlas
from ..cohort.labels import LabelTransform
from ..errors import BrainLMError
from ..files import digest, read_json, sha256, write_json
from ..model import BrainLM, from_pretrained, preset
from ..model.card import Metric
from ..model.pooling import check_pool, summary_width
from ..model.ranges import describe_range
from ..output import tell
from ..paths import ModelFolder
from ..progress import clock
from ..shards import Corpus, Scaling
from ..shards.censored import holds_window
from ..steps import STEPS
from ..tables import write_parquet
from .checkpoint import Saver, exchange, list_checkpoints, read_checkpoint
from .device import get_device, prepare, windows_at_once
from .distributed import Ranks
from .encoded_windows import EncodedWindows, count_windows
from .journal import Journal, figure
from .learner import Learner
from .model_cards import finetuned_card
from .predict import (
    WINDOWS_PER_RECORDING,
    apply_heads,
    decode_table,
    predict_recordings,
    summarise_recordings,
)
from .preemption import EXIT_SAVED, on_sigterm
from .ridge import linear_readout
from .schedule import make_optimizer
from .settings import describe_release
from .windows import Batch, Prefetch, Windows, training_ranges

#: share of tokens left out while the encoder learns: it regularises, as in the published head, and
#: is 4x as fast; predictions use every token
TOKEN_DROP = 0.75
#: the same of `connectivity`, which leaves out whole time steps: over a quarter of a window
#: correlations are mostly noise
STEP_DROP = 0.5
#: share of the head's learning rate that pretrained layers get
ENCODER_RATE = 0.2
#: windows that the head's input scale is taken from; all of a large cohort would not fit in memory
SCALED_BY = 512
#: training participants that the head's linear path begins with, in closed form: 0.7 GB for 424
#: parcels
FITTED_ON = 2000
#: summaries of validation windows, and with them of training windows, are made once for all epochs
#: of the heads alone up to this size; larger ones (connectivity of a large cohort) would come from
#: a disk, which is no faster than encoding again
KEPT_BYTES = 2**31
#: minutes between checkpoints
SAVED_EVERY_MIN = 10.0
#: bootstrap of the card's figures
DRAWS = 1000


def finetune(pretrained: Path | None, shards: list[Path], scaling: Path, labels: pd.Series,
             out: Path, *, target: str, kind: str, options: config.Finetune, model: config.Model,
             atlas: Atlas, seed: int = 1, transform: str = "zscore",
             class_names: tuple[str, ...] = ()) -> pd.DataFrame:  # fmt: skip
    """Train on labelled training subjects, predict all who have a long enough recording.

    Parameters
    ----------
    pretrained : Path or None
        A model folder; None trains the same network from scratch.
    labels : Series
        Indexed by (cohort, participant_id); float, NaN = unknown.
    kind : str
        ``regression`` (squared error) or ``classification`` (whole-number classes, cross-entropy;
        the prediction is the most probable class by name, ``probability_<class>`` its columns).
    seed : int
        Of the head's weights, the windows and the dropout.
    transform : str
        Of a regression's labels, see :class:`~brainlm.cohort.labels.LabelTransform`.
    class_names : tuple of str
        Of classes 0, 1, ...; the numbers themselves where none are given.

    Returns
    -------
    DataFrame
        cohort, participant_id, recording_id, split, label, prediction; also written to
        ``out/predictions.parquet``, next to the model files and metrics.jsonl.

    Raises
    ------
    BrainLMError
        No labelled training subject with a long enough recording, one class only, or a model
        of another atlas, sample period or window.
    SystemExit
        Code 75 after SIGTERM: saved, the same call goes on.
    """
    task = FineTuning(pretrained, shards, scaling, labels, Path(out), target, kind, options, model,
                atlas, seed, transform, class_names)  # fmt: skip
    if (before := task.find_finished()) is not None:
        return before
    task.train()
    return task.finish()


class FineTuning:
    """One fine-tuning; see :func:`finetune`."""

    def __init__(self, pretrained, shards, scaling, labels, out, target, kind, options, model,
                 atlas, seed, transform, class_names):  # fmt: skip
        if kind not in ("regression", "classification"):
            raise BrainLMError(f"{kind!r}: expected regression or classification")
        self.out, self.target, self.kind, self.options = out, target, kind, options
        self.pretrained, self.seed = pretrained, seed
        self.device = get_device()
        torch.manual_seed(seed)
        corpus = Corpus(shards, Path(scaling).parent)
        released = Scaling.load(scaling)
        base = _base(pretrained, corpus, model, atlas, released)
        self.scaling = base.scaling or released
        self.table = _table(corpus, labels)
        long_enough = holds_window(self.table, base.config.window)
        labelled = self.table["label"].notna()
        self.short = int((labelled & ~long_enough).sum())
        self.table = self.table[long_enough]
        self.fit_rows, self.check_rows = (self._labelled(s) for s in ("train", "validation"))
        participants = self.table.loc[self.fit_rows].drop_duplicates(["cohort", "participant_id"])
        self._fit_labels(participants["label"], base.config.window, transform)
        names = () if self.classes is None else tuple(
            class_names[int(k)] if class_names else f"{k:g}" for k in self.classes
        )  # fmt: skip
        self.windows = Windows(corpus, self.scaling, base.config.window, self.fit_rows,
                               seed=seed, num_tokens=base.num_tokens)  # fmt: skip
        #: what the heads see before the encoder learns: the windows that they will predict from
        self.frozen = copy.copy(self.windows)
        self.frozen.few = WINDOWS_PER_RECORDING
        ranges = training_ranges(self.windows, corpus.table)
        if self.classes is None:
            ranges["label"] = describe_range(participants["label"])
        self.model = prepare(_with_head(base, self.transform, target=target, classes=names,
                                      pool=options.pool, ranges=ranges))  # fmt: skip
        #: summaries of validation windows, while the encoder stays as it is and they fit in memory
        self.kept: list[Tensor] | None = None
        #: the same of training windows, where the epochs see each often
        self.encoded: EncodedWindows | None = None
        self.settings = json.dumps({
            "target": target, "kind": kind, "transform": transform, "classes": names, "seed": seed,
            "options": options.model_dump(), "version": STEPS["finetune"].version,
            "model": dataclasses.asdict(base.config),
            "start": pretrained and sha256(ModelFolder(Path(pretrained)).weights),
            "labels": digest(labels.dropna().to_csv()), **describe_release(shards, scaling),
        }, sort_keys=True)  # fmt: skip
        self.saver = Saver(ModelFolder(out).checkpoints, Ranks(0, 1, self.device))
        self.stop, self.saved_s = False, time.monotonic()
        self.start = f"`{Path(pretrained).name}`" if pretrained else "random weights"
        self.began_s = time.monotonic()

    def _labelled(self, split: str) -> np.ndarray:
        keep = (self.table["split"] == split) & self.table["label"].notna()
        return self.table.index[keep].to_numpy()

    def _fit_labels(self, train: pd.Series, window: int, transform: str) -> None:
        """Label transform, from training subjects only, each once."""
        if len(train) == 0:
            raise BrainLMError(
                f"{self.target}: no training subject has both a label and a recording of at least "
                f"{window} time points ({self.short} labelled recordings are shorter); check the "
                "participants table and model.window"
            )
        self.classes, self.transform = None, LabelTransform()
        if self.kind == "classification":
            self.classes = np.unique(train)
            if len(self.classes) < 2:
                raise BrainLMError(f"{self.target}: all training subjects are of one class")
        else:
            self.transform = LabelTransform.fit(transform, train.to_numpy())

    def _targets(self, rows) -> Tensor:
        labels = self.table["label"].loc[rows].to_numpy(np.float64)
        if self.classes is None:
            return torch.tensor(self.transform.apply(labels), dtype=torch.float32)
        return torch.from_numpy(np.searchsorted(self.classes, labels))

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.classes is None:
            return F.mse_loss(output[:, 0], target)
        if len(self.classes) == 2:
            return F.binary_cross_entropy_with_logits(output[:, 0], target.float())
        return F.cross_entropy(output, target)

    # ---- training ---------------------------------------------------------------------------

    def train(self) -> None:
        """The head alone for the first half of the epochs, then all; the best weights are kept.

        A head that starts at random pulls a pretrained encoder out of shape before it has learnt
        anything (Kumar et al., "Fine-tuning can distort pretrained features", ICLR 2022). Of two
        heads that learn alone, one that starts at random and one that starts as ridge regression
        on the encodings, validation participants choose.
        """
        tell(
            f"{self.target}: {len(self.fit_rows)} training and {len(self.check_rows)} validation "
            f"recordings with a label, from {self.start}"
        )
        if not len(self.check_rows):
            tell("no labelled validation subject: all epochs are run")
        half = self.options.epochs // 2
        with on_sigterm(self.ask_to_stop):
            state, learners = self._take_up()
            self.journal = Journal(ModelFolder(self.out).metrics, state.get("metrics", ""),
                                   quiet=False, stage="finetune")  # fmt: skip
            if not state.get("whole"):
                best = self._train_heads(range(half), learners, state)
                optimizer = self._optimizer(self.model)
                learners, state = [Learner(best.start, self.model.head, self.model, optimizer,
                                           best.loss, best.epoch)], {}  # fmt: skip
            self._run(range(half, self.options.epochs), learners, state, whole=True)
        (learner,) = learners
        self.model.load_state_dict(learner.weights)
        self.head_start = learner.start
        self.journal.say(
            f"best epoch: {learner.epoch or 'none'} of {self.options.epochs}; "
            f"the head began {learner.start}"
        )

    def _train_heads(self, epochs: range, heads: list[Learner], state: dict) -> Learner:
        """The best of the heads, with its best weights, in the model."""
        if not heads:
            self._fit_scale()
        width = summary_width(self.model.config, self.model.config.pool)
        if 4 * width * len(self.check_rows) <= KEPT_BYTES:
            self.kept = list(self._summaries(self.check_rows, 1))
        choice = count_windows(self.frozen)
        kept = 4 * width * (choice + len(self.check_rows))
        if 2 * choice <= len(epochs) * len(self.fit_rows) and kept <= KEPT_BYTES:
            self.encoded = EncodedWindows(
                self.frozen, lambda signal: self.model.embed(signal, self.model.config.pool),
                windows_at_once(self.model),
            )  # fmt: skip
        heads = heads or self._begin_heads()
        self._run(epochs, heads, state, whole=False)
        # without validation participants, the one that knows most
        best = min(heads, key=lambda head: head.loss) if len(self.check_rows) else heads[-1]
        self.model.head.load_state_dict(best.weights)
        self.kept = self.encoded = None
        return best

    # ---- interrupted ------------------------------------------------------------------------

    def find_finished(self) -> pd.DataFrame | None:
        """The table of a fit of these settings that is there: a fold of an interrupted job."""
        there = ModelFolder(self.out)
        if not (there.done.exists() and there.predictions.exists()):
            return None
        if read_json(there.done).get("settings") != self.settings:
            return None
        tell(f"{self.out}: already fitted with these settings")
        return pd.read_parquet(there.predictions)

    def ask_to_stop(self) -> None:
        """Save after the batch at hand, and exit."""
        self.stop = True

    def _take_up(self) -> tuple[dict, list[Learner]]:
        """Facts and learners of the newest checkpoint of these settings, or nothing of either."""
        folder = ModelFolder(self.out).checkpoints
        newest = next(iter(list_checkpoints(folder)), None)
        before = read_checkpoint(newest)["settings"] if newest else ""
        if before != self.settings:
            if newest:
                tell(f"checkpoints have other settings: they are moved to {folder}")
            exchange(folder, before, self.settings)
        head = self.model.head
        learners: list[Learner] = []

        def collect(facts: dict) -> dict[str, Tensor]:
            heads = [head, copy.deepcopy(head)][: len(facts["learners"])]
            learners[:] = [Learner("", h, learns := self.model if facts["whole"] else h,
                                   self._optimizer(learns)) for h in heads]  # fmt: skip
            return _collect(learners)

        read = self.saver.read_newest(collect, tell)
        if read is None:
            return {}, []
        state, tensors = read
        for k, (learner, facts) in enumerate(zip(learners, state["learners"], strict=True)):
            mine = f"{k}."
            learner.put({name.removeprefix(mine): value for name, value in tensors.items()
                         if name.startswith(mine)}, facts)  # fmt: skip
        self.began_s -= state["seconds"]
        tell(f"resuming from batch {state['batches']} of epoch {state['epoch'] + 1}")
        return state, learners

    def _save_in_time(self, epoch: int, done: int, learners: list[Learner], totals: Tensor,
                      whole: bool) -> None:  # fmt: skip
        """Save after `done` batches of an epoch if it is time to; exit if that was asked for."""
        late = time.monotonic() - self.saved_s > 60 * SAVED_EVERY_MIN
        if not (late or self.stop):
            return
        facts = {
            "settings": self.settings, "whole": whole, "epoch": epoch, "batches": done,
            "totals": totals.tolist(), "metrics": self.journal.lines,
            "seconds": time.monotonic() - self.began_s,
            "learners": [learner.facts() for learner in learners],
        }  # fmt: skip
        batches = math.ceil(len(self.fit_rows) / self.options.batch_size)
        self.saver.save(epoch * batches + done, _collect(learners), facts)
        self.saved_s = time.monotonic()
        if self.stop:
            self.saver.settle()
            self.journal.say(f"SIGTERM: saved in epoch {epoch + 1}; run again to resume")
            raise SystemExit(EXIT_SAVED)

    # ---- epochs -----------------------------------------------------------------------------

    def _begin_heads(self) -> list[Learner]:
        random, linear = self.model.head, copy.deepcopy(self.model.head)
        self._start_linear(linear)
        heads = {"at random": random, "as ridge regression": linear}
        losses = self._held_out_losses(list(heads.values()))
        return [
            Learner(start, head, head, self._optimizer(head), math.inf if loss is None else loss)
            for (start, head), loss in zip(heads.items(), losses, strict=True)
        ]

    def _run(self, epochs: range, learners: list[Learner], state: dict, *, whole: bool) -> None:
        """Epochs until nobody's validation loss falls any more; from `state` on if it is given."""
        left = epochs[state["epoch"] - epochs.start if state else 0 :]
        self._phase, self._phase_s = left.start, time.monotonic()  # for its rate
        for epoch in left:
            at_work = [learner for learner in learners if not learner.is_over]
            if not at_work:
                return
            losses = self._epoch(epoch, learners, state, whole)
            state = {}
            held_out = self._held_out_losses([learner.head for learner in at_work])
            for learner, loss, check in zip(at_work, losses, held_out, strict=True):
                self._tell(epoch + 1, learner, loss, check, whole)
                learner.note(epoch + 1, check)

    def _tell(self, epoch: int, learner: Learner, loss: float, held_out: float | None,
              whole: bool) -> None:  # fmt: skip
        known = {"train": loss} | ({} if held_out is None else {"validation": held_out})
        for split, value in known.items():
            self.journal.record(split=split, epoch=epoch, loss=value, whole=whole,
                                head=learner.start,
                                seconds=time.monotonic() - self.began_s)  # fmt: skip
        text = f"epoch {epoch} {'all' if whole else 'head, begun ' + learner.start}"
        text += f" loss {loss:.4f} validation {figure(held_out, 4)}"
        per_epoch = (time.monotonic() - self._phase_s) / (epoch - self._phase)
        text += f" {len(self.fit_rows) / max(per_epoch, 1e-9):.3g} recordings/s"
        text += f" ETA {clock((self.options.epochs - epoch) * per_epoch)}"
        self.journal.progress(epoch, self.options.epochs, text)

    @torch.no_grad()
    def _fit_scale(self) -> None:
        """The head's input scale, from training windows as the encoder gives them now."""
        self.model.eval()
        some = itertools.islice(self._picks(0), math.ceil(SCALED_BY / self.options.batch_size))
        batches = Prefetch(self.windows.batch, some)
        self.model.head.fit_scale(torch.cat([self._summary(b, 0.0) for b in batches]))

    @torch.no_grad()
    def _start_linear(self, head: nn.Module) -> None:
        """The head as ridge regression on what the encoder makes of training participants: the
        mean of a few windows."""
        rows = self.table.loc[self.fit_rows].groupby(["cohort", "participant_id"], sort=False)
        participants = [group.index.to_numpy() for _, group in rows]
        targets = self._targets([rows[0] for rows in participants]).numpy()
        some = np.random.default_rng(self.seed).permutation(len(participants))[:FITTED_ON]
        if self.classes is not None:  # some of each, however rare
            some = np.union1d(some, np.unique(targets, return_index=True)[1])
        self.model.eval()
        summaries = torch.stack([self._mean_summary(participants[k]) for k in some]).cpu().numpy()
        classes = 0 if self.classes is None else len(self.classes)
        weights, bias = (
            torch.from_numpy(x) for x in linear_readout(summaries, targets[some], classes)
        )
        head.start_linear(weights.to(self.device), bias.to(self.device))

    def _mean_summary(self, rows: np.ndarray) -> Tensor:
        """[F] mean summary of a participant's recordings; NaN where none has it."""
        return torch.cat(list(self._summaries(rows, WINDOWS_PER_RECORDING))).nanmean(0)

    def _summaries(self, rows: np.ndarray, count: int) -> Iterator[Tensor]:
        return summarise_recordings(self.model, self.windows, rows, count)

    def _optimizer(self, learns: nn.Module) -> torch.optim.Optimizer:
        optimizer = make_optimizer(learns, self.options.learning_rate, 0.05)
        encoder = set() if learns is not self.model else {
            id(p) for name, p in self.model.named_parameters() if not name.startswith("head.")
        }  # fmt: skip
        groups = []
        for group in optimizer.param_groups:
            for below in (True, False):
                some = [p for p in group["params"] if (id(p) in encoder) == below]
                rate = ENCODER_RATE if below and self.pretrained is not None else 1.0
                groups.append({"params": some, "weight_decay": group["weight_decay"],
                               "lr": rate * self.options.learning_rate})  # fmt: skip
        return torch.optim.AdamW([g for g in groups if g["params"]], fused=True)

    def _epoch(self, epoch: int, all_learners: list[Learner], state: dict,
               whole: bool) -> list[float]:  # fmt: skip
        """Mean loss of each learner at work; all get the same encodings."""
        learners = [learner for learner in all_learners if not learner.is_over]
        self.model.train(whole)
        for learner in learners:
            learner.head.train()
        done = state.get("batches", 0)
        totals = torch.tensor(state.get("totals", [0.0] * len(learners)), device=self.device)
        for number, (rows, summary) in enumerate(self._summarise(epoch, done, whole), done + 1):
            targets = self._targets(rows).to(self.device)
            for k, learner in enumerate(learners):
                loss = self._loss(learner.head(summary), targets)
                norm = learner.step(loss)
                # a norm that is not finite must not pass: the head reads NaN as "missing"
                totals[k] += loss.detach() * len(rows) + 0.0 * norm
            self._save_in_time(epoch, number, all_learners, totals, whole)
        if not bool(totals.isfinite().all()):
            raise BrainLMError(
                f"{self.target}: training diverged in epoch {epoch + 1}: its loss or gradients "
                f"are not finite; lower finetune.learning_rate "
                f"(now {self.options.learning_rate:g})"
            )
        return (totals / len(self.fit_rows)).tolist()

    def _picks(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        size = self.options.batch_size
        order = [(epoch, int(row)) for row in self.windows.order(epoch)]
        for first in range(0, len(order), size):
            yield order[first : first + size]

    def _summarise(
        self, epoch: int, done: int, whole: bool
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Rows and summaries [B, F] of an epoch's batches after the first `done`; the seed that is
        set before each holds for what is made of it too."""
        drop = STEP_DROP if self.model.config.pool == "connectivity" else TOKEN_DROP
        picks = list(self._picks(epoch))[done:]
        windows = self.windows if whole else self.frozen
        batches = iter(Prefetch(windows.batch, iter([] if self.encoded else picks)))
        for number, some in enumerate(picks, done + 1):
            torch.manual_seed(hash((self.seed, epoch, number)))  # nothing random to save
            if self.encoded:
                summary = self.encoded.batch(some)
            else:
                with torch.set_grad_enabled(whole):
                    summary = self._summary(next(batches), drop if whole else 0.0)
            yield np.array([row for _, row in some]), summary

    def _summary(self, batch: Batch, drop: float) -> Tensor:
        return self.model.summarise(batch.signal.to(self.device), self.model.config.pool,
                                    batch.noise.to(self.device), drop)  # fmt: skip

    def _held_out_losses(self, heads: list[nn.Module]) -> list[float] | list[None]:
        if not len(self.check_rows):
            return [None] * len(heads)
        self.model.eval()
        targets = self._targets(self.check_rows)
        summaries = self.kept or self._summaries(self.check_rows, 1)
        outputs = apply_heads([head.eval() for head in heads], summaries)
        return [float(self._loss(own, targets)) for own in outputs]

    # ---- results ----------------------------------------------------------------------------

    def finish(self) -> pd.DataFrame:
        """Predict all recordings and write everything."""
        rows = self.table.index.to_numpy()
        outputs = predict_recordings(self.model, self.windows, rows)
        columns = ["cohort", "participant_id", "recording_id", "split", "label"]
        table = self.table[columns]
        if self.classes is not None:
            names = dict(zip(self.classes, self.model.config.classes, strict=True))
            table = table.assign(label=table["label"].map(names).astype(object))
        result = table.assign(**decode_table(self.model.config, outputs)).reset_index(drop=True)
        metrics = self._score(result.dropna(subset=["label"]))
        facts = self._facts(result, metrics)
        self.model.scaling = self.scaling
        card = finetuned_card(self.model, facts, metrics)
        self.model.cpu().save_pretrained(self.out, card=card)
        write_parquet(ModelFolder(self.out).predictions, result)
        write_json(ModelFolder(self.out).run, facts)
        done = {"target": self.target, "kind": self.kind, "settings": self.settings}
        write_json(ModelFolder(self.out).done, done)
        self.saver.settle()
        for path in list_checkpoints(
            ModelFolder(self.out).checkpoints
        ):  # nothing goes on from a fit
            shutil.rmtree(path)
        return result

    def _facts(self, result: pd.DataFrame, metrics: list[Metric]) -> dict:
        known = result.dropna(subset=["label"])
        scores = {f"{metric.split} {metric.name}": metric.value for metric in metrics}
        return {
            "target": self.target, "kind": self.kind, "start": self.start, "short": self.short,
            "pool": self.model.config.pool, "head_start": self.head_start,
            "classes": list(self.model.config.classes), "seed": self.seed,
            "versions": {"brainlm": __version__, "torch": torch.__version__},
            "recordings": {str(k): int(v) for k, v in known["split"].value_counts().items()},
            "scores": scores, "atlas": self.scaling.atlas,
            "sample_period_s": self.scaling.sample_period_s,
        }  # fmt: skip

    def _score(self, known: pd.DataFrame) -> list[Metric]:
        """Figures of each split with 95 % intervals, over participants drawn again."""
        kinds = {"accuracy": "accuracy"} if self.classes is not None else {
            "MAE": "mae", "R²": "r_squared"}  # fmt: skip
        metrics = []
        for split, part in known.groupby("split"):
            participants = part.groupby(["cohort", "participant_id"], sort=False)
            rows = [np.asarray(x) for x in participants.indices.values()]
            label, guess = part["label"].to_numpy(), part["prediction"].to_numpy()
            random = np.random.default_rng(0)
            draws = [np.concatenate([rows[k] for k in random.integers(len(rows), size=len(rows))])
                     for _ in range(DRAWS)]  # fmt: skip
            for name, kind in kinds.items():
                values = [_measure(name, label[some], guess[some]) for some in draws]
                low, high = np.nanpercentile(values, [2.5, 97.5])
                metrics.append(Metric(name, kind, _measure(name, label, guess), float(low),
                                      float(high), str(split)))  # fmt: skip
        return metrics


def _collect(learners: list[Learner]) -> dict[str, Tensor]:
    """Tensors of all learners, for a checkpoint."""
    return {f"{k}.{name}": value for k, learner in enumerate(learners)
            for name, value in learner.collect_tensors().items()}  # fmt: skip


def _measure(name: str, label: np.ndarray, guess: np.ndarray) -> float:
    if name == "accuracy":
        return float((guess == label).mean())
    error = (guess - label).astype(float)
    if name == "MAE":
        return float(np.abs(error).mean())
    return float(1 - (error**2).sum() / max(((label - label.mean()) ** 2).sum(), 1e-12))


def _base(pretrained, corpus: Corpus, model: config.Model, atlas: Atlas,
          scaling: Scaling) -> BrainLM:  # fmt: skip
    """The network to fine-tune, with a scaling that the corpus fits."""
    if pretrained is None:
        return preset(model.preset, num_parcels=corpus.info.num_parcels, window=model.window,
                      patch=model.patch, decoder_context=model.decoder_context,
                      learned_parcels=model.learned_parcels,
                      coordinates=atlas.coordinates)  # fmt: skip
    base = from_pretrained(pretrained)
    if base.scaling is not None and base.scaling.atlas_sha256 != corpus.info.atlas_sha256:
        base = base.on_atlas(atlas.coordinates, scaling)
    if base.scaling is not None:
        corpus.check(base.scaling)
    return base


def _with_head(base: BrainLM, labels: LabelTransform, *, pool: str, classes: tuple[str, ...],
               **facts) -> BrainLM:  # fmt: skip
    """The encoder of `base` with a new head and no decoder."""
    outputs = len(classes) if len(classes) > 2 else 1
    if pool == "auto":
        pool = "connectivity" if base.config.family == "parcel" else "mean"
    check_pool(base.config, pool)
    settings = dataclasses.replace(base.config, decoder_depth=0, head_outputs=outputs, pool=pool,
                                   label_mean=labels.shift, label_std=labels.scale,
                                   label_log=labels.log, classes=classes,
                                   **facts)  # fmt: skip
    model = BrainLM(settings, base.coordinates if base.config.has_coordinates else None)
    kept = {k: v for k, v in base.state_dict().items() if k in model.state_dict()}
    kept = {k: v for k, v in kept.items() if not k.startswith("head.")}
    model.load_state_dict({**model.state_dict(), **kept})
    return model


def _table(corpus: Corpus, labels: pd.Series) -> pd.DataFrame:
    """Usable recordings with their label; the index is the corpus' row number."""
    table = corpus.table[corpus.table["status"] == "ok"]
    keys = pd.MultiIndex.from_frame(table[["cohort", "participant_id"]])
    labels = labels[~labels.index.duplicated()]
    return table.assign(label=labels.reindex(keys).to_numpy(np.float64))
