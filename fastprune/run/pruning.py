"""A run that prunes one network: baseline, plan, prune, fine-tune, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastprune import artifact
from fastprune.config import RunConfig
from fastprune.data import Normalization, Splits
from fastprune.distributed import first
from fastprune.errors import PlanError
from fastprune.files import write_json
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, mask_plan
from fastprune.latency import LATENCY
from fastprune.methods import MethodContext
from fastprune.methods import registry as methods
from fastprune.methods._states import read_states
from fastprune.models import resolve
from fastprune.run.checks import budget_lines, check_oracle
from fastprune.run.classes import write_classes
from fastprune.run.figures import state_drawings
from fastprune.run.networks import build_network
from fastprune.run.plots import plot_channels, plot_search
from fastprune.run.report import build_report
from fastprune.run.staged import Made, StagedRun, open_data
from fastprune.run.stages import STAGES
from fastprune.run.timing import latency_lines, settled
from fastprune.training import TrainingOptions
from fastprune.training.progress import SilentProgress

__all__ = ["PruningRun"]


class PruningRun(StagedRun):
    """Each stage works on the files of the ones before it."""

    stages = STAGES
    together = ("baseline", "plan", "finetune")

    def inputs(self, stage: str) -> Any:
        match stage:
            case "baseline":
                return self.baseline_inputs()
            case "plan":
                return self.plan_inputs()
            case "prune":
                return [self.records["plan"].digest]
            case "finetune":
                return [self.records[name].digest for name in ("prune", "plan")]
            case _:
                latency = self.config.latency.model_dump()
                return [self.records["finetune"].digest, latency, str(self.device)]

    def maker(self, stage: str) -> Callable[[Path], Made]:
        return {
            "baseline": self.baseline,
            "plan": self.plan,
            "prune": self.prune,
            "finetune": self.finetune,
            "report": self.report,
        }[stage]

    def check(self, graph: ChannelGraph) -> None:
        """Refuses what could only fail after training, and says what can be reached."""
        config = self.config
        self.check_common(graph)
        own = config.method.check(graph, config.prune, resolve(config.model.name))
        self.say(f"reachable: {own or self.reachable(graph)}")

    # Plan

    def plan_inputs(self) -> Any:
        config = self.config
        finetune = None if config.finetune is None else config.finetune.model_dump(mode="json")
        asked: list[Any] = [
            config.method.model_dump(mode="json"),
            config.prune.model_dump(mode="json"),
        ]
        if config.method.in_force(config.prune).timed:
            latency = config.latency.model_dump(exclude={"repeats"})
            asked.append([latency, str(self.device), config.threads])
        return [self.records["baseline"].digest, finetune, *asked]

    def plan(self, work: Path) -> Made:
        config, directory = self.config, self.directory
        model = self.network(directory.baseline)
        graph = self.trace(model)
        prune = settled(config.prune, graph, self.clock, self.progress, work)
        context = MethodContext(
            model=model,
            graph=graph,
            example=self.example,
            splits=self.splits,
            prune=prune,
            directory=work,
            seed=config.seed,
            device=self.device,
            fresh=self.fresh,
            finetune=config.finetune,
            progress=self.progress,
            reopen=partial(
                _reopened,
                config,
                self.normalization.normalization,
                self.num_classes,
                directory.baseline,
                self.device,
            ),
            network=resolve(config.model.name),
            latency=config.latency,
        )
        found = methods.get(config.method.name).build(context, config.method)
        first(lambda: write_json(directory.plan, found.plan.to_json()))
        files = [directory.plan]
        if found.model is not model:
            artifact.save_state(directory.unpruned, found.model)
            files.append(directory.unpruned)
        if found.pruned_state is not None:
            artifact.save_state(directory.inherited, found.pruned_state)
            files.append(directory.inherited)
        full = {group.name: group.channels for group in context.graph.groups}
        first(lambda: self.take(found.files, work, full))
        if (work / LATENCY).is_file():
            files.append(directory.latency_table)
        results = {
            "digest": found.plan.digest,
            "own_weights": found.model is not model,
            "own_pruned_weights": found.pruned_state is not None,
            "masked": found.masked,
            "finetune": None if found.finetune is None else found.finetune.model_dump(mode="json"),
            "metrics": None
            if found.trained is None
            else self.measure(found.trained.to(self.device)),
            "notes": dict(found.notes)
            | ({"round_to": prune.round_to} if config.prune.round_to == "auto" else {}),
        }
        return results, tuple(files)

    def take(self, made: Sequence[Path], work: Path, full: Mapping[str, int]) -> None:
        """Puts a method's files beside the results, and draws them.

        Args:
            made: the files.
            work: the method's folder.
            full: channels of each group of the unpruned network.
        """
        directory = self.directory
        # An earlier search's, perhaps of another method.
        for file in directory.of_methods:
            file.unlink(missing_ok=True)
        for file in made:
            directory.take(file)
        if (work / LATENCY).is_file():
            directory.take(work / LATENCY)
        # Of the method's own file: one beside the results may be lost or edited later.
        if (trials := work / directory.trials.name) in made:
            plot_search(directory.search_plot, trials)
        if (states := work / directory.states.name) in made:
            for file, draw in state_drawings(read_states(states), full, directory):
                draw(file)

    # Prune

    def cut(self, model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
        unchanged = self.config.method.allows_unchanged
        return apply_plan(model, graph, plan, allow_unchanged=unchanged)

    def unpruned(self) -> nn.Module:
        """The network the plan is applied to."""
        own = self.records["plan"].results["own_weights"]
        return self.network(self.directory.unpruned if own else self.directory.baseline)

    def stored_plan(self) -> PruningPlan:
        return PruningPlan.from_json(json.loads(self.directory.plan.read_text()))

    def prune(self, work: Path) -> Made:
        model, plan = self.unpruned(), self.stored_plan()
        graph = self.trace(model)
        small = self.cut(model, graph, plan)
        images, _ = next(iter(self.splits.test.epoch(0)))
        oracle = check_oracle(mask_plan(model, graph, plan), small, images.to(self.device))
        if self.records["plan"].results["own_pruned_weights"]:
            artifact.restore(small, artifact.load_state(self.directory.inherited))
        artifact.save_state(self.directory.start, small)
        cost = graph.cost(plan)
        counted = sum(parameter.numel() for parameter in small.parameters())
        if counted != cost.params:
            raise PlanError(
                f"plan: predicts {cost.params} parameters, the pruned network has {counted}"
            )
        budget = self.config.method.in_force(self.config.prune).budget
        results = {
            "cost": cost.to_dict(),
            "widths": plan.widths(),
            "budget": budget_lines(budget, graph, plan)
            + latency_lines(self.records["plan"].results["notes"]),
            "oracle": oracle,
            "metrics": self.measure(small),
        }
        return results, (self.directory.start,)

    # Fine-tune

    def finetune(self, work: Path) -> Made:
        config, directory = self.config, self.directory
        plan, facts = self.stored_plan(), self.records["plan"].results
        model = self.unpruned()
        graph = self.trace(model)
        small = self.cut(model, graph, plan)
        recipe, field = config.finetune, "finetune"
        if facts["finetune"] is not None:
            recipe = TrainingOptions.model_validate(facts["finetune"])
            field = next((f"method.{name}" for name in config.method.recipes), field)
        if recipe is None:
            artifact.restore(small, artifact.load_state(directory.start))
        elif facts["masked"]:
            masked = mask_plan(model, graph, plan)
            self.train(masked, recipe, work, "masked fine-tuning", self.teacher(recipe), field)
            small = self.cut(masked, graph, plan)
        else:
            artifact.restore(small, artifact.load_state(directory.start))
            self.train(small, recipe, work, "fine-tuning", self.teacher(recipe), field)
        metrics = self.measure(small)
        first(
            lambda: artifact.save(
                directory.pruned,
                small,
                plan=plan,
                architecture=config.model.name,
                options=config.model.options,
                num_classes=self.num_classes,
                input_shape=self.info.input_shape,
                normalization=(self.info.mean, self.info.std),
                classes=self.info.classes,
                metrics=metrics,
                keep=config.prune.keep,
            )
        )
        results = {
            "metrics": metrics if recipe is not None else None,
            "trained": recipe is not None,
        }
        return results, directory.product

    def teacher(self, recipe: TrainingOptions) -> nn.Module | None:
        """The trained unpruned network, if wanted: the baseline, or the one the method trained."""
        if recipe.distill is None:
            return None
        if self.records["baseline"].results["trained"]:
            return self.network(self.directory.baseline)
        return self.unpruned() if self.records["plan"].results["metrics"] else None

    # Report

    def report(self, work: Path) -> Made:
        model, plan = self.unpruned(), self.stored_plan()
        small = artifact.load(self.directory.pruned, device=self.device)
        focus = self.write_classes(model, small)
        content = build_report(
            self.facts(),
            config=self.config,
            records=self.records,
            graph=self.trace(model),
            plan=plan,
            unpruned=model,
            pruned=small,
            shape=self.info.input_shape,
            device=self.device,
            focus=focus,
        )
        directory = self.directory
        full = {group.name: group.channels for group in self.trace(model).groups}
        plot_channels(directory.channels_plot, full, plan.widths())
        write_json(directory.report, content)
        return {"focus": focus}, (directory.report,)

    def write_classes(self, unpruned: nn.Module, pruned: nn.Module) -> dict[str, Any] | None:
        """Each class's test accuracy, where the pruned network is for some; their means."""
        classes, info = self.config.method.focus, self.info
        if not classes:
            self.directory.classes.unlink(missing_ok=True)
            return None
        networks = {"unpruned": unpruned, "pruned": pruned}
        found = {name: self.measured(net, info.num_classes) for name, net in networks.items()}
        write_classes(self.directory.classes, found, info.classes, classes)
        means = {name: metrics.mean_of(classes) for name, metrics in found.items()}
        if None not in means.values():
            self.say(
                f"classes in focus: test top-1 {means['unpruned']:.2f} % unpruned, "
                f"{means['pruned']:.2f} % pruned; each class: {self.directory.classes}"
            )
        return {"classes": list(classes), **means}


def _reopened(
    config: RunConfig,
    normalization: Normalization | None,
    num_classes: int,
    baseline: Path,
    device: torch.device,
) -> tuple[nn.Module, Splits]:
    """Baseline network and data, in another process."""
    model, _ = build_network(config.model, num_classes, seed=config.seed)
    artifact.restore(model, artifact.load_state(baseline))
    return model.to(device), open_data(config, normalization, SilentProgress())
