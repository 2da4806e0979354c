"""Attention and products of two activations: left whole, and said so."""

from __future__ import annotations

from fastprune.graph.channels import ChannelTracker
from fastprune.graph.program import Op
from fastprune.graph.rules._table import rule

__all__: list[str] = []


def query_shape(op: Op) -> tuple[int, ...]:
    query, value = op.inputs[0].shape, op.inputs[2].shape
    return (*query[:-1], value[-1])


@rule("scaled_dot_product_attention", shape=query_shape)
def attention(tracker: ChannelTracker, op: Op) -> None:
    """Heads mix these channels."""
    tracker.stop(op, f"attention (op {op.index}) mixes these channels")


@rule("multi_head_attention_forward")
def multi_head(tracker: ChannelTracker, op: Op) -> None:
    """``nn.MultiheadAttention``: its projections stay whole."""
    tracker.stop(op, f"nn.MultiheadAttention (op {op.index}) mixes these channels")
