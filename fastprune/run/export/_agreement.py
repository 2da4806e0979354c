"""Whether an exported network computes what the pruned one does."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastprune.errors import ArtifactError

__all__ = ["Agreement", "Expected", "agreement", "expected_of"]

_TIMES = 8
"""Rounding steps that an export may be off by; see docs/export.md for what they were seen to be.

Over the registered networks, onnxruntime was off by 2.3 at most.
"""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the pruned network says.

    Attributes:
        outputs: ``[N, classes]``.
        tolerance: largest difference that rounding explains.
    """

    outputs: Tensor
    tolerance: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near an export came.

    Attributes:
        difference: largest difference of any output.
        tolerance: what was allowed.
        same: images whose top-1 is the same; of the others, two classes tie within the tolerance.
        images: how many were looked at.
    """

    difference: float
    tolerance: float
    same: int
    images: int


def expected_of(network: nn.Module, images: Tensor, what: str) -> Expected:
    """What ``network`` says of images, and how far another way of rounding may lead from it.

    The tolerance is measured: every weight, statistic and pixel is moved by up to one rounding
    step of its dtype, and the outputs move by so much. Another library that adds up in another
    order stays in the range of that, while a wrong constant or a missing step does not.

    Args:
        network: in evaluation mode.
        images: as it gets them.
        what: how a message begins.

    Raises:
        ArtifactError: it does not give ``[N, classes]``.
    """
    with torch.no_grad():
        outputs = network(images)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ArtifactError(f"{what}: expected outputs [N, classes], got {got}")
        random = torch.Generator().manual_seed(0)
        moved = copy.deepcopy(network)
        for tensor in (*moved.parameters(), *moved.buffers()):
            tensor.copy_(_moved(tensor, random))
        shift = (moved(_moved(images, random)) - outputs).abs().max().item()
    # Outputs that do not move at all are still rounded once.
    step = torch.finfo(outputs.dtype).eps * outputs.abs().max().item()
    return Expected(outputs, _TIMES * max(shift, step))


def _moved(tensor: Tensor, random: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    noise = 2 * torch.rand(tensor.shape, generator=random, dtype=torch.float64) - 1
    step = torch.finfo(tensor.dtype).eps
    return (tensor.double() * (1 + step * noise)).to(tensor.dtype)


def agreement(expected: Expected, got: Tensor, what: str) -> Agreement:
    """How near the outputs of an export are.

    Args:
        expected: of the pruned network.
        got: of the export.
        what: how a message begins.

    Raises:
        ArtifactError: they are not the same.
    """
    wanted, tolerance = expected.outputs, expected.tolerance
    if got.shape != wanted.shape:
        raise ArtifactError(
            f"{what}: gives outputs of shape {list(got.shape)}, the pruned network "
            f"{list(wanted.shape)}; nothing was written"
        )
    difference = (got.double() - wanted.double()).abs().max().item()
    if not difference <= tolerance:
        raise ArtifactError(
            f"{what}: its outputs differ from those of the pruned network by {difference:.2g}, "
            f"where rounding explains {tolerance:.2g}; nothing was written"
        )
    # So near, another class can only be one that ties with the best within rounding.
    same = int((got.argmax(1) == wanted.argmax(1)).sum())
    return Agreement(difference, tolerance, same, len(wanted))
