"""Options of structured lottery tickets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from fractions import Fraction
from math import prod
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fastprune.errors import GraphError, PlanError, nearest
from fastprune.graph import ChannelGraph
from fastprune.methods import MethodOptions, PruneOptions
from fastprune.methods._filter_scores import DATA_CRITERIA
from fastprune.methods._filters import filters_of
from fastprune.methods._weight_masks import prunable_weights, remaining_after
from fastprune.models import Network
from fastprune.nn.growing_penalty import Schedule
from fastprune.options import expecting
from fastprune.training import TrainingOptions

__all__ = ["LotteryOptions"]

PUBLISHED = TrainingOptions(
    epochs=182,
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="multistep",
    milestones=(91, 136),
)

Criterion = Literal["remain", "magnitude", "l1", "l2", "saliency", "hessian", "random"]

_OF_STRUCTURE = ("criterion", "batches")
_OF_PENALTY = (
    "schedule",
    "reg_granularity_prune",
    "exponents",
    "reg_update_interval",
    "reg_limit",
    "dynamic_target",
)
_FACTORS = ((5, Fraction(1)), (10, Fraction(4, 5)), (15, Fraction(3, 5)))
_LAST_FACTOR = Fraction(2, 5)


class LotteryOptions(MethodOptions):
    """Options of structured lottery tickets.

    State 0 trains the whole network; then ``pruning_times`` rounds each drop a share of the
    remaining weights, rewind, and train the next state.

    Attributes:
        variant: what becomes of a round's weight mask: ``imp`` trains under it as it is;
            ``refill`` makes whole filters of it; ``rst`` lets a growing penalty shrink the
            weights that it drops, which go at the end of the next state; ``rsst`` does so to the
            filters that refill would drop.
        start: weights that every state begins with: ``lt`` those the network is initialised with,
            ``rewind_lt`` those after ``rewind_epoch`` epochs of state 0, ``pt`` the baseline's.
        train: recipe of every state. What it distills from is the trained unpruned network: the
            baseline for ``pt``, else that of state 0, which learns without.
        pruning_times: rounds.
        rate: share of the remaining weights that a round drops.
        rates: ``constant``, or ``progressive``: times 1 to round 5, 0.8 to 10, 0.6 to 15, 0.4
            after.
        layer_rates: factors of the rate by patterns of weight names, the first that matches; for
            ``ranking`` layer.
        ranking: weights compete over the whole network, or within their layer.
        first_conv: the first convolution loses weights too.
        rewind_epoch: for ``rewind_lt``.
        criterion: how refill and rsst rank filters.
        fillback_rate: share of the filters that refill would drop and keeps after all.
        batches: training batches that a criterion which looks at data gets to see.
        schedule, reg_granularity_prune, exponents, reg_update_interval, reg_limit: how the penalty
            grows, see `fastprune.nn.GrowingPenalty`; the interval is in steps, and a granularity
            of 0 is plain training.
        dynamic_target: the penalty is halved while validation top-1 is under this many percent.
        prune_each_state: train the cut network of each state; false trains the whole one with its
            dropped channels held at zero, and cuts at the end.
    """

    name: Literal["lottery"] = "lottery"
    variant: Literal["imp", "refill", "rst", "rsst"] = "refill"
    start: Literal["lt", "rewind_lt", "pt"] = "rewind_lt"
    train: TrainingOptions = PUBLISHED
    pruning_times: int = Field(default=16, ge=1, le=1000)
    rate: float = Field(default=0.2, gt=0, lt=1)
    rates: Literal["constant", "progressive"] = "constant"
    layer_rates: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    ranking: Literal["global", "layer"] = "global"
    first_conv: bool = False
    rewind_epoch: int = Field(default=2, ge=0)
    criterion: Criterion = "l1"
    fillback_rate: Annotated[float, Field(ge=0, le=1), expecting("a share between 0 and 1")] = 0.0
    batches: int = Field(default=10, ge=1)
    schedule: Schedule = "exp_custom_exponents"
    reg_granularity_prune: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    exponents: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    reg_update_interval: int = Field(default=1, ge=1)
    reg_limit: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    dynamic_target: float | None = Field(default=None, gt=0, lt=100)
    prune_each_state: bool = True

    @field_validator("layer_rates")
    @classmethod
    def _finite(cls, given: dict[str, float]) -> dict[str, float]:
        if any(not factor < float("inf") for factor in given.values()):
            raise ValueError(f"expected finite factors, got {given}")
        return given

    @property
    def needs_baseline(self) -> bool:
        return self.start == "pt"

    @property
    def needs_validation(self) -> bool:
        return self.dynamic_target is not None

    @property
    def recipes(self) -> dict[str, TrainingOptions]:
        return {"train": self.train}

    @property
    def taught(self) -> bool:
        return True

    @property
    def penalises(self) -> bool:
        """Whether weights are shrunk before they go."""
        return self.variant in ("rst", "rsst")

    @property
    def structured(self) -> bool:
        """Whether whole filters go, and the rest is dense."""
        return self.variant in ("refill", "rsst")

    @property
    def keeps_zeros(self) -> bool:
        return not self.structured

    @property
    def allows_unchanged(self) -> bool:
        return True

    def problems(self, prune: PruneOptions) -> list[str]:
        others = PruneOptions(keep=prune.keep).model_dump()
        found = [
            f"prune.{name}: not a part of lottery tickets, whose size follows from method.rate "
            "and method.pruning_times"
            for name, value in prune.model_dump().items()
            if value != others[name]
        ]
        idle: dict[str, str] = {}
        if not self.structured:
            idle |= dict.fromkeys(_OF_STRUCTURE, "ranks filters; expected variant refill or rsst")
        elif self.criterion not in DATA_CRITERIA:
            idle["batches"] = f"criterion {self.criterion} looks at no data"
        if self.variant != "refill":
            idle["fillback_rate"] = "keeps filters; expected variant refill"
        if not self.penalises:
            idle |= dict.fromkeys(_OF_PENALTY, "is of the penalty; expected variant rst or rsst")
        elif self.schedule != "exp_custom_exponents":
            idle["exponents"] = "is of schedule exp_custom_exponents"
        if self.start != "rewind_lt":
            idle["rewind_epoch"] = "is of start rewind_lt"
        found += [
            f"method.{name}: {why}; else leave it at {json.dumps(self._default(name))}"
            for name, why in idle.items()
            if getattr(self, name) != self._default(name)
        ]
        if self.layer_rates and self.ranking != "layer":
            found.append("method.layer_rates: expected method.ranking layer")
        for pattern, factor in self.layer_rates.items():
            if factor * self.rate >= 1:
                found.append(
                    f"method.layer_rates: {pattern!r} would drop {factor * self.rate:g} of the "
                    "remaining weights; expected less than all"
                )
        if self.start == "rewind_lt" and self.rewind_epoch > self.train.epochs:
            found.append(
                f"method.rewind_epoch: got {self.rewind_epoch}, and method.train has "
                f"{self.train.epochs} epochs"
            )
        stop = self.train.early_stop
        if self.start == "rewind_lt" and stop and self.rewind_epoch > stop.patience:
            found.append(
                "method.train.early_stop: may end state 0 before method.rewind_epoch; expected "
                f"patience {self.rewind_epoch} or more"
            )
        if self.penalises and self.train.keep == "best":
            found.append(
                "method.train.keep: best may be weights from before the penalty grew; expected "
                "last"
            )
        if self.penalises and self.train.early_stop:
            found.append("method.train.early_stop: would end a state before its penalty has grown")
        return found

    def _default(self, name: str) -> object:
        return type(self).model_fields[name].default

    def check(self, graph: ChannelGraph, prune: PruneOptions, network: Network | None) -> str:
        sizes = prunable_sizes(graph, first=self.first_conv)
        deciding = {self._layer_pattern(name) for name in sizes}
        for pattern in self.layer_rates:
            if not any(fnmatchcase(name, pattern) for name in sizes):
                raise PlanError(
                    f"method.layer_rates: {pattern!r} matches no weight that is pruned"
                    f"{nearest(pattern, sizes)}"
                )
            if pattern not in deciding:
                raise PlanError(
                    f"method.layer_rates: {pattern!r} decides nothing, for each weight that it "
                    "matches is matched by a pattern before it; expected it first"
                )
        if self.structured and not drops_filters(graph, sizes):
            raise PlanError(
                f"method.variant: {self.variant} drops filters, and of no convolution whose "
                "weights are pruned can any go; expected imp or rst"
            )
        total = sum(sizes.values())
        rounds = range(1, self.pruning_times + 1)
        if self.structured:
            left = float(self.filters_left(rounds))
            alike = self.ranking == "layer" and not self.layer_rates
            where = "of each layer" if alike else "in all, of some layers more and of others less"
            return f"about {left:.2%} of the filters {where}, at least one of a layer"
        targets = self.targets(sizes, rounds)
        kept = targets if isinstance(targets, int) else sum(targets.values())
        return f"{kept:,} of {total:,} weights ({kept / total:.3%})"

    def targets(self, sizes: Mapping[str, int], rounds: Iterable[int]) -> int | dict[str, int]:
        """Weights that stay after some rounds, the int of the exact product.

        Args:
            sizes: of the weights before them, by name.
            rounds: their numbers, from 1 on.

        Returns:
            Of all together where they compete with each other, else by name.
        """
        if self.ranking == "global":
            return remaining_after(sum(sizes.values()), self.rates_of(rounds))
        rounds = tuple(rounds)
        return {
            name: remaining_after(size, self.rates_of(rounds, self._layer_factor(name)))
            for name, size in sizes.items()
        }

    def rates_of(self, rounds: Iterable[int], factor: float = 1.0) -> list[Fraction]:
        """The share of the remaining weights that each round drops, exactly."""
        rate = Fraction(str(self.rate)) * Fraction(str(factor))
        return [rate * self._round_factor(number) for number in rounds]

    def filters_left(self, rounds: Iterable[int]) -> Fraction:
        """The share of a layer's filters that refill keeps in these rounds, if each layer's
        weights go at the rate of the round; not rounded to whole filters.
        """
        lost = 1 - Fraction(str(self.fillback_rate))
        return prod((1 - rate * lost for rate in self.rates_of(rounds)), start=Fraction(1))

    def _round_factor(self, number: int) -> Fraction:
        if self.rates == "constant":
            return Fraction(1)
        return next((factor for last, factor in _FACTORS if number <= last), _LAST_FACTOR)

    def _layer_pattern(self, name: str) -> str | None:
        return next((each for each in self.layer_rates if fnmatchcase(name, each)), None)

    def _layer_factor(self, name: str) -> float:
        pattern = self._layer_pattern(name)
        return 1.0 if pattern is None else self.layer_rates[pattern]


def drops_filters(graph: ChannelGraph, names: Iterable[str]) -> bool:
    """Whether any filter of these weights can go."""
    written = {number for each in filters_of(graph, names).values() for number in each.channels}
    return any(group.kind != "selected" and group.start in written for group in graph.groups)


def prunable_sizes(graph: ChannelGraph, *, first: bool) -> dict[str, int]:
    """Weights in each tensor that rounds prune.

    Raises:
        PlanError: there are none.
    """
    try:
        names = prunable_weights(graph, first=first)
    except GraphError as error:
        raise PlanError(f"method.first_conv: {error}") from None
    return {name: prod(graph.tensors[name].shape) for name in names}
