"""Names to builders: every kind of plug-in (network, dataset, method, ...) is one Registry."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from fastprune.errors import FastpruneError, nearest

__all__ = ["Entry", "Registry"]

Builder = TypeVar("Builder", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Entry(Generic[Builder]):
    """One registered member.

    Attributes:
        name: what users write.
        build: the registered callable.
        options: pydantic model of its options, or None where it takes none.
        summary: first sentence of the builder's docstring.
        extra: facts of that kind of plug-in (for instance a network's usual input shape).
    """

    name: str
    build: Builder
    options: Any
    summary: str
    extra: dict[str, Any]


class Registry(Generic[Builder]):
    """Members of one kind, found by themselves: importing a file of ``package`` registers its own.

    Third parties add members through the entry point group ``fastprune.<kind>``; each entry point
    names a module to import.

    Args:
        kind: plural noun, for messages and the entry point group (``"criteria"``).
        package: dotted name of the folder whose files hold the members.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._members: dict[str, Entry[Builder]] = {}
        self._discovered = False

    def register(
        self, name: str, *, options: Any = None, **extra: Any
    ) -> Callable[[Builder], Builder]:
        """Decorator: add a builder under ``name``.

        Raises:
            ValueError: the name is taken by another builder.
        """

        def add(build: Builder) -> Builder:
            if name in self._members and self._members[name].build is not build:
                raise ValueError(f"{self.kind}: {name!r} is registered twice")
            paragraph = (build.__doc__ or "").strip().partition("\n\n")[0]
            doc = re.split(r"(?<=\.) ", " ".join(paragraph.split()))[0]
            self._members[name] = Entry(name, build, options, doc, extra)
            return build

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        self._discover()
        return sorted(self._members)

    def get(self, name: str) -> Entry[Builder]:
        """The member called ``name``.

        Raises:
            FastpruneError: there is none; the message names the nearest.
        """
        if name not in self._members:
            self._discover()
        if name not in self._members:
            raise FastpruneError(
                f"{self.kind}: unknown name {name!r}{nearest(name, self._members)}"
            )
        return self._members[name]

    def __contains__(self, name: str) -> bool:
        self._discover()
        return name in self._members

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=f"fastprune.{self.kind}"):
            point.load()
