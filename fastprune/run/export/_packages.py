"""Packages that only some formats need."""

from __future__ import annotations

import importlib
from types import ModuleType

from fastprune.errors import FastpruneError

__all__ = ["load_packages"]


def load_packages(*names: str) -> tuple[ModuleType, ...]:
    """The packages of these names.

    Raises:
        FastpruneError: some are not installed, or broken; the message has the command that mends.
    """
    found: list[ModuleType] = []
    missing: list[str] = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name != name:
                raise _broken(name, error) from error
            missing.append(name)
        except (ImportError, RuntimeError, AttributeError, OSError, TypeError) as error:
            raise _broken(name, error) from error
    if missing:
        raise FastpruneError(
            f"{', '.join(missing)}: not installed; mend it with: "
            f"python -m pip install {' '.join(missing)}"
        )
    return tuple(found)


def _broken(name: str, error: Exception) -> FastpruneError:
    reason = str(error).strip().partition("\n")[0]
    return FastpruneError(
        f"{name} cannot be imported ({reason}); mend it with: "
        f"python -m pip install --upgrade --force-reinstall {name}"
    )
