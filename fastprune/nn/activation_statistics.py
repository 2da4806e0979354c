"""Zeros of the activations of any network, layer by layer, over a loader."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from fastprune.errors import FastpruneError, nearest
from fastprune.nn.relu_with_zero_count import ReLUWithZeroCount
from fastprune.ops import zero_count
from fastprune.ops._checks import check_type

__all__ = ["ActivationStatistics"]

ACTIVATIONS = (nn.ReLU, nn.ReLU6, ReLUWithZeroCount)


class ActivationStatistics:
    """Counts the exact zeros of chosen layers' outputs, by channel, while the network runs. ::

        with ActivationStatistics(model) as stats, torch.inference_mode():
            for images, _ in loader:
                model(images)
        stats.apoz()["layer1.0.relu"]  # float64 [C]

    Counts are exact integers: the same whatever the batch size. A module that a forward pass calls
    several times (the one ``relu`` of a torchvision residual block) has an entry a call: ``relu``,
    ``relu#2``, ``relu#3``; where not the network is called but a part or a method of it, calls
    cannot be told apart and have one entry. Calls of ``F.relu`` are no modules and are not seen.
    Networks that were compiled before the block run uncompiled in it: their graphs do not see
    hooks.
    Threads may call the network at the same time.

    Args:
        model: any network; hooks are there between entering and leaving the ``with`` block.
        layers: names or patterns of modules (``"features.*"``); every ReLU and ReLU6 if None. The
            output of each is one floating tensor ``[N, C, ...]``.

    Raises:
        TypeError: the model is no network.
        FastpruneError: a pattern matches no module, or there is no ReLU.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] | None = None) -> None:
        check_type("model", model, nn.Module, "a network")
        self._model = model
        self._layers = _chosen(model, layers)
        self._undo = ExitStack()
        self._lock = threading.Lock()
        # Each thread's calls of a forward pass; none outside of one.
        self._passes = threading.local()
        self._zeros: dict[str, Tensor] = {}
        self._positions: dict[str, int] = {}

    def __enter__(self) -> ActivationStatistics:
        handles = [
            self._model.register_forward_pre_hook(self._begin),
            self._model.register_forward_hook(self._end, always_call=True),
        ]
        for name, module in self._layers.items():
            handles.append(module.register_forward_hook(self._counter(name)))
        for handle in handles:
            self._undo.callback(handle.remove)
        # Loading dynamo takes seconds; before, nothing is compiled.
        if "torch._dynamo" in sys.modules:
            self._undo.enter_context(torch.compiler.set_stance("force_eager"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()

    def zeros(self) -> dict[str, Tensor]:
        """Zeros seen so far by layer: int64 ``[C]``."""
        self._check_seen()
        return {name: counter.clone() for name, counter in self._zeros.items()}

    def apoz(self) -> dict[str, Tensor]:
        """Average percentage of zeros by layer, as a fraction: float64 ``[C]``.

        Hu et al., *Network Trimming*, 2016, equation 1.

        Raises:
            FastpruneError: nothing ran, or a layer was not called.
        """
        self._check_seen()
        return {
            name: counter.double() / self._positions[name] for name, counter in self._zeros.items()
        }

    def _check_seen(self) -> None:
        unseen = [name for name in self._layers if name not in self._zeros]
        if unseen:
            raise FastpruneError(
                f"activation statistics: {len(unseen)} of {len(self._layers)} layers were not "
                f"called ({', '.join(unseen[:3])}); run the network inside the with block"
            )

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._passes.calls = {}

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._passes.calls = None

    def _counter(self, name: str) -> Any:
        def count(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim < 2 or not output.is_floating_point():
                given = (
                    f"{output.dtype} {list(output.shape)}"
                    if isinstance(output, Tensor)
                    else f"a {type(output).__name__}"
                )
                raise FastpruneError(
                    f"layers: expected of {name!r} one floating tensor [N, C, ...], got {given}"
                )
            calls = getattr(self._passes, "calls", None)
            key = name
            if calls is not None:
                calls[name] = calls.get(name, 0) + 1
                key = name if calls[name] == 1 else f"{name}#{calls[name]}"
            with self._lock:
                self._count(key, output)

        return count

    def _count(self, key: str, output: Tensor) -> None:
        counter = self._zeros.get(key)
        if counter is not None and counter.device != output.device:
            counter = counter.to(output.device)
        # Graphs of torch.inference_mode must not hold the counter: it outlives them.
        with torch.inference_mode(False):
            self._zeros[key] = zero_count(output.detach(), counter=counter)
        positions = output.numel() // max(output.shape[1], 1)
        self._positions[key] = self._positions.get(key, 0) + positions


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    modules = {name: module for name, module in model.named_modules() if name}
    if layers is None:
        found: dict[str, nn.Module] = {
            n: m for n, m in modules.items() if isinstance(m, ACTIVATIONS)
        }
        if not found:
            raise FastpruneError(
                "activation statistics: the network has no ReLU module, and calls of F.relu are "
                "not seen; name layers"
            )
        return found
    for pattern in layers:
        if not any(fnmatchcase(name, pattern) for name in modules):
            known = nearest(pattern, modules)
            raise FastpruneError(f"layers: {pattern!r} matches no module{known}")
    return {n: m for n, m in modules.items() if any(fnmatchcase(n, p) for p in layers)}
