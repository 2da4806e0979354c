"""Methods: each looks at a network and its data, and returns a pruning plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from fastprune.data import Splits
from fastprune.errors import BudgetError
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.graph.budget import MIN_CHANNELS, Ranking
from fastprune.latency import LatencyOptions
from fastprune.models import Network
from fastprune.options import Options, expecting
from fastprune.records import Budget
from fastprune.registry import Registry
from fastprune.training import TrainingOptions
from fastprune.training.progress import Progress

__all__ = [
    "MethodContext",
    "MethodOptions",
    "MethodResult",
    "PruneOptions",
    "Reopen",
    "registry",
]

Reopen = Callable[[], tuple[nn.Module, Splits]]
"""The baseline network, on the device, and the data again, in whatever process it is called."""

registry: Registry[Callable[..., Any]] = Registry("methods", "fastprune.methods")
"""A method is built by ``(context, options) -> MethodResult``. An ensemble, whose options say so,
is built by ``(options, classes) -> MethodOptions``: the method of one of its networks.
"""


class MethodOptions(Options):
    """What every method's own options model derives from.

    Attributes:
        ensemble: whether several networks are made of the baseline, each by a run of its own, and
            joined; there is no plan then.
    """

    ensemble: ClassVar[bool] = False
    name: str

    @property
    def needs_baseline(self) -> bool:
        """Whether the method starts from a trained network rather than training one itself."""
        return True

    @property
    def selected(self) -> tuple[str, ...] | Literal["auto"]:
        """Norm layers that get a selected group, as `fastprune.trace` takes them."""
        return ()

    @property
    def needs_validation(self) -> bool:
        """Whether the method chooses by the validation images."""
        return False

    @property
    def focus(self) -> tuple[int, ...]:
        """Labels of the classes the pruned network is for; none where it is for all."""
        return ()

    @property
    def keeps_zeros(self) -> bool:
        """Whether weights of the pruned network are zero and have to stay so: no fine-tuning."""
        return False

    @property
    def allows_unchanged(self) -> bool:
        """Whether a plan that drops no channel is a result."""
        return False

    @property
    def recipes(self) -> dict[str, TrainingOptions]:
        """What the method trains by besides ``finetune``, by the names of its options."""
        return {}

    @property
    def taught(self) -> bool:
        """Whether these have the unpruned network to learn from."""
        return False

    def problems(self, prune: PruneOptions) -> list[str]:
        """What does not go together with the common options, ``field: what would be right``."""
        return []

    def in_force(self, prune: PruneOptions) -> PruneOptions:
        """The common options with what the method's own say of them, such as another budget."""
        return prune

    def check(
        self,
        graph: ChannelGraph,
        prune: PruneOptions,
        network: Network | None,
    ) -> str | None:
        """Refuses, before any training, what does not go with the network.

        Args:
            graph: the network's.
            prune: the common options.
            network: as in `MethodContext`.

        Returns:
            What each metric can be brought to, in one line; None where that follows from ``prune``
            alone, whose budget is then held against it.

        Raises:
            FastpruneError: what does not.
        """
        return None


class PruneOptions(Options):
    """How small, and where not: common to all methods that rank channels by score."""

    budget: dict[str, float] | None = None
    round_to: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        expecting("a whole number of at least 1, or auto: what the device likes"),
    ] = 1
    min_channels: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)],
        expecting("a count of channels or a fraction below 1"),
    ] = MIN_CHANNELS
    ranking: Ranking = "global"
    ratios: dict[str, float] = Field(default={})
    keep: tuple[str, ...] = ()

    @property
    def multiple(self) -> int:
        """``round_to`` as a number; what ``auto`` is, is settled before a method is called."""
        if self.round_to == "auto":
            raise ValueError(
                "round_to: expected a number, got 'auto', which depends on the device"
            )
        return self.round_to

    @property
    def timed(self) -> bool:
        """Whether a plan depends on times that are measured."""
        return self.round_to == "auto" or "latency_ms" in (self.budget or {})

    @field_validator("budget")
    @classmethod
    def _limits(cls, given: dict[str, float] | None) -> dict[str, float] | None:
        if given is None:
            return None
        try:
            return Budget.parse(given).to_dict()
        except BudgetError as error:
            raise ValueError(str(error).removeprefix("budget").lstrip(".: ")) from None

    @field_validator("ratios")
    @classmethod
    def _fractions(cls, given: dict[str, float]) -> dict[str, float]:
        wrong = [f"{name}: {ratio}" for name, ratio in given.items() if not 0 <= ratio < 1]
        if wrong:
            raise ValueError(f"expected dropped fractions in [0, 1), got {', '.join(wrong)}")
        return given


@dataclass(frozen=True, slots=True)
class MethodContext:
    """All that a method may look at.

    Attributes:
        model: the baseline network, on ``device``; a method never alters it.
        graph: its channel graph, traced with the method's ``select`` patterns.
        example: the input it was traced with, ``[1, C, H, W]``.
        splits: the data.
        prune: budget and the other options common to methods.
        directory: where the method may keep checkpoints of its own; it is empty on the first call
            of a run and holds what an interrupted call left on the next.
        seed: for every random choice of the method.
        device: where to compute.
        fresh: builds the same network untrained, on the CPU, from the given seed.
        finetune: the run's fine-tuning options, which gradual pruning borrows.
        progress: shows long work.
        reopen: network and data again, for work in other processes; it can be pickled. None where
            there can be no other processes.
        network: what is known of the network by its name, such as the tables of its family; None
            where it has no name.
        latency: what a budget in latency is of.
    """

    model: nn.Module
    graph: ChannelGraph
    example: torch.Tensor
    splits: Splits
    prune: PruneOptions
    directory: Path
    seed: int
    device: torch.device
    fresh: Callable[[int], nn.Module]
    finetune: TrainingOptions | None
    progress: Progress
    reopen: Reopen | None = None
    network: Network | None = None
    latency: LatencyOptions = field(default_factory=LatencyOptions)


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What a method decided.

    Attributes:
        plan: which channels stay, in the coordinates of the unpruned network.
        model: the network the plan is to be applied to; a method that trains gives back another
            than it got.
        pruned_state: weights for the pruned network that the method trained itself, where it did.
        trained: the unpruned network as the method trained it, for the report; None where it did
            not.
        masked: fine-tune the unpruned network with its dropped channels held at zero, and cut
            afterwards.
        finetune: training options that take the place of the run's own, where the method says
            how its pruned network is to be trained.
        notes: facts for the report.
        files: in the method's directory, to be kept beside the run's results under their names.
    """

    plan: PruningPlan
    model: nn.Module
    pruned_state: dict[str, torch.Tensor] | None = None
    trained: nn.Module | None = None
    masked: bool = False
    finetune: TrainingOptions | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
