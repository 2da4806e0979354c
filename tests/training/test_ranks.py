"""Training and measuring on several ranks against one process: gloo on the CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import Ranks
from torch.nn import functional

from fastprune.training._synced import _batch_norm

WORK = Path(__file__).with_name("rank_work.py")

# 107 images: batches that no number of ranks divides, and a last one of a few images.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "slimming": ({"epochs": 2}, "sparsity"),
    "growing": ({"epochs": 3, "batch_size": 30, "recalibrate_batches": 2}, "growing"),
    "accumulated": ({"epochs": 2, "accumulate": 2, "clip_grad_norm": 0.5}, ""),
    "distilled": ({"epochs": 2, "distill": {}, "focus": {"classes": [3, 5]}}, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_ranks_train_as_one_process_does(name: str, ranks: Ranks) -> None:
    given, hook = CASES[name]
    (alone,) = ranks.run(1, WORK, "trained", given, None, hook)
    for world in (2, 4):
        found = ranks.run(world, WORK, "trained", given, None, hook)
        assert [one["rank"] for one in found] == list(range(world))
        # All have the same weights to the bit, and what one process has but for rounding.
        assert len({one["digest"] for one in found}) == 1
        np.testing.assert_allclose(found[0]["weights"], alone["weights"], atol=1e-4)
        np.testing.assert_allclose(found[0]["losses"], alone["losses"], rtol=1e-5)
        for counted in ("top1", "validation"):
            assert all(one[counted] == alone[counted] for one in found)
        assert found[0]["test"]["images"] == 40
        assert found[0]["test"]["top1"] == alone["test"]["top1"]


def test_pruningnets_are_trained_of_the_same_structures(ranks: Ranks) -> None:
    (alone,) = ranks.run(1, WORK, "pruningnet", "shared")
    first, second = ranks.run(2, WORK, "pruningnet", "shared")
    assert first["genes"] == second["genes"] == alone["genes"]
    assert first["digest"] == second["digest"]
    np.testing.assert_allclose(first["weights"], alone["weights"], atol=1e-4)
    first, second = ranks.run(2, WORK, "pruningnet", "rank")
    assert not any(a == b for a, b in zip(first["genes"], second["genes"], strict=True))
    assert first["digest"] == second["digest"]


@pytest.mark.parametrize("where", [2, 5, -1])
def test_a_training_goes_on_on_ranks(where: int, ranks: Ranks, tmp_path: Path) -> None:
    """It ends in the bytes, and tells of the figures, of one that was not interrupted."""
    given = {"epochs": 2, "checkpoint_every": 0, "keep": "best"}
    whole = ranks.run(2, WORK, "trained", given, str(tmp_path / "whole"))
    expected = ("InterruptedError", "ToldElsewhere")
    stopped = ranks.run(
        2, WORK, "trained", given, str(tmp_path / "part"), "", where, expected=expected
    )
    assert {one["error"] for one in stopped} <= set(expected)
    again = ranks.run(2, WORK, "trained", given, str(tmp_path / "part"))
    assert again == whole
    lines = [
        [json.loads(line) for line in (tmp_path / part / "metrics.jsonl").open()]
        for part in ("whole", "part")
    ]
    assert [len(part) for part in lines] == [2, 2]
    for a, b in zip(*lines, strict=True):
        for timed in ("seconds", "images_per_second", "data_wait"):
            del a[timed], b[timed]
        assert a == b
    # It is done: another number of ranks is given the same.
    (read,) = ranks.run(1, WORK, "trained", given, str(tmp_path / "part"))
    assert read["digest"] == whole[0]["digest"]


@pytest.mark.parametrize(("before", "after", "where"), [(1, 2, 2), (2, 1, -1), (2, 4, -1)])
def test_a_training_goes_on_on_other_ranks(
    before: int, after: int, where: int, ranks: Ranks, tmp_path: Path
) -> None:
    given = {"epochs": 2, "checkpoint_every": 0}
    (whole,) = ranks.run(1, WORK, "trained", given)
    expected = ("InterruptedError", "ToldElsewhere")
    folder = str(tmp_path / "part")
    ranks.run(before, WORK, "trained", given, folder, "", where, expected=expected)
    for found in ranks.run(after, WORK, "trained", given, folder):
        np.testing.assert_allclose(found["weights"], whole["weights"], atol=1e-4)
        np.testing.assert_allclose(found["losses"], whole["losses"], rtol=1e-5)
        for counted in ("top1", "validation"):
            assert found[counted] == whole[counted]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 7}, r"scale_batch: data.batch_size is 7, .* each of 4 ranks; expected 8"),
        ({"batch_size": 1, "scale_batch": True}, r"batch_size is 1, .*; expected 2 or more"),
    ],
)
def test_batches_too_small_for_ranks_are_refused(
    given: dict[str, Any], said: str, ranks: Ranks
) -> None:
    expected = ("TrainingError", "ToldElsewhere")
    found = ranks.run(4, WORK, "trained", {"epochs": 1, **given}, expected=expected)
    (told,) = (one["said"] for one in found if one["error"] == "TrainingError")
    assert re.search(said, told)


def test_each_rank_may_take_a_batch_of_its_own_at_a_scaled_rate(ranks: Ranks) -> None:
    shared = {"epochs": 2, "batch_size": 32, "lr": 0.04, "warmup_epochs": 1}
    scaled = shared | {"batch_size": 16, "lr": 0.02, "scale_batch": True}
    assert ranks.run(2, WORK, "trained", scaled) == ranks.run(2, WORK, "trained", shared)


@pytest.mark.parametrize("how", ["broadcast", "rank"])
def test_batch_norm_may_keep_to_the_images_of_a_rank(how: str, ranks: Ranks) -> None:
    given = {"epochs": 2, "batch_norm": how}
    (alone,) = ranks.run(1, WORK, "trained", given)
    first, second = ranks.run(2, WORK, "trained", given)
    assert first["digest"] == second["digest"]
    assert np.abs(np.subtract(first["weights"], alone["weights"])).max() > 1e-4


def test_dropout_is_another_on_every_rank_and_does_not_change_on_going_on(
    ranks: Ranks, tmp_path: Path
) -> None:
    first, second = ranks.run(2, WORK, "dropped")
    assert first != second
    assert ranks.run(2, WORK, "dropped") == [first, second]


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (7, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_one_rank_is_torchs(shape: tuple[int, ...], affine: bool) -> None:
    def run(function: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        x = (torch.randn(shape) * 3 + 1).requires_grad_()
        weight = torch.rand(5).requires_grad_() if affine else None
        bias = torch.rand(5).requires_grad_() if affine else None
        mean, variance = torch.rand(5), torch.rand(5)
        y = function(x, mean, variance, weight, bias, True, 0.3, 1e-3)
        (y * torch.rand(shape)).sum().backward()
        leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
        return [y.detach(), mean, variance, *(leaf.grad for leaf in leaves if leaf is not None)]

    for got, wanted in zip(run(_batch_norm), run(functional.batch_norm), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_evaluation_is_exact_over_ranks(ranks: Ranks) -> None:
    (alone,) = ranks.run(1, WORK, "measured")
    for found in ranks.run(3, WORK, "measured"):
        assert found == alone
