"""What runs of every kind have in common: stages that are done once, the network, the data, the
baseline.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from fastprune import artifact, distributed
from fastprune.config import RunConfig
from fastprune.data import DataInfo, Normalization, Splits
from fastprune.data import load as load_data
from fastprune.distributed import first, gathered, rank, same
from fastprune.files import sha256_of, write_json
from fastprune.graph import ChannelGraph, trace
from fastprune.latency import DeviceClock
from fastprune.run.checks import check_recipes
from fastprune.run.directory import RunDirectory
from fastprune.run.networks import build_network, check_outputs, choose_normalization
from fastprune.run.report import channel_facts, left_out
from fastprune.run.stages import StageRecord, stage_key
from fastprune.run.timing import reachable_here
from fastprune.training import Metrics, Progress, TrainingOptions, evaluate, fit

__all__ = ["Made", "StagedRun", "open_data"]

_LATER = ("method", "prune", "finetune", "latency")
"""Parts of the configuration that the baseline does not follow from, but for what its graph does.
"""

Made = tuple[dict[str, Any], tuple[Path, ...]]
"""Results of a stage and the files it wrote."""


class StagedRun(ABC):
    """The stages of one run; what they have in common is made when first asked for.

    Attributes:
        stages: their names, in order; the first is ``baseline``, the last ``report``.
        together: those that all ranks work on; the others are the first rank's.
        repeat: the command line that repeats the run, for the report.
        records: of the stages so far.
    """

    stages: ClassVar[tuple[str, ...]]
    together: ClassVar[tuple[str, ...]] = ("baseline",)

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

    def run_until(self, last: str) -> StageRecord:
        """The record of a stage; it and those before it are run where they do not stand."""
        for stage in self.stages[: self.stages.index(last) + 1]:
            record = self.stage(stage, self.inputs(stage), self.maker(stage))
        return record

    @abstractmethod
    def inputs(self, stage: str) -> Any:
        """What a stage follows from, as plain data; those before it have their records."""

    @abstractmethod
    def maker(self, stage: str) -> Callable[[Path], Made]:
        """What makes a stage in a folder for its checkpoints."""

    @abstractmethod
    def check(self, graph: ChannelGraph) -> None:
        """Refuses what could only fail after training, and says what can be reached."""

    def say(self, line: str) -> None:
        self.progress.note(f"fastprune: {line}")

    def stage(self, name: str, inputs: Any, make: Callable[[Path], Made]) -> StageRecord:
        """The record of a stage, made now unless it stands already."""
        with distributed.stage(name):
            key = same(stage_key(name, inputs))
            record, why = first(lambda: self.directory.finished(name, key))
            if record is None:
                self.say(f"{name}: again, since {why}" if why else name)
                record = self.made(name, key, make)
            else:
                self.say(f"{name}: done before")
        self.records[name] = record
        return record

    def made(self, name: str, key: str, make: Callable[[Path], Made]) -> StageRecord:
        """The record of a stage that is made now."""
        torch.manual_seed(self.config.seed)
        if name == self.stages[-1]:
            # Of what stood before; it is written again once this stage is done.
            first(lambda: self.directory.page.unlink(missing_ok=True))
        start = time.perf_counter()
        work = first(lambda: self.directory.work(name, key))
        try:
            if name in self.together:
                results, files = make(work)
            else:
                results, files = first(lambda: make(work))
            bad = tuple(dict.fromkeys(chain(*gathered(self.bad_images()))))
        except BaseException:
            if rank() == 0:
                self.directory.leave(name, time.perf_counter() - start)
            raise
        seconds = time.perf_counter() - start
        return first(
            lambda: self.directory.finish(name, key, results, files, seconds, bad_images=bad)
        )

    def facts(self) -> dict[str, Any]:
        """What every report says: what ran, on what, how long, and the command that repeats it."""
        folder, records = self.directory.path, self.records
        return {
            "model": self.config.model.name,
            "dataset": self.config.data.name,
            "pipelines": {name: part.kind for name, part in self.splits.parts.items()},
            "method": self.config.method.name,
            "seed": self.config.seed,
            "normalization": {
                "mean": list(self.info.mean),
                "std": list(self.info.std),
                "source": self.normalization.source,
            },
            "warnings": left_out(records),
            "seconds": {name: record.seconds for name, record in records.items()},
            "kills": {name: record.kills for name, record in records.items() if record.kills},
            "command": self.repeat or f"fastprune run {folder}/config.yaml --out {folder}",
            "directory": str(folder),
        }

    def open(self) -> None:
        """Opens the data, which is otherwise done when a stage first asks for it."""
        _ = self.splits

    def close(self) -> None:
        if "splits" in self.__dict__:
            self.splits.close()

    @cached_property
    def splits(self) -> Splits:
        splits = open_data(self.config, self.normalization.normalization, self.progress)
        first(lambda: self.directory.hold_images(splits.listings, self.say))
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

    @cached_property
    def clock(self) -> DeviceClock:
        """What measures latency here."""
        return DeviceClock(self.config.latency, self.device)

    def reachable(self, graph: ChannelGraph) -> str:
        """What each metric can be brought to, in one line; a budget out of reach is refused."""
        return reachable_here(
            self.config.method.in_force(self.config.prune),
            graph,
            lambda: self.fresh(self.config.seed).to(self.device),
            self.clock,
            self.progress,
        )

    # Baseline

    def baseline_inputs(self) -> Any:
        config = self.config
        weights = config.model.weights
        given = Path(weights) if weights else None
        code = Path(config.model.name.rpartition(":")[0]).expanduser()
        essence = {k: v for k, v in config.essence().items() if k not in _LATER}
        # What a file holds counts, and not where it lies.
        del essence["model"]["weights"]
        return {
            "config": essence,
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
        first(lambda: write_json(self.directory.graph, channel_facts(graph)))
        trained = config.baseline is not None or config.model.weights is not None
        results = {
            "trained": trained,
            "metrics": self.measure(self.network(self.directory.baseline)) if trained else None,
            "cost": graph.cost().to_dict(),
        }
        return results, (self.directory.baseline, self.directory.graph)

    def check_common(self, graph: ChannelGraph) -> None:
        """What every kind of run refuses."""
        check_recipes(self.config, self.device, self.splits.train)
        check_outputs(graph, self.info.num_classes, self.config.model.name)

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


def open_data(
    config: RunConfig, normalization: Normalization | None, progress: Progress
) -> Splits:
    data = config.data
    if normalization is not None:
        data = data.model_copy(update={"normalization": normalization})
    return load_data(data, config.seed, progress)
