"""Plain frozen records that every floor may share. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fastprune.errors import BudgetError, nearest

__all__ = ["METRICS", "Budget", "Cost", "Limit", "Metric", "Widths", "amount"]

Metric = Literal["macs", "params", "channels", "size_mb", "latency_ms"]
METRICS: tuple[Metric, ...] = get_args(Metric)

Widths = dict[str, int]
"""Channel group name -> number of channels."""


def amount(value: float) -> str:
    """A metric's value for people: six digits, and never a power of ten for a large one."""
    return f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.6g}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs for one input of the traced shape (batch of one).

    Attributes:
        macs: multiply-accumulates of every convolution and linear layer.
        params: parameters.
        channels: sum of the convolutions' output channels.
        size_mb: bytes of parameters and buffers / 10^6.
    """

    macs: int
    params: int
    channels: int
    size_mb: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "macs": self.macs,
            "params": self.params,
            "channels": self.channels,
            "size_mb": round(self.size_mb, 6),
        }


@dataclass(frozen=True, slots=True)
class Limit:
    """One line of a budget: at most ``value`` of ``metric``.

    With ``fraction`` the value is a fraction of what the unpruned network costs.
    """

    metric: Metric
    value: float
    fraction: bool

    def absolute(self, full: float) -> float:
        """The limit in the metric's own unit, given what the unpruned network costs."""
        return self.value * full if self.fraction else self.value

    def shown(self, full: float) -> str:
        """What was asked for, in words that leave no doubt whether it is a fraction."""
        if not self.fraction:
            return amount(self.value)
        return f"{self.value:g} (a fraction: {amount(self.absolute(full))} of {amount(full)})"

    def beyond(self, lowest: float, full: float, why: str) -> str:
        """That the limit cannot be reached, and what can.

        Args:
            lowest: what the metric can be brought to.
            full: what the unpruned network has.
            why: no lower, for instance "with the floors given".
        """
        return (
            f"budget.{self.metric}: {self.shown(full)} cannot be reached; {why}, {self.metric} "
            f"can be from {amount(lowest)} to {amount(full)} ({lowest / full:.4f} to 1 of the "
            "unpruned network)"
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """What the pruned network may cost; every limit holds at once."""

    limits: tuple[Limit, ...]

    @staticmethod
    def parse(given: Budget | Mapping[str, float]) -> Budget:
        """A budget from ``{"macs": 0.5, "params": 1_000_000}``: up to 1 a fraction, then absolute.

        Raises:
            BudgetError: no limit, an unknown metric, or a value that is not a positive number.
        """
        if isinstance(given, Budget):
            return given
        if not isinstance(given, Mapping):
            raise BudgetError(f"budget: expected limits such as {{'macs': 0.5}}, got {given!r}")
        if not given:
            raise BudgetError(f"budget: got no limit; expected one of {', '.join(METRICS)}")
        limits = []
        for metric, value in given.items():
            if metric not in METRICS:
                raise BudgetError(f"budget.{metric}: unknown metric{nearest(metric, METRICS)}")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise BudgetError(f"budget.{metric}: expected a number, got {value!r}")
            if not math.isfinite(value) or value <= 0:
                raise BudgetError(
                    f"budget.{metric}: got {value}; "
                    "expected a fraction kept in (0, 1] or an absolute above 1"
                )
            # Milliseconds and megabytes below 1 are ordinary absolutes, but a fraction is what is
            # meant nearly always; one rule for all metrics is easier to remember than five.
            limits.append(Limit(metric, float(value), value <= 1))
        return Budget(tuple(limits))

    def to_dict(self) -> dict[str, float]:
        return {limit.metric: limit.value for limit in self.limits}
