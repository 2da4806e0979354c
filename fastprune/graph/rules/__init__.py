"""One rule an op: the shape it gives, and how it carries channels.

A rule is one short function in one of this folder's files, registered under the op's name; ``RULES`` is the table.
Third-party code adds a rule the same way, with :func:`rule`.
"""

from __future__ import annotations

from fastprune.graph.rules import attention, combine, layers, pointwise, reduce, views
from fastprune.graph.rules._table import INPLACE_POSITION, METADATA, NATIVE, RULES, Rule, op_name, rule

__all__ = [
    "INPLACE_POSITION",
    "METADATA",
    "NATIVE",
    "RULES",
    "Rule",
    "attention",
    "combine",
    "layers",
    "op_name",
    "pointwise",
    "reduce",
    "rule",
    "views",
]
