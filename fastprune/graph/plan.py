"""A pruning plan: which channels of each group stay. Plain, frozen data."""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastprune.errors import PlanError
from fastprune.records import Widths

__all__ = ["PruningPlan"]

_FORMAT = 1


@dataclass(frozen=True)
class PruningPlan:
    """Kept channels by group.

    Attributes:
        keep: group name -> kept channel indices, sorted, without repeats, at least one. Groups
            that are not named are kept whole.
        channels: group name -> channels in the unpruned network, where known; a plan is refused by
            a network whose groups are of other sizes.
    """

    keep: Mapping[str, tuple[int, ...]]
    channels: Mapping[str, int] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __post_init__(self) -> None:
        clean: dict[str, tuple[int, ...]] = {}
        for name, kept in self.keep.items():
            indices = _indices(name, kept)
            if not indices:
                raise PlanError(f"plan.keep[{name!r}]: keeps no channel; expected at least one")
            if any(b <= a for a, b in itertools.pairwise(indices)) or indices[0] < 0:
                raise PlanError(
                    f"plan.keep[{name!r}]: expected sorted channel indices from 0 without "
                    "repeats, "
                    f"got {_short(indices)}"
                )
            if name in self.channels and indices[-1] >= self.channels[name]:
                raise PlanError(
                    f"plan.keep[{name!r}]: channel {indices[-1]} does not exist; "
                    f"the group has {self.channels[name]}"
                )
            clean[name] = indices
        object.__setattr__(self, "keep", clean)
        object.__setattr__(self, "channels", {str(k): int(v) for k, v in self.channels.items()})

    @property
    def digest(self) -> str:
        """A name for this plan: equal plans have equal digests."""
        text = json.dumps(
            {name: self.keep[name] for name in sorted(self.keep)}, separators=(",", ":")
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        dropped = sum(self.channels.get(name, len(k)) - len(k) for name, k in self.keep.items())
        return f"PruningPlan {self.digest}: {len(self.keep)} groups, {dropped} channels dropped"

    def widths(self) -> Widths:
        """Channels that stay, by group."""
        return {name: len(kept) for name, kept in self.keep.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; :meth:`from_json` reads it back."""
        return {
            "format": _FORMAT,
            "digest": self.digest,
            "channels": dict(self.channels),
            "keep": {name: list(kept) for name, kept in self.keep.items()},
        }

    @staticmethod
    def from_json(data: Any) -> PruningPlan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            PlanError: the data is not such a plan, or was altered.
        """
        if not isinstance(data, dict) or not isinstance(data.get("keep"), dict):
            raise PlanError("plan: expected a JSON object with 'keep': {group: [kept channels]}")
        if data.get("format", _FORMAT) != _FORMAT:
            raise PlanError(f"plan.format: got {data['format']!r}; this version reads {_FORMAT}")
        channels = data.get("channels", {})
        if not isinstance(channels, dict) or not all(_is_count(n) for n in channels.values()):
            raise PlanError(
                f"plan.channels: expected {{group: number of channels}}, got {channels!r:.80}"
            )
        plan = PruningPlan({str(k): v for k, v in data["keep"].items()}, channels)
        if data.get("digest", plan.digest) != plan.digest:
            raise PlanError(
                f"plan.digest: got {data['digest']!r}, the content gives {plan.digest!r}"
            )
        return plan

    @staticmethod
    def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
        """One plan for ``first`` and then ``second``, which was made on the pruned network."""
        keep = dict(first.keep)
        for name, kept in second.keep.items():
            before = keep.get(name)
            if before is not None and (
                kept[-1] >= len(before) or second.channels.get(name, len(before)) != len(before)
            ):
                raise PlanError(
                    f"plan.keep[{name!r}]: is of {second.channels.get(name, kept[-1] + 1)} "
                    "channels; the first plan "
                    f"leaves {len(before)}"
                )
            keep[name] = kept if before is None else tuple(before[i] for i in kept)
        return PruningPlan(keep, {**second.channels, **first.channels})


def _is_count(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n > 0


def _indices(name: str, kept: Iterable[Any]) -> tuple[int, ...]:
    try:
        found = tuple(operator.index(i) for i in kept)
    except TypeError:
        found = None
    if found is None or isinstance(kept, str) or any(isinstance(i, bool) for i in kept):
        raise PlanError(f"plan.keep[{name!r}]: expected channel indices, got {kept!r:.80}")
    return found


def _short(items: Iterable[int]) -> str:
    items = list(items)
    return str(items) if len(items) <= 8 else f"[{', '.join(map(str, items[:8]))}, …]"
