"""Classes into groups, one for each device: those that the network finds alike stay together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fastprune.errors import TrainingError

__all__ = ["SIMILARITIES", "Grouping", "Groups", "Similarity", "group_classes", "similarity"]

Similarity = Literal["cosine", "covariance"]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)

Groups = tuple[tuple[int, ...], ...]
"""A group of classes for each device: classes ascending, groups by their smallest class."""

Merge = tuple[int, int, float, int]
"""A row of scipy's linkage: two clusters, their distance, how many classes they have together."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which classes belong together, for every number of devices.

    Attributes:
        similarity: of two classes' mean logits, which the distances are 1 minus of.
        classes: names of the K classes, in the order of the labels; at least two.
        linkage: K - 1 merges in the order of distance. Clusters below K are classes, and merge i
            makes cluster K + i.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    similarity: Similarity
    classes: tuple[str, ...]
    linkage: tuple[Merge, ...]

    def __post_init__(self) -> None:
        count = len(self.classes)
        if count < 2:
            raise ValueError(f"classes: expected at least two to group, got {count}")
        if len(self.linkage) != count - 1:
            raise ValueError(
                f"linkage: expected {count - 1} merges of {count} classes, got {len(self.linkage)}"
            )
        sizes, before = dict.fromkeys(range(count), 1), 0.0
        for number, (one, other, distance, size) in enumerate(self.linkage):
            if one == other or one not in sizes or other not in sizes:
                raise ValueError(f"linkage: merge {number}: no two clusters {one} and {other}")
            if size != sizes[one] + sizes[other] or not before <= distance < np.inf:
                raise ValueError(
                    f"linkage: merge {number}: expected {sizes[one] + sizes[other]} classes at a "
                    f"distance of {before} or more, got {size} at {distance}"
                )
            before = distance
            sizes[count + number] = sizes.pop(one) + sizes.pop(other)

    @property
    def devices(self) -> range:
        """The numbers of devices that there are groups for: 2 to K."""
        return range(2, len(self.classes) + 1)

    def groups(self, devices: int) -> Groups:
        """The classes of each device: what is left apart when the last merges are not made.

        Raises:
            ValueError: fewer than two devices or more than classes.
        """
        count = len(self.classes)
        if devices not in self.devices:
            raise ValueError(f"devices: expected 2 to {count}, the classes, got {devices}")
        # Not by a distance: between equal ones there is none that leaves as many groups.
        members: dict[int, tuple[int, ...]] = {number: (number,) for number in range(count)}
        for number, (one, other, _, _) in enumerate(self.linkage[: count - devices]):
            members[count + number] = members.pop(one) + members.pop(other)
        return tuple(sorted(tuple(sorted(group)) for group in members.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain data; the groups are in it for readers."""
        return {**json.loads(json.dumps(asdict(self))), "groups": self._listed()}

    @staticmethod
    def from_json(content: Any) -> Grouping:
        """The grouping that `to_json` was of.

        Raises:
            ValueError: it was of none; the message names the first field that is wrong.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"expected a grouping, got {type(content).__name__}")
        fields = {name: value for name, value in content.items() if name != "groups"}
        try:
            found = _GROUPING.validate_json(json.dumps(fields), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(": ".join(filter(None, (where, first["msg"])))) from None
        if content.get("groups") != found._listed():
            raise ValueError("groups: not those that the linkage gives")
        return found

    def _listed(self) -> dict[str, list[list[int]]]:
        return {str(n): [list(group) for group in self.groups(n)] for n in self.devices}


_GROUPING = TypeAdapter(Grouping)


def similarity(
    mean_logits: npt.NDArray[np.float64], kind: Similarity = "cosine"
) -> npt.NDArray[np.float64]:
    """How alike the mean logits of any two classes are, -1 to 1.

    ``cosine`` is that of the angle between two rows. ``covariance`` is the covariance of two rows
    over their logits, divided by their standard deviations: the correlation. So a class is at the
    distance 0 from itself and no two are further apart than 2; over the largest covariance
    instead, a class of small logits would be far from itself. It leaves the rows' means out, which
    softmax does not see.

    Args:
        mean_logits: ``[K, M]``, a row for each class.
        kind: which of the two.

    Returns:
        ``[K, K]``, symmetric, with ones on its diagonal.

    Raises:
        ValueError: an unknown kind, or no matrix of finite numbers.
        TrainingError: a row has no direction: it is zero or, for ``covariance``, constant.
    """
    if kind not in SIMILARITIES:
        raise ValueError(f"similarity: expected one of {SIMILARITIES}, got {kind!r}")
    rows = np.asarray(mean_logits, np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"mean_logits: expected finite numbers [K, M], got {rows.shape}")
    whole = np.linalg.norm(rows, axis=1)
    if kind == "covariance":
        rows = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1)
    # Of equal logits, rounding is left when their mean is taken away.
    flat = np.flatnonzero(lengths <= 8 * np.finfo(np.float64).eps * whole)
    if len(flat):
        what = "zero" if kind == "cosine" else "all the same"
        raise TrainingError(
            f"similarity: the mean logits of class {flat[0]} are {what}, so it is like no other; "
            "expected those of a trained network"
        )
    units = rows / lengths[:, None]
    products = np.clip(units @ units.T, -1.0, 1.0)
    found: npt.NDArray[np.float64] = (products + products.T) / 2
    np.fill_diagonal(found, 1.0)
    return found


def group_classes(
    alike: npt.NDArray[np.float64], classes: Sequence[str], kind: Similarity
) -> Grouping:
    """Average linkage of classes at the distances 1 - similarity.

    Args:
        alike: ``[K, K]``, from `similarity`.
        classes: names of the K classes.
        kind: of the similarity.

    Raises:
        ValueError: fewer than two classes, or of another number.
    """
    # Imported late: scipy's clustering takes half a second to load.
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    count = len(classes)
    if count < 2 or alike.shape != (count, count):
        raise ValueError(
            f"alike: expected [K, K] of at least two classes, got {alike.shape} for {count} names"
        )
    merges = linkage(squareform(1.0 - alike), "average")
    rows = tuple((int(a), int(b), float(apart), int(size)) for a, b, apart, size in merges)
    return Grouping(kind, tuple(classes), rows)
