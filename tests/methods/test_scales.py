"""The batch norm scales in the course of sparse training, on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastprune.errors import CheckpointError
from fastprune.methods import PruneOptions
from fastprune.methods._scales import QUANTILES, ScaleLog, ScaleRecord, read_scales
from fastprune.methods.slimming import SlimmingOptions, slimming
from fastprune.testing.methods import method_context


def epoch(number: int) -> Any:
    return SimpleNamespace(epoch=number)


def test_a_line_has_the_penalty_and_the_quantiles(tmp_path: Path) -> None:
    scales = torch.linspace(0, 1, 101)
    ScaleLog(tmp_path / "s", 0.01, lambda: scales).after_epoch(epoch(1))
    (line,) = read_scales(tmp_path / "s")

    assert line.epoch == 1
    assert line.penalty == pytest.approx(0.01 * float(scales.sum()), rel=1e-6)
    assert line.quantiles == pytest.approx(QUANTILES, abs=1e-6)


def test_an_epoch_a_second_time_replaces_it_and_all_after_it(tmp_path: Path) -> None:
    scales = iter([torch.full((4,), value) for value in (1.0, 2.0, 3.0, 4.0)])
    log = ScaleLog(tmp_path / "s", 1.0, lambda: next(scales))
    for number in (1, 2, 3, 2):
        log.after_epoch(epoch(number))

    assert [(line.epoch, line.penalty) for line in read_scales(tmp_path / "s")] == [
        (1, 4.0),
        (2, 16.0),
    ]


def test_no_file_has_no_lines_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_scales(tmp_path / "none") == ()
    (tmp_path / "s").write_text('{"epoch": 1, "penalty": 1.0, "quantiles": [0.1]}\n')
    with pytest.raises(CheckpointError, match=r"s: line 1: not the scales of an epoch"):
        read_scales(tmp_path / "s")


def test_sparse_training_leaves_a_line_an_epoch(tmp_path: Path) -> None:
    options = SlimmingOptions.model_validate(
        {"train": {"epochs": 2, "lr": 0.05}, "ratio": 0.5, "strength": 0.1}
    )
    context = method_context(tmp_path, options, PruneOptions())
    found = slimming(context, options)
    lines = read_scales(tmp_path / "scales.jsonl")
    last = torch.cat([m.weight.detach().abs() for m in found.model.modules() if _norm(m)])

    assert [line.epoch for line in lines] == [1, 2]
    expected = np.quantile(last.double().numpy(), QUANTILES)
    assert lines[1].quantiles == pytest.approx(tuple(expected), rel=1e-6)
    assert lines[1] == ScaleRecord(
        2, pytest.approx(0.1 * float(last.double().sum())), lines[1].quantiles
    )
    assert found.notes["smallest_scale"] == pytest.approx(lines[1].quantiles[0])


def _norm(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.BatchNorm2d)
