"""The user's own networks: ``package.module:function`` and ``path/to/file.py:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fastprune.errors import ConfigError, FastpruneError, nearest
from fastprune.models._network import Network

__all__ = ["user_network"]

# What somebody's code can raise. Exceptions that it defines itself, it means to be seen as they
# are.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def user_network(name: str) -> Network:
    """The network that a function or class of the user's builds.

    ``num_classes`` is handed on where the signature accepts it and the user gave one.

    Args:
        name: module or file, a colon, and the function's name in it.

    Raises:
        FastpruneError: the file, module or function is missing, or raises when imported or called.
    """
    where, _, attribute = name.rpartition(":")
    if where.endswith(".py"):
        path = Path(where).expanduser().resolve()
        canonical, folder = f"{path}:{attribute}", path.parent
        with _importable(folder):
            module = _from_file(path)
    else:
        canonical, folder = name, Path.cwd()
        with _importable(folder):
            module = _from_package(where, name)
    builder = _member(module, where, attribute)
    accepted = _parameters(builder)

    def make(num_classes: int | None, **options: Any) -> nn.Module:
        given = dict(options)
        for option in given:
            if accepted is not None and option not in accepted:
                raise ConfigError(f"{name}: unknown option {option!r}{nearest(option, accepted)}")
        if num_classes is not None and (accepted is None or "num_classes" in accepted):
            given["num_classes"] = num_classes
        with _importable(folder):
            try:
                model: nn.Module = builder(**given)
            except _FAULTS as error:
                raise FastpruneError(f"models: {name} raised {_described(error)}") from error
        return model

    summary = (inspect.getdoc(builder) or "").partition("\n")[0]
    return Network(name=canonical, make=make, summary=summary)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the user's code import what lies beside it, as it could when run by itself."""
    entry = str(folder)
    if entry in sys.path:
        yield
        return
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FastpruneError(f"models: there is no file {path}")
    stamp = f"{path}\0{path.stat().st_mtime_ns}"
    key = f"_fastprune_user_{path.stem}_{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"
    # An unchanged file is run once only: what it registers with torch cannot be registered twice.
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise FastpruneError(f"models: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up there.
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except _FAULTS as error:
        del sys.modules[key]
        raise FastpruneError(f"models: importing {path} raised {_described(error)}") from error
    return module


def _from_package(where: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        raise FastpruneError(
            f"models: {name!r}: expected package.module:function or path/to/file.py:function"
        )
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not (where == error.name or where.startswith(f"{error.name}.")):
            raise FastpruneError(
                f"models: importing {where} raised {_described(error)}"
            ) from error
        hint = nearest(where, ("torchvision", "timm"))
        if "did you mean" not in hint:
            hint = "; expected it in the working directory or on PYTHONPATH"
        raise FastpruneError(
            f"models: {name!r}: there is no module {error.name!r}{hint}"
        ) from error
    except _FAULTS as error:
        raise FastpruneError(f"models: importing {where} raised {_described(error)}") from error


def _member(module: ModuleType, where: str, attribute: str) -> Callable[..., Any]:
    known = [
        key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
    ]
    if not attribute:
        raise FastpruneError(f"models: {where}: expected a function's name behind the colon")
    found = getattr(module, attribute, None)
    if found is None:
        raise FastpruneError(
            f"models: {where} has no function {attribute!r}{nearest(attribute, known)}"
        )
    if isinstance(found, nn.Module) or not callable(found):
        raise FastpruneError(
            f"models: {where}:{attribute} is a {type(found).__name__}; "
            "expected a function or class that gives a torch.nn.Module"
        )
    builder: Callable[..., Any] = found
    return builder


def _parameters(builder: Callable[..., Any]) -> frozenset[str] | None:
    """The names it can be called with; None where it takes any."""
    try:
        parameters = inspect.signature(builder).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in by_name)


def _described(error: BaseException) -> str:
    """``ValueError in net.py, line 12: the reason``."""
    reason = str(error).strip().partition("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = ""
    if not isinstance(error, SyntaxError) and frames and not frames[-1].filename.startswith("<"):
        place = f" in {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}"
    return f"{type(error).__name__}{place}: {reason}"
