"""Drop the channels with the lowest joined score of weights and activations until the network is
as small as asked for.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fastprune.criteria.papm import joined
from fastprune.methods import MethodContext, MethodResult, PruneOptions, registry
from fastprune.methods._solving import plan_of
from fastprune.methods._zeros import ActivationOptions, FocusedOptions, counted, facts, recipe_of

__all__ = ["JoinedOptions", "PapmOptions", "papm"]


class JoinedOptions(ActivationOptions):
    """How channels are scored and how many go; with any of the limits the threshold finds itself.

    Attributes:
        alpha: α, the share of the weights' norm in the score; the rest is 1 - APoZ.
        params_reduction: share of the parameters that has to go: ``prune.budget.params`` said the
            other way round.
        size_mb: ``prune.budget.size_mb``: 10^6 bytes of parameters and buffers, or a fraction.
    """

    alpha: float = Field(default=0.5, ge=0, le=1)
    params_reduction: float | None = Field(default=None, gt=0, lt=1)
    size_mb: float | None = Field(default=None, gt=0)

    @property
    def _limits(self) -> dict[str, float]:
        found = {}
        if self.params_reduction is not None:
            # The nearest number with fewer digits: 1 - 0.77 is not 0.23.
            found["params"] = round(1 - self.params_reduction, 12)
        if self.size_mb is not None:
            found["size_mb"] = self.size_mb
        return found

    def in_force(self, prune: PruneOptions) -> PruneOptions:
        limits = {**(prune.budget or {}), **self._limits}
        return prune.model_copy(update={"budget": limits or None})

    def problems(self, prune: PruneOptions) -> list[str]:
        given = prune.budget or {}
        own = {"params": "params_reduction", "size_mb": "size_mb"}
        found = [
            f"method.{own[name]}: prune.budget.{name} is given too; expected one of the two"
            for name in self._limits
            if name in given
        ]
        if not given and not self._limits and not prune.ratios:
            found.append(
                "method.params_reduction: expected how much shall go, such as 0.77, or size_mb, "
                "prune.budget or prune.ratios"
            )
        return found


class PapmOptions(JoinedOptions, FocusedOptions):
    """Options of PAPM."""

    name: Literal["papm"] = "papm"


@registry.register("papm", options=PapmOptions)
def papm(context: MethodContext, options: PapmOptions) -> MethodResult:
    """Drop the channels with the lowest α·‖W‖₂ + (1 - α)·(1 - APoZ) until the limits hold.

    Raises:
        FastpruneError: the network has no ReLU, a class has no images, or a limit cannot be met.
    """
    counts = counted(context, options)
    scores = joined(context.model, context.graph, counts.apoz(context.graph), options.alpha)
    plan, timed = plan_of(context, context.model, scores, options.in_force(context.prune))
    notes = {"alpha": options.alpha, **facts(context, options, counts), **timed}
    dropped = [
        float(score)
        for name, kept in plan.keep.items()
        if name in scores
        for place, score in enumerate(scores[name].tolist())
        if place not in set(kept)
    ]
    if dropped:
        notes["threshold"] = max(dropped)
    return MethodResult(plan, context.model, finetune=recipe_of(context, options), notes=notes)
