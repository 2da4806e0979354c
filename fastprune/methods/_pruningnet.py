"""MetaPruning's pruningnet: one network whose convolutions' weights are generated from the widths
that they are for, and what it gives for a gene.

Liu et al., *MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning*, ICCV 2019.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from fastprune.errors import PlanError
from fastprune.graph import ChannelGraph, GeneTable, PruningPlan, gene_scales, trace
from fastprune.graph.genes import LEVELS, WHOLE
from fastprune.ops import crop_generated_weights
from fastprune.training._union import Subnet

__all__ = ["GeneratedSubnets", "PruningNet", "Structures"]

Gene = Sequence[int]
Governed = Mapping[int, NDArray[np.int64]]


class PruningNet(nn.Module):
    """A network of which each convolution has a small network that generates its weights.

    For a convolution of O·I·k·k weights that is ``FC(scales -> hidden)``, ReLU, ``FC(hidden ->
    O·I·k·k)``; the scales are the shares of channels that the gene keeps around it
    (`Encoding`). The generated weights are cropped to their first output and input channels. Batch
    norms have neither scales nor running statistics: these would be of other structures. Whatever
    else has weights, such as the classifier, has them as in the network.

    In training mode a call is of the structure that ``structures`` has for this step, or, where
    there is none, of one of its own, drawn from torch's global CPU generator: every free id
    uniform. In evaluation mode it is `middle`, in which every id is the
    middle one; batch norms take the statistics of the batch at hand.

    Args:
        network: freshly built, on the CPU; only its structure and the weights outside
            convolutions are used.
        table: its genes.
        example: ``[1, C, H, W]``.

    Raises:
        PlanError: the genes have no encodings, or a convolution's channels are not the first ones
            of one group.
    """

    def __init__(self, network: nn.Module, table: GeneTable, example: Tensor) -> None:
        super().__init__()
        if not table.encodings:
            raise PlanError(
                "genes: nobody has said what this network's weights are generated from"
            )
        bare = _without_statistics(network)
        graph = trace(bare.eval(), example)
        others = {
            name: value
            for name, value in bare.named_parameters()
            if name.removesuffix(".weight") not in table.encodings
        }
        governed = _governed(graph, table)
        _check_whole(graph, governed, others)
        self.table = table
        self._layers = _layers(bare, graph, governed, table.encodings)
        self.other_names = tuple(others)
        # The structure alone, and no part of this module: nothing of it is trained.
        self._structure = (copy.deepcopy(bare).to("meta"),)
        self._graph = graph
        self.structures: Structures | None = None
        self.generators = nn.ModuleList(
            _Generator(len(encoding.ids), encoding.hidden, layer.shape)
            for layer, encoding in zip(self._layers, table.encodings.values(), strict=True)
        )
        self.others = nn.ParameterList(others.values())

    @property
    def middle(self) -> Gene:
        """The gene of all middle ids, about 0.55 of the channels everywhere."""
        return [WHOLE if i in self.table.fixed else LEVELS // 2 for i in range(len(self.table))]

    def draw(self, generator: torch.Generator | None = None) -> Gene:
        """A random gene, of torch's global generator if none is given."""
        ids = torch.randint(LEVELS, (len(self.table),), generator=generator).tolist()
        return [WHOLE if i in self.table.fixed else level for i, level in enumerate(ids)]

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.run(x, self.draw() if self.structures is None else self.structures.gene)
        if len(x) == 1:
            # Where maps are 1x1, batch norm refuses one image alone, such as a last one. With
            # another like it, mean and variance are the same.
            return self.run(torch.cat((x, x)), self.middle)[:1]
        return self.run(x, self.middle)

    def run(self, x: Tensor, gene: Gene) -> Tensor:
        """Logits ``[N, classes]`` of the network that ``gene`` leaves, differentiable."""
        (network,) = self._structure
        weights = dict(zip(self.other_names, self.others, strict=True))
        shapes = self.shapes([gene])[0]
        for layer, shape in zip(self._layers, shapes, strict=True):
            weights[f"{layer.name}.weight"] = self.generate(layer, [gene], [shape])[0]
            layer.set_groups(network, shape)
        logits: Tensor = functional_call(network, weights, (x,))
        return logits

    def shapes(self, genes: Sequence[Gene]) -> list[list[tuple[int, int]]]:
        """For each gene, output and input channels of each convolution's weight."""
        matrix = self.table.width_matrix(self._graph, np.array(genes, np.int64))
        found = []
        for widths in matrix.tolist():
            ends = [(layer.out.of(widths), layer.into.of(widths)) for layer in self._layers]
            found.append(ends)
        return found

    @property
    def layers(self) -> Sequence[_Layer]:
        """The convolutions."""
        return self._layers

    @property
    def graph(self) -> ChannelGraph:
        """Of the network without its batch norms' scales."""
        return self._graph

    def module(self, shapes: Sequence[tuple[int, int]]) -> nn.Module:
        """The network whose convolutions have ``shapes``, without weights, in evaluation mode.

        What surgery would leave, in a fraction of the time: channels are the first ones of every
        group, so that nothing but the widths has to be known.
        """
        small = _structure_of(self._structure[0])
        for layer, shape in zip(self._layers, shapes, strict=True):
            weight = torch.empty(*shape, *layer.shape[2:], device="meta")
            layer.conv(small).weight = nn.Parameter(weight)
            layer.set_groups(small, shape)
        return small.eval()

    def encodings(self, layer: _Layer, genes: Sequence[Gene]) -> NDArray[np.float64]:
        """``[K, E]``: the scales that the layer's weights are generated from."""
        scales = gene_scales(np.array(genes, np.int64))
        ids = self.table.encodings[layer.name].ids
        columns = [np.ones(len(genes)) if i is None else scales[:, i] for i in ids]
        return np.stack(columns, axis=1)

    def generate(
        self, layer: _Layer, genes: Sequence[Gene], shapes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """The layer's weights for each gene, cropped to ``shapes`` (output, input channels)."""
        if not genes:
            return []
        generator = cast("_Generator", self.generators[layer.number])
        encodings = torch.from_numpy(self.encodings(layer, genes))
        return crop_generated_weights(
            encodings.to(generator.fc2.weight, non_blocking=True),
            generator.fc1.weight,
            generator.fc1.bias,
            generator.fc2.weight,
            generator.fc2.bias,
            shape=layer.shape,
            out_channels=[out for out, _ in shapes],
            in_channels=[into for _, into in shapes],
        )


class Structures:
    """The structures of a training, one a step; a hook of it, so that its checkpoints have them.

    Args:
        net: takes its structures from here, from now on.
        seed: of the structures.
        rank: of a rank that has structures of its own; None where all ranks have the same.

    Attributes:
        gene: of this step.
    """

    def __init__(self, net: PruningNet, seed: int, rank: int | None = None) -> None:
        self._net, self._seed, self._rank = net, seed, rank
        self._generator = torch.Generator().manual_seed(seed)
        self._step = 0
        self.gene = self._drawn()
        net.structures = self

    def __call__(self, rate: object) -> None:
        """After a step: the structure of the next."""
        self._step += 1
        self.gene = self._drawn()

    def _drawn(self) -> Gene:
        if self._rank is not None:
            # Of rank and step alone: checkpoints hold the first rank's state.
            words = np.random.SeedSequence((self._seed, self._rank, self._step)).generate_state(2)
            self._generator.manual_seed(int(words.view(np.uint64)[0] >> np.uint64(1)))
        return self._net.draw(self._generator)

    def state_dict(self) -> dict[str, object]:
        """Tensors and plain data."""
        return {
            "generator": self._generator.get_state(),
            "gene": list(self.gene),
            "step": self._step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self._generator.set_state(state["generator"].cpu())
        self._step = state["step"]
        self.gene = state["gene"] if self._rank is None else self._drawn()


class GeneratedSubnets:
    """What a trained pruningnet gives for plans: their networks, with the weights generated.

    The new ones of a layer are generated at once. Those of the last call are remembered, since a
    search goes on from what it found: a layer whose scales were there then is not generated again.
    """

    def __init__(self, net: PruningNet) -> None:
        self._net = net.eval()
        self._known: dict[Hashable, Tensor] = {}

    @torch.no_grad()
    def __call__(self, plans: Sequence[PruningPlan]) -> Iterator[Subnet]:
        if not plans:
            # Of a rank that has no candidates, since there are fewer than ranks.
            return
        net = self._net
        genes = [net.table.gene(plan.widths()) for plan in plans]
        shapes = net.shapes(genes)
        others = dict(zip(net.other_names, net.others, strict=True))
        weights: list[dict[str, tuple[Hashable, Tensor]]] = [
            {name: (name, value.detach()) for name, value in others.items()} for _ in plans
        ]
        known: dict[Hashable, Tensor] = {}
        for layer in net.layers:
            rows = net.encodings(layer, genes).tolist()
            keys = [
                (layer.name, *row, *shape[layer.number])
                for row, shape in zip(rows, shapes, strict=True)
            ]
            new = {key: k for k, key in enumerate(keys) if key not in self._known}
            first = list(new.values())
            made = net.generate(
                layer, [genes[k] for k in first], [shapes[k][layer.number] for k in first]
            )
            there = dict(zip(new, made, strict=True))
            for key, row in zip(keys, weights, strict=True):
                known[key] = there[key] if key in there else self._known[key]
                row[f"{layer.name}.weight"] = (key, known[key])
        self._known = known
        for ends, row in zip(shapes, weights, strict=True):
            yield Subnet(net.module(ends), row, bare=True)


class _Generator(nn.Module):
    """The network that generates a convolution's weights."""

    def __init__(self, scales: int, hidden: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(scales, hidden)
        self.fc2 = nn.Linear(hidden, int(np.prod(shape)))


class _Width(NamedTuple):
    """Channels at one end of a convolution: a column of the width matrix, or always as many."""

    column: int | None
    channels: int

    def of(self, widths: Sequence[int]) -> int:
        return self.channels if self.column is None else widths[self.column]


class _Layer(NamedTuple):
    """A convolution: its place among them, name, whole weight's shape, and widths."""

    number: int
    name: str
    shape: tuple[int, int, int, int]
    out: _Width
    into: _Width
    depthwise: bool

    def conv(self, network: nn.Module) -> nn.Conv2d:
        return cast("nn.Conv2d", network.get_submodule(self.name))

    def set_groups(self, network: nn.Module, shape: tuple[int, int]) -> None:
        """A depthwise convolution has as many groups as channels."""
        if self.depthwise:
            self.conv(network).groups = shape[0]


def _layers(
    network: nn.Module, graph: ChannelGraph, governed: Governed, names: Iterable[str]
) -> list[_Layer]:
    found = []
    for number, name in enumerate(names):
        conv = network.get_submodule(name)
        if not isinstance(conv, nn.Conv2d):
            raise PlanError(
                f"genes: {name!r} is no 2d convolution; its weights cannot be generated"
            )
        out, into, *kernel = conv.weight.shape
        layer = _Layer(
            number,
            name,
            (out, into, kernel[0], kernel[1]),
            _width(graph, governed, f"{name}.weight", 0, out),
            _width(graph, governed, f"{name}.weight", 1, into),
            conv.groups > 1,
        )
        if layer.depthwise and (into > 1 or conv.groups != out):
            raise PlanError(f"genes: {name!r} is a grouped convolution; it cannot be generated")
        found.append(layer)
    return found


def _width(graph: ChannelGraph, governed: Governed, weight: str, dim: int, size: int) -> _Width:
    for slot in graph.slots:
        if weight not in slot.parameters or slot.dim != dim:
            continue
        there = [column for column, of in governed.items() if np.isin(slot.channels, of).any()]
        if len(there) == 1 and np.array_equal(slot.channels, governed[there[0]]):
            return _Width(there[0], size)
        if there:
            raise PlanError(
                f"genes: the channels of {weight!r} are not those of one group in its order"
            )
    return _Width(None, size)


def _check_whole(graph: ChannelGraph, governed: Governed, names: Iterable[str]) -> None:
    """Refuses weights that are not generated and yet lose channels."""
    whole = set(names)
    dropped = np.concatenate([*governed.values(), np.zeros(0, np.int64)])
    for slot in graph.slots:
        lost = whole.intersection(slot.parameters)
        if lost and np.isin(slot.channels, dropped).any():
            raise PlanError(
                f"genes: {min(lost)!r} has channels that genes drop, and is not generated"
            )


def _governed(graph: ChannelGraph, table: GeneTable) -> Governed:
    """The channels of every group that a free id governs, by its column in the width matrix."""
    free = [groups for i, groups in enumerate(table.groups) if i not in table.fixed]
    names = {name for groups in free for name in groups}
    return {
        column: group.start + np.arange(group.channels)
        for column, group in enumerate(graph.groups)
        if group.name in names
    }


def _structure_of(network: nn.Module) -> nn.Module:
    """A network with modules of its own, which hold the same tensors; a copy of every
    attribute takes nine times as long.
    """
    own = copy.copy(network)
    own._parameters = own._parameters.copy()
    own._modules = {
        name: None if module is None else _structure_of(module)
        for name, module in network._modules.items()
    }
    return own


def _without_statistics(network: nn.Module) -> nn.Module:
    """A copy whose batch norms normalise and do nothing else."""
    bare = copy.deepcopy(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            plain = nn.BatchNorm2d(
                module.num_features, module.eps, affine=False, track_running_stats=False
            )
            bare.set_submodule(name, plain)
    return bare
