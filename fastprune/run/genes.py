"""What `fastprune count --gene` asks for and finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fastprune import models
from fastprune.errors import ConfigError, nearest
from fastprune.graph import ChannelGraph, GeneTable

__all__ = ["gene_facts", "gene_ids", "gene_network", "set_quirks"]

_RULES = ("paper", "table")


def gene_network(
    model: str, gene: str | None, rule: str | None, quirks: bool
) -> tuple[models.Network, list[str]]:
    """The network to count, and its options, as ``key=value``, that the rule asks for.

    Raises:
        FastpruneError: a rule or quirks without a gene, an unknown rule, a network without
            genes.
    """
    if gene is None:
        for name, value in {"--rule": rule, "--published-quirks": quirks}.items():
            if value:
                raise ConfigError(f"{name}: says how a gene is counted; expected --gene too")
        return models.resolve(model), []
    if rule is not None and rule not in _RULES:
        raise ConfigError(f"--rule: unknown rule {rule!r}{nearest(rule, _RULES)}")
    network = models.gene_network(model)
    # Where a network has no such option, both rules are the same.
    chosen = rule is not None and network.gene_rule is not None
    return network, [f"{network.gene_rule}={rule}"] if chosen else []


def set_quirks(network: models.Network, model: nn.Module) -> None:
    """Makes ``model`` the network that the published table counts.

    Raises:
        ConfigError: the table counts the network as it is.
    """
    if network.quirks is None:
        raise ConfigError(f"--published-quirks: {network.name} has none, it was counted as it is")
    network.quirks(model)


def gene_facts(table: GeneTable, ids: Sequence[int], quirks: bool) -> dict[str, Any]:
    """The gene, and the widths it leaves: of stem, blocks and last convolution, and inside the
    blocks.
    """
    left = table.channels(ids)
    return {
        "gene": list(ids),
        "stage_out": [left[position] for position in table.outputs],
        "mid": [left[position] for position in table.middles],
        "published_quirks": quirks,
    }


def gene_ids(network: models.Network, graph: ChannelGraph) -> dict[str, Any]:
    """``{"ids": ...}``, what each id of a gene governs; nothing for a network without genes."""
    if network.genes is None:
        return {}
    table = network.genes(graph)
    rows = enumerate(zip(table.names, table.groups, strict=True))
    return {
        "ids": [
            {"name": name, "groups": list(governed), "fixed": position in table.fixed}
            for position, (name, governed) in rows
        ]
    }
