"""The errors fastprune raises on purpose: one clear line each, exit code 2 on the command line."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

__all__ = [
    "ArtifactError",
    "BackendError",
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergenceError",
    "FastpruneError",
    "GraphError",
    "PlanError",
    "RankError",
    "StorageError",
    "ToldElsewhere",
    "TrainingError",
    "WeightsError",
    "nearest",
]


class FastpruneError(Exception):
    """What the user can mend: bad input, an impossible request, a broken file."""


class ConfigError(FastpruneError):
    """Everything that is wrong with a configuration, said once.

    Args:
        problems: one line each, ``path.to.field: what is wrong and what would be right``.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class GraphError(FastpruneError):
    """The network could not be traced, or is not the network the graph was traced from."""


class PlanError(FastpruneError):
    """A pruning plan does not fit its graph, or prunes nothing."""


class BudgetError(FastpruneError):
    """A budget cannot be met, or makes no sense; the message gives the satisfiable range."""


class WeightsError(FastpruneError):
    """A weights file is missing, unreadable, or of another network."""


class DataError(FastpruneError):
    """A dataset is missing, empty, or not laid out as expected."""


class CheckpointError(FastpruneError):
    """No checkpoint of a run could be read."""


class ArtifactError(FastpruneError):
    """A saved network cannot be written, found, read, or rebuilt."""


class BackendError(FastpruneError):
    """An implementation of an op was asked for by name and cannot run; the message says why."""


class TrainingError(FastpruneError):
    """Training cannot be done, or cannot go on."""


_STORAGE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.ESTALE,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
    }
)
"""What a disk, a file system or who owns it says; other errors of the system are bugs."""


class StorageError(FastpruneError):
    """A file cannot be written or read: a full disk, a read-only or vanished folder."""

    @staticmethod
    def of(error: OSError, place: object = "") -> StorageError | None:
        """The same as ``error`` for people; None where it is not of this kind.

        Args:
            error: what the system said.
            place: where it happened, should the system not say so.
        """
        if error.errno not in _STORAGE:
            return None
        where = error.filename if error.filename is not None else place
        return StorageError(f"{where}: {error.strerror}" if where else str(error.strerror))


class RankError(FastpruneError):
    """The processes of one task lost each other, or cannot work together."""


class ToldElsewhere(RankError):
    """Another process of the same task has told what is wrong; this one ends in silence.

    Args:
        code: exit code of that process.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__("another rank has told what is wrong")


class DivergenceError(TrainingError):
    """A loss or weights are no longer finite numbers."""


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """A hint for an unknown name: ``; did you mean 'x'?`` with the nearest, or the known names."""
    names = sorted(set(known))
    close = [other for other in names if other.lower() == name.lower()]
    close = close or difflib.get_close_matches(name, names, n=most, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not names:
        return "; none are known"
    shown = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
    return f"; known: {shown}"
