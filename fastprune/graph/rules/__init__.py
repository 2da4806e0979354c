"""One rule an op: the shape it gives, and how it carries channels.

A rule is one short function in one of this folder's files, registered under the op's name;
``RULES`` is the table. Third-party code adds a rule the same way, with :func:`rule`.
"""

from __future__ import annotations

from fastprune.graph.rules import attention, combine, indexing, layers, pointwise, reduce, views
from fastprune.graph.rules._table import (
    CREATION,
    INPLACE_POSITION,
    METADATA,
    NATIVE,
    RULES,
    UNIFORM,
    Rule,
    op_name,
    rule,
)
from fastprune.graph.rules.combine import ARITHMETIC
from fastprune.graph.rules.layers import GROUPING

__all__ = [
    "ARITHMETIC",
    "CREATION",
    "GROUPING",
    "INPLACE_POSITION",
    "METADATA",
    "NATIVE",
    "RULES",
    "UNIFORM",
    "Rule",
    "attention",
    "combine",
    "indexing",
    "layers",
    "op_name",
    "pointwise",
    "reduce",
    "rule",
    "views",
]
