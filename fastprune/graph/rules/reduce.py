"""Ops that take an axis away."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastprune.graph.channels import ChannelTracker
from fastprune.graph.program import Op
from fastprune.graph.rules._table import rule

__all__: list[str] = []


def _dims(op: Op) -> tuple[int, ...] | None:
    """The reduced axes, or None for all of them."""
    position = 2 if op.name in ("norm", "vector_norm", "quantile", "kthvalue") else 1
    dim = op.arg(position, "dim", op.kwargs.get("axis"))
    if dim is None or dim == []:
        return None
    ndim = len(op.inputs[0].shape)
    items = dim if isinstance(dim, (tuple, list)) else (dim,)
    return tuple(int(d) % ndim for d in items)


def _keepdim(op: Op) -> bool:
    position = 3 if op.name in ("norm", "var", "std", "vector_norm", "quantile", "kthvalue") else 2
    return bool(op.arg(position, "keepdim", op.kwargs.get("keepdims", False)))


def reduced_shape(op: Op) -> Any:
    if op.name in ("max", "min", "median", "mode", "kthvalue", "norm", "var", "std", "quantile"):
        return None  # several signatures, some with two outputs: the meta device knows
    dims, shape = _dims(op), op.inputs[0].shape
    if dims is None:
        dims = tuple(range(len(shape)))
    if _keepdim(op):
        return tuple(1 if i in dims else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in dims)


@rule(
    *[
        "mean",
        "sum",
        "amax",
        "amin",
        "logsumexp",
        "prod",
        "max",
        "min",
        "median",
        "norm",
        "vector_norm",
        "var",
        "std",
        "argmax",
        "argmin",
        "any",
        "all",
        "count_nonzero",
        "nansum",
        "nanmean",
        "mode",
        "quantile",
        "kthvalue",
    ],
    shape=reduced_shape,
)
def reduction(tracker: ChannelTracker, op: Op) -> None:
    """Over space or batch the channels stay; over the channel axis each counts, so they are
    frozen.
    """
    if len(op.inputs) > 1:  # max(a, b) is elementwise
        from fastprune.graph.rules.combine import elementwise

        elementwise(tracker, op)
        return
    ids = tracker.map(op.inputs[0])
    if ids is None:
        tracker.fix(op.inputs[0], f"{op.name} (op {op.index}) computes with it")
        return
    dims = _dims(op)
    if dims is None or any(ids.shape[d] > 1 for d in dims):
        tracker.stop(op, f"{op.name} (op {op.index}) reduces over these channels")
        return
    if len(op.outputs[0].shape) != ids.ndim:
        ids = np.squeeze(ids, axis=dims)
    tracker.pass_on(op, ids)
