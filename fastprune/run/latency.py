"""`fastprune latency`: a pruned network beside the unpruned one, mode by mode."""

from __future__ import annotations

import copy
import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastprune import artifact, models
from fastprune.errors import ConfigError
from fastprune.files import write_atomically, write_json
from fastprune.latency import LatencyOptions, Mode, device_name, mode_refusal, seconds_of
from fastprune.run.networks import device_of
from fastprune.run.paths import RunPaths, make_folder
from fastprune.run.timing import why_slow
from fastprune.training import choose_progress
from fastprune.training._compile import Compiled, compile_refusal

__all__ = ["LatencyRow", "Measured", "measure", "print_latency"]

DEFAULT_MODES = ("eager", "channels_last", "bf16", "channels_last+bf16", "compiled")
_WARM_UP = 3
_FEWEST, _LONGEST = 5, 20.0
"""Turns after which a pair of networks is left, once it took so many seconds."""


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """A line of ``latency.csv``.

    Attributes:
        mode: one of `MODES`.
        threads: of the CPU.
        batch: images at a time.
        network: ``unpruned`` or ``pruned``.
        repeats: turns that were measured.
        median_ms: milliseconds a batch.
        p10_ms: the tenth of the times below it.
        p90_ms: the tenth of the times above it.
        image_ms: ``median_ms`` / ``batch``.
        speedup: median of the unpruned network / ``median_ms``.
    """

    mode: str
    threads: int
    batch: int
    network: str
    repeats: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    image_ms: float
    speedup: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes:
        network: name of the architecture.
        device: where.
        torch: its version.
        rows: the times.
        skipped: (mode, reason) of what cannot be run here.
        notes: what else is to be known of a mode.
        why: where the pruned network is hardly faster, why.
        files: where it was written.
    """

    network: str
    device: str
    torch: str
    rows: tuple[LatencyRow, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    why: tuple[str, ...]
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in ``latency.json``."""
        return {
            "network": self.network,
            "device": self.device,
            "torch": self.torch,
            "rows": [asdict(row) for row in self.rows],
            "skipped": [{"mode": mode, "reason": reason} for mode, reason in self.skipped],
            "notes": list(self.notes),
            "why": list(self.why),
        }


def measure(
    path: str,
    *,
    modes: Sequence[str] = DEFAULT_MODES,
    batches: Sequence[int] = (1, 16),
    threads: Sequence[int] = (),
    repeats: int = 30,
    device: str = "auto",
    out: Path | None = None,
    quiet: bool = False,
) -> Measured:
    """Times both networks in turns, and writes ``latency.json`` and ``latency.csv``.

    On one CPU thread times are its CPU time, which on a quiet machine is what passes on the clock;
    on several they are that; on a GPU they are between events. Weights of the unpruned network
    are fresh: they do not matter.

    Args:
        path: a run directory, or a saved network with an architecture.
        modes: of `MODES`; what cannot be run here is left out, with the reason.
        batches: images at a time.
        threads: numbers of CPU threads; by default torch's own.
        repeats: turns; after twenty seconds five are enough.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        out: folder of the files; by default the run directory, or that of the saved network.
        quiet: no progress.

    Raises:
        FastpruneError: there is no saved network, it cannot be rebuilt, or an option is wrong.
    """
    wanted = [Mode(mode) for mode in dict.fromkeys(modes)]
    counts = tuple(dict.fromkeys(threads)) or (torch.get_num_threads(),)
    sizes = tuple(dict.fromkeys(batches))
    if not wanted or not sizes or min(sizes) < 1 or min(counts) < 1 or repeats < 2:
        raise ConfigError(
            "latency: expected one mode or more, batches and threads from 1 and repeats from 2; "
            f"got {list(modes)}, {list(batches)}, {list(counts)} and {repeats}"
        )
    where = device_of(device)
    stem, description = artifact.describe(path)
    networks = {
        "unpruned": models.build(
            artifact.architecture_of(path),
            num_classes=description["num_classes"],
            **description["options"],
        ).eval(),
        "pruned": artifact.load(path, device="cpu"),
    }
    shape = tuple(description["input_shape"])
    folder = RunPaths(out or stem.parent)
    make_folder(folder.path)
    told = choose_progress(quiet=quiet)
    rows: list[LatencyRow] = []
    skipped: dict[str, str] = {}
    notes: list[str] = []
    total = len(counts) * len(wanted) * len(sizes)
    with told.start("latency", total, "settings") as task:
        for count in counts:
            with _threads(count):
                for mode in wanted:
                    reason = skipped.get(mode.name) or _refusal(mode, where)
                    for size in sizes:
                        if reason is None:
                            pair = _Pair(networks, mode, (size, *shape), where, notes.append)
                            reason = pair.refusal
                        if reason is None:
                            rows += pair.rows(repeats, count)
                        task.advance(1)
                    if reason is not None:
                        skipped[mode.name] = reason
    why: list[str] = []
    # Of the setting that gained least; what a compiler made of a network has no layers to look at.
    eager = [row for row in rows if row.network == "pruned" and not Mode(row.mode).compiled]
    if eager:
        least = min(eager, key=lambda row: row.speedup)
        options = LatencyOptions.model_validate({"batch_size": least.batch, "mode": least.mode})
        with _threads(least.threads):
            why = why_slow(networks["unpruned"], networks["pruned"], shape, options, where, told)
    found = Measured(
        network=description["architecture"],
        device=device_name(where),
        torch=torch.__version__,
        rows=tuple(rows),
        skipped=tuple(skipped.items()),
        notes=tuple(dict.fromkeys(notes)),
        why=tuple(why),
        files=(folder.latency_csv, folder.latency),
    )
    try:
        write_atomically(folder.latency_csv, _csv(rows))
        write_json(folder.latency, found.to_dict())
    except OSError as error:
        raise ConfigError(f"{folder.path}: cannot write there: {error.strerror}") from None
    return found


def print_latency(found: Measured) -> None:
    """What `fastprune latency` found, a row a setting."""
    console = Console(highlight=False, markup=False)
    console.print(f"{found.network} on {found.device}, torch {found.torch}", style="bold")
    table = Table("mode", "threads", "batch", "unpruned, ms", "pruned, ms", "speed-up")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    pairs = zip(found.rows[::2], found.rows[1::2], strict=True)
    for before, after in pairs:
        table.add_row(
            before.mode,
            str(before.threads),
            str(before.batch),
            *(f"{r.median_ms:.3g} ({r.p10_ms:.3g} to {r.p90_ms:.3g})" for r in (before, after)),
            f"{after.speedup:.2f}",
        )
    if found.rows:
        console.print(table)
        console.print("medians of turns, in brackets the tenth and the ninetieth percentile")
    for mode, reason in found.skipped:
        console.print(f"left out: {mode}: {reason}", soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if any(Mode(row.mode).compiled for row in found.rows):
        console.print("note: what was compiled is timed but not looked into, layer by layer")
    for reason in found.why:
        console.print(f"hardly faster: {reason}", style="yellow", soft_wrap=True)
    console.print(f"saved: {', '.join(map(str, found.files))}", soft_wrap=True)


class _Pair:
    """Both networks in a mode, for batches of one size.

    Attributes:
        refusal: why they cannot be run, or None.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        mode: Mode,
        shape: Sequence[int],
        device: torch.device,
        say: Callable[[str], object],
    ) -> None:
        self.refusal: str | None = None
        self._mode, self._device, self._shape = mode, device, shape
        self._run: dict[str, Callable[[Tensor], object]] = {}
        random = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
        self._images = mode.images(random.to(device))
        if mode.compiled:
            # What was compiled for other sizes counts towards torch's limit of recompilations.
            torch.compiler.reset()
        for name, network in networks.items():
            ready = mode.prepare(copy.deepcopy(network).to(device))
            self._run[name] = self._compiled(ready, say) if mode.compiled else ready

    def _compiled(
        self, network: nn.Module, say: Callable[[str], object]
    ) -> Callable[[Tensor], object]:
        compiled = Compiled(network, images=self._shape[0], say=lambda line: None)
        with torch.inference_mode():
            compiled(self._images)
        self.refusal = self.refusal or compiled.refusal
        if compiled.parts is not None:
            say(f"{self._mode.name}: compiled in parts, since {compiled.parts}")
        return compiled

    def rows(self, repeats: int, threads: int) -> list[LatencyRow]:
        """Both rows, the unpruned network's first."""
        times: dict[str, list[float]] = {name: [] for name in self._run}
        with torch.inference_mode():
            begun = time.monotonic()
            for turn in range(_WARM_UP + repeats):
                for name, run in self._run.items():
                    took = seconds_of(lambda run=run: run(self._images), self._device)  # type: ignore[misc]
                    if turn >= _WARM_UP:
                        times[name].append(1e3 * took)
                if turn >= _WARM_UP + _FEWEST and time.monotonic() - begun > _LONGEST:
                    break
        medians = {name: float(np.median(found)) for name, found in times.items()}
        return [
            LatencyRow(
                mode=self._mode.name,
                threads=threads,
                batch=self._shape[0],
                network=name,
                repeats=len(found),
                median_ms=round(medians[name], 4),
                p10_ms=round(float(np.percentile(found, 10)), 4),
                p90_ms=round(float(np.percentile(found, 90)), 4),
                image_ms=round(medians[name] / self._shape[0], 5),
                speedup=round(medians["unpruned"] / medians[name], 3),
            )
            for name, found in times.items()
        ]


def _refusal(mode: Mode, device: torch.device) -> str | None:
    if mode.compiled and (reason := compile_refusal()):
        return reason
    return mode_refusal(mode, device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch with so many CPU threads inside, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _csv(rows: Sequence[LatencyRow]) -> bytes:
    text = io.StringIO()
    names = [field.name for field in fields(LatencyRow)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().encode()
