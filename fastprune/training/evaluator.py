"""Candidates to outcomes, the trained way: each is cut out, trained briefly and measured."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fastprune.data import InputPipeline, Splits
from fastprune.distributed import alone, first, rank
from fastprune.errors import DivergenceError, TrainingError
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan
from fastprune.training._race import Race
from fastprune.training.evaluate import evaluate
from fastprune.training.options import TrainingOptions
from fastprune.training.progress import Progress, SilentProgress
from fastprune.training.trainer import fit

__all__ = ["CANDIDATES", "FitnessOptions", "Outcome", "Request", "TrainedEvaluator", "measured_on"]

CANDIDATES = "candidates"
"""Folder of the trainings of candidates."""


@dataclass(frozen=True, slots=True)
class FitnessOptions:
    """What a candidate's fitness is.

    Attributes:
        recipe: how each candidate is trained.
        split: the images it is measured on.
        metric: the accuracy that counts.
        racing: give a candidate up after an epoch by which a paired test on the same images says
            that it will not beat its rival.
    """

    recipe: TrainingOptions
    split: Literal["validation", "test"] = "validation"
    metric: Literal["top1", "top5"] = "top1"
    racing: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A candidate to evaluate.

    Attributes:
        plan: its structure, in the unpruned network's coordinates.
        rival: digest of the plan that it has to beat to be of use, if there is one.
        name: of its training, on the progress line.
    """

    plan: PruningPlan
    rival: str | None = None
    name: str = "candidate"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What evaluating a candidate gave.

    Attributes:
        fitness: percent of the images of the split; larger is better.
        epochs: that it was trained.
        seconds: of training and measuring, in the process that ended it; of candidates that were
            measured together, each one's part.
        stopped: whether it was given up before the last epoch, or the last image.
        diverged: whether its loss, weights or logits were no longer finite; fitness is then 0.
        images: that fitness was measured on; None says all of the split.
        common: share of its steps that candidates measured with it had too, and that were not run
            for it; None where each is run by itself.
    """

    fitness: float
    epochs: int
    seconds: float
    stopped: bool = False
    diverged: bool = False
    images: int | None = None
    common: float | None = None


class TrainedEvaluator:
    """Trains candidates cut out of one network, all alike: same images, order and seed.

    Each is trained by one rank, as it would be in a process without others.

    What a candidate's training leaves is kept under ``directory`` until `forget`, so an
    interrupted one goes on where it was, and a finished one is not trained again.

    Args:
        model: the unpruned network, on ``device``; it is not altered.
        graph: its channel graph.
        splits: the data.
        options: what fitness is.
        directory: for the trainings under way and the finished ones not forgotten.
        seed: of dropout and the like, the same for every candidate.
        device: where to compute.
        progress: shows each training.

    Raises:
        TrainingError: fitness is to be measured on validation images and there are none.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        splits: Splits,
        options: FitnessOptions,
        *,
        directory: Path,
        seed: int,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._graph, self._options = model, graph, options
        self._directory, self._seed, self._device = directory, seed, device
        self._progress = progress or SilentProgress()
        self._measured = measured_on(splits, options.split)
        # Validation at the end of every epoch would cost time and change nothing.
        self._splits = replace(splits, validation=None)

    def outcomes(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Outcome]]:
        """The outcome of each request, as they come to be known; here one after the other."""
        for request in requests:
            yield request, self.outcome(request)

    def outcome(self, request: Request) -> Outcome:
        """Trains one candidate.

        Raises:
            TrainingError: the recipe cannot be followed here.
            DataError: an image cannot be read.
        """
        begun = time.perf_counter()
        with alone():
            small = self._cut(request.plan)
            try:
                found = self._train(small, request)
            except DivergenceError:
                found = Outcome(0.0, epochs=0, seconds=0.0, diverged=True)
        return replace(found, seconds=time.perf_counter() - begun)

    def _train(self, small: nn.Module, request: Request) -> Outcome:
        recipe, race = self._options.recipe, self._race(request)
        fitted = fit(
            small,
            self._splits,
            recipe,
            directory=self._folder(request.plan.digest),
            seed=self._seed,
            device=self._device,
            stop=None if race is None else lambda epoch: race.lost(small, epoch),
            progress=self._progress,
            name=request.name,
            field="method.fitness",
        )
        metrics = evaluate(
            small,
            self._measured,
            device=self._device,
            precision=recipe.precision,
            channels_last=recipe.channels_last,
            capture="auto" if recipe.capture else False,
            name="fitness",
        )
        fitness = metrics.top1 if self._options.metric == "top1" else metrics.top5
        if race is not None:
            race.close(fitness)
        return Outcome(fitness, fitted.epochs, seconds=0.0, stopped=fitted.stopped_early)

    def trained(self, plan: PruningPlan) -> dict[str, torch.Tensor]:
        """The weights of a candidate that was trained and not forgotten, on the CPU."""
        return first(lambda: self._trained(plan))

    def _trained(self, plan: PruningPlan) -> dict[str, torch.Tensor]:
        small = self._cut(plan)
        # A training that ended gives its stored result.
        fit(
            small,
            self._splits,
            self._options.recipe,
            directory=self._folder(plan.digest),
            seed=self._seed,
            device=self._device,
            progress=self._progress,
            name=f"candidate {plan.digest}",
        )
        return {name: tensor.cpu() for name, tensor in small.state_dict().items()}

    def forget(self, digests: Iterable[str]) -> None:
        """Removes what the trainings of these plans left."""
        for digest in digests if rank() == 0 else ():
            shutil.rmtree(self._folder(digest), ignore_errors=True)

    def _cut(self, plan: PruningPlan) -> nn.Module:
        return apply_plan(self._model, self._graph, plan, allow_unchanged=True)

    def _folder(self, digest: str) -> Path:
        return self._directory / CANDIDATES / digest

    def _race(self, request: Request) -> Race | None:
        if not self._options.racing:
            return None
        return Race(
            self._directory / "racing",
            request.plan.digest,
            request.rival,
            epochs=self._options.recipe.epochs,
            pipeline=self._measured,
            topk=1 if self._options.metric == "top1" else 5,
            precision=self._options.recipe.precision,
            channels_last=self._options.recipe.channels_last,
            device=self._device,
        )


def measured_on(splits: Splits, split: Literal["validation", "test"]) -> InputPipeline:
    """The images that fitness is measured on.

    Raises:
        TrainingError: validation images, and there are none.
    """
    if split == "test":
        return splits.test
    if splits.validation is None:
        raise TrainingError(
            "method.fitness_split: looks at validation images, but data.validation is 0; set it "
            "above 0 (test images have to be asked for by fitness_split: test)"
        )
    return splits.validation
