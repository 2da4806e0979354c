"""Genes: structures as one of 31 widths an id, an id being the groups it governs (MetaPruning)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastprune.errors import PlanError
from fastprune.graph.channel_graph import ChannelGraph
from fastprune.graph.plan import PruningPlan
from fastprune.records import Widths

__all__ = [
    "LEVELS",
    "WHOLE",
    "Encoding",
    "GeneTable",
    "block_encodings",
    "gene_scales",
    "gene_table",
]

LEVELS = 31
"""Widths that an id chooses from: id i keeps 10 + 3i percent of the channels."""

WHOLE = -1
"""The id that keeps all channels, as ``LEVELS - 1`` does; the only one a fixed id takes."""

_TOP = LEVELS - 1


def gene_scales(genes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of the channels that each id keeps, 0.10 to 1.00, in the shape of ``genes``."""
    return _percent(genes) / 100


def _percent(genes: NDArray[np.int64]) -> NDArray[np.int64]:
    return 10 + 3 * (np.asarray(genes, np.int64) % LEVELS)


@dataclass(frozen=True, slots=True)
class Encoding:
    """What the weights of a convolution are generated from.

    Attributes:
        ids: positions of the ids whose scales are read, None for a scale that is 1.0 always.
        hidden: width of the hidden layer of the generating network.
    """

    ids: tuple[int | None, ...]
    hidden: int


@dataclass(frozen=True, slots=True)
class GeneTable:
    """Which channel groups each id of a gene governs.

    The id i keeps ``C * (10 + 3i) // 100`` of a group's C channels, its first ones, and at least
    one; -1 keeps all.

    Attributes:
        names: of the ids, in the order of a gene; what stands before a dot is the id's stage.
        groups: of each id, the channel groups that it governs.
        bases: of each id, the channels that it chooses from.
        fixed: positions of ids that are -1 always.
        outputs: positions of the ids of what the stem, each block and the last convolution give,
            in the order of the network; those without an id left out.
        middles: positions of the ids of each block's inner channels, in the order of the network.
        layouts: other published orders, each the positions that its numbers stand for. A position
            that occurs several times must get one value, one that does not occur is whole.
        encodings: of each convolution, what a pruningnet generates its weights from; empty where
            the literature has none.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    bases: tuple[int, ...]
    fixed: frozenset[int]
    outputs: tuple[int, ...]
    middles: tuple[int, ...]
    layouts: tuple[tuple[int, ...], ...] = ()
    encodings: Mapping[str, Encoding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.groups) == len(self.bases):
            raise ValueError(
                f"genes: expected groups and a base for each of {len(self.names)} names, got "
                f"{len(self.groups)} and {len(self.bases)}"
            )
        governed = [name for names in self.groups for name in names]
        twice = sorted({name for name in governed if governed.count(name) > 1})
        if twice:
            raise ValueError(f"genes: {twice[0]!r} gets its width twice; expected once")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def stages(self) -> tuple[str, ...]:
        """Of each id, the stage that it belongs to."""
        return tuple(name.partition(".")[0] for name in self.names)

    @property
    def low(self) -> tuple[int, ...]:
        """The lowest value of each id, from 0 on: for a search."""
        return tuple(_TOP if i in self.fixed else 0 for i in range(len(self.names)))

    @property
    def high(self) -> tuple[int, ...]:
        """The highest value of each id."""
        return (_TOP,) * len(self.names)

    def read(self, given: str | Sequence[float]) -> tuple[int, ...]:
        """The gene in a text or in numbers, brought into the order of this table.

        Args:
            given: ids in the order of this table or of one of ``layouts``, separated by commas or
                spaces, brackets allowed; one more number, the top-1 error of the search that found
                the gene, is left out. ``baseline`` is the gene that keeps everything. Where a
                length can be read as a gene and as a shorter one with its error, whole numbers are
                the gene.

        Raises:
            PlanError: something is not a number, another length, an id that is not a whole number
                from -1 to 30, a fixed id that is not whole, or repeated ids that differ.
        """
        if isinstance(given, str) and given.strip().lower() == "baseline":
            return (WHOLE,) * len(self.names)
        numbers = _numbers(given)
        orders = {len(order): order for order in (*self.layouts, tuple(range(len(self.names))))}
        order = orders.get(len(numbers))
        error = None
        if order is None or numbers[-1] != int(numbers[-1]):
            shorter = orders.get(len(numbers) - 1)
            if shorter is not None:
                order, error = shorter, numbers[-1]
        if order is None:
            lengths = " or ".join(str(n) for n in sorted(orders))
            raise PlanError(
                f"gene: expected {lengths} ids, and at most the search's error after them; got "
                f"{len(numbers)} numbers"
            )
        if error is not None and not 0 <= error <= 100:
            raise PlanError(
                f"gene: number {len(numbers)}, after {len(order)} ids: expected the search's "
                f"error in percent, got {error:g}"
            )
        found: dict[int, tuple[int, int]] = {}
        for at, (position, number) in enumerate(zip(order, numbers, strict=False), start=1):
            name = self.names[position]
            if number != int(number) or not WHOLE <= number < LEVELS:
                raise PlanError(
                    f"gene: number {at} ({name}): expected a whole number from {WHOLE} to {_TOP}, "
                    f"got {number:g}"
                )
            first, before = found.setdefault(position, (at, int(number)))
            if before % LEVELS != int(number) % LEVELS:
                raise PlanError(
                    f"gene: numbers {first} and {at} are both of {name}: expected one value, got "
                    f"{before} and {number:g}"
                )
        gene = tuple(found[i][1] if i in found else WHOLE for i in range(len(self.names)))
        self.check(gene)
        return gene

    def check(self, gene: Sequence[int]) -> None:
        """Raises PlanError unless ``gene`` has an id from -1 to 30 for every name, in its order,
        and the fixed ones are whole.
        """
        if len(gene) != len(self.names):
            raise PlanError(f"gene: expected {len(self.names)} ids, got {len(gene)}")
        for i, (name, number) in enumerate(zip(self.names, gene, strict=True)):
            whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
            if not whole or not WHOLE <= number < LEVELS:
                raise PlanError(
                    f"gene: number {i + 1} ({name}): expected a whole number from {WHOLE} to "
                    f"{_TOP}, got {number!r}"
                )
            if i in self.fixed and number % LEVELS != _TOP:
                raise PlanError(
                    f"gene: number {i + 1} ({name}) is fixed: expected {WHOLE}, got {number}"
                )

    def channels(self, gene: Sequence[int]) -> tuple[int, ...]:
        """The channels that each id leaves."""
        self.check(gene)
        return tuple(_widths(np.array(self.bases), np.array(gene)).tolist())

    def widths(self, gene: Sequence[int]) -> Widths:
        """Widths of the groups that the gene governs.

        Raises:
            PlanError: as :meth:`check`.
        """
        channels = self.channels(gene)
        return {
            group: width
            for names, width in zip(self.groups, channels, strict=True)
            for group in names
        }

    def gene(self, widths: Widths) -> tuple[int, ...]:
        """The gene that leaves ``widths``, of several the one with the lowest ids.

        Narrow groups have fewer widths than ids, so that a gene may come back as another one; it
        leaves the same network. Fixed ids and those without groups are -1.

        Args:
            widths: of the groups that the gene governs; those not given are whole.

        Raises:
            PlanError: a group that no id governs is not whole, or an id has no such width.
        """
        governed = {group: i for i, groups in enumerate(self.groups) for group in groups}
        for group in widths:
            if group not in governed:
                raise PlanError(f"genes: no id governs the width of {group!r}")
        found = []
        for i, (name, base) in enumerate(zip(self.names, self.bases, strict=True)):
            wanted = {widths.get(group, base) for group in self.groups[i]} or {base}
            levels = range(_TOP if i in self.fixed else 0, LEVELS)
            left = _widths(np.array(base), np.array(levels)).tolist()
            ids = [level for level, width in zip(levels, left, strict=True) if {width} == wanted]
            if not ids:
                shown = " and ".join(str(n) for n in sorted(wanted))
                raise PlanError(f"genes: no id of {name} leaves {shown} of {base} channels")
            found.append(WHOLE if i in self.fixed else ids[0])
        return tuple(found)

    def plan(self, gene: Sequence[int]) -> PruningPlan:
        """The plan that keeps the first channels of every group that the gene governs.

        Raises:
            PlanError: as :meth:`check`.
        """
        full = {
            group: base
            for names, base in zip(self.groups, self.bases, strict=True)
            for group in names
        }
        widths = self.widths(gene)
        return PruningPlan({name: tuple(range(n)) for name, n in widths.items()}, full)

    def width_matrix(self, graph: ChannelGraph, genes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Widths of many genes, for ``graph.costs``.

        Args:
            graph: the graph that the table was made for.
            genes: integers ``[K, ids]`` from -1 to 30. That fixed ids are whole is not looked at.

        Returns:
            int64 ``[K, groups]`` in the order of ``graph.groups``; groups of no id are whole.

        Raises:
            ValueError: genes of another shape or out of range.
            PlanError: a table of another network.
        """
        genes = np.asarray(genes)
        if genes.ndim != 2 or genes.shape[1] != len(self.names) or genes.dtype.kind not in "iu":
            raise ValueError(
                f"genes: expected integers [K, {len(self.names)}], got {genes.dtype} "
                f"{list(genes.shape)}"
            )
        if ((genes < WHOLE) | (genes >= LEVELS)).any():
            raise ValueError(f"genes: expected each from {WHOLE} to {_TOP}")
        column = {group.name: i for i, group in enumerate(graph.groups)}
        full = np.array([group.channels for group in graph.groups], np.int64)
        widths: NDArray[np.int64] = np.tile(full, (len(genes), 1))
        for i, names in enumerate(self.groups):
            at = [column[graph.group(name).name] for name in names]
            widths[:, at] = _widths(full[at], genes[:, i, None])
        return widths


def gene_table(
    graph: ChannelGraph,
    rows: Mapping[str, Sequence[str]],
    *,
    outputs: Sequence[str],
    middles: Sequence[str] = (),
    whole: Sequence[str] = (),
    layouts: Sequence[Sequence[str]] = (),
    encodings: Mapping[str, tuple[Sequence[str | None], int]] | None = None,
) -> GeneTable:
    """The table of a traced network.

    Groups that the graph does not have, such as those of layers in ``keep``, leave their ids; an
    id without groups stays part of the gene, and is fixed.

    Args:
        graph: the network's graph.
        rows: of each id, the convolutions whose output channels it governs, all equally many.
        outputs, middles, layouts: as in :class:`GeneTable`, by name.
        whole: names of ids that are fixed in any case.
        encodings: of a convolution, or of all those under a module, the names of the ids (None
            for a scale of 1.0) and the hidden width, as in :class:`Encoding`.

    Raises:
        PlanError: the network has no such convolution, or a convolution has no encoding.
    """
    made = {layer.weight.rpartition(".")[0]: layer.output_width for layer in graph.layers}
    for layers in rows.values():
        for layer in layers:
            if layer not in made:
                raise PlanError(f"genes: the network has no layer {layer!r}")
    there = {group.name for group in graph.groups}
    names = tuple(rows)
    position = {name: i for i, name in enumerate(names)}
    groups = tuple(tuple(layer for layer in rows[name] if layer in there) for name in names)
    return GeneTable(
        names=names,
        groups=groups,
        bases=tuple(made[rows[name][0]] for name in names),
        fixed=frozenset(i for i, name in enumerate(names) if name in whole or not groups[i]),
        outputs=tuple(position[name] for name in outputs),
        middles=tuple(position[name] for name in middles),
        layouts=tuple(tuple(position[name] for name in order) for order in layouts),
        encodings=_encodings(graph, encodings or {}, position),
    )


def block_encodings(
    modules: Sequence[str],
    middles: Sequence[str],
    outputs: Sequence[str | None],
    hidden: int,
) -> dict[str, tuple[Sequence[str | None], int]]:
    """Encodings of blocks as MetaPruning has them: their middle's scale, then those of what they
    get and of what they give.

    Args:
        modules: of the B blocks.
        middles: B names of ids.
        outputs: B + 1 names of ids, or None: what the stem and then each block gives.
        hidden: as in :class:`Encoding`.
    """
    ends = zip(modules, middles, outputs[:-1], outputs[1:], strict=True)
    return {module: ((middle, got, given), hidden) for module, middle, got, given in ends}


def _encodings(
    graph: ChannelGraph,
    given: Mapping[str, tuple[Sequence[str | None], int]],
    position: Mapping[str, int],
) -> dict[str, Encoding]:
    if not given:
        return {}
    found = {}
    for row in graph.layers:
        if row.kind != "conv":
            continue
        layer = row.weight.rpartition(".")[0]
        parts = layer.split(".")
        modules = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        module = next((name for name in modules if name in given), None)
        if module is None:
            raise PlanError(f"genes: the weights of {layer!r} have no encoding")
        names, hidden = given[module]
        ids = tuple(None if name is None else position[name] for name in names)
        found[layer] = Encoding(ids, hidden)
    return found


def _widths(bases: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The channels that ids leave of ``bases``."""
    left: NDArray[np.int64] = np.maximum(bases * _percent(ids) // 100, 1)
    return left


def _numbers(given: str | Sequence[float]) -> list[float]:
    """The finite numbers in a text or a sequence."""
    items: Sequence[object]
    if isinstance(given, str):
        items = [item for item in re.split(r"[\s,\[\]()]+", given) if item]
    else:
        items = list(given)
    numbers = []
    for item in items:
        number = _number(item)
        if number is None:
            raise PlanError(f"gene: expected ids such as '27 28 29 -1', got {item!r:.80}")
        numbers.append(number)
    if not numbers:
        raise PlanError("gene: expected ids such as '27 28 29 -1', got none")
    return numbers


def _number(item: object) -> float | None:
    if isinstance(item, bool) or not isinstance(item, (str, int, float, np.number)):
        return None
    try:
        number = float(item)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
