"""From the names that users write to networks."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from torch import nn

from fastprune.errors import FastpruneError, WeightsError, nearest
from fastprune.models._network import Network, registry
from fastprune.models._options import checked_options
from fastprune.models._timm import timm_network
from fastprune.models._torchvision import (
    torchvision_genes,
    torchvision_names,
    torchvision_network,
)
from fastprune.models._user import user_network
from fastprune.models._weights import load_weights

__all__ = ["build", "gene_network", "list_networks", "resolve"]

_log = logging.getLogger("fastprune.models")


def resolve(name: str) -> Network:
    """The network called ``name``; nothing is built.

    Args:
        name: a registered name; ``torchvision:NAME``, or NAME alone where nothing registered is
            called so; ``timm:NAME``; ``package.module:function`` or ``path/to/file.py:function``.

    Raises:
        FastpruneError: there is no such network (the message names the nearest), its package is
            missing or broken, or the user's own code cannot be imported.
    """
    if name in registry:
        return _registered(name)
    prefix, colon, rest = name.partition(":")
    if colon and prefix == "torchvision":
        return torchvision_network(rest)
    if colon and prefix == "timm":
        return timm_network(rest)
    if colon:
        return user_network(name)
    if name.endswith(".py"):
        raise FastpruneError(
            f"models: {name!r}: expected {name}:FUNCTION, the function that builds it"
        )
    try:
        names = torchvision_names()
    except FastpruneError as error:
        raise FastpruneError(
            f"models: unknown name {name!r}{nearest(name, registry.names())} ({error})"
        ) from error
    if name in names:
        return torchvision_network(name)
    raise FastpruneError(
        f"models: unknown name {name!r}{nearest(name, [*registry.names(), *names])}"
    )


def _registered(name: str) -> Network:
    entry = registry.get(name)

    def make(num_classes: int | None, **options: Any) -> nn.Module:
        given = checked_options(name, entry.options, options)
        if num_classes is not None:
            given["num_classes"] = num_classes
        return entry.build(**given)

    return Network(
        name=name,
        make=make,
        input_shape=entry.extra.get("input_shape"),
        num_classes=entry.extra.get("num_classes"),
        normalization=entry.extra.get("normalization"),
        units=entry.extra.get("units"),
        genes=entry.extra.get("genes"),
        gene_rule=entry.extra.get("gene_rule"),
        quirks=entry.extra.get("quirks"),
        summary=entry.summary,
    )


def gene_network(name: str) -> Network:
    """The network that genes of ``name`` are of: mostly ``name`` itself.

    Args:
        name: as in `resolve`.

    Raises:
        FastpruneError: as `resolve`, or nobody has said what a gene of that network is.
    """
    network = resolve(name)
    if network.gene_network is not None:
        network = resolve(network.gene_network)
    if network.genes is None:
        known = [n.name for n in list_networks() if n.genes is not None]
        known += ["mobilenet_v2", *torchvision_genes]
        raise FastpruneError(
            f"gene: nobody has said what a gene of {network.name} is; expected one of "
            f"{', '.join(sorted(known))}"
        )
    return network


def list_networks(*, torchvision: bool = False) -> list[Network]:
    """The registered networks and, if asked for, torchvision's classification networks.

    Raises:
        FastpruneError: torchvision is asked for and does not work here.
    """
    networks = [_registered(name) for name in registry.names()]
    if torchvision:
        networks += [torchvision_network(name) for name in torchvision_names()]
    return networks


def build(
    name: str,
    *,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    **options: Any,
) -> nn.Module:
    """A new network.

    What was done to a foreign weights file is logged (``fastprune.models``); call `load_weights`
    for the message itself.

    Args:
        name: as in `resolve`.
        num_classes: None keeps the network's own.
        weights: a file, or for torchvision and timm a published name (``DEFAULT``,
            ``IMAGENET1K_V2``).
        options: the family's options.

    Raises:
        FastpruneError: no such network, a bad option; as WeightsError: the weights are missing,
            unreadable or of another network.
    """
    network = resolve(name)
    if weights is None:
        return network.build(num_classes, **options)
    if str(weights) in network.published:
        return network.build(num_classes, weights=str(weights), **options)
    if network.published and not Path(weights).exists():
        raise WeightsError(
            f"weights {str(weights)!r}: neither a file nor weights published for {network.name}"
            f"{nearest(str(weights), network.published)}"
        )
    model = network.build(num_classes, **options)
    message = load_weights(model, weights)
    if message:
        _log.warning(message)
    return model
