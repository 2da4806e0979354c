"""Candidates to outcomes, the shared way: one network's weights, each step run once for all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastprune.data import InputPipeline, Placement
from fastprune.errors import GraphError
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan
from fastprune.graph.tracer import tensors_of
from fastprune.ops import Moments, batch_norm_recalibrate
from fastprune.training._alone import left_alone
from fastprune.training._device import autocast, precision_of
from fastprune.training._schedule import Schedule, schedules_of
from fastprune.training._union import Arguments, Ref, Subnet, Weight, union_of
from fastprune.training.options import Precision
from fastprune.training.progress import Progress, SilentProgress

__all__ = ["SharedEvaluator", "SharedOutcome", "inherited_subnets"]


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
            share nothing with each other.

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
    ) -> None:
        given = list(subnets)
        self._union = union_of(given, example)
        self._bare = [subnet.bare for subnet in given]
        self._device, self._dtype = device, precision_of(precision, device)
        self._placement = Placement(device, channels_last=channels_last)
        self._limit = memory_limit
        self._example = example
        self._arguments: dict[int, list[Arguments]] = {}
        self._schedules: dict[tuple[int, tuple[int, ...]], list[Schedule]] = {}
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
        """
        moments: dict[int, Moments] = {}
        merged: set[int] = set()
        written: dict[int, Tensor] = {}

        def normalise(node: int, x: Tensor, given: _Norm) -> Tensor:
            if given.mean is not None:
                written[node] = given.mean
            elif not self._bare[self._union.nodes[node].candidate]:
                return F.batch_norm(x, None, None, given.weight, given.bias, True, 0.0, given.eps)
            # Groups of candidates each run what they have in common; it counts once.
            into = moments.get(node) if node not in merged else None
            if into is None:
                into = Moments.zeros(x.shape[1], device=x.device)
                moments.setdefault(node, into)
            merged.add(node)
            return batch_norm_recalibrate(x, into, given.weight, given.bias, eps=given.eps)

        given = islice(pipeline.epoch(0, placement=self._placement), batches)
        title = (progress or SilentProgress()).start(
            "recalibrate", min(batches, pipeline.batches), "batches"
        )
        with title as task:
            for number, (x, _) in enumerate(given):
                if not left_alone(pipeline, number, len(x)):
                    merged.clear()
                    self._pass(x, self._all, normalise)
                task.advance(1)
        self._check_once(written)
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

        def normalise(node: int, x: Tensor, given: _Norm) -> Tensor:
            mean, variance = self._statistics.get(node, (given.mean, given.variance))
            return F.batch_norm(
                x, mean, variance, given.weight, given.bias, mean is None, 0.0, given.eps
            )

        return self._pass(x, self._all if candidates is None else tuple(candidates), normalise)

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

    @property
    def _all(self) -> tuple[int, ...]:
        return tuple(range(len(self._union.paths)))

    def _pass(
        self, x: Tensor, candidates: tuple[int, ...], normalise: _Normalise
    ) -> dict[int, Tensor]:
        arguments = self._arguments.get(len(x))
        if arguments is None:
            example = self._example.expand(len(x), *self._example.shape[1:])
            arguments = self._arguments[len(x)] = self._union.arguments(example)
        key = (len(x), candidates)
        if key not in self._schedules:
            limit = int(self._limit / max(len(x), 1))
            self._schedules[key] = schedules_of(self._union, candidates, limit)
        found: dict[int, Tensor] = {}
        with torch.no_grad(), autocast(self._dtype, self._device):
            for schedule in self._schedules[key]:
                self._run(schedule, x, arguments, normalise, found)
        return found

    def _run(
        self,
        schedule: Schedule,
        x: Tensor,
        arguments: list[Arguments],
        normalise: _Normalise,
        found: dict[int, Tensor],
    ) -> None:
        nodes, weights, outputs = self._union.nodes, self._union.weights, self._union.outputs
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

        for step in schedule.steps:
            node = nodes[step.node]
            args, kwargs = arguments[step.node]
            args = filled(args)
            kwargs = {name: filled(item) for name, item in kwargs.items()}
            if node.name == "batch_norm":
                norm = _norm(*args, **kwargs)
                result: Any = normalise(step.node, norm.x, norm)
            else:
                result = node.func(*args, **kwargs)
            held[step.node] = (result,) if type(result) is Tensor else tuple(tensors_of(result))
            for candidate in step.done:
                output = outputs[candidate]
                found[candidate] = held[output.node][output.position]
            for gone in step.drop:
                del held[gone]


class _Norm(NamedTuple):
    """Arguments of ``F.batch_norm`` in evaluation mode."""

    x: Tensor
    mean: Tensor | None
    variance: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float


_Normalise = Callable[[int, Tensor, _Norm], Tensor]


def _norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Norm:
    return _Norm(input, running_mean, running_var, weight, bias, eps)
