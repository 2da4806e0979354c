"""Network slimming: train with a sparsity penalty on the batch norm scales γ, drop the smallest.

Liu et al., *Learning Efficient Convolutional Networks through Network Slimming*, ICCV 2017.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastprune import criteria
from fastprune.artifact import load_state, restore, save_state
from fastprune.errors import FastpruneError, PlanError
from fastprune.graph import ChannelGraph, PruningPlan
from fastprune.methods import (
    MethodContext,
    MethodOptions,
    MethodResult,
    PruneOptions,
    registry,
)
from fastprune.methods._scales import SCALES, ScaleLog
from fastprune.methods._solving import plan_of
from fastprune.nn import SparsityPenalty
from fastprune.options import expecting
from fastprune.training import TrainingOptions, fit

__all__ = ["OnEmpty", "SlimmingOptions", "plan_by_ratio", "slimming"]

OnEmpty = Literal["keep", "error"]


class SlimmingOptions(MethodOptions):
    """Options of network slimming.

    Attributes:
        start: train sparsely from fresh weights, or from the baseline's.
        train: recipe of the sparse training; None prunes by the scales the baseline has.
        strength: the paper's s: weight of Σ|γ| in the loss.
        penalty: ``subgradient`` adds s·sign(γ) to the gradient; ``proximal`` shrinks γ by
            learning rate · s after each step, which makes exact zeros.
        ratio: the published rule: with N scales in all batch norms, the threshold t is number
            int(N·ratio) of the sorted |γ|, and channels with |γ| > t stay. None: use
            ``prune.budget``.
        on_empty: what happens to a layer that the rule empties: ``keep`` its channel with the
            largest |γ|, or ``error``. (A plan cannot leave out a whole layer.)
        mode: ``cut`` fine-tunes the pruned network; ``masked`` fine-tunes the unpruned one with
            its dropped channels held at zero, and cuts it afterwards.
        scratch: train the pruned structure from fresh weights instead, for as many epochs (``E``)
            or as many MACs (``B``) as the sparse training.
        select: batch norms that choose among channels which others read whole; ``auto`` finds
            them.
    """

    name: Literal["slimming"] = "slimming"
    start: Literal["scratch", "baseline"] = "scratch"
    train: TrainingOptions | None = None
    strength: float = Field(default=1e-4, ge=0)
    penalty: Literal["subgradient", "proximal"] = "subgradient"
    ratio: float | None = Field(default=None, gt=0, lt=1)
    on_empty: OnEmpty = "keep"
    mode: Literal["cut", "masked"] = "cut"
    scratch: Literal["E", "B"] | None = None
    select: Annotated[
        tuple[str, ...] | Literal["auto"], expecting("a list of patterns of names, or auto")
    ] = "auto"

    @property
    def needs_baseline(self) -> bool:
        return self.start == "baseline"

    @property
    def selected(self) -> tuple[str, ...] | Literal["auto"]:
        return self.select

    @property
    def recipes(self) -> dict[str, TrainingOptions]:
        return {} if self.train is None else {"train": self.train}

    def problems(self, prune: PruneOptions) -> list[str]:
        found = []
        if self.start == "scratch" and self.train is None:
            found.append("method.train: start scratch needs training options")
        if self.ratio is None and prune.budget is None:
            found.append("method.ratio: expected a ratio, or prune.budget, such as {macs: 0.5}")
        if self.ratio is not None:
            others = PruneOptions(keep=prune.keep).model_dump()
            found += [
                f"prune.{name}: not a part of the published rule (method.ratio); give the one or "
                "prune.budget"
                for name, value in prune.model_dump().items()
                if value != others[name]
            ]
        if self.scratch and self.mode == "masked":
            found.append("method.scratch: fresh weights have nothing to mask; expected mode cut")
        return found


@registry.register("slimming", options=SlimmingOptions)
def slimming(context: MethodContext, options: SlimmingOptions) -> MethodResult:
    """Train with a sparsity penalty on the batch norm scales, drop the channels with the smallest.

    Raises:
        FastpruneError: the network has no batch norm whose scales could be compared.
    """
    model = _sparse(context, options)
    check_scales(model)
    timed: dict[str, Any] = {}
    if options.ratio is not None:
        plan = plan_by_ratio(model, context.graph, options.ratio, on_empty=options.on_empty)
    else:
        scores = criteria.batch_norm_scale(model, context.graph)
        plan, timed = plan_of(context, model, scores, context.prune)
    scales = _all_scales(model)
    notes: dict[str, Any] = {
        "batch_norm_channels": len(scales),
        "smallest_scale": float(scales.min()),
        "largest_scale": float(scales.max()),
        **timed,
    }
    trained = None if options.train is None else model
    if options.ratio is not None:
        threshold = _threshold(scales, options.ratio)
        notes["threshold"] = threshold
        notes["dropped_by_threshold"] = int((scales <= threshold).sum())
    if options.scratch is None:
        masked = options.mode == "masked"
        return MethodResult(plan, model, trained=trained, masked=masked, notes=notes)
    recipe = options.train or context.finetune
    if recipe is None:
        raise FastpruneError("method.scratch: needs a recipe, method.train or finetune")
    epochs = recipe.epochs
    if options.scratch == "B":
        # As many MACs as training the unpruned network took.
        epochs = round(epochs * context.graph.cost().macs / context.graph.cost(plan).macs)
    recipe = recipe.model_copy(
        update={
            "epochs": epochs,
            "warmup_epochs": recipe.warmup_epochs * epochs / recipe.epochs,
        }
    )
    notes["scratch"] = options.scratch
    fresh = context.fresh(context.seed + 1)
    return MethodResult(plan, fresh, trained=trained, finetune=recipe, notes=notes)


def plan_by_ratio(
    model: nn.Module, graph: ChannelGraph, ratio: float, *, on_empty: OnEmpty = "keep"
) -> PruningPlan:
    """The published global rule: drop every channel whose |γ| is at most the threshold.

    The threshold is entry int(N·ratio) of the N sorted |γ| of all batch norms, first and last
    too, so int(N·ratio) + 1 scales fall to it where no two are equal. A channel that several batch
    norms scale (the residual stream of a post-activation network) goes only if all of them fall;
    one that cannot be pruned stays, whatever its γ.

    Raises:
        FastpruneError: there are no scales that could be compared.
        PlanError: nothing falls, everything in a group falls and ``on_empty`` is not ``keep``.
    """
    check_scales(model)
    threshold = _threshold(_all_scales(model), ratio)
    strongest = _strongest_scales(model, graph)
    keep: dict[str, tuple[int, ...]] = {}
    for group in graph.groups:
        largest = strongest[group.start : group.start + group.channels]
        if np.isnan(largest).all():
            keep[group.name] = tuple(range(group.channels))
            continue
        stays = ~(largest <= threshold)
        if not stays.any():
            _refuse_empty(group.name, threshold, on_empty)
            stays[int(np.argmax(largest))] = True
        keep[group.name] = tuple(np.flatnonzero(stays).tolist())
    return PruningPlan(keep, graph.widths())


def check_scales(model: nn.Module) -> None:
    """Raises FastpruneError unless the network's batch norm scales can be ranked."""
    norms = _norms(model)
    if not norms:
        raise FastpruneError(
            "slimming: the network has no batch norm with scales; use one_shot with another "
            "criterion"
        )
    frozen = [name for name, norm in norms.items() if not norm.weight.requires_grad]
    if frozen:
        raise FastpruneError(
            f"slimming: the scales of {len(frozen)} of {len(norms)} batch norms are frozen "
            f"({', '.join(frozen[:3])}), so no penalty reaches them; set requires_grad"
        )
    scales = _all_scales(model)
    if not torch.isfinite(scales).all():
        raise FastpruneError("slimming: some batch norm scales are not finite numbers")
    if scales.min() == scales.max():
        raise FastpruneError(
            f"slimming: all {len(scales)} batch norm scales are {float(scales[0]):g}, so no "
            "channel is better than another; train first (method.train)"
        )


def _sparse(context: MethodContext, options: SlimmingOptions) -> nn.Module:
    """The sparsely trained network; training goes on where an interrupted call stopped."""
    if options.start == "scratch":
        model = context.fresh(context.seed)
    else:
        model = copy.deepcopy(context.model)
    if options.train is None:
        return model
    result = context.directory / "sparse.safetensors"
    if not result.is_file():
        if not _norms(model):
            check_scales(model)
        penalty = SparsityPenalty(model, options.strength)
        log = ScaleLog(context.directory / SCALES, options.strength, lambda: _all_scales(model))
        subgradient = options.penalty == "subgradient"
        folder = context.directory / "sparse"
        folder.mkdir(exist_ok=True)
        fit(
            model,
            context.splits,
            options.train,
            directory=folder,
            seed=context.seed,
            device=context.device,
            after_backward=penalty if subgradient else None,
            after_step=None if subgradient else penalty.proximal,
            after_epoch=log.after_epoch,
            progress=context.progress,
            name="sparse training",
            field="method.train",
        )
        save_state(result, model)
    model = context.fresh(context.seed)
    return restore(model, load_state(result)).to(context.device)


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that have scales, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.affine
    }


def _all_scales(model: nn.Module) -> Tensor:
    """|γ| of every batch norm ``[N]``, float32 on the CPU."""
    return torch.cat([n.weight.detach().float().cpu().abs() for n in _norms(model).values()])


def _threshold(scales: Tensor, ratio: float) -> float:
    """The |γ| up to which the published rule drops."""
    return float(scales.sort().values[int(len(scales) * ratio)])


def _strongest_scales(model: nn.Module, graph: ChannelGraph) -> NDArray[np.float32]:
    """The largest |γ| of each channel ``[total]`` over its batch norms; NaN where it has none."""
    scales = {
        f"{name}.weight": norm.weight.detach().float().cpu().abs().numpy()
        for name, norm in _norms(model).items()
    }
    strongest = np.full(graph.total + 1, np.nan, np.float32)
    for slot in graph.slots:
        for name in slot.parameters:
            if slot.role in ("scale", "selected scale") and name in scales:
                # fmax takes the number where one of the two is NaN.
                np.fmax.at(strongest, slot.channels, scales[name])
    return strongest[: graph.total]


def _refuse_empty(group: str, threshold: float, on_empty: OnEmpty) -> None:
    if on_empty == "keep":
        return
    what = f"slimming: every |γ| of group {group!r} is at most the threshold {threshold:.3g}"
    raise PlanError(f"{what}; expected a smaller ratio, or on_empty keep")
