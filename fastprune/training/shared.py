"""Candidates to outcomes, the shared way: one network's weights, each step run once for all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastprune.data import InputPipeline, Placement
from fastprune.errors import GraphError, TrainingError
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan
from fastprune.graph.tracer import tensors_of
from fastprune.ops import Moments, batch_norm_recalibrate
from fastprune.training._alone import left_alone
from fastprune.training._chains import (
    Chain,
    Convolution,
    Folded,
    Norm,
    added,
    can_fold,
    chained,
    clipped,
    folded,
)
from fastprune.training._device import autocast, precision_of
from fastprune.training._in_halves import InHalves
from fastprune.training._schedule import Schedule, schedules_of
from fastprune.training._union import Arguments, Ref, Subnet, Union, Weight, union_of
from fastprune.training.options import Precision
from fastprune.training.progress import Progress, SilentProgress

__all__ = ["SharedEvaluator", "SharedOutcome", "inherited_subnets"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SharedOutcome:
    """What evaluating a candidate gave.

    Attributes:
        top1: percent of the images it saw.
        images: how many it saw.
    """

    top1: float
    images: int


def inherited_subnets(
    model: nn.Module, graph: ChannelGraph, plans: Iterable[PruningPlan]
) -> Iterator[Subnet]:
    """The networks that plans leave of one network, with the weights they inherit.

    Args:
        model: the network, in evaluation mode.
        graph: its channel graph.
        plans: one a candidate.
    """
    whole = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    slots: dict[str, list[tuple[int, Any]]] = {}
    for slot in graph.slots:
        for name in slot.parameters:
            slots.setdefault(name, []).append((slot.dim, slot.channels))
    for plan in plans:
        stays = graph.kept(plan)
        small = apply_plan(model, graph, plan, allow_unchanged=True).eval()
        weights: dict[str, tuple[Hashable, Tensor]] = {}
        for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
            if name in whole:
                cut = tuple(
                    (dim, stays[channels].tobytes()) for dim, channels in slots.get(name, ())
                )
                weights[name] = ((name, cut), tensor.detach())
            else:
                # The positions of a selection, which surgery put in.
                weights[name] = ((name, tensor.cpu().numpy().tobytes()), tensor.detach())
        yield Subnet(small, weights)


class SharedEvaluator:
    """Accuracy of many candidates that have weights in common.

    On a CPU in float32 the logits are those of each candidate alone, bit for bit: sharing a step
    changes who asks for it, and not what is computed.

    Args:
        subnets: the candidates.
        example: ``[1, C, H, W]``.
        device: where to compute; the weights lie there.
        precision: of the arithmetic.
        channels_last: memory format of the images; weights are taken as they are.
        memory_limit: bytes that results may take; beyond it candidates are run in groups that
            share nothing with each other. Where that is more than there is, half as much is
            tried, and so on, then fewer images.
        say: told of that.

    Raises:
        GraphError: a network cannot be run step by step.
    """

    def __init__(
        self,
        subnets: Iterable[Subnet],
        example: Tensor,
        *,
        device: torch.device,
        precision: Precision = "fp32",
        channels_last: bool = False,
        memory_limit: float = 4e9,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        given = list(subnets)
        self._union = union_of(given, example)
        self._bare = [subnet.bare for subnet in given]
        self._device, self._dtype = device, precision_of(precision, device)
        self._placement = Placement(device, channels_last=channels_last)
        self._limit, self._say = memory_limit, say
        self._halves = InHalves(lambda message: say(f"candidates: {message}"))
        self._example = example
        self._arguments: dict[int, Sequence[Arguments]] = {}
        self._chained: dict[tuple[int, bool], _Chained] = {}
        self._folded: dict[int, Folded] = {}
        self._sound: bool | None = None
        self._statistics: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def saved(self) -> float:
        """Share of the candidates' steps that are not run, 0 to 1."""
        run, alone = self.steps
        return 1 - run / alone

    @property
    def common(self) -> list[float]:
        """Of each candidate, the share of its steps that candidates before it have too."""
        seen: set[int] = set()
        found = []
        for path in self._union.paths:
            found.append(len(seen.intersection(path)) / len(path))
            seen.update(path)
        return found

    @property
    def steps(self) -> tuple[int, int]:
        """Steps that are run, and those of all candidates one by one."""
        paths = self._union.paths
        return len(set().union(*paths)), sum(len(path) for path in paths)

    def recalibrate(
        self, pipeline: InputPipeline, batches: int, *, progress: Progress | None = None
    ) -> None:
        """Takes every batch norm's statistics anew, as `recalibrate_batch_norm` does for one.

        A batch norm's statistics follow from the steps before it, so candidates that share these
        share the statistics.

        Args:
            pipeline: its epoch 0 is used.
            batches: how many of it, at most all.
            progress: shows how far it is.

        Raises:
            GraphError: a network normalises twice with the same running statistics.
            TrainingError: memory is too small for one candidate.
        """
        try:
            self._fitting(lambda: self._recalibrate(pipeline, batches, progress))
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"recalibrate: memory is too small for one candidate and {pipeline.batch_size} "
                "images; expected a smaller data.batch_size"
            ) from None

    def _recalibrate(
        self, pipeline: InputPipeline, batches: int, progress: Progress | None
    ) -> None:
        moments: dict[int, Moments] = {}
        merged: set[int] = set()
        written: dict[int, Tensor] = {}

        def normalise(node: int, given: Norm, relu: bool) -> Tensor:
            x = given.x
            if given.mean is not None:
                written[node] = given.mean
            elif not self._bare[self._union.nodes[node].candidate]:
                y = F.batch_norm(x, None, None, given.weight, given.bias, True, 0.0, given.eps)
                return y.relu_() if relu else y
            # Groups of candidates each run what they have in common; it counts once.
            into = moments.get(node) if node not in merged else None
            if into is None:
                into = Moments.zeros(x.shape[1], device=x.device)
                moments.setdefault(node, into)
            merged.add(node)
            return batch_norm_recalibrate(
                x, into, given.weight, given.bias, eps=given.eps, relu=relu
            )

        given = islice(pipeline.epoch(0, placement=self._placement), batches)
        title = (progress or SilentProgress()).start(
            "recalibrate", min(batches, pipeline.batches), "batches"
        )
        with title as task:
            for number, (x, _) in enumerate(given):
                if not left_alone(pipeline, number, len(x)):
                    merged.clear()
                    self._pass(x, self._all, normalise, folds=False)
                task.advance(1)
        self._check_once(written)
        self._folded.clear()
        self._sound = None
        self._statistics = {
            node: (found.mean.float(), found.variance().float()) for node, found in moments.items()
        }

    def _check_once(self, written: dict[int, Tensor]) -> None:
        """Statistics of several steps are not a step's: they would be those of all its inputs."""
        for path in self._union.paths:
            found = [id(written[node]) for node in path if node in written]
            if len(set(found)) < len(found):
                raise GraphError(
                    "shared evaluation: the network uses a batch norm more than once, and its "
                    "statistics would be those of all uses; give each its own batch norm"
                )

    def logits(self, x: Tensor, candidates: Sequence[int] | None = None) -> dict[int, Tensor]:
        """``[N, classes]`` of each candidate for the images ``x``, placed as the network wants."""
        chosen = self._all if candidates is None else tuple(candidates)
        parts = self._halves.parts(
            lambda some: self._fitting(lambda: self._logits(some, chosen)), x
        )
        if len(parts) == 1:
            return parts[0]
        return {candidate: torch.cat([p[candidate] for p in parts]) for candidate in chosen}

    def _logits(self, x: Tensor, candidates: tuple[int, ...]) -> dict[int, Tensor]:
        def normalise(node: int, given: Norm, relu: bool) -> Tensor:
            given = self._with_statistics(node, given)
            y = F.batch_norm(
                given.x,
                given.mean,
                given.variance,
                given.weight,
                given.bias,
                given.mean is None,
                0.0,
                given.eps,
            )
            return y.relu_() if relu else y

        return self._pass(x, candidates, normalise, folds=self._folds())

    def evaluate(self, pipeline: InputPipeline) -> list[SharedOutcome]:
        """The outcome of every candidate on one pass of the images."""
        count = len(self._union.paths)
        right = torch.zeros(count, dtype=torch.int64, device=self._device)
        seen = 0
        for x, y in pipeline.epoch(0, placement=self._placement):
            for candidate, logits in self.logits(x).items():
                right[candidate] += (logits.argmax(1) == y).sum()
            seen += len(y)
        return [SharedOutcome(100 * hits / seen, seen) for hits in right.tolist()]

    def _fitting(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, all of it anew with fewer candidates in flight if need be.

        Raises:
            torch.OutOfMemoryError: one at a time is too many.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                joint = [
                    group.peak * images
                    for (images, _), how in self._chained.items()
                    for made in how.schedules.values()
                    for group in made
                    if len(group.candidates) > 1
                ]
                if not joint:
                    raise
            # Outside of the handler, which keeps what the call had made.
            self._limit = min(self._limit, max(joint)) / 2
            for how in self._chained.values():
                how.schedules.clear()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._say(
                "candidates: memory is too small for as many at a time; going on with results "
                f"of {self._limit / 1e9:.3g} GB at most"
            )

    @property
    def _all(self) -> tuple[int, ...]:
        return tuple(range(len(self._union.paths)))

    def _pass(
        self, x: Tensor, candidates: tuple[int, ...], normalise: _Normalise, *, folds: bool
    ) -> dict[int, Tensor]:
        how = self._how(len(x), folds)
        if candidates not in how.schedules:
            limit = int(self._limit / max(len(x), 1))
            how.schedules[candidates] = schedules_of(how.union, candidates, limit)
        found: dict[int, Tensor] = {}
        with torch.no_grad(), autocast(self._dtype, self._device):
            for schedule in how.schedules[candidates]:
                self._run(how, schedule, x, normalise, found)
        return found

    def _how(self, images: int, folds: bool) -> _Chained:
        if (images, folds) not in self._chained:
            if images not in self._arguments:
                example = self._example.expand(images, *self._example.shape[1:])
                self._arguments[images] = self._union.arguments(example)
            arguments = self._arguments[images]
            found = chained(self._union, arguments, convolutions=folds)
            self._chained[images, folds] = _Chained(*found, arguments)
        return self._chained[images, folds]

    def _run(
        self,
        how: _Chained,
        schedule: Schedule,
        x: Tensor,
        normalise: _Normalise,
        found: dict[int, Tensor],
    ) -> None:
        nodes, weights, outputs = how.union.nodes, how.union.weights, how.union.outputs
        held: dict[int, tuple[Tensor, ...]] = {-1: (x,)}

        def filled(tree: Any) -> Any:
            kind = type(tree)
            if kind is Ref:
                return held[tree.node][tree.position]
            if kind is Weight:
                return weights[tree.place]
            if kind is tuple:
                return tuple([filled(item) for item in tree])
            return tree

        def called(number: int) -> Any:
            args, kwargs = how.arguments[number]
            named = {name: filled(item) for name, item in kwargs.items()}
            return nodes[number].func(*filled(args), **named)

        def linked(chain: Chain) -> Tensor:
            other = None if chain.other is None else filled(chain.other)
            before, x = chain.convolution, chain.norm.x
            if before is not None:
                inside = self._folded.get(chain.node)
                if inside is None:
                    inside = self._inside(chain, before, Norm(None, *filled(chain.norm[1:])))
                if inside is not None:
                    return inside(filled(before.x), other, chain.bounds)
                x = called(before.node)
            norm = Norm(filled(x), *filled(chain.norm[1:]))
            relu = other is None and chain.bounds == (0, None)
            result = normalise(chain.node, norm, relu)
            if other is not None:
                result = added(result, other)
            return result if relu or chain.bounds is None else clipped(result, chain.bounds)

        for step in schedule.steps:
            chain = how.chains.get(step.node)
            result = called(step.node) if chain is None else linked(chain)
            held[step.node] = (result,) if type(result) is Tensor else tuple(tensors_of(result))
            for candidate in step.done:
                output = outputs[candidate]
                found[candidate] = held[output.node][output.position]
            for gone in step.drop:
                del held[gone]

    def _folds(self) -> bool:
        """Whether norms go into weights. oneDNN's ReLU makes 0 of what is no number, and a network
        that diverged has to be known.
        """
        if self._sound is None:
            values = [
                *self._union.weights,
                *(t for pair in self._statistics.values() for t in pair),
            ]
            self._sound = can_fold(self._dtype, self._device) and all(
                bool(value.isfinite().all()) for value in values
            )
        return self._sound

    def _inside(self, chain: Chain, before: Convolution, norm: Norm) -> Folded | None:
        """The convolution before a norm, with it in its weights; None without statistics."""
        norm = self._with_statistics(chain.node, norm)
        found = folded(self._union, before, norm, self._dtype)
        if found is not None:
            self._folded[chain.node] = found
        return found

    def _with_statistics(self, node: int, norm: Norm) -> Norm:
        mean, variance = self._statistics.get(node, (norm.mean, norm.variance))
        return norm._replace(mean=mean, variance=variance)


@dataclass(frozen=True, slots=True)
class _Chained:
    """How batches of one size are run, in recalibration or in measuring."""

    union: Union
    chains: Mapping[int, Chain]
    arguments: Sequence[Arguments]
    schedules: dict[tuple[int, ...], list[Schedule]] = field(default_factory=dict)


_Normalise = Callable[[int, Norm, bool], Tensor]
"""Of a step: its number, the arguments, and whether ReLU follows."""
