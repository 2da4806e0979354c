"""MetaPruning: the widths of a network by evolution, its weights for any widths by a pruningnet.

Liu et al., *MetaPruning: Meta Learning for Automatic Neural Network Channel Pruning*, ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from torch import nn

from fastprune import artifact
from fastprune.distributed import rank, world
from fastprune.errors import ArtifactError, FastpruneError
from fastprune.graph import GeneTable, PruningPlan, apply_plan
from fastprune.methods import MethodContext, MethodResult, registry
from fastprune.methods._metapruning_options import (
    PRUNINGNET,
    TRIALS,
    MetaPruningOptions,
    algorithm_of,
    table_of,
)
from fastprune.methods._pruningnet import GeneratedSubnets, PruningNet, Structures
from fastprune.methods._search import search
from fastprune.methods._structures import check_structure
from fastprune.methods._trials import TrialLog, counts, front, steps_in_common
from fastprune.training import fit, recalibrate_batch_norm
from fastprune.training._device import precision_refusal
from fastprune.training.scored import ScoredEvaluator

__all__ = ["MetaPruningOptions", "metapruning"]


@registry.register("metapruning", options=MetaPruningOptions)
def metapruning(context: MethodContext, options: MetaPruningOptions) -> MethodResult:
    """Train a network that generates weights for any widths; search widths by evolution.

    Raises:
        FastpruneError: a network without genes, a budget that no gene meets, no validation images
            to measure fitness on, fresh weights that nothing trains, a precision that the device
            does not have, an earlier run of another network.
    """
    if context.finetune is None and options.weights == "fresh":
        raise FastpruneError(
            "finetune: the network that was found begins with fresh weights (method.weights); "
            "expected a recipe to train it by"
        )
    if options.searches and (why := precision_refusal(options.precision, context.device)):
        raise FastpruneError(f"method.precision: {why}")
    table = table_of(context.network, context.graph)
    if not options.uses_pruningnet:
        gene = options.chosen(table)
        return _result(context, options, _given_plan(context, options, table, gene), gene)
    net = _pruningnet(context, options, table)
    files = () if options.earlier else (context.directory / PRUNINGNET,)
    if options.searches:
        gene, notes = _search(context, options, table, net)
        plan, files = table.plan(gene), (*files, context.directory / TRIALS)
    else:
        gene, notes = options.chosen(table), {}
        plan = _given_plan(context, options, table, gene)
    state = _generated(context, options, net, plan) if options.weights == "generated" else None
    return _result(context, options, plan, gene, state, notes, files)


def _result(
    context: MethodContext,
    options: MetaPruningOptions,
    plan: PruningPlan,
    gene: tuple[int, ...],
    state: dict[str, torch.Tensor] | None = None,
    notes: Mapping[str, Any] = MappingProxyType({}),
    files: tuple[Path, ...] = (),
) -> MethodResult:
    return MethodResult(
        plan,
        context.fresh(context.seed).to(context.device),
        pruned_state=state,
        notes={"gene": list(gene), "weights": options.weights, **notes},
        files=files,
    )


def _given_plan(
    context: MethodContext,
    options: MetaPruningOptions,
    table: GeneTable,
    gene: tuple[int, ...],
) -> PruningPlan:
    budget = context.prune.budget
    check_structure(context.graph, budget, table.widths(gene), options.given_by)
    return table.plan(gene)


def _pruningnet(
    context: MethodContext, options: MetaPruningOptions, table: GeneTable
) -> PruningNet:
    """The trained pruningnet, on the device; its file is in the method's directory."""
    torch.manual_seed(context.seed)
    net = PruningNet(context.fresh(context.seed), table, context.example.cpu())
    file = context.directory / PRUNINGNET
    if options.earlier is not None:
        _check_images(context, options, Path(options.earlier))
        given = Path(options.earlier) / PRUNINGNET
        try:
            artifact.restore(net, artifact.load_state(given))
        except ArtifactError as error:
            raise ArtifactError(
                f"method.earlier: {given} cannot be taken; expected the pruningnet of "
                f"this network, with these classes: {error}"
            ) from None
        return net.to(context.device)
    _explain(context)
    own = rank() if options.structures == "rank" and world() > 1 else None
    fit(
        net,
        context.splits,
        options.recipe,
        directory=context.directory / "pruningnet",
        seed=context.seed,
        device=context.device,
        after_step=Structures(net, context.seed, own),
        progress=context.progress,
        name="pruningnet",
        field="method.pruningnet",
    )
    # They know each other, and would outlive the method until the garbage collector comes by.
    net.structures = None
    if not file.is_file():
        artifact.save_state(file, net)
    return net.to(context.device)


def _check_images(context: MethodContext, options: MetaPruningOptions, earlier: Path) -> None:
    """Refuses to measure fitness on images that the pruningnet may have been trained on."""
    config, seed = earlier / "config.yaml", context.seed
    if config.is_file():
        try:
            seed = yaml.safe_load(config.read_text(encoding="utf-8"))["seed"]
        except (ValueError, LookupError, TypeError, yaml.YAMLError):
            raise FastpruneError(
                f"method.earlier: {config}: unreadable, or names no seed"
            ) from None
    if options.searches and seed != context.seed:
        raise FastpruneError(
            f"method.earlier: {earlier} was run with seed {seed}, and the seed chooses the "
            f"validation images; expected seed={seed}, got {context.seed}"
        )


def _explain(context: MethodContext) -> None:
    if context.splits.validation is not None:
        context.progress.note(
            "pruningnet: its validation accuracy is that of one structure, of middle widths, with "
            "the weights generated for it. On a hard data set it stays far below a trained "
            "network's, since one set of weights serves all structures; what counts is how it "
            "orders them"
        )


def _search(
    context: MethodContext, options: MetaPruningOptions, table: GeneTable, net: PruningNet
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The best gene, and facts for the report."""
    algorithm = algorithm_of(options, table, context.graph, context.prune.budget, context.seed)
    log = TrialLog(context.directory / TRIALS)
    evaluator = ScoredEvaluator(
        GeneratedSubnets(net),
        context.example,
        context.splits,
        batches=options.batches,
        racing=options.select_num if options.racing else None,
        device=context.device,
        precision=options.precision,
        channels_last=options.channels_last,
        memory_limit=options.memory_limit,
        cost=lambda plan: context.graph.cost(plan).macs,
        progress=context.progress,
    )
    best = search(
        algorithm,
        table.plan,
        context.graph,
        evaluator,
        log,
        forget=_nothing_kept,
        together=True,
        progress=context.progress,
    )
    trials = list(log)
    return best.code, {
        "number": best.number,
        "fitness": best.fitness,
        **counts(trials, "measured"),
        "images": sum(trial.images or 0 for trial in trials),
        "steps_in_common": steps_in_common(trials),
        "front": front(trials),
    }


def _nothing_kept(digests: set[str]) -> None:
    """Candidates leave nothing behind: their weights can be generated again."""


def _generated(
    context: MethodContext, options: MetaPruningOptions, net: PruningNet, plan: PruningPlan
) -> dict[str, torch.Tensor]:
    """The pruned network's weights as the pruningnet generates them, its statistics taken anew."""
    small = apply_plan(
        context.fresh(context.seed).to(context.device),
        context.graph,
        plan,
        allow_unchanged=True,
    )
    (subnet,) = GeneratedSubnets(net)([plan])
    weights = dict(small.named_parameters())
    with torch.no_grad():
        for module in small.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for name, (_, tensor) in subnet.weights.items():
            weights[name].copy_(tensor)
    recalibrate_batch_norm(small, context.splits.train, options.batches, context.device)
    return {name: tensor.cpu() for name, tensor in small.state_dict().items()}
