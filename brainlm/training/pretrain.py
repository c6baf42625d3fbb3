"""Pretraining: masked reconstruction on the training recordings of a release.

Runs in one process or under ``torchrun``. It resumes from its newest checkpoint by itself; on
SIGTERM (preemption) it saves and exits with :data:`EXIT_SAVED`, which means: run me again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__, config
from ..atlas import Atlas
from ..cohort.splits import in_share
from ..errors import BrainLMError
from ..files import write_json
from ..model import BrainLM, kernel_name, preset
from ..model.grids import token_grid
from ..model.masking import Masker
from ..output import tell
from ..paths import ModelFolder
from ..progress import clock
from ..shards import Corpus, Scaling
from .checkpoint import (
    Saver,
    collect_tensors,
    collect_weights,
    exchange,
    list_checkpoints,
    put_tensors,
    read_checkpoint,
)
from .covariance import fit_gaussian
from .device import prepare
from .distributed import Ranks, gradient_sync, join_processes, prepare_training
from .given_model import open_given
from .journal import Journal, figure
from .masked_r2 import MaskedR2, predict_hidden, r2_interval, sums_by_window
from .memory import TrainingTrial, largest_micro_batch, total_memory
from .meter import Meter, Rates, Spent, device_name
from .model_cards import pretrained_card
from .predictors import PREDICTORS
from .preemption import EXIT_SAVED, on_sigterm
from .schedule import learning_rate_at, make_optimizers, scale_gradients, update_weights
from .settings import (
    ADVICE,
    describe_change,
    describe_settings,
    is_extended,
    read_settings,
)
from .trackers import open_trackers
from .windows import Batch, Loader, Prefetch, Windows, choose_rows, training_ranges

#: windows per forward pass where none are stated and there is no GPU to fill
ON_CPU = 16
#: spread of CLS over subjects, relative to its size, below which the encoder has collapsed
COLLAPSED = 1e-3
#: R² (0: predicting zero) that no training comes back from after its warm-up
EXPLODED = -10.0
#: predictors that the evaluation has and the journal does without
_LEFT_OUT = ("gaussian_time", "var")


def pretrain(shards: list[Path], scaling: Path, out: Path, *, model: config.Model,
             options: config.Pretrain, atlas: Atlas,
             preprocess: dict[str, Any] | None = None) -> None:  # fmt: skip
    """Train a model from scratch, or go on where an earlier call stopped.

    Parameters
    ----------
    shards, scaling
        A frozen release. Rows of the training split that hold a window are trained on.
    out : Path
        Gets config.json, model.safetensors, scaling.json, README.md, metrics.jsonl, run.json,
        done.json, checkpoints/, and tensorboard/ where `options.trackers` asks for it.
    preprocess : dict, optional
        How the series were made (:func:`brainlm.steps.describe_series`), for config.json.

    Raises
    ------
    BrainLMError
        No recording is long enough; shards, scaling and atlas that do not belong together; a
        global batch that the processes cannot share, or larger than the release; a loss that is
        not finite, or explodes.
    SystemExit
        Code 75 after SIGTERM.
    """
    options = options.of_preset(model.preset)
    settings = describe_settings(shards, scaling, model, options)
    with join_processes(options) as ranks:
        if _is_finished(Path(out), settings, ranks):
            return
        run = Run(shards, scaling, Path(out), model, options, atlas, ranks)
        run.preprocess = preprocess or {}
        run.open_journal(run.resume())
        try:
            run.train()
            run.finish()
        finally:
            run.journal.close()


class Run:
    """One pretraining run; see :func:`pretrain`."""

    def __init__(self, shards, scaling, out: Path, model: config.Model, options, atlas, ranks):
        self.out, self.ranks = out, ranks
        self.options = options = options.of_preset(model.preset)
        self.spent = Spent(ranks.device)
        self.settings = describe_settings(shards, scaling, model, options)
        corpus = Corpus(shards, Path(scaling).parent)
        self.scaling = Scaling.load(scaling)
        _check_atlas(corpus, atlas)
        train, self.left_out = choose_rows(corpus, model.window, "train")
        if len(train) == 0:
            raise BrainLMError("no usable recording in the training split of these shards")
        if options.batch_size > len(train):
            most = min(8, 2 ** (len(train).bit_length() - 1))
            raise BrainLMError(f"pretrain.batch_size ({options.batch_size}) is more than the "
                               f"{len(train)} training recordings, which would be a few updates "
                               f"in all; set it to {most}, for instance")  # fmt: skip
        torch.manual_seed(options.seed)
        self.model: BrainLM = preset(model.preset, num_parcels=corpus.info.num_parcels,
                                     window=model.window, patch=model.patch,
                                     decoder_context=model.decoder_context,
                                     learned_parcels=model.learned_parcels,
                                     coordinates=atlas.coordinates)  # fmt: skip
        if model.start is not None:
            self._go_on_from(model.start, atlas, corpus.info.sample_period_s, scaling)
        # of its own, on the host: masks are drawn before a batch goes to the device
        grid = token_grid(self.model.config, self.model.coordinates)
        self.table = corpus.table
        self.masker = Masker(grid, options.mask_ratio, options.mask)
        self.train_set = self._windows(corpus, _choose_share(corpus, train, options.share))
        held_out = corpus.usable(split="validation", min_timepoints=model.window)
        self.validation_set = self._windows(corpus, held_out)
        self.gaussian = fit_gaussian(self.train_set, self.validation_set, ranks)
        if model.start is None:
            self.model.start_parcels(self.gaussian.covariance)
        self.micro = self._choose_micro_batch()
        # of all training recordings: training on a share of the participants takes as many
        # updates, on the same schedule, in more passes over fewer recordings
        self.steps = math.ceil(options.epochs * len(train) / options.batch_size)
        epoch_steps = max(1, round(len(train) / options.batch_size))
        self.validate_every = epoch_steps * options.validate_every_epochs
        self.step = 0
        self.loader = self._loader()
        self.wrapped = prepare_training(self.model, options, ranks, self.say)
        self.optimizers = make_optimizers(self.wrapped, options)
        self.saver = Saver(ModelFolder(out).checkpoints, ranks)
        self.kernel = kernel_name(
            options.attention, ranks.device, self.model.matmul_dtype,
            self.model.config.width // self.model.config.heads,
        )  # fmt: skip
        self.interval: tuple[float, float] | None = None  # of the last validation's R²
        self.others: dict = {}  # scores of the other predictors, the same at every validation
        self.stop = False
        self.preprocess: dict[str, Any] = {}

    def _go_on_from(self, name: str, atlas: Atlas, sample_period_s: float, scaling) -> None:
        """Begin with a finished model's weights and keep its own scaling."""
        given = open_given(name, atlas, sample_period_s, Path(scaling))
        ours, theirs = (asdict(model.config) for model in (self.model, given))
        for shape in (ours, theirs):  # how a training goes is no part of it
            for key in ("decode_share", "zero_last", "ranges", "preprocess"):
                del shape[key]
        if ours != theirs:
            other = [f"{k} {theirs[k]} (here {v})" for k, v in ours.items() if theirs[k] != v]
            raise BrainLMError(f"model.start: {name} is of another shape: {', '.join(other)}; set "
                               "model.preset, window and patch to that model's")  # fmt: skip
        assert given.scaling is not None
        self.model, self.scaling = given, given.scaling

    def _windows(self, corpus: Corpus, rows) -> Windows:
        return Windows(corpus, self.scaling, self.model.config.window, rows,
                       seed=self.options.seed, masker=self.masker)  # fmt: skip

    def _choose_micro_batch(self) -> int:
        """Windows per forward pass: as stated, or on a GPU what its memory holds, the same on
        all."""
        options, ranks = self.options, self.ranks
        if options.micro_batch_size != "auto":
            return _micro_batch(options.micro_batch_size, options.batch_size, ranks.world)
        if ranks.device.type != "cuda":
            return _micro_batch(ON_CPU, options.batch_size, ranks.world)
        prepare(self.model, ranks.device, options.precision, attention=options.attention)
        train = TrainingTrial(self.model, self.masker)
        share = _micro_batch(options.batch_size, options.batch_size, ranks.world)
        found = largest_micro_batch(train, share, total_memory(ranks.device))
        return int(ranks.least(found))

    def _loader(self) -> Loader:
        options, ranks = self.options, self.ranks
        on_gpu = ranks.device.type == "cuda"
        return Loader(
            self.train_set, options.batch_size, self.micro, ranks.rank, ranks.world,
            pin=on_gpu, threads=options.loader_threads,
        )  # fmt: skip

    # ---- start and end ----------------------------------------------------------------------

    def resume(self) -> dict | None:
        """Go on from the newest checkpoint of the same settings, if there is one."""
        say = self.say
        say(f"{self.model.config.preset}: {sum(p.numel() for p in self.model.parameters()):,} "
            f"parameters, {self.model.num_tokens} tokens; {len(self.train_set)} training and "
            f"{len(self.validation_set)} validation recordings; {self.steps} updates of "
            f"{self.options.batch_size} windows; attention {self.kernel}")  # fmt: skip
        for reason, count in self.left_out.items():
            say(f"left out: {count} training recordings: {reason}")
        if not len(self.validation_set):
            say("no validation recording is as long as a window: training without validation")
        self.ranks.from_first(self._set_others_aside)
        read = self.saver.read_newest(
            lambda _: collect_tensors(self.wrapped, self.optimizers), say
        )
        for optimizer in self.optimizers:  # what it took to ask for its tensors
            optimizer.state.clear()
        if read is None:
            return None
        state, tensors = read
        put_tensors(tensors, self.wrapped, self.optimizers)
        self.loader.load_state_dict(state["loader"])
        self.step, self.spent = state["step"], Spent(self.ranks.device, state["spent"])
        say(f"resuming from update {self.step} of {self.steps}")
        if state["world"] != self.ranks.world:
            say(f"with {self.ranks.world} processes instead of {state['world']}: the same "
                "windows in the same order, sums in another order")  # fmt: skip
        return state

    def _set_others_aside(self) -> None:
        """Checkpoints of other settings; those of fewer epochs are gone on from."""
        folder = ModelFolder(self.out).checkpoints
        newest = next(iter(list_checkpoints(folder)), None)
        if old := sorted(folder.glob("step-*.pt")):
            self.say(f"{old[-1]}: a checkpoint of an earlier version, which cannot be read; "
                     "training starts from the beginning")  # fmt: skip
        if newest is None:
            exchange(folder, "", self.settings)
            return
        before = read_checkpoint(newest)["settings"]
        changed = describe_change(before, self.settings)
        if changed and is_extended(before, self.settings):
            self.say(f"{changed}: the training is extended; its learning rate follows the "
                     "longer schedule from here")  # fmt: skip
        elif changed:
            self.say(f"checkpoints have other settings ({changed}): they are moved to "
                     f"{folder}")  # fmt: skip
            exchange(folder, before, self.settings)

    def open_journal(self, state: dict | None) -> None:
        """metrics.jsonl up to the checkpoint, and the trackers that were asked for."""
        trackers = []
        if self.ranks.main:
            trackers = open_trackers(self.options.trackers, self.out, self.settings, self.step)
        self.journal = Journal(ModelFolder(self.out).metrics, state["metrics"] if state else "",
                               quiet=not self.ranks.main, trackers=trackers)  # fmt: skip

    def say(self, text: str) -> None:
        """A line of text, from one process."""
        if self.ranks.main:
            tell(text)

    def _save(self, *, wait: bool) -> None:
        with self.spent.on("saving"):
            facts = {"settings": self.settings, "spent": self.spent.by_kind(),
                     "world": self.ranks.world, "metrics": self.journal.lines,
                     "loader": self.loader.state_dict()}  # fmt: skip
            self.saver.save(self.step, collect_tensors(self.wrapped, self.optimizers), facts)
            if wait:
                self.saver.settle()

    def finish(self) -> None:
        """Write the model folder; done.json comes last."""
        weights = collect_weights(self.wrapped)
        if self.ranks.main:
            ranges = training_ranges(self.train_set, self.table)
            shape = dataclasses.replace(
                self.model.config, ranges=ranges, preprocess=self.preprocess
            )
            final = BrainLM(shape, _points(self.model))
            final.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()})
            facts = self._facts()
            final.scaling = self.scaling
            final.save_pretrained(self.out, card=pretrained_card(final, facts))
            self.gaussian.save(self.out)
            write_json(ModelFolder(self.out).run, facts)
            write_json(ModelFolder(self.out).done, {"settings": self.settings, "step": self.step})
        self.ranks.from_first(lambda: None)

    def _facts(self) -> dict:
        last = [json.loads(line) for line in self.journal.lines.splitlines()]
        validation = [line for line in last if line["split"] == "validation"]
        return {
            "versions": {"brainlm": __version__, "torch": torch.__version__,
                         "python": platform.python_version(), "numpy": np.__version__},
            "attention": self.kernel,
            "precision": "float32" if self.model.matmul_dtype == torch.float32 else "bf16",
            "micro_batch_size": self.micro,
            "compiled": self.model.is_compiled,
            "processes": self.ranks.world,
            "sharding": self.options.sharding if self.ranks.world > 1 else "none",
            "device": device_name(self.ranks),
            "recordings": {"train": len(self.train_set), "validation": len(self.validation_set)},
            "left_out": self.left_out,
            "atlas": self.scaling.atlas, "sample_period_s": self.scaling.sample_period_s,
            "release": self.scaling.release,
            "updates": self.step, "epochs": float(f"{self.passes():.4g}"),
            "share": self.options.share,
            "mask": self.options.mask, "mask_ratio": self.options.mask_ratio,
            "seconds": round(self.spent.total(), 1),
            "spent_s": {kind: round(s, 1) for kind, s in self.spent.by_kind().items()},
            "windows_per_s": round(self.step * self.options.batch_size / self.spent.total(), 2),
            "validation": validation[-1] if validation else None,
            "r2_interval": self.interval,
        }  # fmt: skip

    def passes(self) -> float:
        """How often the recordings trained on have been seen by now, once a window."""
        return self.step * self.options.batch_size / len(self.train_set)

    # ---- training ---------------------------------------------------------------------------

    def train(self) -> None:
        """All updates that are left."""
        meter, log_every = self.meter(), max(1, self.steps // 200)
        with on_sigterm(self.ask_to_stop):
            batches = iter(self.loader)
            self.spent.add("starting", self.spent.total() - sum(self.spent.seconds.values()))
            self._began = saved = time.monotonic()
            self._first = self.step
            while self.step < self.steps:
                meter.begin()
                self._update(batches, meter)
                self.step += 1
                last = self.step == self.steps
                waited = self.loader.waited_s()
                self.spent.add("data", waited)
                rates = meter.end(waited, last or self.step % log_every == 0)
                if rates:
                    self._log(rates)
                if last or self.step % self.validate_every == 0:
                    with self.spent.on("validation"):
                        self._validate()
                late = time.monotonic() - saved > 60 * self.options.checkpoint_every_min
                poll = self.ranks.world == 1 or self.step % 10 == 0 or last
                stop = poll and self.ranks.any(self.stop)
                if last or stop or (poll and self.ranks.any(late)):
                    self._save(wait=last or stop)
                    saved = time.monotonic()
                if stop and not last:
                    self.say(f"SIGTERM: saved at update {self.step}; run again to resume")
                    raise SystemExit(EXIT_SAVED)

    def ask_to_stop(self) -> None:
        """Save after the update at hand, and exit."""
        self.stop = True

    def meter(self) -> Meter:
        """Of this run's updates."""
        flops = self.model.flops_per_window(self.options.mask_ratio)
        return Meter(self.ranks, self.options.batch_size, flops)

    def _log(self, rates: Rates) -> None:
        wrong = "" if math.isfinite(rates.loss) else "the loss is not finite"
        warm = self.step > self.options.warmup * self.steps
        if warm and rates.r2 is not None and rates.r2 < EXPLODED:
            wrong = wrong or f"the loss explodes (R² {rates.r2:.3g}, predicting zero has 0)"
        if wrong:
            raise BrainLMError(f"update {self.step}: {wrong}; lower pretrain.learning_rate or "
                               "look for broken series")  # fmt: skip
        epoch = self.passes()
        self.journal.record(step=self.step, epoch=epoch, split="train", **rates._asdict(),
                            lr=self.optimizers[0].param_groups[0]["lr"],
                            **self._seconds())  # fmt: skip
        per_update = (time.monotonic() - self._began) / (self.step - self._first)
        self.journal.progress(
            self.step, self.steps,
            f"update {self.step}/{self.steps} epoch {epoch:.1f} loss {rates.loss:.4f} "
            f"R² {figure(rates.r2)} {rates.windows_per_s:.3g} windows/s "
            f"MFU {figure(rates.mfu, 2)} data-wait {100 * rates.data_wait:.1f}% "
            f"ETA {clock((self.steps - self.step) * per_update)} ({self.spent.shares()})",
            force=self.step == self.steps,
        )  # fmt: skip

    def _seconds(self) -> dict[str, float]:
        """Of the wall clock, for a line of metrics: all of them and by kind."""
        by_kind = self.spent.by_kind()
        return {"seconds": sum(by_kind.values())} | {f"{k}_s": s for k, s in by_kind.items()}

    def _update(self, batches, meter: Meter) -> None:
        """One optimiser step on one global batch."""
        count = self.options.batch_size // (self.micro * self.ranks.world)
        unit = float(self.options.batch_size * self.model.num_tokens)  # any constant will do
        seen = torch.zeros((), device=self.ranks.device)
        torch.manual_seed(hash((self.options.seed, self.step, self.ranks.rank)))  # dropout
        for number in range(count):
            batch = next(batches)
            with gradient_sync(self.wrapped, number == count - 1):
                error, known, *rest = self._forward(batch)
                (error / unit).backward()
            seen += known
            meter.add(batch, error.detach(), known, rest)
        # Sums over the global batch, divided once: the same whatever shares the processes have.
        total = self.ranks.sum(seen).clamp(min=1)
        meter.norm = scale_gradients(self.wrapped, unit * self.ranks.world / total)
        update_weights(self.optimizers, learning_rate_at(self.step, self.steps, self.options))

    def _forward(self, batch: Batch):
        device = self.ranks.device
        assert batch.masking is not None
        batch.signal = batch.signal.to(device, non_blocking=True)
        return self.wrapped(batch.signal, batch.masking.to(device))

    # ---- validation -------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self) -> None:
        """Reconstruct one fixed window per held-out recording."""
        rows = self.validation_set.rows
        if not len(rows):
            return
        self.wrapped.eval()
        others = [name for name in PREDICTORS if name not in _LEFT_OUT and not self.others]
        meter = MaskedR2(("r2", *(f"r2_{name}" for name in others)))
        summaries, error_sum, known_sum = [], 0.0, 0.0
        units = torch.zeros(len(rows), 4, dtype=torch.float64, device=self.ranks.device)
        batches = [rows[i : i + self.micro] for i in range(0, len(rows), self.micro)]
        # every process runs as many passes (FSDP needs it)
        passes = math.ceil(len(batches) / self.ranks.world)
        turns = [number * self.ranks.world + self.ranks.rank for number in range(passes)]
        picks = ([(0, int(r)) for r in batches[k if k < len(batches) else 0]] for k in turns)
        make = functools.partial(self.validation_set.batch, pin=self.ranks.device.type == "cuda")
        ahead = Prefetch(make, picks, threads=self.options.loader_threads)
        for mine, batch in zip(turns, ahead, strict=True):
            real = mine < len(batches)
            error, known, prediction, hidden, cls = self._forward(batch)
            weight = float(real)
            error_sum, known_sum = error_sum + error.double() * weight, known_sum + known * weight
            hidden = hidden & real
            references = predict_hidden(batch.signal, hidden, self.gaussian, others)
            meter.add(batch.signal, hidden, prediction.float(), *references.values())
            first = self.micro * mine if real else 0
            units[first : first + len(hidden)] += sums_by_window(batch.signal, hidden, prediction)
            summaries.append(cls.double() * weight)
        self.wrapped.train()
        loss = float(self.ranks.sum(error_sum) / self.ranks.sum(known_sum).clamp(min=1))
        scores = meter.result(self.ranks.sum) | self.others
        self.others = {name: value for name, value in scores.items() if name != "r2"}
        units = self.ranks.sum(units).cpu().numpy()
        if self.step == self.steps and scores["r2"] is not None:
            who = self.table["cohort"].astype(str) + "/" + self.table["participant_id"].astype(str)
            self.interval = r2_interval(units, who[rows])
        self._note_validation(loss, scores, _spread(summaries, len(rows), self.ranks))

    def _note_validation(self, loss: float, scores: dict, spread: float) -> None:
        self.journal.record(step=self.step, epoch=self.passes(), split="validation", loss=loss,
                            **scores, cls_spread=spread, **self._seconds())  # fmt: skip
        others = ", ".join(f"{name.removeprefix('r2_')} {figure(value)}"
                           for name, value in scores.items() if name != "r2")  # fmt: skip
        text = (f"validation at update {self.step}: loss {loss:.4f}, masked R² "
                f"{figure(scores['r2'])} ({others})")  # fmt: skip
        self.journal.progress(self.step, self.steps, text, force=self.step == self.steps)
        if spread < COLLAPSED:
            self.say(
                f"warning: the CLS summaries of different subjects differ by only {spread:.1e} of "
                "their size: the encoder has collapsed; lower pretrain.learning_rate"
            )


def _is_finished(out: Path, settings: str, ranks: Ranks) -> bool:
    """True if `out` already holds the model of exactly these settings."""

    def read() -> str | None:
        there = ModelFolder(out)
        whole = there.done.exists() and there.weights.exists()
        return read_settings(there) if whole else None

    before = ranks.from_first(read)
    if before is None:
        return False
    if changed := describe_change(before, settings):
        raise BrainLMError(f"{out}: finished with other settings ({changed}). {ADVICE}")
    if ranks.main:
        print(f"{out}: already trained with these settings; nothing to do", flush=True)
    return True


def _choose_share(corpus: Corpus, rows: np.ndarray, share: float) -> np.ndarray:
    """Rows of a share of the participants: the same participants whatever the seed."""
    participants = corpus.table["participant_id"]
    chosen = rows[[in_share(participants[row], share) for row in rows]]
    if len(chosen) == 0:
        raise BrainLMError(
            f"pretrain.share: {share:g} of the participants selects nobody; raise it"
        )
    return chosen


def _check_atlas(corpus: Corpus, atlas: Atlas) -> None:
    if corpus.info.atlas_sha256 != atlas.image_sha256:
        raise BrainLMError(
            f"{corpus.paths[0]}: made with atlas {corpus.info.atlas} "
            f"({corpus.info.atlas_sha256[:12]}…), but the configuration names {atlas.name} "
            f"({atlas.image_sha256[:12]}…); make the shards again or set atlas.name"
        )


def _micro_batch(wanted: int, batch_size: int, world: int) -> int:
    """Windows per forward pass and process; the global batch must share out evenly."""
    micro = min(wanted, batch_size // world)
    if micro == 0 or batch_size % (micro * world):
        raise BrainLMError(
            f"pretrain.batch_size ({batch_size}) must be a multiple of micro_batch_size "
            f"× processes ({wanted} × {world}); change one of them"
        )
    return micro


def _points(model: BrainLM):
    return model.coordinates.cpu() if model.config.has_coordinates else None


def _spread(summaries: list, count: int, ranks: Ranks) -> float:
    """Standard deviation of CLS over subjects relative to its root mean square."""
    cls = torch.cat(summaries)
    total = ranks.sum(cls.sum(0))
    squares = ranks.sum(cls.square().sum(0))
    variance = (squares / count - (total / count).square()).clamp(min=0).mean()
    return float((variance / (squares / count).mean().clamp(min=1e-30)).sqrt())
