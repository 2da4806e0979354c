"""The sparsity penalty of network slimming, for any training loop."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fastprune.errors import FastpruneError, nearest
from fastprune.ops import gamma_penalty, gamma_proximal_, gamma_subgradient_
from fastprune.ops._checks import check_type

__all__ = ["SparsityPenalty"]


class SparsityPenalty:
    """s·Σ|γ| over the batch norm scales γ of a network, added to the gradients by its subgradient.

    Liu et al., *Learning Efficient Convolutional Networks through Network Slimming*, ICCV 2017,
    equation 1. Nothing is added to the loss: one call after the backward pass adds s·sign(γ) to
    the gradients of all scales. ::

        penalty = SparsityPenalty(model, 1e-4)
        for images, labels in loader:
            loss(model(images), labels).backward()
            penalty()
            optimizer.step()

    Once an optimizer step, when the gradients are complete:

    * accumulation: after the backward pass of the last part, not after each;
    * DistributedDataParallel: after the backward pass, which has averaged the gradients; every
      rank then adds the same;
    * GradScaler: after ``scaler.unscale_(optimizer)``; or before it by ``penalty(scaler)``, which
      scales the penalty as the gradients are;
    * gradient clipping: after it, unless the penalty is to be clipped too.

    `attach` lets the optimizer make the call at that point by itself.

    Args:
        model: its batch norms with scales are penalised; frozen ones are left alone.
        strength: s; or s by batch norm: a mapping of names or patterns (``"layer3.*"``), the first
            that matches counts, and a batch norm that none matches is left alone; or s as a 0-dim
            float32 tensor where the scales are, not negative, which is read on the device at
            every call, so that it may be changed in place between the replays of a CUDA graph.

    Raises:
        FastpruneError: there is no such batch norm, or a pattern matches none.
        ValueError: a strength is negative or no number, or a tensor is not as above.
    """

    capturable = True
    """All is done on the device, so its calls may be a part of a CUDA graph."""

    def __init__(self, model: nn.Module, strength: float | Mapping[str, float] | Tensor) -> None:
        self._factor = strength if isinstance(strength, Tensor) else None
        if isinstance(strength, Tensor):
            if strength.shape != () or strength.dtype != torch.float32:
                raise ValueError(
                    f"strength: expected a 0-dim float32 tensor, got {list(strength.shape)} of "
                    f"{strength.dtype}"
                )
            strength = 1.0
        check_type("model", model, nn.Module, "a network")
        by_pattern = strength if isinstance(strength, Mapping) else {"*": strength}
        for pattern, value in by_pattern.items():
            check_type("strength", value, Real, "a number")
            if not 0 <= value < float("inf"):
                raise ValueError(f"strength: expected a number ≥ 0, got {value} for {pattern!r}")
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.affine
        }
        if not norms:
            raise FastpruneError("sparsity penalty: the network has no batch norm with scales")
        strengths: dict[str, float] = {}
        used = set()
        for name in norms:
            for pattern, value in by_pattern.items():
                if fnmatchcase(name, pattern):
                    strengths[name] = float(value)
                    used.add(pattern)
                    break
        idle = [pattern for pattern in by_pattern if pattern not in used]
        if idle:
            known = nearest(idle[0], norms)
            raise FastpruneError(
                f"strength: {idle[0]!r} is the first match of no batch norm{known}"
            )
        computed = [name for name in strengths if "weight" not in norms[name]._parameters]
        if computed:
            raise FastpruneError(
                f"sparsity penalty: the scales of {computed[0]!r} are computed (parametrized or "
                "masked), so no gradient of theirs is kept; remove that first"
            )
        strengths = _without_ties(norms, strengths)
        self._norms = tuple(norms[name] for name in strengths)
        self._tensors: dict[tuple[torch.device, float | tuple[float, ...]], Tensor] = {}
        self.strengths = strengths
        """s of each penalised batch norm, by name; 1, times the tensor, where s is a tensor."""
        # One number is cheaper to hand over than one a layer.
        different = set(strengths.values())
        self._uniform = different.pop() if len(different) == 1 else None

    def __call__(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Adds s·sign(γ) to the gradient of each scale that has one, sign(0) = 0.

        Args:
            scaler: the one whose scale the gradients still have.
        """
        scale = None
        if scaler is not None and scaler.is_enabled():
            # scaler.get_scale() would wait for the device.
            scale = scaler.scale(torch.ones((), device=self._norms[0].weight.device))
        self._add(scale)

    def proximal(self, learning_rate: float | Tensor) -> None:
        """The other way to train by the penalty, after ``optimizer.step()`` and instead of the
        call before it: each γ moves towards zero by learning rate · s and not beyond, which makes
        exact zeros.

        Args:
            learning_rate: a float32 tensor of one number, where the scales are, is read on the
                device, so that a captured CUDA graph takes its present value.
        """
        trained = [
            (norm.weight, strength)
            for norm, strength in zip(self._norms, self.strengths.values(), strict=True)
            if norm.weight.requires_grad
        ]
        if not trained:
            return
        scales, strengths = zip(*trained, strict=True)
        factor = learning_rate if self._factor is None else self._factor * learning_rate
        if isinstance(factor, Tensor):
            gamma_proximal_(scales, self._on(factor.device, list(strengths)) * factor)
        else:
            gamma_proximal_(scales, [learning_rate * strength for strength in strengths])

    @torch.no_grad()
    def value(self) -> Tensor:
        """s·Σ|γ|, a number on the network's device, without gradient: for logs."""
        total = torch.zeros((), device=self._norms[0].weight.device)
        for strength in sorted(set(self.strengths.values())):
            of_strength = zip(self._norms, self.strengths.values(), strict=True)
            total += strength * gamma_penalty([n.weight for n, s in of_strength if s == strength])
        return total if self._factor is None else total * self._factor

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Adds the penalty at the start of every ``optimizer.step()``, when the gradients are
        complete, a GradScaler's included, to those scales that the optimizer trains. Attach it
        once to each optimizer.

        Returns:
            A handle whose ``remove()`` ends it.

        Raises:
            FastpruneError: the optimizer trains none of the scales; or, at a step, it was given a
                closure, which computes the gradients later.
        """
        if not self._trained_by(optimizer):
            raise FastpruneError("optimizer: it trains no batch norm scale of this network")

        def before_step(
            stepping: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> None:
            # The optimizer itself may be the first of the two.
            if any(callable(given) for given in (*args[-1:], *kwargs.values())):
                raise FastpruneError(
                    "sparsity penalty: optimizer.step(closure) computes gradients after the "
                    "penalty was added; call the penalty inside the closure, unattached"
                )
            # A fused optimizer unscales by itself, later; GradScaler leaves it the scale here.
            self._add(getattr(stepping, "grad_scale", None), self._trained_by(stepping))

        return optimizer.register_step_pre_hook(before_step)

    def _add(self, scale: Tensor | None, only: set[int] | None = None) -> None:
        scales: list[Tensor] = []
        gradients: list[Tensor] = []
        each: list[float] = []
        for norm, strength in zip(self._norms, self.strengths.values(), strict=True):
            # Past nn.Module.__getattr__, which costs more than the penalty does.
            weight = norm._parameters["weight"]
            gradient = None if weight is None else weight.grad
            if weight is None or gradient is None or (only is not None and id(weight) not in only):
                continue
            scales.append(weight)
            gradients.append(gradient)
            each.append(strength)
        if not scales:
            return
        strengths = each if self._uniform is None else self._uniform
        if self._factor is not None:
            scale = self._factor if scale is None else self._factor * scale
        if scale is not None:
            gamma_subgradient_(scales, gradients, self._on(scale.device, strengths) * scale)
        else:
            gamma_subgradient_(scales, gradients, strengths)

    def _trained_by(self, optimizer: Optimizer) -> set[int]:
        """Ids of the scales among an optimizer's parameters."""
        own = {id(norm._parameters["weight"]) for norm in self._norms}
        return {id(p) for group in optimizer.param_groups for p in group["params"]} & own

    def _on(self, device: torch.device, strengths: float | list[float]) -> Tensor:
        """Strengths as a tensor, made once: a copy to a GPU would wait for it at every step."""
        key = (device, tuple(strengths) if isinstance(strengths, list) else strengths)
        if key not in self._tensors:
            self._tensors[key] = torch.tensor(strengths, dtype=torch.float32, device=device)
        return self._tensors[key]


def _without_ties(
    norms: Mapping[str, _BatchNorm], strengths: Mapping[str, float]
) -> dict[str, float]:
    """Strengths with the first of those batch norms alone that share their scales."""
    first: dict[int, str] = {}
    for name, strength in strengths.items():
        owner = first.setdefault(id(norms[name].weight), name)
        if strengths[owner] != strength:
            raise FastpruneError(
                f"strength: {owner!r} and {name!r} share their scales; expected one strength for "
                f"both, got {strengths[owner]} and {strength}"
            )
    return {name: strengths[name] for name in first.values()}
