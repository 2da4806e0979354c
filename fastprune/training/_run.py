"""The state of a training under way: what a checkpoint holds, and what an epoch ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from fastprune.data import ClassDraw, InputPipeline, Part, Splits
from fastprune.distributed import broadcast_state, rank, same, world
from fastprune.errors import DataError, TrainingError
from fastprune.files import digest_of
from fastprune.training._alone import images_between, left_alone
from fastprune.training._device import name_of
from fastprune.training._guard import LossGuard, check_weights
from fastprune.training._hooks import Hooks
from fastprune.training._pace import Pace
from fastprune.training._step import TrainingStep
from fastprune.training._store import State, Store
from fastprune.training.evaluate import evaluate
from fastprune.training.metrics import Metrics, Totals
from fastprune.training.options import TrainingOptions
from fastprune.training.recalibrate import recalibrate_batch_norm
from fastprune.training.result import EpochRecord, FitResult, best_epoch, stalled
from fastprune.training.schedule import learning_rate

__all__ = ["Run", "identity_of", "part_of", "steps_per_epoch"]


class Run:
    """Where a training is.

    Attributes:
        epoch: the epoch under way, from 0 on.
        batch: batches of it that are done.
        history: the epochs that are done.
    """

    def __init__(
        self,
        model: nn.Module,
        step: TrainingStep,
        hooks: Hooks,
        options: TrainingOptions,
        splits: Splits,
        store: Store,
        device: torch.device,
        name: str,
        say: Callable[[str], None],
        stop: Callable[[int], bool] | None,
    ) -> None:
        self._say, self._stop = say, stop
        self._model, self._step, self._options, self._splits = model, step, options, splits
        self._store, self._device, self._name = store, device, name
        self._hooks = hooks
        self._guard = LossGuard(device, name)
        self._totals = Totals(device)
        self._best: dict[str, torch.Tensor] | None = None
        self._pace = Pace()
        self._kept = "no checkpoint was written yet"
        self._part = part_of(options, splits.train)
        ours = splits.train.images, splits.train.batch_size
        self._mine, self._all = self._part.of(*ours), self._part.all_of(*ours)
        # Steps until ranks ask the first one whether a checkpoint is due.
        self._quiet = 0
        self.epoch = self.batch = 0
        self.history: list[EpochRecord] = []

    @property
    def total_batches(self) -> int:
        return self._options.epochs * self._mine.batches

    @property
    def done_batches(self) -> int:
        return self.epoch * self._mine.batches + self.batch

    def over(self) -> bool:
        """Whether all epochs are done, or early stopping or the caller ends them."""
        if self.epoch >= self._options.epochs or stalled(self.history, self._options.early_stop):
            return True
        return bool(self.epoch) and self._stop is not None and self._stop(self.epoch)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What is left of the epoch."""
        placement = self._step.placement
        given: dict[str, Any] = {"placement": placement, "part": self._part}
        if (focus := self._options.focus) is not None:
            given["draw"] = ClassDraw(focus.classes, focus.sample_ratio)
        return self._pace.of(self._splits.train.epoch(self.epoch, self.batch, **given))

    def learning_rate(self) -> float:
        """The learning rate of the step under way."""
        return self._rate_at(self.batch)

    def share(self) -> float:
        """The next batch's share of the images of its step, which all ranks together have.

        Gradients of ranks are averaged, so it is as many times larger.
        """
        accumulate = self._options.accumulate
        first = self.batch - self.batch % accumulate
        images = images_between(self._all, first, first + accumulate)
        return world() * images_between(self._mine, self.batch, self.batch + 1) / images

    def ends_step(self) -> bool:
        """Whether the next batch is its step's last."""
        after = self.batch + 1
        return after % self._options.accumulate == 0 or after == self._mine.batches

    def seed_ranks(self, seed: int) -> None:
        """Lets dropout draw otherwise on every rank, and at this step alike whenever it is done.

        One process draws on from where it is, which checkpoints hold.
        """
        if world() > 1:
            sequence = np.random.SeedSequence((seed, rank(), self.done_batches))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def leaves_out(self, labels: torch.Tensor) -> bool:
        """Whether the next batch is one to leave out; then it counts as done."""
        alone = left_alone(self._mine, self.batch, len(labels))
        if alone and world() > 1:
            # All ranks have to take part in a step.
            raise DataError(
                f"{self._name}: of batch {self.batch + 1} of epoch {self.epoch + 1} rank {rank()} "
                f"could read one image alone of its {self._mine.batch_size}; mend or remove "
                f"{self._bad_images()}"
            )
        self.batch += alone
        return alone

    def note(
        self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, rate: float
    ) -> dict[str, float]:
        """Counts a batch; gives the figures to show, where they are known without waiting.

        Raises:
            TrainingError: a loss was not finite.
        """
        seen = self._guard.watch(loss, self.epoch, self.batch, rate, self._kept)
        self._totals.add(logits, labels, loss)
        self.batch += 1
        self._pace.images += len(labels)
        if seen is None:
            return {}
        figures = self._pace.figures()
        figures["images_per_second"] *= world()
        return {"epoch": self.epoch + 1, "loss": seen, **figures}

    def close_epoch(self) -> dict[str, float]:
        """Reads the epoch's figures, validates, and turns to the next; gives figures to show.

        Raises:
            TrainingError: a loss was not finite.
            DataError: every batch was left out.
        """
        if world() > 1 and self.batch < self._mine.batches:
            raise DataError(
                f"{self._name}: of a training batch of epoch {self.epoch + 1} rank {rank()} could "
                f"read no image; mend or remove {self._bad_images()}"
            )
        self._guard.check(self._kept)
        # Those of all ranks: one that goes on from the end of an epoch has none of its own.
        self._totals.add_ranks()
        if not self._totals.images:
            raise DataError(
                f"{self._name}: of every training batch of epoch {self.epoch + 1} one image alone "
                f"can be read; mend or remove {self._bad_images()}"
            )
        train = self._totals.read()
        seconds, figures = self._pace.seconds, self._pace.figures()
        if world() > 1:
            figures["images_per_second"] = self._totals.images / max(seconds, 1e-9)
            if self._options.batch_norm == "rank":
                broadcast_state(self._model)
        validation = self._validate()
        record = EpochRecord(
            epoch=self.epoch + 1,
            train_loss=train.loss,
            train_top1=train.top1,
            validation_loss=validation.loss if validation else None,
            validation_top1=validation.top1 if validation else None,
            validation_top5=validation.top5 if validation else None,
            learning_rate=self._rate_at(self.batch - 1),
            seconds=round(seconds, 3),
            images_per_second=round(figures["images_per_second"], 1),
            data_wait=round(figures["data_wait"], 4),
            precision=name_of(self._step.dtype),
            step=self._step.kind,
            step_reason=self._step.reason,
            validation_focus=self._accuracy_in_focus(validation),
        )
        # Times are the first rank's.
        record = same(record)
        self.history.append(record)
        self._store.append_metrics(asdict(record))
        if self._options.keep == "best" and best_epoch(self.history) == record.epoch:
            self._best = {k: t.clone() for k, t in self._model.state_dict().items()}
        if self._hooks.after_epoch is not None:
            self._hooks.after_epoch(record)
        self.epoch, self.batch = self.epoch + 1, 0
        self._totals = Totals(self._device)
        self._pace = Pace()
        self.checkpoint_if_due(epoch_closed=True)
        shown = {"top1": train.top1}
        return {**shown, "validation_top1": validation.top1} if validation else shown

    def checkpoint_if_due(self, *, epoch_closed: bool = False) -> None:
        """Writes a checkpoint where it is time.

        Raises:
            TrainingError: losses or weights are not finite; nothing was written.
        """
        if not self._due(epoch_closed=epoch_closed):
            return
        self._guard.check(self._kept)
        check_weights(self._model, self._name, self._kept)
        state = self._state()
        if rank() == 0:
            self._store.save(state)
        self._kept = (
            f"the checkpoint of epoch {self.epoch + 1} after {self.batch} batches is kept in "
            f"{self._store.directory}"
        )

    def _due(self, *, epoch_closed: bool) -> bool:
        """Whether it is time, for all ranks together.

        Those after the first ask it now and then: by its pace, half way to the next time.
        """
        if world() == 1:
            return self._store.due(epoch_closed=epoch_closed)
        self._quiet -= 1
        if self._quiet > 0 and not epoch_closed:
            return False
        each = self._pace.seconds / max(self.batch, 1)
        wait = min(self._store.wait(), _LONGEST_QUIET * each)
        steps = max(1, int(wait / 2 / max(each, 1e-9)))
        due, self._quiet = same((self._store.due(epoch_closed=epoch_closed), steps))
        return due

    def resume(self) -> None:
        """Goes on from the newest checkpoint, where there is one."""
        state = self._store.newest(self._device)
        if state is not None:
            self._step.load_state_dict(state["step"])
            self._hooks.load_state_dict(state.get("hooks"))
            if rank() == 0:
                # They are those of all ranks.
                self._totals.load_state_dict(state["totals"])
            self._best = state["best"]
            self._pace.load_state_dict(state["pace"])
            self.epoch, self.batch = state["epoch"], state["batch"]
            self.history = [EpochRecord(**record) for record in state["history"]]
            torch.set_rng_state(state["rng"].cpu())
            if state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self._device)
            self._kept = f"the checkpoint in {self._store.directory} is kept"
            before, now = state["precision"], name_of(self._step.dtype)
            if before != now:
                self._say(
                    f"precision: auto is {now} here, and the checkpoint was trained in {before}; "
                    f"going on in {now}. precision={before} would go on as it began"
                )
        self._store.rewrite_metrics([asdict(record) for record in self.history])

    def finish(self) -> FitResult:
        """Puts the weights to keep into the network and stores the result."""
        kept = len(self.history)
        if self._options.keep == "best" and self._best is not None:
            kept = best_epoch(self.history)
            self._model.load_state_dict(self._best)
        recalibrate_batch_norm(
            self._model, self._splits.train, self._options.recalibrate_batches, self._device
        )
        check_weights(self._model, self._name, self._kept)
        if self._options.recalibrate_batches:
            validation = self._validate()
        else:
            validation = _metrics_of(self.history[kept - 1], self._splits.validation)
        self._model.to(memory_format=torch.contiguous_format)
        # Statistics taken anew on GPUs, and those kept by each rank, may differ in a bit.
        broadcast_state(self._model)
        result = {
            "model": self._model.state_dict(),
            "kept_epoch": kept,
            "stopped_early": len(self.history) < self._options.epochs,
            "validation": validation.to_dict() if validation else None,
            "history": [asdict(record) for record in self.history],
            "hooks": self._hooks.state_dict(),
        }
        self._store.finish(result)
        # Where others would read it, it is there.
        same(None)
        return _fit_result(result)

    def restore_result(self, result: State) -> FitResult:
        """What `finish` stored."""
        self._model.load_state_dict(result["model"])
        self._hooks.load_state_dict(result.get("hooks"))
        self._model.to(memory_format=torch.contiguous_format)
        return _fit_result(result)

    def _rate_at(self, batch: int) -> float:
        accumulate = self._options.accumulate
        steps = steps_per_epoch(self._options, self._splits.train)
        rate = learning_rate(self._options, self.epoch * steps + batch // accumulate, steps)
        return rate * world() if self._options.scale_batch else rate

    def _validate(self) -> Metrics | None:
        if self._splits.validation is None:
            return None
        return evaluate(
            self._model,
            self._splits.validation,
            device=self._device,
            precision=self._options.precision,
            channels_last=self._options.channels_last,
            compile=self._options.compile,
            # Validation images may be too few for a graph where training images are not.
            capture="auto" if self._options.capture else False,
            by_class=self._splits.info.num_classes if self._options.focus else 0,
            name=f"{self._name}, validation",
        )

    def _accuracy_in_focus(self, validation: Metrics | None) -> float | None:
        """Of the classes in focus, on the validation images.

        Raises:
            TrainingError: there are none of these classes among them.
        """
        focus = self._options.focus
        if focus is None or validation is None:
            return None
        found = validation.mean_of(focus.classes)
        if found is None:
            raise TrainingError(
                f"{self._name}: focus.classes: none of the validation images is of "
                f"{list(focus.classes)}; expected more of them, or other classes"
            )
        return found

    def _bad_images(self) -> str:
        names = self._splits.train.bad_images
        return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")

    def _all_totals(self) -> dict[str, Any]:
        """Those of all ranks, with which the first goes on alone."""
        totals = Totals(self._device)
        totals.load_state_dict(self._totals.state_dict())
        totals.add_ranks()
        return totals.state_dict()

    def _state(self) -> State:
        cuda = self._device.type == "cuda"
        return {
            "step": self._step.state_dict(),
            "hooks": self._hooks.state_dict(),
            "totals": self._all_totals(),
            "best": self._best,
            "pace": self._pace.state_dict(),
            "precision": name_of(self._step.dtype),
            "epoch": self.epoch,
            "batch": self.batch,
            "history": [asdict(record) for record in self.history],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._device) if cuda else None,
        }


def part_of(options: TrainingOptions, pipeline: InputPipeline) -> Part:
    """What of the training images this rank sees."""
    size = pipeline.batch_size * world() if options.scale_batch else None
    return Part(rank(), world(), batch_size=size)


def steps_per_epoch(options: TrainingOptions, pipeline: InputPipeline) -> int:
    """Optimizer steps of an epoch."""
    whole = part_of(options, pipeline).all_of(pipeline.images, pipeline.batch_size)
    return -(-whole.batches // options.accumulate)


_LONGEST_QUIET = 1000
"""Steps, so that ranks ask the first one twice as often at least."""

_HARMLESS = {"checkpoint_every", "compile", "capture"}
"""Options that may change when a training goes on: they choose among equal ways of computing."""


def identity_of(
    model: nn.Module, splits: Splits, options: TrainingOptions, seed: int, taught: bool
) -> str:
    """A digest of what a training follows from, but for the numbers in tensors."""
    train, validation = splits.train, splits.validation
    facts: dict[str, Any] = {
        "options": options.model_dump(mode="json", exclude=_HARMLESS),
        "seed": seed,
        "taught": taught,
        "train": [train.images, train.batch_size],
        "validation": validation.images if validation else 0,
        "images": {part: of.content for part, of in splits.listings.items()},
        "normalization": [splits.info.mean, splits.info.std],
        # Other ranks than before would take other steps.
        "ranks": world() if options.scale_batch else None,
        "tensors": {name: list(t.shape) for name, t in model.state_dict().items()},
    }
    return digest_of(facts)


def _metrics_of(record: EpochRecord, pipeline: InputPipeline | None) -> Metrics | None:
    if (
        pipeline is None
        or record.validation_top1 is None
        or record.validation_top5 is None
        or record.validation_loss is None
    ):
        return None
    return Metrics(
        top1=record.validation_top1,
        top5=record.validation_top5,
        loss=record.validation_loss,
        images=pipeline.images,
    )


def _fit_result(result: State) -> FitResult:
    history = tuple(EpochRecord(**record) for record in result["history"])
    validation = result["validation"]
    return FitResult(
        epochs=len(history),
        kept_epoch=result["kept_epoch"],
        stopped_early=result["stopped_early"],
        validation=Metrics(**validation) if validation else None,
        history=history,
    )
