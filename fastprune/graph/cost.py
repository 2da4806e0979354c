"""Closed-form cost: MACs, params, channels and bytes of any widths, without building a network.

Every dimension that holds channels is a linear form of the group widths; a layer's MACs and a
parameter's size are a coefficient times the product of two such forms. Equal pairs of forms are
added up once, so one evaluation is a small matrix product, a gather and a dot product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastprune.graph.channels import Map
from fastprune.records import Cost

if TYPE_CHECKING:
    from fastprune.graph.channel_graph import ChannelGraph

__all__ = ["CostModel", "Costs", "cost_model_of", "width_form"]

Ints = NDArray[np.int64]


class Costs(NamedTuple):
    """Costs of K candidates: int64 arrays ``[K]``, and ``size_mb`` float64 ``[K]``."""

    macs: Ints
    params: Ints
    channels: Ints
    size_mb: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CostModel:
    """Cost as a function of the group widths.

    ``form[r] = forms[r, 0] + forms[r, 1:] @ widths``; cost ``= coefficients.T @ (form[left] *
    form[right])``.

    Attributes:
        forms: float64 ``[R, 1 + groups]``; float64 holds every integer that occurs exactly (up to
            2^53).
        left, right: int64 ``[T]``, rows of ``forms``.
        coefficients: float64 ``[T, 4]`` for macs, params, channels, bytes.
    """

    forms: NDArray[np.float64]
    left: Ints
    right: Ints
    coefficients: NDArray[np.float64]

    def one(self, widths: NDArray[np.float64] | Sequence[float]) -> Cost:
        """The cost of one vector of widths ``[groups]``."""
        macs, params, channels, size = self.raw(np.asarray(widths, np.float64))
        return Cost(int(macs), int(params), int(channels), float(size) / 1e6)

    def raw(self, widths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Macs, params, channels, bytes ``[..., 4]`` of widths ``[..., groups]``."""
        forms = widths @ self.forms[:, 1:].T + self.forms[:, 0]
        values: NDArray[np.float64] = (
            forms[..., self.left] * forms[..., self.right]
        ) @ self.coefficients
        return values

    def many(self, widths: Ints) -> Costs:
        """The costs of K candidates, widths ``[K, groups]``, by the compiled kernel."""
        from fastprune.kernels.numba.cost import candidate_costs

        raw = candidate_costs(
            np.ascontiguousarray(widths, np.int64),
            *_sparse(self.forms),
            self.left,
            self.right,
            self.coefficients,
        )
        macs, params, channels = (raw[:, i].astype(np.int64) for i in range(3))
        return Costs(macs, params, channels, raw[:, 3] / 1e6)


def _sparse(
    forms: NDArray[np.float64],
) -> tuple[NDArray[np.float64], Ints, Ints, NDArray[np.float64]]:
    """Constant, row starts, columns and values of the forms: few groups appear in a form."""
    rows, columns = np.nonzero(forms[:, 1:])
    starts = np.searchsorted(rows, np.arange(len(forms) + 1))
    return forms[:, 0].copy(), starts, columns, forms[rows, columns + 1]


class Term(NamedTuple):
    """``coefficients * left * right``, forms by their row."""

    left: int
    right: int
    coefficients: tuple[float, float, float, float]


def _added_up(forms: NDArray[np.float64], terms: Sequence[Term]) -> CostModel:
    """Adds up the terms with equal forms."""
    if not terms:
        empty = np.zeros(0, np.int64)
        return CostModel(forms, empty, empty, np.zeros((0, 4)))
    left = np.array([min(t.left, t.right) for t in terms])
    right = np.array([max(t.left, t.right) for t in terms])
    key = left * len(forms) + right
    unique, index = np.unique(key, return_inverse=True)
    coefficients = np.zeros((len(unique), 4))
    np.add.at(coefficients, index, np.array([t.coefficients for t in terms], np.float64))
    return CostModel(forms, unique // len(forms), unique % len(forms), coefficients)


def width_form(graph: ChannelGraph, channels: Map) -> NDArray[np.float64]:
    """How many of ``channels`` are left at given widths, as ``form[0] + form[1:] @ widths``.

    Args:
        graph: of the network.
        channels: as in ``Slot.channels``.
    """
    sizes = np.array([g.channels for g in graph.groups], np.int64)
    bounds = np.array([g.start for g in graph.groups], np.int64)
    form = np.zeros(len(sizes) + 1)
    movable = channels[channels < graph.total]
    form[0] = len(channels) - len(movable)
    if len(movable):
        owner = np.searchsorted(bounds, movable, side="right") - 1
        form[1:] = np.bincount(owner, minlength=len(sizes)) / sizes
    return form


def cost_model_of(graph: ChannelGraph) -> CostModel:
    """Every layer and every parameter as a product of two linear forms of the widths."""
    rows: dict[bytes, int] = {}
    forms: list[NDArray[np.float64]] = []
    seen: dict[int, int] = {}

    def add(form: NDArray[np.float64]) -> int:
        key = form.tobytes()
        if key not in rows:
            rows[key] = len(forms)
            forms.append(form)
        return rows[key]

    def form_of(channels: Map | None, width: int) -> int:
        if channels is None:
            return one
        if id(channels) in seen:
            return seen[id(channels)]
        seen[id(channels)] = add(width_form(graph, channels))
        return seen[id(channels)]

    one = add(np.concatenate([[1.0], np.zeros(len(graph.groups))]))
    terms: list[Term] = []
    for layer in graph.layers:
        scale = float(layer.positions * layer.kernel)
        left = form_of(layer.outputs, layer.output_width)
        right = form_of(layer.inputs, layer.input_width)
        if layer.outputs is None:
            scale *= layer.output_width
        if layer.inputs is None:
            scale *= layer.input_width
        terms.append(Term(left, right, (scale, 0.0, 0.0, 0.0)))
        if layer.kind == "conv":
            width = 1.0 if layer.outputs is not None else float(layer.output_width)
            terms.append(Term(left, one, (0.0, 0.0, width, 0.0)))
    varying: dict[str, dict[int, Map]] = {}
    for slot in graph.slots:
        if slot.role not in ("select", "selected scale"):
            for name in slot.parameters:
                varying.setdefault(name, {})[slot.dim] = slot.channels
    for name, value in graph.tensors.items():
        dims = varying.get(name, {})
        fixed = 1.0
        sides = []
        for dim, size in enumerate(value.shape):
            if dim in dims:
                sides.append(form_of(dims[dim], size))
            else:
                fixed *= size
        sides += [one] * (2 - len(sides))
        counted = fixed if value.source == "parameter" else 0.0
        terms.append(Term(sides[0], sides[1], (0.0, counted, 0.0, fixed * value.dtype.itemsize)))
    return _added_up(np.array(forms), terms)
