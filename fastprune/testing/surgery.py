"""The exactness oracle: a pruned network computes what the masked one computes, and costs what the
plan says.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, mask_plan, trace

__all__ = ["check_pruning", "check_trained", "fill", "outputs", "random_plan"]


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and norm statistics for ``model``, in place: no channel is like another, none
    is dead.

    Vectors are drawn around one (a norm layer's scale and variance at their initial value hide
    mistakes), the rest with the usual fan-in scale, so that activations of deep networks stay
    finite.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float32)
            if tensor.ndim < 2:
                tensor.copy_(noise + 0.5)
            else:
                tensor.copy_((2 * noise - 1) * (3 / max(tensor[0].numel(), 1)) ** 0.5)
    return model


def random_plan(
    graph: ChannelGraph, seed: int, *, low: float = 0.3, high: float = 0.5
) -> PruningPlan:
    """Drops a random part of every group, between ``low`` and ``high`` of its channels, another
    part in each.
    """
    random = np.random.default_rng(seed)
    keep = {}
    for group in graph.groups:
        ratio = random.uniform(low, high)
        # At least one goes, so that groups of two are pruned as well.
        dropped = min(max(round(ratio * group.channels), 1), group.channels - 1)
        kept = random.permutation(group.channels)[dropped:]
        keep[group.name] = tuple(sorted(int(i) for i in kept))
    return PruningPlan(keep, graph.widths())


def outputs(tree: Any) -> Iterator[Tensor]:
    """The tensors of what a network returned, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from outputs(item)
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for item in tree:
            yield from outputs(item)
    elif hasattr(tree, "__dict__"):
        yield from outputs(list(vars(tree).values()))


def check_pruning(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    inputs: Sequence[Tensor],
    *,
    batches: Sequence[int] = (1, 2, 3),
    tolerance: float = 1e-9,
) -> nn.Module:
    """Prunes and raises AssertionError unless everything that must hold does; gives the pruned
    network.

    The pruned network computes what the masked one does, for every batch size; a fresh trace of it
    costs what the closed form predicts; its parameters are as many as predicted; and ``model`` is
    untouched.

    Args:
        model: in evaluation mode, in float64 for the default tolerance.
        graph, plan: what to prune.
        inputs: one example; its first axis is the batch and is repeated as needed with other
            values.
        batches: batch sizes to compare at; () to compare nothing.
        tolerance: largest difference, relative to the largest magnitude of each output.
    """
    before = _fingerprint(model)
    small = apply_plan(model, graph, plan)
    masked = mask_plan(model, graph, plan)
    assert _fingerprint(model) == before, "the network that was given has changed"
    with torch.no_grad():
        for batch in batches:
            random = torch.Generator().manual_seed(batch)
            example = [_batch_of(x, batch, random) for x in inputs]
            expected = list(outputs(masked(*copy.deepcopy(example))))
            got = list(outputs(small(*example)))
            assert expected, "the network returned no tensor"
            assert len(got) == len(expected), f"{len(got)} outputs, {len(expected)} expected"
            for i, (a, b) in enumerate(zip(got, expected, strict=True)):
                assert a.shape == b.shape, f"output {i}: {list(a.shape)} against {list(b.shape)}"
                assert b.isfinite().all(), f"output {i} of the masked network is not finite"
                error = (a - b).abs().max() / b.abs().max().clamp(min=1e-12)
                assert error <= tolerance, f"output {i}: off by {error:.2e} at batch {batch}"
    predicted, real = graph.cost(plan), trace(small, tuple(inputs)).cost()
    assert (predicted.macs, predicted.params) == (real.macs, real.params), (
        f"predicted {predicted}, traced {real}"
    )
    # The index of a channel select is not in the closed form: a group that stays whole has none.
    if all(group.kind == "coupled" for group in graph.groups):
        assert predicted == real, f"predicted {predicted}, traced {real}"
    parameters = sum(p.numel() for p in small.parameters())
    assert predicted.params == parameters, f"predicted {predicted.params}, are {parameters}"
    return small


def check_trained(small: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raises AssertionError unless a forward and backward pass in training mode reaches the used
    parameters.
    """
    small = copy.deepcopy(small).train()
    random = torch.Generator().manual_seed(0)
    result = list(outputs(small(*(_batch_of(x, 4, random) for x in inputs))))
    total = sum(x.double().square().sum() for x in result if x.requires_grad)
    assert isinstance(total, Tensor), "no output depends on a parameter"
    total.backward()  # type: ignore[no-untyped-call]
    reached = [p for p in small.parameters() if p.grad is not None]
    assert reached, "no parameter got a gradient"
    for p in reached:
        assert p.grad is not None
        assert p.grad.shape == p.shape


def _batch_of(x: Tensor, batch: int, random: torch.Generator) -> Tensor:
    if not x.is_floating_point():
        return x.expand(batch, *x.shape[1:]).clone()
    return torch.randn((batch, *x.shape[1:]), generator=random, dtype=torch.float64).to(x.dtype)


def _fingerprint(model: nn.Module) -> str:
    """A digest of all tensors' bytes, strides and flags and of every module's plain attributes."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        facts = (
            name,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
            tensor.requires_grad,
            id(tensor),
        )
        digest.update(repr(facts).encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    for name, module in model.named_modules():
        plain = {
            k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple))
        }
        digest.update(
            f"{name} {type(module)} {sorted(plain.items())} {list(module._modules)}".encode()
        )
    return digest.hexdigest()
