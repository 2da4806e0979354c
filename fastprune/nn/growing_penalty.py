"""An L2 penalty that grows while a network trains, and masks that hold weights at zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from fastprune.errors import FastpruneError, nearest
from fastprune.ops._checks import check_type

__all__ = ["EpochSeen", "GrowingPenalty", "Schedule", "strength_at"]

Schedule = Literal["x", "x^2", "x^3", "exp", "exp_custom", "exp_custom_exponents"]
"""How the strength grows; see `strength_at`."""

_HELD_BACK = 0.5
"""The factor of the strength while validation accuracy is under its target."""


class EpochSeen(Protocol):
    """What `GrowingPenalty.after_epoch` reads of a trainer's record of an epoch."""

    @property
    def epoch(self) -> int: ...

    @property
    def validation_top1(self) -> float | None: ...


def strength_at(
    step: int,
    *,
    schedule: Schedule,
    granularity: float,
    limit: float,
    steps: int,
    update_interval: int = 1,
    exponents: float = 4.0,
) -> float:
    """The strength r that a step is penalised with, before any dynamic factor.

    With g = ``granularity``, p = ``exponents``, k = ⌊step / update_interval⌋ growths so far and
    t = k·update_interval / steps the share of the training at the newest of them, r is the lesser
    of ``limit`` and

    ==========================  ==========================
    ``x``, ``x^2``, ``x^3``     g·k, (g·k)², (g·k)³
    ``exp``                     exp(g·k) − 1
    ``exp_custom``              g / (e − 1) · (exp(t) − 1)
    ``exp_custom_exponents``    g / (e − 1) · (exp(tᵖ) − 1)
    ==========================  ==========================

    so 0 at first. The last two end at g.

    Args:
        step: steps done before it; above ``steps`` it counts as ``steps``.
        schedule: a name of the table.
        granularity: g, at least 0.
        limit: what r never exceeds, at least 0.
        steps: of the whole training.
        update_interval: steps from one growth to the next.
        exponents: p, above 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_schedule(schedule, granularity, limit, steps, update_interval, exponents)
    if step < 0:
        raise ValueError(f"step: expected 0 or more, got {step}")
    growths = min(step, steps) // update_interval
    counter = granularity * growths
    done = growths * update_interval / steps
    if schedule == "exp":
        grown = _expm1(counter)
    elif schedule == "exp_custom":
        grown = granularity / math.expm1(1) * _expm1(done)
    elif schedule == "exp_custom_exponents":
        grown = granularity / math.expm1(1) * _expm1(done**exponents)
    else:
        # Not by **, which raises where these become infinite.
        grown = counter
        for _ in range(("x", "x^2", "x^3").index(schedule)):
            grown *= counter
    return min(grown, limit)


class GrowingPenalty:
    """Adds r·w to the gradients of some weights, with r growing from 0, and holds others at zero.

    Wang et al., *Neural Pruning via Growing Regularization*, ICLR 2021; Bai et al., *Dual Lottery
    Ticket Hypothesis*, ICLR 2022. The gradient is that of r/2·Σw² over the penalised weights;
    training moves what they hold to the others, so that removing them at its end costs less. ::

        penalty = GrowingPenalty(
            dict(model.named_parameters()),
            penalised={"conv1.weight": mask},
            schedule="x", granularity=1e-4, limit=1.0, steps=epochs * len(loader),
        )
        for images, labels in loader:  # in each of the epochs
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            penalty()
            optimizer.step()

    It removes nothing: at the end the weights are small, and the caller sets them to zero. To
    train on, a new penalty with ``kept={"conv1.weight": ~mask}, granularity=0`` holds them there,
    with a new optimizer, since the first one's momentum would move them.

    Once an optimizer step, when the gradients are complete: after the last backward pass of an
    accumulation, after DistributedDataParallel's, after ``scaler.unscale_(optimizer)``; and before
    gradient clipping, which then sees no gradients of weights that are held. For `fit` it is
    ``after_backward=penalty, after_epoch=penalty.after_epoch``.

    Weights held at zero get the gradient zero. Those that are zero then stay so, exactly, under
    every optimizer that moves no zero without a gradient, as SGD with momentum and weight decay
    and Adam do not, as long as its state began with them held.

    Args:
        parameters: by name, as ``dict(model.named_parameters())``: all, or those of the masks.
            Those of masks are of one dtype and on one device; they may be moved later.
        penalised: masks, bool and of their weight's shape: true where the penalty counts.
        kept: the same, false where the weight, which is zero by now, is held there.
        schedule: how r grows, see `strength_at`.
        granularity: g of the schedule.
        exponents: p of ``exp_custom_exponents``.
        update_interval: steps from one growth of r to the next.
        limit: what r never exceeds.
        steps: calls in the whole training, those before a step that a GradScaler leaves out too.
            r stays where it is after them.
        target: of validation top1, percent; r is halved while an epoch's is below. None: never.

    Attributes:
        capturable: true: a call does the same at every step and all on the device, counting
            included, so it may be a part of a CUDA graph.

    Raises:
        FastpruneError: a mask's name is that of no parameter; weights to be held are not zero.
        ValueError: shapes or dtypes do not fit, a number is out of its range, or a weight is both
            penalised and held.
    """

    capturable = True

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        penalised: Mapping[str, Tensor] | None = None,
        kept: Mapping[str, Tensor] | None = None,
        schedule: Schedule,
        granularity: float,
        limit: float,
        steps: int,
        exponents: float = 4.0,
        update_interval: int = 1,
        target: float | None = None,
    ) -> None:
        penalised, kept = penalised or {}, kept or {}
        _check_schedule(schedule, granularity, limit, steps, update_interval, exponents)
        if target is not None and not 0 <= target <= 100:
            raise ValueError(f"target: expected percent from 0 to 100, got {target}")
        _check_masks(parameters, penalised, kept)
        self._settings: dict[str, Any] = {
            "schedule": schedule,
            "granularity": granularity,
            "limit": limit,
            "steps": steps,
            "update_interval": update_interval,
            "exponents": exponents,
        }
        self._target = target
        # Copies: a mask that its owner changes later must not change what is trained.
        self._penalised = [
            (parameters[name], mask.clone()) for name, mask in penalised.items() if mask.any()
        ]
        self._held = [
            (parameters[name], mask.clone()) for name, mask in kept.items() if not mask.all()
        ]
        weights = [weight for weight, _ in (*self._penalised, *self._held)]
        self._first = weights[0] if weights else next(iter(parameters.values()))
        growths = range(0, steps + 1, update_interval)
        by_growth = [strength_at(step, **self._settings) for step in growths]
        # One number a step, for a lookup is all that is left to do on the device.
        each = min(update_interval, steps + 1)
        self._schedule = torch.tensor(by_growth, dtype=torch.float64).repeat_interleave(each)
        self._strengths: list[tuple[int, float]] = []
        self._done = torch.zeros(1, dtype=torch.int64)
        self._factor = torch.ones(1, dtype=torch.float64)
        self._at: tuple[object, ...] | None = None
        self._place()

    @torch.no_grad()
    def __call__(self) -> None:
        """Adds r·w to the gradients of penalised weights, zeroes those of held ones, and counts
        the step. Weights without a gradient are left out.
        """
        self._place()
        strength = self._table.index_select(0, self._done) * self._factor
        self._done.add_(1).clamp_(max=self._settings["steps"])
        weights, gradients, masks = _with_gradients(self._penalised, self._masks)
        if gradients:
            scaled = torch._foreach_mul(masks, strength.to(self._first.dtype)[0])
            torch._foreach_addcmul_(gradients, weights, scaled)
        _, gradients, masks = _with_gradients(self._held, self._keeps)
        if gradients:
            torch._foreach_mul_(gradients, masks)

    def after_epoch(self, record: EpochSeen) -> None:
        """Notes the strength, and sets its dynamic factor for the steps that follow.

        Args:
            record: of the epoch that ended, a trainer's.

        Raises:
            FastpruneError: there is a target, and the epoch was not validated.
        """
        self._strengths.append((record.epoch, self.strength))
        if self._target is None:
            return
        if record.validation_top1 is None:
            raise FastpruneError(
                f"target: {self._target} % of validation top1, but there are no validation images"
            )
        self._factor.fill_(_HELD_BACK if record.validation_top1 < self._target else 1.0)

    @property
    def strength(self) -> float:
        """r of the step to come. Waits for the device."""
        done, factor = int(self._done), float(self._factor)
        return strength_at(done, **self._settings) * factor

    @property
    def strengths(self) -> tuple[tuple[int, float], ...]:
        """Of each epoch that `after_epoch` was told of: its number, and `strength` at its end."""
        return tuple(self._strengths)

    def state_dict(self) -> dict[str, Any]:
        """What calls have changed, and the schedule, as plain numbers. Waits for the device."""
        return {
            "settings": dict(self._settings),
            "steps_done": int(self._done),
            "factor": float(self._factor),
            "strengths": [list(pair) for pair in self._strengths],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state.

        Raises:
            FastpruneError: it is of another schedule.
        """
        for name, value in self._settings.items():
            if state["settings"][name] != value:
                raise FastpruneError(
                    f"growing penalty: {name} is {value}, and the state to go on from was made "
                    f"with {state['settings'][name]}"
                )
        # In place: a graph that was captured reads them where they are.
        self._done.fill_(state["steps_done"])
        self._factor.fill_(state["factor"])
        self._strengths = [(epoch, strength) for epoch, strength in state["strengths"]]

    def _place(self) -> None:
        """Puts all that a step reads where the weights are, once: a trainer moves a network after
        its hooks were made. Masks get the strides of their weights, which makes for one kernel.
        """
        first = self._first
        at = (first.device, first.dtype, first.stride())
        if at == self._at:
            return
        self._at = at
        self._done, self._factor = self._done.to(first.device), self._factor.to(first.device)
        self._table = self._schedule.to(first.device)
        self._masks = [_as_numbers(mask, weight) for weight, mask in self._penalised]
        self._keeps = [_as_numbers(mask, weight) for weight, mask in self._held]


def _with_gradients(
    pairs: Sequence[tuple[nn.Parameter, Tensor]], masks: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights that have a gradient now; the gradients; the masks."""
    gradients = [weight.grad for weight, _ in pairs]
    found = [
        (weight, gradient, mask)
        for (weight, _), gradient, mask in zip(pairs, gradients, masks, strict=True)
        if gradient is not None
    ]
    return [w for w, _, _ in found], [g for _, g, _ in found], [m for _, _, m in found]


def _as_numbers(mask: Tensor, weight: Tensor) -> Tensor:
    """1 where the mask is true, in the dtype and memory format of its weight."""
    return torch.empty_like(weight, requires_grad=False).copy_(mask)


def _expm1(x: float) -> float:
    """exp(x) − 1, infinite where it is past the largest float."""
    return math.expm1(x) if x < 709 else math.inf


def _check_schedule(
    schedule: str,
    granularity: float,
    limit: float,
    steps: int,
    update_interval: int,
    exponents: float,
) -> None:
    if schedule not in get_args(Schedule):
        known = ", ".join(get_args(Schedule))
        raise ValueError(f"schedule: expected one of {known}, got {schedule!r}")
    for name, value in (("granularity", granularity), ("limit", limit), ("exponents", exponents)):
        check_type(name, value, Real, "a number")
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected a finite number ≥ 0, got {value}")
    if exponents == 0:
        raise ValueError("exponents: expected a number > 0, got 0")
    for name, count in (("steps", steps), ("update_interval", update_interval)):
        check_type(name, count, int, "an integer")
        if count < 1:
            raise ValueError(f"{name}: expected 1 or more, got {count}")


def _check_masks(
    parameters: Mapping[str, nn.Parameter],
    penalised: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
) -> None:
    if not parameters:
        raise ValueError("parameters: expected at least one, got none")
    owners: dict[int, str] = {}
    kinds: dict[tuple[torch.device, torch.dtype], str] = {}
    for field, masks in (("penalised", penalised), ("kept", kept)):
        for name, mask in masks.items():
            if name not in parameters:
                known = nearest(name, parameters)
                raise FastpruneError(f"{field}: {name!r} is the name of no parameter{known}")
            weight = parameters[name]
            if mask.dtype != torch.bool or mask.shape != weight.shape:
                raise ValueError(
                    f"{field}: expected a bool mask {list(weight.shape)} for {name!r}, got "
                    f"{list(mask.shape)} of {mask.dtype}"
                )
            if not weight.is_floating_point():
                raise ValueError(f"{field}: expected floats, got {weight.dtype} in {name!r}")
            if owners.setdefault(id(weight), name) != name:
                raise ValueError(
                    f"{field}: {owners[id(weight)]!r} and {name!r} are one parameter; expected "
                    "one name for it"
                )
            kinds.setdefault((weight.device, weight.dtype), name)
    if len(kinds) > 1:
        said = ", ".join(f"{name!r} {dtype} on {at}" for (at, dtype), name in kinds.items())
        raise ValueError(f"parameters: expected one dtype and one device, got {said}")
    for name in penalised.keys() & kept.keys():
        mask, other = penalised[name], kept[name].to(penalised[name].device)
        if both := int((mask & ~other).sum()):
            raise ValueError(f"penalised: {both} weights of {name!r} are held at zero by kept")
    for name, mask in kept.items():
        held = parameters[name].detach()[~mask.to(parameters[name].device)]
        if wrong := int(held.count_nonzero()):
            raise FastpruneError(
                f"kept: {wrong} weights of {name!r} that are to be held at zero are not zero; "
                "set them to zero first"
            )
