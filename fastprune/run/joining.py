"""``fastprune fuse`` and ``fastprune infer``: what an ensemble's run does last, by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from fastprune import artifact
from fastprune.config import RunConfig, checked, overlaid, parse_overrides
from fastprune.data import DataOptions
from fastprune.errors import ConfigError
from fastprune.methods.papm_split import PapmSplitOptions
from fastprune.run.commands import images_of
from fastprune.run.directory import saved_config
from fastprune.run.fusion import fuse
from fastprune.run.fusion_file import Fusion, load_fusion, open_head
from fastprune.run.inference import Inference, infer
from fastprune.run.networks import build_network, set_threads
from fastprune.run.paths import FUSION, RunPaths, check_run_directory, is_run_directory
from fastprune.run.pipeline import run as run_pipeline
from fastprune.run.stages import stored_record
from fastprune.run.tables import row_console
from fastprune.training import choose_progress
from fastprune.training.fusion import FusionOptions

__all__ = [
    "InferredFusion",
    "fuse_networks",
    "infer_fusions",
    "print_fusions",
    "print_inferred",
]


def fuse_networks(
    paths: Sequence[Path],
    out: Path | None,
    *,
    data: str | None,
    root: str | None,
    given_data: Sequence[str],
    given_head: Sequence[str],
    seed: int | None,
    device: str,
    threads: int | None,
    quiet: bool,
) -> list[Fusion]:
    """Trains a head over saved networks, or goes on with an ensemble's run until it has its heads.

    Args:
        paths: one run of an ensemble, which says all the rest itself; or run directories and saved
            networks.
        out: folder of the fused network.
        data: dataset; by default that of the first run directory.
        root: its folder.
        given_data: ``key=value``, options of the dataset.
        given_head: ``key=value``, of how the head is trained.
        seed: of the images' split and the head; by default that of the first run, or 0.
        device: where to compute.
        threads: CPU threads.
        quiet: no progress.

    Raises:
        FastpruneError: what `fuse` or the run says; options that an ensemble's run has itself.
    """
    ensemble = _ensemble(paths[0]) if len(paths) == 1 else None
    if ensemble is not None:
        more = (out, data, root, seed, threads)
        given = any(value is not None for value in more) or device != "auto"
        if given_data or given_head or given:
            raise ConfigError(
                f"{paths[0]}: is an ensemble's run, and its configuration says how it is fused; "
                "expected no more than the run"
            )
        done = run_pipeline(ensemble, paths[0], until="fuse", quiet=quiet)
        return [load_fusion(RunPaths(paths[0]).fusion(int(n))) for n in done["fusions"]]
    if out is None:
        raise ConfigError("--out: expected a folder for the fused network")
    set_threads(threads)
    first = str(paths[0])
    images = images_of(first, data, root, given_data, None)
    head = checked(FusionOptions, overlaid({}, parse_overrides(given_head)), source="head")
    if seed is None:
        seed = saved_config(paths[0]).seed if is_run_directory(paths[0]) else 0
    return [
        fuse(
            paths,
            out,
            options=head,
            data_options=images,
            seed=seed,
            device=device,
            progress=choose_progress(quiet=quiet),
        )
    ]


@dataclass(frozen=True, slots=True)
class InferredFusion:
    """A fused network and what its split inference found."""

    fusion: Fusion
    inference: Inference

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        fusion, found = self.fusion, self.inference
        return {
            "fusion": str(fusion.folder),
            "devices": len(fusion.experts),
            "test": found.test.to_dict(),
            "fused_test": fusion.test.to_dict(),
            "equal": found.test == fusion.test,
            "latency": [row.to_dict() for row in found.rows],
            "file": str(found.file),
        }


def infer_fusions(
    path: Path,
    *,
    root: str | None,
    given_data: Sequence[str],
    devices: Sequence[str],
    threads: int,
    batches: Sequence[int],
    repeats: int,
    unpruned: Path | None,
    out: Path | None,
    quiet: bool,
) -> list[InferredFusion]:
    """Runs fused networks with every expert in a process of its own, and measures them.

    Args:
        path: folder of a fused network, or an ensemble's run: all of its fused networks.
        root: folder of the dataset, where it is another than when they were fused.
        given_data: ``key=value``, options of the dataset.
        devices: of each expert, or one for all.
        threads: CPU threads of each process.
        batches: images at a time; none: 1, and as many as accuracy was measured with.
        repeats: turns that are measured.
        unpruned: run directory whose baseline is measured beside; of an ensemble's run its own.
        out: folder of ``inference.csv``; by default that of the fused network.
        quiet: no progress.

    Raises:
        FastpruneError: what `infer` says; nothing is fused there.
    """
    folders = [path]
    ensemble = None if (path / FUSION).is_file() else _ensemble(path)
    if ensemble is not None:
        unpruned = unpruned or path
        run = RunPaths(path)
        # Those it is asked for: others may be left of an earlier configuration.
        counts = cast(PapmSplitOptions, ensemble.method).counts
        folders = [run.fusion(count) for count in counts]
        if not all((folder / FUSION).is_file() for folder in folders):
            raise ConfigError(
                f"{path}: not all is fused yet; it goes on by: fastprune fuse {path}"
            )
        if out is not None and len(folders) > 1:
            raise ConfigError(
                f"--out: {path} has {len(folders)} fused networks; expected one of {run.fused}/*"
            )
    compared = None if unpruned is None else _baseline(unpruned, load_fusion(folders[0]))
    found = []
    for folder in folders:
        fusion = load_fusion(folder)
        changed = overlaid(fusion.data.model_dump(mode="json"), parse_overrides(given_data))
        if root is not None:
            changed["root"] = root
        inference = infer(
            folder,
            data_options=checked(DataOptions, changed, source="data"),
            devices=devices,
            threads=threads,
            batches=batches or None,
            repeats=repeats,
            unpruned=compared,
            out=out,
            progress=choose_progress(quiet=quiet),
        )
        found.append(InferredFusion(fusion, inference))
    return found


def print_fusions(fusions: Sequence[Fusion]) -> None:
    """Each fused network and how well it does."""
    for fusion in fusions:
        print(
            f"{len(fusion.experts)} experts: validation top-1 {fusion.validation.top1:.2f} %, "
            f"test top-1 {fusion.test.top1:.2f} %; head {fusion.head.size_mb:.2f} MB, "
            f"epoch {fusion.training['kept_epoch']} of {fusion.training['epochs']}; "
            f"saved: {fusion.folder}"
        )


def print_inferred(inferred: Sequence[InferredFusion]) -> None:
    """Accuracy, and a row for each part and number of images."""
    console = row_console()
    for each in inferred:
        test, fused = each.inference.test, each.fusion.test
        same = "as in one process" if test == fused else f"in one process {fused.top1:.4f} %"
        console.print(
            f"{len(each.fusion.experts)} devices: test top-1 {test.top1:.4f} %, {same}",
            soft_wrap=True,
        )
        table = Table("part", "device", "params", "batch", "median, ms", "quartiles", "an image")
        table.box = SIMPLE_HEAD
        for column in table.columns[2:]:
            column.justify = "right"
        for row in each.inference.rows:
            table.add_row(
                row.part,
                row.device,
                f"{row.params:,}",
                str(row.batch),
                f"{row.median_ms:.3f}",
                f"{row.low_ms:.3f} to {row.high_ms:.3f}",
                f"{row.image_ms:.4f}",
            )
        console.print(table)
        console.print(f"saved: {each.inference.file}", soft_wrap=True)


def _ensemble(path: Path) -> RunConfig | None:
    """The configuration of an ensemble's run; None where a path is none."""
    if not is_run_directory(path):
        return None
    config = saved_config(path)
    return config if config.method.ensemble else None


def _baseline(path: Path, fusion: Fusion) -> nn.Module:
    """The unpruned network of a run, on the CPU.

    Raises:
        ConfigError: its baseline is not done.
    """
    check_run_directory(path)
    run, config = RunPaths(path), saved_config(path)
    if stored_record(run.record_file("baseline")) is None or not run.baseline.is_file():
        raise ConfigError(f"--unpruned {path}: its baseline is not done")
    classes = config.model.num_classes or open_head(fusion).num_classes
    model, _ = build_network(config.model, classes, seed=config.seed)
    return artifact.restore(model, artifact.load_state(run.baseline))
