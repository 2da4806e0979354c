"""Norms of a channel's filters joined with how seldom it is zero behind its ReLU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastprune.criteria._scores import Scores, check_slot, norms, registry
from fastprune.criteria._zeros import zero_counts
from fastprune.graph import ChannelGraph

__all__ = ["joined", "papm"]


@registry.register("papm", data=True)
def papm(
    model: nn.Module,
    graph: ChannelGraph,
    *,
    batches: Iterable[tuple[Tensor, Tensor]],
    alpha: float = 0.5,
) -> Scores:
    """α·‖W‖₂ + (1 - α)·(1 - APoZ) of each channel: both between 0 and 1, and so is the score.

    Args:
        batches: (images ``[N, ...]``, labels ``[N]``); how they are batched makes no difference.
        alpha: α, the norm's share.

    Raises:
        FastpruneError: as `zero_counts`.
    """
    return joined(model, graph, zero_counts(model, graph, batches).apoz(graph), alpha)


def joined(
    model: nn.Module, graph: ChannelGraph, apoz: Mapping[str, Tensor], alpha: float
) -> Scores:
    """The scores of `papm` where APoZ is known already.

    ‖W‖₂ is of the filters that write the channel, brought to 0 to 1 within each layer (0 where
    they are all equal), and its mean over the layers that write the group. Groups that no layer
    writes, or that have no APoZ, have no score.

    Args:
        apoz: group name -> float64 ``[channels]``.
        alpha: α, 0 to 1.

    Raises:
        ValueError: α is not.
        GraphError: the graph is of another network.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 to 1, got {alpha}")
    magnitude = _norms(model, graph)
    scores = {}
    for group in graph.groups:
        norm = torch.from_numpy(magnitude[group.start : group.start + group.channels])
        if group.name in apoz and not norm.isnan().any():
            found = alpha * norm + (1 - alpha) * (1 - apoz[group.name])
            scores[group.name] = found.float()
    return scores


def _norms(model: nn.Module, graph: ChannelGraph) -> NDArray[np.float64]:
    """Normalised norm ``[total]`` of each channel, NaN where no layer writes it."""
    parameters = dict(model.named_parameters())
    squares = norms(model, graph, lambda s: (s.out_square, s.in_square))
    total, layers = np.zeros(graph.total + 1), np.zeros(graph.total + 1)
    for slot in graph.slots:
        if slot.role not in ("out", "group"):
            continue
        for name in slot.parameters:
            parameter = parameters.get(name)
            if parameter is None:
                continue
            check_slot(parameter, slot, name)
            values = squares(parameter, slot.dim, name).double().cpu().numpy()
            norm, channels = _within_layer(values, slot.channels, graph.total)
            total[channels] += norm
            layers[channels] += 1
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = (total / layers)[: graph.total]
    return mean


def _within_layer(
    squares: NDArray[np.float64], channels: NDArray[np.int64], fixed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Norms of a layer's channels from 0, the smallest of the layer, to 1, the largest.

    Args:
        squares: ``[filters]`` sum of a filter's squared weights.
        channels: ``[filters]`` the channel each writes.
        fixed: number of channels that always stay, whose filters are each one of their own.

    Returns:
        norms ``[channels of the layer]``, and the channels.
    """
    free = channels != fixed
    found, place = np.unique(channels[free], return_inverse=True)
    # A channel is several filters where whole groups of a convolution live or die together.
    norm = np.sqrt(np.bincount(place, squares[free], len(found)))
    every = np.concatenate([norm, np.sqrt(squares[~free])])
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 0.0)
    return (norm - low) / (high - low) if high > low else np.zeros(len(norm)), found
