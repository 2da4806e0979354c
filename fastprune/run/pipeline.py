"""One run: baseline, plan, prune, fine-tune, report. Repeating it goes on where it stopped.

Every stage reads what it needs from the files of the stages before, also within one process, so a
run that was interrupted and one that was not compute the same.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastprune import artifact
from fastprune.config import RunConfig
from fastprune.data import DataInfo, Normalization, Splits
from fastprune.data import load as load_data
from fastprune.errors import ConfigError, PlanError, nearest
from fastprune.files import sha256_of, write_json
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, mask_plan, trace
from fastprune.methods import MethodContext
from fastprune.methods import registry as methods
from fastprune.methods._states import read_states
from fastprune.models import resolve
from fastprune.run.checks import budget_lines, check_oracle, check_reachable, check_recipes
from fastprune.run.classes import write_classes
from fastprune.run.directory import (
    STAGES,
    RunDirectory,
    StageRecord,
    open_directory,
    stage_key,
)
from fastprune.run.figures import state_drawings
from fastprune.run.networks import (
    build_network,
    check_outputs,
    choose_normalization,
    device_of,
    set_threads,
)
from fastprune.run.plots import plot_channels, plot_search
from fastprune.run.report import build_report, channel_facts
from fastprune.training import Metrics, Progress, TrainingOptions, choose_progress, evaluate, fit
from fastprune.training.progress import SilentProgress

__all__ = ["run"]

_LATER = ("method", "prune", "finetune", "latency")
"""Parts of the configuration that the baseline does not follow from, but for what its graph does.
"""

Made = tuple[dict[str, Any], tuple[Path, ...]]
"""Results of a stage and the files it wrote."""


def run(
    config: RunConfig,
    path: Path,
    *,
    fresh: bool = False,
    fresh_search: bool = False,
    until: str = "report",
    quiet: bool = False,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs what is left of a run and gives its report, or what the last stage found.

    Args:
        config: what to run.
        path: the run directory.
        fresh: start anew.
        fresh_search: keep the baseline and start anew from the method on.
        until: the last stage to run; but for ``report`` its results are given.
        quiet: no progress, no messages.
        command: the command line that repeats the run, for the report.

    Raises:
        FastpruneError: what the user can mend; what was done so far is kept.
    """
    if until not in STAGES:
        raise ConfigError(f"--until: unknown stage {until!r}{nearest(until, STAGES)}")
    device = device_of(config.device)
    set_threads(config.threads)
    check_recipes(config, device)
    with open_directory(path, config, fresh=fresh, replan=fresh_search) as directory:
        this = _Run(config, directory, device, choose_progress(quiet=quiet))
        this.repeat = shlex.join(part for part in command if part not in _ONCE)
        try:
            if fresh_search:
                # First, since a search may have taken days, and what is refused replaces none.
                this.check(this.trace(this.fresh(config.seed).to(device)))
                directory.replan(config)
            for stage in STAGES[: STAGES.index(until) + 1]:
                record = this.run_stage(stage)
        finally:
            this.close()
        if until != "report":
            return {"stage": until, **record.results}
        report: dict[str, Any] = json.loads(directory.report.read_text())
        return report


_ONCE = ("--fresh", "--fresh-search")
"""What is not repeated when a run goes on."""


class _Run:
    """The stages of one run; what they have in common is made when first asked for."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.config = config
        self.directory = directory
        self.device = device
        self.progress = progress
        self.repeat = ""
        self.records: dict[str, StageRecord] = {}
        self.normalization = choose_normalization(config.model, config.data)

    def say(self, line: str) -> None:
        self.progress.note(f"fastprune: {line}")

    def run_stage(self, name: str) -> StageRecord:
        """The record of a stage, once those before it have theirs."""
        records, config = self.records, self.config
        before = records[STAGES[STAGES.index(name) - 1]].digest if records else None
        match name:
            case "baseline":
                return self.stage(name, self.baseline_inputs(), self.baseline)
            case "plan":
                return self.stage(name, self.plan_inputs(), self.plan)
            case "prune":
                return self.stage(name, [before], self.prune)
            case "finetune":
                return self.stage(name, [before, records["plan"].digest], self.finetune)
            case _:
                inputs = [before, config.latency.model_dump(), str(self.device)]
                return self.stage(name, inputs, self.report)

    def stage(self, name: str, inputs: Any, make: Callable[[Path], Made]) -> StageRecord:
        """The record of a stage, made now unless it stands already."""
        key = stage_key(name, inputs)
        record, why = self.directory.finished(name, key)
        if record is None:
            self.say(f"{name}: again, since {why}" if why else name)
            torch.manual_seed(self.config.seed)
            start = time.perf_counter()
            try:
                results, files = make(self.directory.work(name, key))
            except BaseException:
                self.directory.leave(name, time.perf_counter() - start)
                raise
            seconds = time.perf_counter() - start
            record = self.directory.finish(
                name, key, results, files, seconds, bad_images=self.bad_images()
            )
        else:
            self.say(f"{name}: done before")
        self.records[name] = record
        return record

    def close(self) -> None:
        if "splits" in self.__dict__:
            self.splits.close()

    @cached_property
    def splits(self) -> Splits:
        splits = _open_data(self.config, self.normalization.normalization, self.progress)
        self.directory.hold_images(splits.listings, self.say)
        return splits

    def bad_images(self) -> tuple[str, ...]:
        """Image files that were left out so far."""
        return self.splits.bad_images if "splits" in self.__dict__ else ()

    @property
    def info(self) -> DataInfo:
        return self.splits.info

    @property
    def num_classes(self) -> int:
        return self.config.model.num_classes or self.info.num_classes

    @property
    def example(self) -> torch.Tensor:
        return torch.zeros(1, *self.info.input_shape, device=self.device)

    def fresh(self, seed: int) -> nn.Module:
        """The network untrained, on the CPU."""
        return build_network(self.config.model, self.num_classes, seed=seed)[0]

    def network(self, file: Path) -> nn.Module:
        """The unpruned network with the weights of a file."""
        model = artifact.restore(self.fresh(self.config.seed), artifact.load_state(file))
        return model.to(self.device)

    def trace(self, model: nn.Module) -> ChannelGraph:
        return trace(
            model, self.example, keep=self.config.prune.keep, select=self.config.method.selected
        )

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on the test images, in percent."""
        metrics = self.measured(model)
        return {"top1": metrics.top1, "top5": metrics.top5, "loss": metrics.loss}

    def measured(self, model: nn.Module, by_class: int = 0) -> Metrics:
        """On the test images."""
        return evaluate(
            model,
            self.splits.test,
            device=self.device,
            channels_last=True,
            by_class=by_class,
            progress=self.progress,
            name="test",
        )

    # Baseline

    def baseline_inputs(self) -> Any:
        config = self.config
        weights = config.model.weights
        given = Path(weights) if weights else None
        code = Path(config.model.name.rpartition(":")[0]).expanduser()
        return {
            "config": {k: v for k, v in config.essence().items() if k not in _LATER},
            "keep": config.prune.keep,
            "select": config.method.selected,
            "weights": sha256_of(given) if given is not None and given.is_file() else weights,
            "code": sha256_of(code) if code.suffix == ".py" and code.is_file() else None,
        }

    def baseline(self, work: Path) -> Made:
        config = self.config
        model, message = build_network(
            config.model, self.num_classes, seed=config.seed, weights=config.model.weights
        )
        if message:
            self.say(message)
        graph = self.trace(model.to(self.device))
        self.check(graph)
        if config.baseline is not None:
            self.train(model, config.baseline, work, "baseline")
        artifact.save_state(self.directory.baseline, model)
        write_json(self.directory.graph, channel_facts(graph))
        trained = config.baseline is not None or config.model.weights is not None
        results = {
            "trained": trained,
            "metrics": self.measure(self.network(self.directory.baseline)) if trained else None,
            "cost": graph.cost().to_dict(),
        }
        return results, (self.directory.baseline, self.directory.graph)

    def check(self, graph: ChannelGraph) -> None:
        """Refuses what could only fail after training, and says what can be reached."""
        config = self.config
        check_recipes(config, self.device, self.splits.train)
        check_outputs(graph, self.info.num_classes, config.model.name)
        own = config.method.check(graph, config.prune, resolve(config.model.name))
        prune = config.method.in_force(config.prune)
        self.say(f"reachable: {own or check_reachable(prune, graph)}")

    def train(
        self,
        model: nn.Module,
        options: TrainingOptions,
        work: Path,
        name: str,
        teacher: nn.Module | None = None,
        field: str | None = None,
    ) -> None:
        fit(
            model,
            self.splits,
            options,
            directory=work,
            seed=self.config.seed,
            device=self.device,
            teacher=teacher,
            progress=self.progress,
            name=name,
            field=field,
        )

    # Plan

    def plan_inputs(self) -> Any:
        config = self.config
        finetune = None if config.finetune is None else config.finetune.model_dump(mode="json")
        asked = [config.method.model_dump(mode="json"), config.prune.model_dump(mode="json")]
        return [self.records["baseline"].digest, finetune, *asked]

    def plan(self, work: Path) -> Made:
        config, directory = self.config, self.directory
        model = self.network(directory.baseline)
        context = MethodContext(
            model=model,
            graph=self.trace(model),
            example=self.example,
            splits=self.splits,
            prune=config.prune,
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
        )
        found = methods.get(config.method.name).build(context, config.method)
        write_json(directory.plan, found.plan.to_json())
        files = [directory.plan]
        if found.model is not model:
            artifact.save_state(directory.unpruned, found.model)
            files.append(directory.unpruned)
        if found.pruned_state is not None:
            artifact.save_state(directory.inherited, found.pruned_state)
            files.append(directory.inherited)
        # An earlier search's, perhaps of another method.
        for file in directory.of_methods:
            file.unlink(missing_ok=True)
        for file in found.files:
            directory.take(file)
        # Of the method's own file: one beside the results may be lost or edited later.
        if (trials := work / directory.trials.name) in found.files:
            plot_search(directory.search_plot, trials)
        if (states := work / directory.states.name) in found.files:
            full = {group.name: group.channels for group in context.graph.groups}
            for file, draw in state_drawings(read_states(states), full, directory):
                draw(file)
        results = {
            "digest": found.plan.digest,
            "own_weights": found.model is not model,
            "own_pruned_weights": found.pruned_state is not None,
            "masked": found.masked,
            "finetune": None if found.finetune is None else found.finetune.model_dump(mode="json"),
            "metrics": None
            if found.trained is None
            else self.measure(found.trained.to(self.device)),
            "notes": dict(found.notes),
        }
        return results, tuple(files)

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
            "budget": budget_lines(budget, graph, plan),
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
        artifact.save(
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
        content = build_report(
            config=self.config,
            records=self.records,
            graph=self.trace(model),
            plan=plan,
            unpruned=model,
            pruned=small,
            info=self.info,
            pipelines={name: part.kind for name, part in self.splits.parts.items()},
            normalization_source=self.normalization.source,
            device=self.device,
            command=self.repeat,
            directory=self.directory.path,
        )
        directory = self.directory
        full = {group.name: group.channels for group in self.trace(model).groups}
        plot_channels(directory.channels_plot, full, plan.widths())
        self.write_classes(model, small)
        write_json(directory.report, content)
        return {}, (directory.report,)

    def write_classes(self, unpruned: nn.Module, pruned: nn.Module) -> None:
        """Each class's test accuracy, where the pruned network is for some of them."""
        focus, info = self.config.method.focus, self.info
        if not focus:
            self.directory.classes.unlink(missing_ok=True)
            return
        networks = {"unpruned": unpruned, "pruned": pruned}
        found = {name: self.measured(net, info.num_classes) for name, net in networks.items()}
        write_classes(self.directory.classes, found, info.classes, focus)
        before, after = (metrics.mean_of(focus) for metrics in found.values())
        if before is not None and after is not None:
            self.say(
                f"classes in focus: test top-1 {before:.2f} % unpruned, {after:.2f} % pruned; "
                f"each class: {self.directory.classes}"
            )


def _open_data(
    config: RunConfig, normalization: Normalization | None, progress: Progress
) -> Splits:
    data = config.data
    if normalization is not None:
        data = data.model_copy(update={"normalization": normalization})
    return load_data(data, config.seed, progress)


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
    return model.to(device), _open_data(config, normalization, SilentProgress())
