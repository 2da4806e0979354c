"""Saved networks: safetensors and JSON, enough to rebuild a pruned network anywhere."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import safetensors
import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import save_file
from torch import nn

from fastprune import __version__, models
from fastprune.distributed import first
from fastprune.errors import ArtifactError, FastpruneError
from fastprune.files import sha256_of, write_atomically, write_json
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, trace

__all__ = [
    "FORMAT",
    "architecture_of",
    "describe",
    "load",
    "load_state",
    "restore",
    "save",
    "save_state",
    "trace_for",
]

FORMAT = 1
"""Version of the JSON half; a newer one than this cannot be read."""

_SHOWN = 3


class _Normalized(BaseModel, strict=True):
    mean: list[float]
    std: list[float]


class _Stored(BaseModel, strict=True):
    file: str
    sha256: str


class _Described(BaseModel, strict=True):
    """What the JSON half has to say."""

    architecture: str | None
    num_classes: Annotated[int, Field(ge=1)] | None
    options: dict[str, Any]
    input_shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    keep: list[str] = []
    plan: dict[str, Any]
    normalization: _Normalized | None = None
    classes: list[str] | None = None
    metrics: dict[str, Any] = {}
    weights: _Stored


def save(
    path: str | Path,
    model: nn.Module,
    *,
    plan: PruningPlan,
    architecture: str | None = None,
    options: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    classes: Sequence[str] | None = None,
    metrics: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
) -> None:
    """Writes ``<path>.safetensors`` and ``<path>.json``, from which `load` rebuilds the network.

    Args:
        path: stem of both files.
        model: the pruned network.
        plan: the plan that made it.
        architecture: name of the unpruned network, as `fastprune.models.resolve` takes it; None
            where there is none, so that `load` must be given an unpruned ``model``.
        options: what the architecture's builder was given besides ``num_classes``.
        num_classes: None is the architecture's own number.
        input_shape: ``(C, H, W)`` to trace it with; None is the architecture's usual one.
        normalization: mean and standard deviation of each channel that the weights expect.
        classes: names of the outputs, in order.
        metrics: figures to keep beside the weights.
        keep: the patterns that the graph behind the plan was traced with.

    Raises:
        ArtifactError: architecture and plan do not give this network, or the input shape is
            unknown.
    """
    stem = _stem(Path(path))
    network = None if architecture is None else models.resolve(architecture)
    if network is not None:
        input_shape = input_shape or network.given(options or {}).input_shape
        num_classes = num_classes or network.num_classes
    if input_shape is None:
        raise ArtifactError(f"{stem}: input_shape: expected (C, H, W), the shape to trace with")
    description: dict[str, Any] = {
        "format": FORMAT,
        "fastprune": __version__,
        "architecture": None if network is None else network.name,
        "num_classes": num_classes,
        "options": dict(options or {}),
        "input_shape": [int(size) for size in input_shape],
        "keep": list(keep),
        "plan": plan.to_json(),
        "normalization": None,
        "classes": None if classes is None else list(classes),
        "metrics": dict(metrics or {}),
    }
    if normalization is not None:
        mean, std = normalization
        description["normalization"] = {"mean": list(mean), "std": list(std)}
    if network is not None:
        # What cannot be loaded again must not be saved: an error now rather than a lost network.
        wrong = _mismatches(_rebuilt(stem, description, None).state_dict(), model.state_dict())
        if wrong:
            raise ArtifactError(
                f"{stem}: {network.name} with this plan is not the given network: "
                f"{'; '.join(wrong)}"
            )
    stem.parent.mkdir(parents=True, exist_ok=True)
    save_state(_weights(stem), model)
    description["weights"] = {"file": _weights(stem).name, "sha256": sha256_of(_weights(stem))}
    write_json(_description(stem), description)


def load(
    path: str | Path, *, model: nn.Module | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """The saved network, in evaluation mode.

    Args:
        path: what `save` was given, either of its two files, or a run directory.
        model: an unpruned network to rebuild from, instead of the architecture; left as it is.
        device: where the network is put.

    Raises:
        ArtifactError: a file is missing, damaged or too new, or the network cannot be rebuilt.
    """
    stem, description = describe(path)
    weights = _weights(stem)
    if not weights.is_file():
        raise ArtifactError(
            f"{weights}: missing; it holds the weights that {stem.name}.json describes"
        )
    if sha256_of(weights) != description["weights"]["sha256"]:
        raise ArtifactError(
            f"{weights}: damaged or replaced: its SHA-256 is not the one in {stem.name}.json"
        )
    small = _rebuilt(stem, description, model)
    try:
        restore(small, load_state(weights))
    except ArtifactError as error:
        whose = "the given model" if model is not None else f"{description['architecture']!r}"
        raise ArtifactError(f"{stem}: not the weights of {whose} when pruned: {error}") from None
    return small.to(device).eval()


def describe(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The stem of a saved network and its JSON half.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    given = Path(path)
    stem = given / "pruned" if given.is_dir() else _stem(given)
    file = _description(stem)
    if not file.is_file():
        if _weights(stem).is_file():
            raise ArtifactError(
                f"{file}: missing; it describes the network whose weights are beside it"
            )
        what = "the run has no pruned network yet" if given.is_dir() else "no saved network there"
        raise ArtifactError(
            f"{given}: {what} (expected {stem.name}.json and {stem.name}.safetensors)"
        )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise ArtifactError(f"{file}: not the description of a saved network: it names no format")
    if description["format"] > FORMAT:
        raise ArtifactError(
            f"{file}: format {description['format']} is of a newer fastprune "
            f"({description.get('fastprune')}); this one reads up to {FORMAT}"
        )
    try:
        _Described.model_validate(description)
    except ValidationError as error:
        raise ArtifactError(f"{file}: {_wrong(error)}") from None
    return stem, description


def _wrong(error: ValidationError) -> str:
    """What a description lacks, or the first thing in it that is something else."""
    found = error.errors(include_url=False)
    lacking = [".".join(map(str, each["loc"])) for each in found if each["type"] == "missing"]
    if lacking:
        return f"lacks {', '.join(lacking)}"
    where = ".".join(map(str, found[0]["loc"]))
    message = found[0]["msg"].replace("Input should be", "expected")
    return f"{where}: {message}, got {found[0]['input']!r:.80}"


def save_state(path: Path, model: nn.Module | Mapping[str, torch.Tensor]) -> None:
    """Writes the weights and buffers of a network as safetensors; equal weights give equal bytes.

    Of several ranks the first writes them, and all go on when they are there. Tensors under
    several names (tied parameters) are written once, the other names as metadata.
    """
    given = model.state_dict() if isinstance(model, nn.Module) else model
    state: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in given.items():
        where = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and where in seen:
            tied[name] = seen[where]
            continue
        seen[where] = name
        plain = tensor.detach().to("cpu", memory_format=torch.contiguous_format)
        if plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone()
        state[name] = plain
    metadata = {"tied": json.dumps(tied, sort_keys=True)} if tied else None
    first(lambda: write_atomically(path, lambda file: _write(file, state, metadata)))


def _write(file: Path, state: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> None:
    # Not by way of bytes in memory, of which a large network has none to spare.
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(state, file, metadata)
    except safetensors.SafetensorError as error:
        # What the system said is in the text alone.
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told is None:
            raise
        raise OSError(int(told[1]), os.strerror(int(told[1]))) from error
    # safetensors makes it anew, and some versions for its owner alone.
    file.chmod(stat.S_IMODE(mode))


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, tied ones under all their names.

    Raises:
        ArtifactError: the file is missing or not safetensors.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = json.loads((file.metadata() or {}).get("tied", "{}"))
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors: {error}") from None
    return {**state, **{name: state[kept] for name, kept in tied.items()}}


def restore(model: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """``model`` itself, with exactly these weights and buffers and their dtypes.

    Raises:
        ArtifactError: names or shapes differ; the first of them are named.
    """
    wrong = _mismatches(model.state_dict(), state)
    if wrong:
        raise ArtifactError("; ".join(wrong))
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    # The network's own mapping, since it says which version of their names layers have.
    given = model.state_dict()
    given.update(state)
    model.load_state_dict(given)
    return model


def trace_for(
    model: nn.Module, example: torch.Tensor, names: Iterable[str], *, keep: Sequence[str] = ()
) -> ChannelGraph:
    """The channel graph that has groups of these names.

    Norm layers among them that plain tracing leaves in a larger group get a selected group.
    """
    graph = trace(model, example, keep=keep)
    norms = dict(model.named_modules())
    select = [
        name
        for name in names
        if name not in graph.by_name
        and isinstance(norms.get(name), nn.modules.batchnorm._BatchNorm)
    ]
    return trace(model, example, keep=keep, select=select) if select else graph


def _rebuilt(stem: Path, description: Mapping[str, Any], model: nn.Module | None) -> nn.Module:
    """The pruned network with weights yet to be filled in."""
    architecture = description["architecture"]
    if model is None and architecture is None:
        raise ArtifactError(
            f"{stem}: saved without an architecture; give load(..., model=) an unpruned network"
        )
    try:
        plan = PruningPlan.from_json(description["plan"])
        network = model
        if network is None:
            network = models.build(
                _found(architecture, stem.parent),
                num_classes=description["num_classes"],
                **description["options"],
            )
        like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
        example = torch.zeros(1, *description["input_shape"], dtype=like.dtype, device=like.device)
        graph = trace_for(network, example, plan.keep, keep=description.get("keep", ()))
        return apply_plan(network, graph, plan, allow_unchanged=True)
    except FastpruneError as error:
        what = "the given model" if model is not None else f"{architecture!r}"
        raise ArtifactError(f"{stem}: cannot be rebuilt from {what}: {error}") from error


def architecture_of(path: str | Path) -> str:
    """The name of a saved network's architecture, as `fastprune.models.build` takes it here.

    Raises:
        ArtifactError: there is no saved network, or it was saved without an architecture.
    """
    stem, description = describe(path)
    if description["architecture"] is None:
        raise ArtifactError(f"{stem}: saved without an architecture; expected one with")
    return _found(description["architecture"], stem.parent)


def _found(architecture: str, folder: Path) -> str:
    """The architecture, its file looked for beside the saved network where it is no longer there.

    A saved network and the file that builds it are often moved to another machine together.
    """
    file, _, function = architecture.rpartition(":")
    beside = folder / Path(file).name
    if file.endswith(".py") and not Path(file).is_file() and beside.is_file():
        return f"{beside}:{function}"
    return architecture


def _mismatches(
    expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
) -> list[str]:
    """The first differences in names and shapes, said for people; empty if there are none."""
    missing = [name for name in expected if name not in given]
    strange = [name for name in given if name not in expected]
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    return [
        f"{what}: {', '.join(names[:_SHOWN])}" + (f" and {rest} more" if rest > 0 else "")
        for what, names in (("missing", missing), ("unknown", strange), ("other shapes", shapes))
        if names
        for rest in [len(names) - _SHOWN]
    ]


def _stem(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


def _weights(stem: Path) -> Path:
    # Not with_suffix: a stem such as "resnet50-0.5" has dots of its own.
    return stem.with_name(stem.name + ".safetensors")


def _description(stem: Path) -> Path:
    return stem.with_name(stem.name + ".json")
