"""A clock whose times follow from widths, for tests of what is done with times."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from fastprune.graph import trace
from fastprune.latency import Setting
from fastprune.latency.calls import Call, calls_of
from fastprune.latency.table import LayerKind, Points

__all__ = ["FormulaClock"]


class FormulaClock:
    """Milliseconds by a formula.

    A layer takes 0.01 and a millionth of the numbers it reads, widths rounded up to ``step``; a
    network ``overhead`` and the sum of its layers to the power of ``bend``, all of it times the
    next of ``drift``.

    Args:
        batch_size: of the setting.
        step: channels of a block.
        overhead: milliseconds.
        bend: other than 1, sums over layers mislead.
        drift: how much slower the machine is at each measurement of networks, then as at the last.

    Attributes:
        layers: how many calls were measured at all their points.
        measured: how many networks were, each time.
    """

    def __init__(
        self,
        batch_size: int = 16,
        *,
        step: int = 1,
        overhead: float = 0.5,
        bend: float = 1.0,
        drift: Sequence[float] = (1.0,),
    ) -> None:
        self.setting = Setting("formula", 1, "0", batch_size, "eager")
        self.step, self.overhead, self.bend = step, overhead, bend
        self._drift = list(drift)
        self.layers = 0
        self.measured: list[int] = []

    def layer(self, call: Call, points: Points) -> list[float]:
        self.layers += 1
        return [self.formula(call.kind, *point) for point in points]

    def networks(self, models: Sequence[nn.Module], example: Sequence[Tensor]) -> list[float]:
        factor = self._drift[min(len(self.measured), len(self._drift) - 1)]
        self.measured.append(len(models))
        return [factor * self.whole(model, example[0]) for model in models]

    def whole(self, model: nn.Module, example: Tensor) -> float:
        """Of a network, on a machine that does not drift."""
        calls = calls_of(trace(model, example), self.setting.batch_size)
        total = sum(self.formula(c.kind, c.kind.inputs, c.kind.outputs) for c in calls)
        return self.overhead + float(total**self.bend)

    def formula(self, kind: LayerKind, inputs: int, outputs: int) -> float:
        """Of a layer."""
        stepped = (-(-width // self.step) * self.step for width in (inputs, outputs))
        return 0.01 + 1e-6 * sum(math.prod(shape) for shape in kind.sizes(*stepped))
