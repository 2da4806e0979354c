"""Weights from files of any common layout, without running what such a file could hold."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastprune.errors import WeightsError

__all__ = ["load_weights"]

# Where training scripts put the state dict, the likeliest first.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
# Counters that thop and torch.optim.swa_utils leave among the weights.
_COUNTERS = ("total_ops", "total_params", "n_averaged")
_SHOWN = 3
# What torch's readers raise for files that were cut off, altered, or are something else.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> str | None:
    """Loads a file into ``model``, or raises and leaves it as it was.

    Read are ``.safetensors``, and what ``torch.save`` wrote of tensors and plain containers. The
    state dict may lie under a usual key (``state_dict``, ``model``, ...), its names may have the
    prefix of a wrapper (``module.``, ``_orig_mod.``, ``model.``, ...), and thop's counters may be
    among them. Values are cast to the model's dtypes.

    Returns:
        What was done to make the file fit, in one line; None where nothing was.

    Raises:
        WeightsError: no such file, not readable, could run code when read, or of another network;
            the message names the first keys that do not fit, with the expected shapes and those in
            the file.
    """
    path = Path(path)
    found, wrapper = _unwrapped(_read(path), path)
    expected = model.state_dict()
    done = [f"took {wrapper!r}"] if wrapper else []
    state = _fitted(found, expected, done)
    _check(state, expected, path)
    model.load_state_dict(state, strict=False)
    return f"{path.name}: {', '.join(done)}" if done else None


def _read(path: Path) -> Any:
    if path.is_dir():
        raise WeightsError(f"weights {path}: is a folder; expected a file")
    if not path.is_file():
        raise WeightsError(f"weights {path}: there is no such file")
    if path.stat().st_size == 0:
        raise WeightsError(f"weights {path}: the file is empty")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            # On pickles of a newer protocol than torch.save's; they load, or an error follows.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"weights {path}: {_refusal(path, error)}") from error
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"weights {path}: damaged or not a safetensors file ({error})"
        ) from error
    except _DAMAGE as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise WeightsError(f"weights {path}: damaged or not a weights file ({reason})") from error


def _harmless() -> list[Any]:
    """What often lies beside the weights (best accuracy, arguments) and only holds data."""
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool")
    return [
        argparse.Namespace,
        np.dtype,
        *(getattr(np.dtypes, f"{kind}DType") for kind in kinds),
        # numpy 2 moved it; files name either.
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except _DAMAGE:
        # Only zip archives can be asked; torch's message on the others has the first name in it.
        unsafe = re.findall(r"(?i)GLOBAL ([\w.]+\.\w+)", str(error))
    if any(name.startswith("torch.nn.modules.") for name in unsafe):
        return (
            "holds a whole pickled network, which could run any code when read; "
            "expected its state dict: torch.save(network.state_dict(), FILE)"
        )
    if unsafe:
        names = ", ".join(unsafe[:_SHOWN])
        return f"refused, since reading it could run code ({names}); expected tensors alone"
    return "damaged or not a weights file (it holds more than tensors and plain containers)"


def _unwrapped(content: Any, path: Path, wrapper: str = "") -> tuple[Mapping[str, Any], str]:
    """The state dict in a file's content, and the keys it lay under."""
    if not isinstance(content, Mapping):
        got = type(content).__name__
        raise WeightsError(
            f"weights {path}: expected a state dict (names to tensors), got a {got}"
        )
    for key in _WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and _has_tensors(inner):
            return _unwrapped(inner, path, f"{wrapper}.{key}" if wrapper else key)
    if not _has_tensors(content):
        keys = ", ".join(repr(key) for key in list(content)[:_SHOWN]) or "none"
        raise WeightsError(f"weights {path}: no tensors found; its keys: {keys}")
    return content, wrapper


def _has_tensors(content: Mapping[str, Any]) -> bool:
    return any(
        isinstance(value, Tensor) or (isinstance(value, Mapping) and _has_tensors(value))
        for value in content.values()
    )


def _fitted(
    found: Mapping[str, Any], expected: Mapping[str, Tensor], done: list[str]
) -> dict[str, Any]:
    """The state dict without foreign prefixes and counters; what was done goes to ``done``."""
    state = {str(key): value for key, value in found.items()}
    counters = [
        key for key in state if key.rpartition(".")[2] in _COUNTERS and key not in expected
    ]
    for key in counters:
        del state[key]
    stripped = ""
    while prefix := _prefix(state, expected):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        stripped += prefix
    if stripped:
        done.append(f"stripped the prefix {stripped!r}")
    # DataParallel or compile around a part of the network leaves its mark inside the names.
    for mark in (".module.", "._orig_mod."):
        if any(mark in key for key in state) and not any(mark in key for key in expected):
            state = {key.replace(mark, "."): value for key, value in state.items()}
            done.append(f"stripped {mark.strip('.')!r} inside names")
    if counters:
        kinds = sorted({key.rpartition(".")[2] for key in counters})
        done.append(f"dropped {len(counters)} counters ({', '.join(kinds)})")
    return state


def _prefix(state: Iterable[str], expected: Iterable[str]) -> str:
    names, wanted = list(state), list(expected)
    for prefix in _PREFIXES:
        if not all(name.startswith(prefix) for name in names):
            continue
        if not all(name.startswith(prefix) for name in wanted):
            return prefix
    return ""


def _check(state: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Raises unless every weight is there in its shape and there is nothing else."""
    problems = []
    for key, want in expected.items():
        if key not in state:
            # Files written before torch 0.4.1 have none, and nothing but a momentum of None reads
            # it.
            if key.rpartition(".")[2] != "num_batches_tracked":
                problems.append(f"{key}: expected {_shape(want)}, got nothing")
        elif _shape(state[key]) != _shape(want):
            problems.append(f"{key}: expected {_shape(want)}, got {_shape(state[key])}")
    # A damaged file can have any character in its names; the message is one line.
    problems += [
        f"{repr(key)[1:-1]}: expected nothing, got {_shape(value)}"
        for key, value in state.items()
        if key not in expected
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WeightsError(
            f"weights {path}: of another network: {'; '.join(problems[:_SHOWN])}{more}; "
            "the network's options (its depth, num_classes, …) must be those it was trained with"
        )


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
