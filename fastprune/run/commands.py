"""What the commands besides ``run`` compute: counts, accuracy, lists, a config from flags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastprune import artifact, criteria, data, methods, models
from fastprune.config import (
    ModelOptions,
    RunConfig,
    checked,
    make_config,
    overlaid,
    parse_overrides,
)
from fastprune.data import DataOptions, InputPipeline, Normalization
from fastprune.errors import ConfigError, PlanError, nearest
from fastprune.graph import PruningPlan, parse_code, units_by_group
from fastprune.run.directory import saved_config
from fastprune.run.genes import gene_facts, gene_ids, gene_network, set_quirks
from fastprune.run.networks import (
    NormalizationChoice,
    build_network,
    check_outputs,
    choose_normalization,
    device_of,
    set_threads,
)
from fastprune.run.paths import is_run_directory
from fastprune.run.report import channel_facts
from fastprune.training import Progress, choose_progress
from fastprune.training import evaluate as measure

__all__ = ["count", "evaluate", "images_of", "members", "prune_config", "run_name"]

_NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
COUNTINGS = ("macs", "thop", "ptflops", "metapruning")


def count(
    model: str,
    *,
    shape: str | None,
    num_classes: int | None,
    model_options: Sequence[str],
    plan: Path | None,
    channels: str | None,
    code: str | None,
    gene: str | None,
    rule: str | None,
    published_quirks: bool,
    counting: str,
    groups: bool,
) -> dict[str, Any]:
    """MACs, params and channels of a network, and of what a plan, widths, a code or a gene leaves.

    Raises:
        FastpruneError: an unknown network, group or rule, a bad shape, a plan, code or gene of
            another network.
    """
    if counting not in COUNTINGS:
        raise ConfigError(f"--counting: unknown rule {counting!r}{nearest(counting, COUNTINGS)}")
    smaller = {"--code": code, "--gene": gene, "--channels": channels, "--plan": plan}
    given = [name for name, value in smaller.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{given[0]}: {given[1]} is given too; expected one of the two")
    if _is_saved(model):
        asked_for = [*given, *(["--input"] if shape else []), *(model_options or ())]
        if asked_for or num_classes is not None or rule or published_quirks:
            raise ConfigError(
                f"{model}: is a saved network, which is counted as it is; expected --counting and "
                "--groups alone"
            )
        return _count_saved(model, counting, groups)
    known, asked = gene_network(model, gene, rule, published_quirks)
    name = model if gene is None else known.name
    options = _model_options(name, None, num_classes, [*model_options, *asked])
    network, _ = build_network(options, num_classes, seed=0)
    known = known.given(options.options)
    if published_quirks:
        set_quirks(known, network)
    size = _shape(shape) if shape else known.input_shape
    if size is None:
        raise ConfigError(f"--input: {model} has no usual input; expected a shape such as 3x32x32")
    wanted = _read_plan(plan) if plan else None
    widths = _read_widths(channels) if channels is not None else {}
    names = widths if wanted is None else wanted.keep
    graph = artifact.trace_for(network, torch.zeros(1, *size), names)
    units = (known.units or units_by_group)(graph)
    numbers = None if code is None else parse_code(code)
    if numbers is not None:
        widths = units.widths(graph, numbers)
    facts: dict[str, Any] = {}
    if gene is not None and known.genes is not None:
        table = known.genes(graph)
        widths = table.widths(ids := table.read(gene))
        facts = gene_facts(table, ids, published_quirks)
    if widths:
        graph.width_vector(widths)
        # Which channels stay does not matter for what is counted, only how many.
        wanted = PruningPlan({name: tuple(range(width)) for name, width in widths.items()})
    found: dict[str, Any] = {
        "model": known.name,
        "input": list(size),
        "counting": counting,
        **graph.count(None, counting).to_dict(),
    }
    if wanted is not None:
        found["pruned"] = graph.count(wanted, counting).to_dict()
    found |= facts
    if numbers is not None:
        found["code"] = list(numbers)
    if numbers is not None or facts:
        found["dropped"] = {
            metric: round(1 - found["pruned"][metric] / found[metric], 6)
            for metric in ("macs", "params", "channels")
            if found[metric]
        }
    if groups:
        found |= channel_facts(graph)
        found["units"] = [
            {"name": name, "groups": list(governed)}
            for name, governed in zip(units.names, units.groups, strict=True)
        ]
        found |= gene_ids(known, graph)
    return found


def _count_saved(path: str, counting: str, groups: bool) -> dict[str, Any]:
    _, description = artifact.describe(path)
    network, size = artifact.load(path), description["input_shape"]
    graph = artifact.trace_for(network, torch.zeros(1, *size), description.get("keep", ()))
    counts = graph.count(None, counting).to_dict()
    found = {"model": path, "input": list(size), "counting": counting, **counts}
    return found | channel_facts(graph) if groups else found


def evaluate(
    model: str,
    *,
    weights: str | None,
    data: str | None,
    root: str | None,
    data_options: Sequence[str],
    split: str,
    normalization: str | None,
    num_classes: int | None,
    model_options: Sequence[str],
    seed: int,
    device: str,
    threads: int | None,
    quiet: bool,
) -> dict[str, Any]:
    """Accuracy in percent, loss and number of images.

    Raises:
        FastpruneError: an unknown name, missing weights or data, a normalisation that is none.
    """
    if split not in ("test", "validation", "train"):
        raise ConfigError(f"--split: expected test, validation or train, got {split!r}")
    is_saved = _is_saved(model)
    where = device_of(device)
    set_threads(threads)
    given = images_of(model, data, root, data_options, normalization)
    if is_saved:
        if weights is not None or num_classes is not None or model_options:
            raise ConfigError(f"{model}: is a saved network and has its own weights and options")
        stem, description = artifact.describe(model)
        saved = description["normalization"]
        architecture = description["architecture"]
        built = {key: value for key, value in description["options"].items() if key != "weights"}
        options = ModelOptions(
            name=architecture or str(stem),
            weights=str(stem) if architecture else None,
            options=built,
        )
        choice = choose_normalization(
            options, given, saved=None if saved is None else Normalization.model_validate(saved)
        )
        network = artifact.load(model, device=where)
        message = None
    else:
        if weights is None:
            raise ConfigError(f"--weights: expected the weights of {model}, a file or a name")
        options = _model_options(model, weights, num_classes, model_options)
        choice = choose_normalization(options, given)
    if normalization == "dataset":
        choice = NormalizationChoice(None, "dataset")
    if choice.normalization is not None:
        given = given.model_copy(update={"normalization": choice.normalization})
    progress = choose_progress(quiet=quiet)
    pipeline, info = _pipeline(given, split, seed, progress)
    if not is_saved:
        network, message = build_network(
            options, num_classes or info.num_classes, seed=seed, weights=weights
        )
    network.to(where)
    graph = artifact.trace_for(network, torch.zeros(1, *info.input_shape, device=where), ())
    check_outputs(graph, info.num_classes, model)
    if is_saved:
        _check_classes(model, description, given.name, info, progress)
    try:
        metrics = measure(
            network, pipeline, device=where, channels_last=True, progress=progress, name=split
        )
    finally:
        pipeline.close()
    return {
        "top1": round(metrics.top1, 4),
        "top5": round(metrics.top5, 4),
        "loss": round(metrics.loss, 6),
        "images": metrics.images,
        "bad_images": list(pipeline.bad_images),
        "pipeline": pipeline.kind,
        "model": model,
        "dataset": given.name,
        "split": split,
        "normalization": {
            "mean": list(info.mean),
            "std": list(info.std),
            "source": choice.source,
        },
        "weights": message,
    }


def _check_classes(
    model: str,
    description: Mapping[str, Any],
    dataset: str,
    info: data.DataInfo,
    progress: Progress,
) -> None:
    """Refuses images of another number of classes than a saved network tells apart; says so where
    the classes have other names.
    """
    names, count = description.get("classes"), description["num_classes"]
    told_apart = count if names is None else len(names)
    if told_apart is not None and told_apart != info.num_classes:
        raise ConfigError(
            f"--data: {model} tells {told_apart} classes apart, and {dataset} has "
            f"{info.num_classes}"
        )
    if names is not None and tuple(names) != tuple(info.classes):
        progress.note(
            f"fastprune: {model} was trained for other classes ({names[0]!r}, …) than {dataset} "
            f"has ({info.classes[0]!r}, …)"
        )


def prune_config(
    model: str,
    *,
    weights: str | None,
    num_classes: int | None,
    model_options: Sequence[str],
    criterion: str,
    iterations: int,
    budget: Mapping[str, float],
    round_to: int | str,
    ranking: str,
    keep: Sequence[str],
    data: str,
    root: str | None,
    epochs: int,
    baseline_epochs: int,
    seed: int,
    device: str,
    threads: int | None,
) -> RunConfig:
    """The configuration of a one-shot run that the flags of ``fastprune prune`` stand for.

    Raises:
        ConfigError: every wrong flag, a line each.
    """
    given: dict[str, Any] = {
        "model": {
            "name": model,
            "weights": weights,
            "num_classes": num_classes,
            "options": _options(model_options),
        },
        "data": {"name": data} | ({"root": root} if root else {}),
        "method": {"name": "one_shot", "criterion": criterion, "iterations": iterations},
        "prune": {
            "budget": dict(budget) or None,
            "round_to": round_to,
            "ranking": ranking,
            "keep": list(keep),
        },
        "seed": seed,
        "device": device,
        "threads": threads,
    }
    if baseline_epochs:
        given["baseline"] = {"epochs": baseline_epochs, "lr": 0.1}
    if epochs:
        given["finetune"] = {"epochs": epochs, "lr": 0.01, "schedule": "cosine"}
    try:
        return make_config(given, source="prune")
    except ConfigError as error:
        raise ConfigError([_as_flags(line) for line in error.problems]) from None


_FLAGS = {
    "prune: baseline: the network has no weights": "--weights: expected the network's weights, a "
    "file or a published name; or --baseline-epochs, to train it first",
    "prune: prune.budget: one_shot needs a budget": "--macs: expected a budget: --macs, --params, "
    "--channels, --size-mb or --latency-ms",
}
"""What a configuration lacks, and the flags that give it."""


def _as_flags(line: str) -> str:
    return next((said for begin, said in _FLAGS.items() if line.startswith(begin)), line)


def run_name(model: str) -> str:
    """A folder name for a network: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "-", model).strip("-.")


def members(kind: str | None) -> dict[str, list[dict[str, str]]]:
    """Names and summaries of networks, datasets, criteria and methods, or of one of these kinds.

    Raises:
        ConfigError: no such kind.
    """
    kinds = ("models", "datasets", "criteria", "methods")
    if kind is not None and kind not in kinds:
        raise ConfigError(f"list: unknown kind {kind!r}{nearest(kind, kinds)}")
    found: dict[str, list[dict[str, str]]] = {}
    registries: dict[str, Any] = {
        "datasets": data.registry,
        "criteria": criteria.registry,
        "methods": methods.registry,
    }
    for wanted in kinds if kind is None else (kind,):
        if wanted == "models":
            networks = models.list_networks(torchvision=kind == "models")
            found[wanted] = [{"name": n.name, "summary": n.summary} for n in networks]
            continue
        entries = [registries[wanted].get(name) for name in registries[wanted].names()]
        found[wanted] = [{"name": e.name, "summary": e.summary} for e in entries]
    return found


def _read_plan(path: Path) -> PruningPlan:
    try:
        return PruningPlan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise PlanError(f"--plan {path}: {error.strerror}") from None
    except ValueError as error:
        raise PlanError(f"--plan {path}: not valid JSON: {error}") from None


def _read_widths(text: str) -> dict[str, int]:
    try:
        widths = json.loads(text)
    except ValueError as error:
        raise PlanError(f"--channels: not valid JSON: {error}") from None
    if not isinstance(widths, dict) or not widths:
        raise PlanError(f'--channels: expected {{"group": channels}}, got {text}')
    return widths


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--input: expected channels x height x width, 3x32x32, got {text!r}")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def _options(given: Sequence[str]) -> dict[str, Any]:
    return overlaid({}, parse_overrides(given))


def _model_options(
    model: str, weights: str | None, num_classes: int | None, given: Sequence[str]
) -> ModelOptions:
    content = {
        "name": model,
        "weights": weights,
        "num_classes": num_classes,
        "options": _options(given),
    }
    return checked(ModelOptions, content, source="model")


def _is_saved(model: str) -> bool:
    """Whether MODEL is the path of a saved network or run directory, not a network's name."""
    path = Path(model)
    suffixed = path.suffix in (".safetensors", ".json")
    saved = path.is_dir() or suffixed or path.with_name(path.name + ".json").is_file()
    if not saved and len(path.parts) > 1 and ":" not in model:
        raise ConfigError(f"{model}: there is no saved network and no run directory")
    return saved


def images_of(
    model: str,
    name: str | None,
    root: str | None,
    given: Sequence[str],
    normalization: str | None,
) -> DataOptions:
    content: dict[str, Any] = {}
    if is_run_directory(Path(model)):
        config = saved_config(Path(model))
        if name in (None, config.data.name):
            content = config.data.model_dump(mode="json")
    elif name is None:
        known = ", ".join(data.registry.names())
        raise ConfigError(f"--data: expected a dataset, one of {known}")
    if name is not None:
        content["name"] = name
    if root is not None:
        content["root"] = root
    if normalization not in (None, "dataset"):
        content["normalization"] = _normalization(normalization)
    return checked(DataOptions, overlaid(content, parse_overrides(given)), source="data")


def _normalization(text: str) -> Any:
    if text in _NORMALIZATIONS:
        mean, std = _NORMALIZATIONS[text]
        return {"mean": mean, "std": std}
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(
            f'--normalization: expected dataset, imagenet, none or {{"mean": […], "std": […]}}, '
            f"got {text!r}"
        ) from None


def _pipeline(
    options: DataOptions, split: str, seed: int, progress: Progress
) -> tuple[InputPipeline, data.DataInfo]:
    if split == "test":
        # The training images need not be there.
        return data.load_test(options, progress)
    splits = data.load(options, seed, progress)
    pipeline = getattr(splits, split)
    if pipeline is None:
        raise ConfigError(f"--split: there is no {split} set; set data validation above 0")
    return pipeline, splits.info
