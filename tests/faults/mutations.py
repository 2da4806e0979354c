"""Configurations, plans, checkpoints, images, codes, genes and files of runs, each with mistakes.

    python tests/faults/mutations.py [EXAMPLES] [--seed N] [--only KIND]…

Every one goes the way that a user's would, through the command line. It is accepted, or refused
in a line that names what is wrong, by exit code 2, and nothing half-written stays. A thousand
examples if not told otherwise. Exit code 1 if anything else comes of one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mutants import changed, damaged, other_tensors, words
from PIL import Image
from remains import differences
from tiny_runs import CONFIGS
from typer.testing import CliRunner

from fastprune.cli import app
from fastprune.config import RunConfig, make_config
from fastprune.files import TEMPORARY
from fastprune.models import build
from fastprune.run import pipeline

__all__ = ["KINDS", "Assets", "prepared", "problem"]

TINY = "fastprune.testing.methods:TinyResidual"
LONGEST = 8
"""Seconds after which a command that is still at work counts as accepted."""


@dataclass(frozen=True, slots=True)
class Assets:
    """Whole things to be changed.

    Attributes:
        run: a finished run.
        half: one whose baseline is trained in part.
        state: weights of the network.
        images: a folder of images, of two classes.
    """

    run: Path
    half: Path
    state: dict[str, torch.Tensor]
    images: Path


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, and what has to hold if it is refused.

    Attributes:
        words: after ``fastprune``.
        names: of which the error has to have one.
        kept: a folder of which nothing may change.
        out: a folder that may not be there, or that goes on as a run.
        same: what ``out`` has to be the same as, should the command be accepted.
    """

    words: tuple[str, ...]
    names: tuple[str, ...]
    kept: Path | None = None
    out: Path | None = None
    same: Path | None = None


Kind = Callable[[st.DrawFn, Assets, Path], Command]


def configuration(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A configuration with other values, of other types, or with other keys."""
    content = changed(draw, CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))])
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return _run(folder, text.encode("utf-8", "surrogatepass"), draw)


def configuration_text(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A configuration file that was damaged."""
    content = CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))]
    return _run(folder, damaged(draw, yaml.safe_dump(content).encode()), draw)


def _run(folder: Path, text: bytes, draw: st.DrawFn) -> Command:
    config, out = folder / "given.yaml", folder / "out"
    config.write_bytes(text)
    fields = ("config", *RunConfig.model_fields, *_OTHER_NAMES)
    return Command(
        ("run", str(config), "--out", str(out), "--quiet", "--json"),
        (str(config), *fields),
        out=out,
    )


_OTHER_NAMES = (
    "resnet20_cifar",
    "plan",
    "budget",
    "code",
    "gene",
    "weights",
    "training",
    "baseline",
    "fine-tuning",
)
"""What errors of a run's stages begin with."""


def plan(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A plan with other groups, channels or numbers."""
    content = json.loads((assets.run / "plan.json").read_text())
    if draw(st.booleans()):
        del content["digest"]
    return _count_plan(folder, json.dumps(changed(draw, content)).encode())


def plan_text(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A plan's file that was damaged, or holds something else."""
    others = ("plan.json", "report.json", "pruned.safetensors", "config.yaml", "stages/plan.json")
    content = (assets.run / draw(st.sampled_from(others))).read_bytes()
    return _count_plan(folder, damaged(draw, content))


def _count_plan(folder: Path, content: bytes) -> Command:
    file = folder / "plan.json"
    file.write_bytes(content)
    words = ("count", TINY, "--input", "3x32x32", "--plan", str(file), "--json")
    return Command(words, ("plan", "group"), kept=folder)


def checkpoint(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """Weights with other keys, shapes or types."""
    state = other_tensors(draw, assets.state)
    file = folder / draw(st.sampled_from(("weights.pt", "weights.pth", "weights.safetensors")))
    if file.suffix == ".safetensors" and draw(st.integers(0, 3)):
        flat = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
        flat = {k: v for k, v in flat.items() if not v.is_sparse and not v.is_meta}
        safetensors.torch.save_file({k: v.contiguous().clone() for k, v in flat.items()}, file)
    else:
        torch.save(state, file)
    return _evaluate(file)


def checkpoint_bytes(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A weights file that was damaged, or has another kind's ending."""
    whole = folder / draw(st.sampled_from(("whole.pt", "whole.safetensors")))
    if whole.suffix == ".pt":
        torch.save(assets.state, whole, _use_new_zipfile_serialization=draw(st.booleans()))
    else:
        safetensors.torch.save_file(assets.state, whole)
    file = folder / draw(st.sampled_from(("weights.pt", "weights.safetensors", "weights")))
    file.write_bytes(damaged(draw, whole.read_bytes()))
    return _evaluate(file)


def _evaluate(file: Path) -> Command:
    words = ("evaluate", TINY, "--weights", str(file), "--data", "digits", "test_limit=20")
    return Command((*words, *_QUIETLY), (str(file),), kept=file.parent)


_QUIETLY = ("--quiet", "--json")


def saved(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A saved network whose description says something else, or whose weights were damaged."""
    for name in ("pruned.json", "pruned.safetensors"):
        shutil.copy(assets.run / name, folder)
    file = folder / draw(st.sampled_from(("pruned.json", "pruned.json", "pruned.safetensors")))
    if file.suffix == ".json" and draw(st.integers(0, 3)):
        content = json.loads(file.read_text())
        file.write_text(json.dumps(changed(draw, content)))
    else:
        file.write_bytes(damaged(draw, file.read_bytes()))
    words = ("evaluate", str(folder / "pruned"), "--data", "digits", "test_limit=20", *_QUIETLY)
    return Command(words, (str(folder), "model", "data"), kept=folder)


def run_file(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A run of which a file was edited, damaged, removed or replaced by a folder."""
    run = folder / "run"
    shutil.copytree(draw(st.sampled_from((assets.run, assets.run, assets.half))), run)
    files = sorted(p for p in run.rglob("*") if p.is_file() and p.name != "lock")
    file = draw(st.sampled_from(files))
    kind = draw(st.sampled_from(("edited", "edited", "damaged", "damaged", "gone", "folder")))
    if kind == "edited" and file.suffix == ".json":
        file.write_text(json.dumps(changed(draw, json.loads(file.read_text()))))
    elif kind == "edited" and file.suffix == ".yaml":
        file.write_text(yaml.safe_dump(changed(draw, yaml.safe_load(file.read_text()))))
    elif kind == "edited" and file.suffix == ".jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line) + "\n" for line in changed(draw, lines)))
    elif kind == "gone":
        file.unlink()
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(damaged(draw, file.read_bytes()))
    config, out = folder / "given.yaml", folder / "out"
    config.write_text(yaml.safe_dump(CONFIGS["one_shot"]))
    command = draw(st.sampled_from(("run", "run", "run", *_READING)))
    words = {
        "run": ("run", str(config), "--out", str(run), *_QUIETLY),
        "report": ("report", str(run), "--out", str(out / "report.html")),
        "plot": ("plot", str(run), "--out", str(out)),
        "compare": ("compare", str(run), "--out", str(out), "--json"),
        "group": ("group", str(run), "--out", str(out), *_QUIETLY),
        "evaluate": ("evaluate", str(run), *_QUIETLY),
        "export": ("export", str(run), "--format", "safetensors", "--out", str(out), *_QUIETLY),
    }[command]
    if command == "run":
        return Command(words, (str(run), "--"), out=run, same=assets.run)
    return Command(words, (str(run), "--"), kept=run, out=out)


_READING = ("report", "plot", "compare", "group", "evaluate", "export")


def image(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A folder of images of which some are damaged, odd, or no images."""
    images = folder / "images"
    shutil.copytree(assets.images, images)
    files = sorted(images.rglob("*.*"))
    for _ in range(draw(st.integers(1, 2))):
        file = draw(st.sampled_from(files))
        kind = draw(
            st.sampled_from(("damaged", "damaged", "mode", "size", "gone", "folder", "name"))
        )
        if kind in ("gone", "folder", "name"):
            if file.is_file():
                content = file.read_bytes()
                file.unlink()
                if kind == "folder":
                    file.mkdir()
                elif kind == "name":
                    odd = draw(st.sampled_from((b"a\xff.jpg", b"a\nb.png", b".jpg", b"x.txt")))
                    Path(os.fsdecode(os.path.join(os.fsencode(file.parent), odd))).write_bytes(
                        content
                    )
        elif kind == "damaged" and file.is_file():
            file.write_bytes(damaged(draw, file.read_bytes()))
        elif not file.is_dir():
            mode = draw(
                st.sampled_from(("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"))
            )
            size = (
                draw(st.sampled_from(((1, 1), (1, 300), (300, 1), (37, 41))))
                if kind == "size"
                else (40, 36)
            )
            ending = draw(
                st.sampled_from((".png", ".jpg", ".tif", ".bmp", ".webp", ".gif", ".ppm"))
            )
            made = file.with_suffix(ending)
            try:
                Image.new(mode, size).save(made)
            except (OSError, KeyError, ValueError):
                # No file of that kind has such pixels.
                made.unlink(missing_ok=True)
    torch.save(build(TINY, num_classes=2).state_dict(), folder / "weights.pt")
    options = [
        f"max_bad_images={draw(st.sampled_from((0, 0, 1, 9)))}",
        "image_size=16",
        "cache=false",
    ]
    options += [f"workers={draw(st.sampled_from((0, 0, 0, 0, 1)))}"]
    options += [f"pipeline={draw(st.sampled_from(('device', 'torchvision')))}"]
    words = ("evaluate", TINY, "--weights", str(folder / "weights.pt"), "--num-classes", "2")
    words += ("--data", "imagefolder", "--root", str(images), *options, *_QUIETLY)
    return Command(words, (str(images), "data."), kept=folder)


def code(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A code, or widths, as they are given to ``count``."""
    if draw(st.integers(0, 2)):
        network, whole = draw(st.sampled_from((("resnet20_cifar", "5 " * 9), (TINY, "5 5"))))
        given = words(draw, whole.strip())
        asked = ("--code", given)
    else:
        network = TINY
        asked = ("--channels", json.dumps(changed(draw, {"stem": 4, "conv1": 3})))
    shape = draw(st.sampled_from(("3x32x32", "3x32x32", "3x0x32", "1x32x32", "3x8", "3x32x32x1")))
    said = ("count", network, "--input", shape, *asked, "--json")
    return Command(said, ("code", "--channels", "--input", "channels", "group", "widths", TINY))


def gene(draw: st.DrawFn, assets: Assets, folder: Path) -> Command:
    """A gene, as it is given to ``count``, or in a configuration."""
    whole = " ".join(map(str, (5,) * 22))
    given = words(draw, draw(st.sampled_from((whole, "baseline", whole + " 30.5"))))
    if draw(st.integers(0, 2)):
        network = draw(st.sampled_from(("resnet50", "resnet20_cifar", "mobilenet_v1")))
        return Command(("count", network, "--gene", given, "--json"), ("gene", "--gene", network))
    content = json.loads(json.dumps(CONFIGS["metapruning"]))
    content["method"] = {"name": "metapruning", "gene": given}
    return _run(folder, yaml.safe_dump(content).encode(), draw)


KINDS: dict[str, tuple[Kind, int]] = {
    "configurations": (configuration, 25),
    "configurations, text": (configuration_text, 5),
    "plans": (plan, 10),
    "plans, text": (plan_text, 4),
    "checkpoints": (checkpoint, 11),
    "checkpoints, bytes": (checkpoint_bytes, 9),
    "saved networks": (saved, 7),
    "files of runs": (run_file, 13),
    "images": (image, 8),
    "codes": (code, 4),
    "genes": (gene, 4),
}
"""What is changed, and the share of the examples in percent."""


class StillAtWork(BaseException):
    """A command took longer than is waited for."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise StillAtWork

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


_set_num_threads = torch.set_num_threads


def _few(count: int) -> None:
    """Two threads at most: with three, oneDNN's gradient of a 1×1 convolution writes past its
    buffers on AVX-512 (torch 2.14.1), and would take all the other mutants with it.
    """
    _set_num_threads(min(count, 2) if count < 1 << 16 else count)


def problem(command: Command) -> tuple[str, str | None]:
    """What came of a command: accepted, refused or at work; and what is wrong with that."""
    before = {place: _content(place) for place in (command.kept, command.out) if place}
    try:
        with limited(LONGEST), patch("torch.set_num_threads", _few):
            result = CliRunner().invoke(app, command.words)
    except StillAtWork:
        return "at work", None
    lines = result.stderr.splitlines()
    if result.exit_code == 0:
        other = differences(command.out, command.same) if command.out and command.same else []
        # Pictures are for people, and are drawn again by ``fastprune plot``.
        return "accepted", "; ".join(line for line in other if ".png" not in line) or None
    if result.exit_code != 2 or not isinstance(result.exception, SystemExit):
        said = f"{type(result.exception).__name__}: {result.exception}"
        return "failed", f"exit code {result.exit_code}, {said!r:.300}"
    told = [line.removeprefix("fastprune: error: ") for line in lines if "error: " in line]
    if not told or len(told) < len([line for line in lines if not line.startswith("fastprune: ")]):
        return "refused", f"said {result.stderr!r:.400}"
    vague = [line for line in told if not any(name in line for name in command.names)]
    if vague:
        return "refused", f"names nothing: {vague[0]!r}"
    if command.kept and _content(command.kept) != before[command.kept]:
        return "refused", f"changed {command.kept}"
    return "refused", _half_written(command, before)


def _half_written(command: Command, before: dict[Path, dict[str, bytes]]) -> str | None:
    out = command.out
    if out is None or not out.exists():
        return None
    left = [str(file.relative_to(out)) for file in out.rglob(f"{TEMPORARY}*")]
    if left:
        return f"left {left}"
    whole = {"config.yaml", "environment.json", "inputs.json"}
    if not before[out] and whole >= {Path(name).name for name in _content(out)}:
        return f"left {sorted(_content(out))} and no result"
    return None


def _content(folder: Path) -> dict[str, bytes]:
    """Files by name; the lock of a run apart, which is opened by whoever reads it."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "lock"]
    return {os.fsdecode(os.path.relpath(p, folder)): p.read_bytes() for p in files}


def prepared(folder: Path) -> Assets:
    """Makes what is to be changed, in a folder."""
    run, half, images = folder / "run", folder / "half", folder / "images"
    config = make_config(CONFIGS["one_shot"])
    pipeline.run(config, run, quiet=True)
    shutil.copytree(run, half)
    for name in ("stages", "work/plan", "work/finetune", "work/report", "work/prune"):
        shutil.rmtree(half / name)
    for name in ("report.json", "report.html", "pruned.json", "pruned.safetensors", "plan.json"):
        (half / name).unlink()
    (half / "work/baseline/result.pt").unlink()
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (images / part / name).mkdir(parents=True)
            for number, ending in enumerate(("jpg", "png")):
                pixels = generator.integers(0, 256, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / part / name / f"{number}.{ending}")
    return Assets(run, half, build(TINY).state_dict(), images)


def examples(kind: Kind, assets: Assets, count: int, number: int) -> Iterator[tuple[Command, Any]]:
    """Runs so many examples of a kind and gives what came of each."""
    found: list[tuple[Command, tuple[str, str | None]]] = []

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory(prefix="fastprune-mutant-") as name:
            command = kind(data.draw, assets, Path(name))
            found.append((command, problem(command)))

    run()
    yield from found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("examples", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(KINDS), help="repeatable")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    # What a mutant asks for may be more than the machine has.
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    names = asked.only or list(KINDS)
    shares = sum(KINDS[name][1] for name in names)
    wrong = 0
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fastprune-faults-") as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        assets = prepared(Path(place))
        for name in names:
            kind, share = KINDS[name]
            begun, came = time.monotonic(), Counter[str]()
            for command, (outcome, what) in examples(
                kind, assets, round(asked.examples * share / shares), asked.seed
            ):
                came[outcome] += 1
                wrong += what is not None
                if what is not None or outcome == "at work":
                    print(f"  {' '.join(command.words)!r:.300}\n    {what}", flush=True)
            total += came
            took = time.monotonic() - begun
            print(f"{name}: {_counted(came)} ({took:.0f} s)", flush=True)
    print(f"{total.total()} mutants: {_counted(total)}; {wrong} not as they should be")
    sys.exit(bool(wrong))


def _counted(came: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(came.items()))


if __name__ == "__main__":
    main()
