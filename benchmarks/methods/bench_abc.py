"""A search step of ABCPruner against the usual script, and what the search itself takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _candidate import CODE, inherited, our_search_step, plain_search_step, resnet56
from _interleave import Comparison, Side, compare

from fastprune import apply_plan, models, trace
from fastprune.config import load_config
from fastprune.data import load
from fastprune.methods._inherit import channel_order, plan_of
from fastprune.methods._search import search
from fastprune.methods._trials import TrialLog
from fastprune.models import resolve
from fastprune.processor import bf16_instructions
from fastprune.search import BeeColony, Space
from fastprune.training.evaluator import FitnessOptions, TrainedEvaluator
from fastprune.training.progress import SilentProgress

RIVAL = "class with widths, Python loops, DataLoader"
IMAGES = 512
CONFIG = Path(__file__).parents[2] / "configs" / "abc_quick_digits.yaml"

bf16 = pytest.mark.skipif(
    not {"amx_bf16", "avx512_bf16"} & set(bf16_instructions()),
    reason="the processor has no bf16 instructions",
)


@pytest.mark.parametrize(
    ("name", "precision"),
    [pytest.param("step", "auto", marks=bf16), ("step-fp32", "fp32")],
    ids=["auto", "fp32"],
)
@pytest.mark.benchmark(timer=time.process_time)
def bench_step(
    name: str, precision: str, benchmark: Any, gate: Callable[..., None], tmp_path: Path
) -> None:
    model = resnet56()
    ours = our_search_step(model, "cpu", IMAGES, tmp_path, precision=precision)
    rival = plain_search_step(model, "cpu", IMAGES)
    # The same network: the random orders of the images alone differ.
    assert ours().loss == pytest.approx(rival().loss, rel=0.1)
    found = compare(benchmark, ours, rival, rounds=3)
    gate(f"methods/abc/{name}", found, rival=RIVAL, images=IMAGES, measured=IMAGES // 2)


def bench_same_weights() -> None:
    """Not timed: both sides begin with the same weights."""
    model = resnet56()
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    weights = dict(model.named_parameters())
    scores = {
        group.name: weights[f"{group.name}.weight"].detach().abs().sum((1, 2, 3))
        for group in graph.groups
    }
    table = resolve("resnet56_cifar").units
    assert table is not None
    widths = table(graph).widths(graph, CODE)
    ours = apply_plan(model, graph, plan_of(graph, widths, scores)).state_dict()
    theirs = inherited(model).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.gpu
def bench_step_on_gpu(gpu: torch.device, gate: Callable[..., None], tmp_path: Path) -> None:
    """Wall time, since the host is what is measured."""
    model, images = resnet56().to(gpu), 20 * IMAGES
    sides = [
        our_search_step(model, "cuda", images, tmp_path),
        plain_search_step(model, "cuda", images),
    ]
    times: list[list[float]] = [[], []]
    for measured in range(4):
        for side, taken in zip(sides, times, strict=True):
            torch.cuda.synchronize()
            start = time.perf_counter()
            side()
            torch.cuda.synchronize()
            if measured:
                taken.append(time.perf_counter() - start)
    found = Comparison(*(Side(tuple(taken)) for taken in times))
    gate("gpu/methods/abc/step", found, rival=RIVAL, images=images, measured=images // 2)


@pytest.mark.benchmark(timer=time.perf_counter)
def bench_overhead(benchmark: Any, gate: Callable[..., None], tmp_path: Path) -> None:
    """Wall seconds of a search on digits that are no candidate's training or measuring."""
    config = load_config(CONFIG)
    method = config.method
    splits = load(config.data, seed=0)
    model = models.build("resnet20_cifar", **config.model.options)
    graph = trace(model, torch.zeros(1, *splits.info.input_shape))
    table = resolve("resnet20_cifar").units
    assert table is not None
    units = table(graph)
    order = channel_order(method.inherit, model, graph, seed=0)

    def whole(folder: Path) -> tuple[float, float]:
        folder.mkdir()
        space = Space((1,) * len(units.names), (method.max_preserve,) * len(units.names))
        algorithm = BeeColony(
            space,
            0,
            food_number=method.food_number,
            max_cycle=1,
            food_limit=method.food_limit,
            honeychange_num=method.honeychange_num,
        )
        evaluator = TrainedEvaluator(
            model,
            graph,
            splits,
            FitnessOptions(method.recipe),
            directory=folder,
            seed=0,
            device=torch.device("cpu"),
        )
        log = TrialLog(folder / "trials.jsonl")
        begun = time.perf_counter()
        search(
            algorithm,
            lambda code: plan_of(graph, units.widths(graph, code), order),
            graph,
            evaluator,
            log,
            forget=evaluator.forget,
            progress=SilentProgress(),
        )
        seconds = time.perf_counter() - begun
        return seconds, seconds - sum(trial.seconds for trial in log)

    rounds = [whole(tmp_path / str(number)) for number in range(3)]
    # The first imports what training needs.
    seconds, own = (Side(tuple(times)) for times in zip(*rounds[1:], strict=True))
    gate(
        "methods/abc/overhead",
        Comparison(own, seconds),
        rival="the whole search",
        at_most=True,
    )
