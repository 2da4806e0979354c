"""Candidates to outcomes, the shared way: whole populations are recalibrated and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastprune.data import Placement, Splits
from fastprune.distributed import gathered, rank, world
from fastprune.errors import TrainingError
from fastprune.graph import PruningPlan
from fastprune.training._over_ranks import parts_of
from fastprune.training._racing import Racing
from fastprune.training._union import Subnet
from fastprune.training.evaluate import check_classes
from fastprune.training.evaluator import Outcome, Request, measured_on
from fastprune.training.options import Precision
from fastprune.training.progress import Progress, SilentProgress
from fastprune.training.shared import SharedEvaluator

__all__ = ["ScoredEvaluator"]

T = TypeVar("T")


class ScoredEvaluator:
    """Measures candidates with the weights they are given; nothing is trained.

    The candidates of one call are one population: steps that they have in common are run once, and
    with ``racing`` they are held against each other, so their outcomes are known together. Ranks
    take a part of them each, and share steps within it.

    Args:
        subnets: the networks of some plans, with their weights on ``device``.
        example: ``[1, C, H, W]``, on ``device``.
        splits: the data.
        split: images that fitness is measured on.
        metric: the accuracy that counts.
        batches: training batches that batch norm statistics are taken anew from; 0 keeps those
            that the networks come with.
        racing: how many of the best have to be told apart from the rest. A candidate is dropped
            once a paired test says that it is not among them; those that stay see every image,
            and their fitness is what it would be without. None: every candidate sees every image.
        device: where to compute.
        precision: of the arithmetic.
        channels_last: memory format of the images.
        memory_limit: bytes that results may take, of recalibration and of measuring.
        cost: of a plan's network, such as its MACs, by which ranks get alike much to do.
        progress: shows both.

    Raises:
        TrainingError: fitness is to be measured on validation images and there are none.
        ValueError: ``racing`` is below 1.
    """

    def __init__(
        self,
        subnets: Callable[[Sequence[PruningPlan]], Iterable[Subnet]],
        example: Tensor,
        splits: Splits,
        *,
        split: Literal["validation", "test"] = "validation",
        metric: Literal["top1", "top5"] = "top1",
        batches: int = 0,
        racing: int | None = None,
        device: torch.device,
        precision: Precision = "fp32",
        channels_last: bool = False,
        memory_limit: float = 4e9,
        cost: Callable[[PruningPlan], float] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if racing is not None and racing < 1:
            raise ValueError(f"racing: expected a count from 1 on, got {racing}")
        self._subnets, self._example = subnets, example
        self._train, self._measured = splits.train, measured_on(splits, split)
        self._topk = 1 if metric == "top1" else 5
        self._batches, self._racing = batches, racing
        self._device, self._precision = device, precision
        self._placement = Placement(device, channels_last=channels_last)
        self._limit, self._cost = memory_limit, cost
        self._progress = progress or SilentProgress()
        self._steps = self._images = (0, 0)

    @property
    def report(self) -> dict[str, float]:
        """What was saved so far, by this object.

        ``steps_saved`` is the share of the candidates' steps that were not run since others have
        the same, ``images_saved`` the share of images that dropped candidates did not see; both 0
        to 1, and 0 before anything was measured.
        """
        return {
            "steps_saved": _saved(*self._steps),
            "images_saved": _saved(*self._images),
        }

    def outcomes(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Outcome]]:
        """The outcome of each request, in order, once all were measured.

        Raises:
            GraphError: a network cannot be run step by step.
            TrainingError: there are no images, or the networks' logits are not as many as the
                dataset has classes.
            DataError: an image cannot be read.
        """
        if not requests:
            return
        begun = time.perf_counter()
        plans = [request.plan for request in requests]
        mine = parts_of(plans, self._cost)[rank()]
        shared = SharedEvaluator(
            self._subnets([plans[number] for number in mine]),
            self._example,
            device=self._device,
            precision=self._precision,
            channels_last=self._placement.channels_last,
            memory_limit=self._limit,
            say=self._progress.note,
        )
        if self._batches and mine:
            shared.recalibrate(self._train, self._batches, progress=self._progress)
        found = self._measure(shared, mine, len(requests))
        for run, alone in gathered(shared.steps):
            self._steps = self._steps[0] + run, self._steps[1] + alone
        common = _merged(gathered(dict(zip(mine, shared.common, strict=True))))
        seconds = (time.perf_counter() - begun) / len(requests)
        rows = zip(requests, found, strict=True)
        for number, (request, (fitness, images, dropped, finite)) in enumerate(rows):
            yield (
                request,
                Outcome(
                    fitness=fitness if finite else 0.0,
                    epochs=0,
                    seconds=seconds,
                    stopped=dropped,
                    diverged=not finite,
                    images=images,
                    common=common[number],
                ),
            )

    def _measure(
        self, shared: SharedEvaluator, mine: Sequence[int], count: int
    ) -> list[tuple[float, int, bool, bool]]:
        """Of each candidate: fitness, images it saw, whether it was dropped, and was finite.

        Args:
            shared: of the candidates of this rank.
            mine: their numbers among all.
            count: of all.
        """
        pipeline = self._measured
        race = Racing(count, self._racing, pipeline.images)
        place = {number: here for here, number in enumerate(mine)}
        finite = torch.ones(len(mine), dtype=torch.bool, device=self._device)
        unsaid: list[dict[int, NDArray[np.bool_]]] = []
        seen = 0
        # Images of a folder come class by class, and nothing can be said from the first few of
        # those; without racing they come as everywhere else.
        spread = self._racing is not None
        epoch = pipeline.epoch(0, placement=self._placement, spread=spread)
        with self._progress.start("measure", pipeline.batches, "batches") as task:
            for x, y in epoch:
                numbers = [number for number in race.remaining if number in place]
                # With fewer candidates than ranks one may have none.
                places = [place[number] for number in numbers]
                found = shared.logits(x, places) if places else {}
                right = []
                for number in numbers:
                    here = place[number]
                    logits = found[here]
                    check_classes(logits, len(y), pipeline.highest_label, "fitness")
                    finite[here] &= logits.isfinite().all()
                    best = logits.topk(min(self._topk, logits.shape[1]), dim=1).indices
                    right.append((best == y[:, None]).any(1) & finite[here])
                rows = torch.stack(right).cpu().numpy() if right else ()
                unsaid.append(dict(zip(numbers, rows, strict=True)))
                # Ranks that hold no candidates against each other have nothing to wait for.
                if spread or world() == 1:
                    _tell(race, unsaid)
                seen += len(y)
                task.advance(1, candidates=len(race.remaining))
        _tell(race, unsaid)
        if not seen:
            raise TrainingError("fitness: there are no images to measure candidates on")
        standings = race.standings()
        well_of = _merged(gathered(dict(zip(mine, finite.tolist(), strict=True))))
        whole = [well_of[number] for number in range(count)]
        looked = sum(standing.images for standing in standings)
        self._images = self._images[0] + looked, self._images[1] + count * seen
        return [
            (standing.fitness, standing.images, standing.dropped, well)
            for standing, well in zip(standings, whole, strict=True)
        ]


def _tell(race: Racing, unsaid: list[dict[int, NDArray[np.bool_]]]) -> None:
    """Takes what all ranks saw of some batches; ``unsaid`` is this one's, and then empty."""
    for parts in zip(*gathered(unsaid), strict=True):
        right = _merged(parts)
        race.add(np.stack([right[number] for number in race.remaining]))
    unsaid.clear()


def _merged(parts: Iterable[dict[int, T]]) -> dict[int, T]:
    return {number: value for part in parts for number, value in part.items()}


def _saved(run: int, alone: int) -> float:
    return 1 - run / alone if alone else 0.0
