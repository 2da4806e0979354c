"""Training a network, in one screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fastprune.data import Splits
from fastprune.errors import TrainingError
from fastprune.training._device import kept_modes
from fastprune.training._hooks import AfterBackward, AfterEpoch, AfterStep, Hooks
from fastprune.training._possible import impossible
from fastprune.training._run import Run, identity_of
from fastprune.training._step import TrainingStep
from fastprune.training._store import Store
from fastprune.training.options import TrainingOptions
from fastprune.training.progress import Progress, SilentProgress
from fastprune.training.result import FitResult

__all__ = ["fit"]


def fit(
    model: nn.Module,
    splits: Splits,
    options: TrainingOptions,
    *,
    directory: Path | None = None,
    seed: int,
    device: torch.device | str,
    teacher: nn.Module | None = None,
    after_backward: AfterBackward | None = None,
    after_step: AfterStep | None = None,
    after_epoch: AfterEpoch | None = None,
    stop: Callable[[int], bool] | None = None,
    progress: Progress | None = None,
    name: str = "finetune",
    field: str | None = None,
) -> FitResult:
    """Trains ``model`` in place and leaves it with the weights that ``options.keep`` says.

    Ranks share each batch: see ``options.scale_batch`` and ``options.batch_norm``. They have the
    same weights at the end, to the bit; the first alone writes.

    Stopped at any moment and called again with the same arguments and directory, it goes on where
    it was, and on a CPU ends in the same bytes; where it had ended, it gives the stored result at
    once. ``seed`` is put into torch's global generators, since dropout draws from them; on return
    they are as they were before.

    Args:
        model: any network from images to logits ``[N, classes]``; moved to ``device``.
        splits: the data; test images are not looked at.
        options: the recipe.
        directory: for checkpoints, ``metrics.jsonl`` and the result; None keeps nothing.
        seed: of dropout and the like. Order and augmentation follow the seed of ``splits``.
        device: where to compute.
        teacher: the unpruned network, for ``options.distill``; left as it is.
        after_backward: called once a step, after unscaling, before clipping: for subgradients.
        after_step: called once a step with the learning rate: for proximal steps. Both keep a
            step from becoming a CUDA graph, unless they have an attribute ``capturable``, true:
            then they may be called for its recording alone, the second with a tensor.
        after_epoch: called once an epoch with its record, after validation and before its
            checkpoint. Any of the three that has ``state_dict`` and ``load_state_dict``, or is a
            method of an object that has, is saved and goes on with the training, and gets back its
            last state where the training had ended: plain data and tensors, no other objects.
        stop: called with the number of epochs done before each further one; whether to end here.
            A training that goes on asks again, so it has to answer the same.
        progress: shows how far it is.
        name: of the work, in messages.
        field: of a configuration that holds ``options``, in messages; by default ``name``.

    Raises:
        TrainingError: the recipe cannot be followed here, or the loss is no longer finite.
        CheckpointError: the directory holds another training, or one with other hooks.
        DataError: an image cannot be read.
    """
    device, progress = torch.device(device), progress or SilentProgress()
    field = field or name
    _check(model, splits, options, device, teacher, name, field)
    identity = identity_of(model, splits, options, seed, teacher is not None)
    store = Store(directory, identity, options.checkpoint_every, progress, name)
    say = partial(_say, progress, name)
    hooks = Hooks(after_backward, after_step, after_epoch)
    step = TrainingStep(
        model,
        options,
        device,
        teacher,
        (after_backward, after_step),
        pipeline=splits.train,
        name=name,
        field=field,
        say=say,
    )
    with _seeded(seed, device), kept_modes(model), closing(step):
        run = Run(model, step, hooks, options, splits, store, device, name, say, stop)
        if (stored := store.result(device)) is not None:
            return run.restore_result(stored)
        run.resume()
        with progress.start(name, run.total_batches, "batches", done=run.done_batches) as task:
            while not run.over():
                model.train()
                for batch in run.batches():
                    rate, last, figures = run.learning_rate(), run.ends_step(), {}
                    run.seed_ranks(seed)
                    if run.leaves_out(batch[1]):
                        step.skip(rate, last=last)
                    else:
                        loss, logits, labels = step.run(batch, run.share(), rate, last=last)
                        figures = run.note(loss, logits, labels, rate)
                    if last:
                        run.checkpoint_if_due()
                    task.advance(1, **figures)
                task.advance(0, **run.close_epoch())
        return run.finish()


def _check(
    model: nn.Module,
    splits: Splits,
    options: TrainingOptions,
    device: torch.device,
    teacher: nn.Module | None,
    name: str,
    field: str,
) -> None:
    """Refuses what could only fail after minutes of work."""
    validated, taught = splits.validation is not None, teacher is not None
    problems = impossible(options, device, train=splits.train, validated=validated, taught=taught)
    if problems:
        raise TrainingError(f"{field}.{problems[0]}")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise TrainingError(f"{name}: the network has no weights to train")
    if not splits.train.batches:
        raise TrainingError(f"{name}: there are no training images")


def _say(progress: Progress, name: str, message: str) -> None:
    progress.note(f"{name}: {message}")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators at ``seed`` inside, and afterwards as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
