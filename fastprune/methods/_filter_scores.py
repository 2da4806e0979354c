"""What a filter of a convolution is worth, by seven criteria: one score a filter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastprune.errors import FastpruneError, nearest
from fastprune.graph import ChannelGraph
from fastprune.methods._filters import Filters, filters_of

__all__ = ["DATA_CRITERIA", "FILTER_CRITERIA", "filter_scores"]

Batches = Iterable[tuple[Tensor, Tensor]]

FILTER_CRITERIA = ("remain", "magnitude", "l1", "l2", "saliency", "hessian", "random")
"""Names that :func:`filter_scores` knows."""

DATA_CRITERIA = ("l1", "l2", "saliency", "hessian")
"""Those that need batches."""


def filter_scores(
    criterion: str,
    model: nn.Module,
    graph: ChannelGraph,
    names: Sequence[str],
    *,
    masks: Mapping[str, Tensor] | None = None,
    batches: Batches | None = None,
    seed: int = 0,
    samples: int = 1,
) -> dict[str, Tensor]:
    """Scores of the filters of convolutions; the highest are worth most.

    ``remain``: how many weights the masks leave · ``magnitude``: Σ|w| · ``l1``, ``l2``: mean |f|
    and f² over the images and positions of the convolution's own output map f · ``saliency``: mean
    |f·∂L/∂f| there, L an image's cross entropy · ``hessian``: Σ|w|·∂²L/∂w² over the filter's
    weights, L the mean cross entropy, by Hutchinson's estimate · ``random``.

    What is seen of data does not depend on how images are batched (but for the draws of
    ``hessian``). Means of a convolution that runs several times are added up. The network is run
    in evaluation mode and is left as it was, gradients included.

    Args:
        criterion: one of `FILTER_CRITERIA`.
        model: the network.
        graph: its channel graph.
        names: weights of convolutions.
        masks: of those weights, for ``remain``.
        batches: (images ``[N, ...]``, labels int64 ``[N]``), for `DATA_CRITERIA`.
        seed: of ``random`` and ``hessian``, which draw on the CPU.
        samples: random vectors a batch, for ``hessian``.

    Returns:
        float32 ``[filters]`` on the CPU, by weight.

    Raises:
        FastpruneError: an unknown criterion, masks or batches that are missing, or a convolution
            that did not run.
    """
    if criterion not in FILTER_CRITERIA:
        hint = nearest(criterion, FILTER_CRITERIA)
        raise FastpruneError(f"criterion: unknown filter criterion {criterion!r}{hint}")
    filters = filters_of(graph, names)
    generator = torch.Generator().manual_seed(seed)
    if criterion == "random":
        return {n: torch.rand(len(f.channels), generator=generator) for n, f in filters.items()}
    if criterion == "remain":
        if masks is None:
            raise FastpruneError("criterion 'remain': counts what masks leave; expected masks")
        return {name: each.sums(masks[name]).float() for name, each in filters.items()}
    parameters = dict(model.named_parameters())
    weights = {name: parameters[name] for name in filters}
    if criterion == "magnitude":
        return {n: f.sums(weights[n].detach().abs()).float() for n, f in filters.items()}
    if batches is None:
        raise FastpruneError(
            f"criterion {criterion!r}: looks at data; expected batches of (images, labels)"
        )
    with _evaluated(model):
        if criterion == "hessian":
            return _curvature(model, weights, filters, batches, generator, samples)
        seen = _Maps(weights, _RECORDERS[criterion])
        _run(model, seen, batches, backward=criterion == "saliency")
    return seen.scores(criterion)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """The network uncompiled and in evaluation mode, and afterwards as it was."""
    # Not by model.eval(), which networks may override.
    training = [module for module in model.modules() if module.training]
    with ExitStack() as undo:
        # Loading dynamo takes seconds; before, nothing is compiled.
        if "torch._dynamo" in sys.modules:
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


Recorder = Callable[[Tensor, Callable[[Tensor], None]], None]
"""Takes an output map; hands values of its shape to the function, now or in the backward pass."""


def _record_absolute(made: Tensor, add: Callable[[Tensor], None]) -> None:
    add(made.detach().abs())


def _record_square(made: Tensor, add: Callable[[Tensor], None]) -> None:
    add(made.detach().square())


def _record_saliency(made: Tensor, add: Callable[[Tensor], None]) -> None:
    if made.requires_grad:
        # A copy: what follows may write to the map in place before its gradient is there.
        values = made.detach().clone()
        made.register_hook(lambda gradient: add((values * gradient.detach()).abs_()))  # type: ignore[no-untyped-call]


_RECORDERS: dict[str, Recorder] = {
    "l1": _record_absolute,
    "l2": _record_square,
    "saliency": _record_saliency,
}


class _Maps(TorchFunctionMode):
    """Sees the output maps of chosen convolutions, called as modules or as functions.

    A module's hook would miss calls of ``F.conv2d``, and stay behind where something raises.
    """

    def __init__(self, weights: Mapping[str, Tensor], record: Recorder) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items()}
        self._record = record
        self._calls: dict[str, int] = {}
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._counts: dict[tuple[str, int], int] = {}

    def start(self) -> None:
        """A forward pass begins."""
        self._calls = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if getattr(func, "__name__", "").startswith("conv"):
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            name = self._names.get(id(weight))
            if name is not None and isinstance(weight, Tensor):
                self._see(name, made, made.ndim - weight.ndim + 1)
        return made

    def _see(self, name: str, made: Tensor, axis: int) -> None:
        call = self._calls[name] = self._calls.get(name, 0) + 1
        key = name, call
        if key not in self._sums:
            self._sums[key] = torch.zeros(
                made.shape[axis], dtype=torch.float64, device=made.device
            )
            self._counts[key] = 0
        self._counts[key] += made.numel() // made.shape[axis]
        others = [dim for dim in range(made.ndim) if dim != axis]

        def add(values: Tensor) -> None:
            self._sums[key] += values.sum(others, dtype=torch.float64)

        self._record(made, add)

    def scores(self, criterion: str) -> dict[str, Tensor]:
        scores: dict[str, Tensor] = {}
        for name in self._names.values():
            calls = [key for key in self._counts if key[0] == name]
            if not calls:
                raise FastpruneError(
                    f"criterion {criterion!r}: the convolution of {name} was not seen to run"
                )
            means = [self._sums[key] / self._counts[key] for key in calls]
            scores[name] = torch.stack(means).sum(0).float().cpu()
        return scores


def _run(model: nn.Module, seen: _Maps, batches: Batches, *, backward: bool) -> None:
    device = _device(model)
    images_seen = 0
    with torch.set_grad_enabled(backward):
        for images, labels in batches:
            images = images.to(device)
            seen.start()
            if not backward:
                with seen:
                    model(images)
            else:
                # The pass back to a zero that was added to the images reaches every map, with
                # frozen weights too, and works out no gradient of a weight.
                zero = torch.zeros((), dtype=images.dtype, device=device, requires_grad=True)
                shifted = images + zero
                with seen:
                    made = model(shifted)
                loss = functional.cross_entropy(made, labels.to(device), reduction="sum")
                torch.autograd.grad(loss, zero)
            images_seen += len(images)
    if not images_seen:
        raise FastpruneError("batches: got no batch of (images, labels)")


def _curvature(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    filters: Mapping[str, Filters],
    batches: Batches,
    generator: torch.Generator,
    samples: int,
) -> dict[str, Tensor]:
    """Σ|w|·diag(H) of each filter, diag(H) as the mean of v ⊙ Hv over vectors of ±1."""
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    device = _device(model)
    tensors = list(weights.values())
    diagonals = [torch.zeros_like(w) for w in tensors]
    frozen = [w for w in tensors if not w.requires_grad]
    seen = 0
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad():
            for images, labels in batches:
                made = model(images.to(device))
                loss = functional.cross_entropy(made, labels.to(device), reduction="sum")
                gradients = torch.autograd.grad(
                    loss, tensors, create_graph=True, materialize_grads=True
                )
                for _ in range(samples):
                    signs = [_signs(w, generator) for w in tensors]
                    products = torch.autograd.grad(
                        gradients, tensors, signs, retain_graph=True, materialize_grads=True
                    )
                    for total, sign, product in zip(diagonals, signs, products, strict=True):
                        total.addcmul_(sign, product)
                seen += len(images)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    if not seen:
        raise FastpruneError("batches: got no batch of (images, labels)")
    scores = {}
    for (name, each), weight, total in zip(filters.items(), tensors, diagonals, strict=True):
        scores[name] = (each.sums(weight.detach().abs() * total) / (seen * samples)).float()
    return scores


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return drawn.to(like.device, like.dtype).mul_(2).sub_(1)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
