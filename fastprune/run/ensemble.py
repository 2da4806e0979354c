"""A run that makes several networks of one and joins them: baseline, group, experts, fuse, infer,
report.

Each expert is an ordinary run in a folder of its own, which begins with the baseline's weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from fastprune.config import RunConfig
from fastprune.data import Normalization
from fastprune.distributed import first
from fastprune.errors import ConfigError, TrainingError
from fastprune.files import write_json
from fastprune.graph import ChannelGraph
from fastprune.methods import registry as methods
from fastprune.methods._grouping import Grouping, Groups
from fastprune.methods.papm import JoinedOptions
from fastprune.methods.papm_split import PapmSplitOptions
from fastprune.models import resolve
from fastprune.run.checks import check_recipes
from fastprune.run.directory import open_directory, saved_config
from fastprune.run.ensemble_plots import plot_devices
from fastprune.run.ensemble_report import build_ensemble_report
from fastprune.run.fusion import fuse
from fastprune.run.fusion_file import fused_network, load_fusion
from fastprune.run.grouping import group_by, write_grouping
from fastprune.run.inference import infer
from fastprune.run.networks import device_of
from fastprune.run.paths import RunPaths, is_run_directory
from fastprune.run.pruning import PruningRun
from fastprune.run.staged import Made, StagedRun
from fastprune.run.stages import ENSEMBLE_STAGES
from fastprune.training import evaluate
from fastprune.training.experts import head_of

__all__ = ["EnsembleRun", "expert_config"]


class EnsembleRun(StagedRun):
    """Each stage works on the files of the ones before it."""

    stages = ENSEMBLE_STAGES
    together = ("baseline", "experts")

    @cached_property
    def options(self) -> PapmSplitOptions:
        return cast(PapmSplitOptions, self.config.method)

    def inputs(self, stage: str) -> Any:
        config, options = self.config, self.options
        if stage == "baseline":
            return self.baseline_inputs()
        before = self.records[self.stages[self.stages.index(stage) - 1]].digest
        match stage:
            case "group":
                return [before, options.counts, options.similarity]
            case "experts":
                own = options.model_dump(mode="json", include=set(JoinedOptions.model_fields))
                given = config.model_dump(mode="json", include={"prune", "finetune"})
                return [before, own, given]
            case "fuse":
                return [before, options.head.model_dump(mode="json")]
            case "infer":
                return [before, options.inference.model_dump(mode="json"), str(self.device)]
            case _:
                return [before]

    def maker(self, stage: str) -> Callable[[Path], Made]:
        return {
            "baseline": self.baseline,
            "group": self.group,
            "experts": self.experts,
            "fuse": self.fuse,
            "infer": self.infer,
            "report": self.report,
        }[stage]

    def check(self, graph: ChannelGraph) -> None:
        self.check_common(graph)
        config, options, known = self.config, self.options, self.info.num_classes
        if max(options.counts) > known:
            raise ConfigError(
                f"method.devices: got {max(options.counts)}, but {config.data.name} has {known} "
                "classes; expected a device a class at most"
            )
        for place in options.inference.devices or ():
            device_of(place, "method.inference.devices")
        check_recipes(self.expert_config((0,)), self.device)
        # An expert is fused by what its last layer reads.
        head_of(self.fresh(config.seed), self.info.input_shape)
        options.check(graph, config.prune, resolve(config.model.name))
        self.say(f"reachable by each expert: {self.reachable(graph)}")

    # Group

    def group(self, work: Path) -> Made:
        found = group_by(
            lambda _: self.network(self.directory.baseline),
            self.directory,
            self.config,
            self.options.similarity,
            self.device,
            self.progress,
        )
        write_grouping(self.directory, found.grouping, found.similarity)
        groups = {str(n): found.grouping.groups(n) for n in self.options.counts}
        names = found.grouping.classes
        for count, parts in groups.items():
            shown = " | ".join(", ".join(names[label] for label in part) for part in parts)
            self.say(f"{count} devices: {shown}")
        directory = self.directory
        files = (directory.groups, directory.similarity, directory.grouping)
        return {"images": list(found.images), "groups": groups}, files

    def groups(self, count: int) -> Groups:
        stored = json.loads(self.directory.grouping.read_text(encoding="utf-8"))
        return Grouping.from_json(stored).groups(count)

    # Experts

    def experts(self, work: Path) -> Made:
        # Groups of more devices are parts of those of fewer: many are the same.
        wanted = list(dict.fromkeys(c for n in self.options.counts for c in self.groups(n)))
        rows, files = [], []
        for number, classes in enumerate(wanted, start=1):
            shown = " ".join(map(str, classes))
            self.say(f"expert {number} of {len(wanted)}, classes {shown}")
            rows.append(self.expert(classes))
            files += self.product(classes)
        kept = {self.directory.expert(classes) for classes in wanted}
        first(lambda: _remove_others(self.directory.experts, kept))
        return {"experts": rows}, tuple(files)

    def expert(self, classes: Sequence[int]) -> dict[str, Any]:
        """What the run of an expert found; the run goes on where it was."""
        folder = self.directory.expert(classes)
        config = self.expert_config(classes)
        with (
            open_directory(folder, config, fresh=_stale(folder, config), moved=True) as directory,
            closing(PruningRun(config, directory, self.device, self.progress)) as run,
        ):
            focus = run.run_until("report").results["focus"]
            after = run.records["finetune"].results["metrics"]
            pruned = run.records["prune"].results
            weights, _ = directory.product
            return {
                "classes": list(classes),
                "run": str(folder.relative_to(self.directory.path)),
                "cost": pruned["cost"],
                "budget": pruned["budget"],
                "file_bytes": weights.stat().st_size,
                "top1": (after or pruned["metrics"])["top1"],
                "focus_top1": focus["pruned"],
                "focus_top1_before": focus["unpruned"],
            }

    def expert_config(self, classes: Sequence[int]) -> RunConfig:
        seen = {"mean": self.info.mean, "std": self.info.std}
        normalization = Normalization.model_validate(seen)
        return expert_config(self.config, classes, self.directory.baseline, normalization)

    def product(self, classes: Sequence[int]) -> list[Path]:
        return list(RunPaths(self.directory.expert(classes)).product)

    # Fuse

    def fuse(self, work: Path) -> Made:
        rows, files = {}, []
        for count in self.options.counts:
            folder = self.directory.fusion(count)
            self.say(f"fusing {count} experts")
            found = fuse(
                [self.directory.expert(classes) for classes in self.groups(count)],
                folder,
                options=self.options.head,
                data_options=self.config.data,
                seed=self.config.seed,
                device=str(self.device),
                work=work / str(count),
                progress=self.progress,
            )
            self.say(f"{count} devices: validation top-1 {found.validation.top1:.2f} %")
            rows[str(count)] = {
                "validation": found.validation.to_dict(),
                "test": found.test.to_dict(),
                "head": {"params": found.head.params, "size_mb": found.head.size_mb},
                "training": dict(found.training),
            }
            files += sorted(file for file in folder.iterdir() if file.suffix in _FUSED)
        for there in self.directory.fused.iterdir():
            if there.name not in rows:
                shutil.rmtree(there, ignore_errors=True)
        return {"fusions": rows}, tuple(files)

    # Infer

    def infer(self, work: Path) -> Made:
        options, rows = self.options.inference, {}
        unpruned = self.network(self.directory.baseline)
        for count in self.options.counts:
            folder = self.directory.fusion(count)
            fused = load_fusion(folder)
            self.say(f"split inference on {count} devices")
            found = infer(
                folder,
                data_options=self.config.data,
                devices=options.devices or (str(self.device),),
                threads=options.threads,
                batches=options.batches,
                repeats=options.repeats,
                unpruned=unpruned,
                progress=self.progress,
            )
            if self.device.type == "cpu" and options.devices is None and found.test != fused.test:
                # It may have been fused on another machine, which rounds otherwise.
                here = evaluate(fused_network(fused), self.splits.test, device=self.device)
                if found.test != here:
                    raise TrainingError(
                        f"split inference on {count} devices: finds {found.test}, in one process "
                        f"it is {here}"
                    )
            rows[str(count)] = {
                "test": found.test.to_dict(),
                "equal": found.test == fused.test,
                "latency": [row.to_dict() for row in found.rows],
            }
        return {"inference": rows}, ()

    # Report

    def report(self, work: Path) -> Made:
        content = build_ensemble_report(self.facts(), self.records, self.info.classes)
        plot_devices(self.directory.devices_plot, content)
        write_json(self.directory.report, content)
        return {}, (self.directory.report,)


_FUSED = (".json", ".safetensors")
"""Files of a fused network: its description, and its head."""


def expert_config(
    config: RunConfig, classes: Sequence[int], baseline: Path, normalization: Normalization
) -> RunConfig:
    """The ordinary run that makes the network for some classes of an ensemble's baseline.

    Args:
        config: the ensemble's.
        classes: labels.
        baseline: file of the weights to begin with.
        normalization: of the images these weights were trained on.
    """
    options = cast(PapmSplitOptions, config.method)
    given = {"weights": str(baseline), "normalization": normalization}
    model = config.model.model_copy(update=given)
    # Latency is measured where experts run beside each other.
    changed = {
        "model": model,
        "baseline": None,
        "method": methods.get(options.name).build(options, classes),
        "latency": config.latency.model_copy(update={"repeats": 0}),
    }
    return config.model_copy(update=changed)


def _remove_others(folder: Path, kept: Collection[Path]) -> None:
    for other in folder.iterdir():
        if other not in kept:
            shutil.rmtree(other, ignore_errors=True)


def _stale(folder: Path, config: RunConfig) -> bool:
    """Whether a folder holds an expert that was asked for otherwise, or one that is damaged."""
    if not is_run_directory(folder):
        return False
    try:
        there, wanted = saved_config(folder).essence(), config.essence()
    except ConfigError:
        return True
    there["model"]["weights"] = wanted["model"]["weights"]
    return there != wanted
