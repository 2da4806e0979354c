"""Training a fusion head: against a loop of its own, stopped anywhere, and by kill -9."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastprune.data import Splits
from fastprune.errors import CheckpointError, DivergenceError, TrainingError
from fastprune.nn import FusionHead
from fastprune.training import evaluate
from fastprune.training.experts import Expert, FusedNetwork
from fastprune.training.fusion import (
    Features,
    FusionOptions,
    cached_features,
    fit_head,
    measure_head,
)


def blobs(images: int, seed: int) -> Features:
    """Four classes around four corners, in batches of 16."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (images,), generator=draws)
    centres = torch.eye(4).repeat(1, 3)[labels]
    sizes = [16] * (images // 16) + ([images % 16] if images % 16 else [])
    noise = torch.randn(images, 12, generator=draws)
    return Features(torch.tanh(centres + 0.7 * noise), labels, tuple(sizes))


TRAIN, VALIDATION = blobs(97, 1), blobs(40, 2)


def head(seed: int = 0) -> FusionHead:
    torch.manual_seed(seed)
    return FusionHead(12, 4)


def test_an_epoch_is_adamw_with_cosine_and_clipping() -> None:
    ours, plain = head(), head()
    options = FusionOptions(epochs=3, lr=0.02, weight_decay=0.1, batch_size=32, clip_grad_norm=0.2)
    result = fit_head(ours, TRAIN, VALIDATION, options, seed=5)

    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.1)
    kept: list[tuple[float, dict[str, torch.Tensor]]] = []
    for epoch in range(3):
        torch.manual_seed(5 * 1_000_003 + epoch)
        plain.train()
        # The batch left over has one image, and no variance.
        for batch, chosen in enumerate(torch.randperm(97)[:96].split(32)):
            done = (3 * epoch + batch) / 9
            optimizer.param_groups[0]["lr"] = 0.02 * (1 + math.cos(math.pi * done)) / 2
            optimizer.zero_grad()
            logits = plain(TRAIN.values[chosen])
            functional.cross_entropy(logits, TRAIN.labels[chosen]).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.2)
            optimizer.step()
        plain.eval()
        right = (plain(VALIDATION.values).argmax(1) == VALIDATION.labels).float().mean().item()
        kept.append((right, {k: t.clone() for k, t in plain.state_dict().items()}))
    best = max(range(3), key=lambda epoch: (kept[epoch][0], -epoch))
    assert result.kept_epoch == best + 1
    assert result.validation is not None
    assert result.validation.top1 == pytest.approx(100 * kept[best][0])
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, kept[best][1][key]), key


def test_it_ends_when_validation_gets_no_better() -> None:
    ours = head()
    result = fit_head(ours, TRAIN, VALIDATION, FusionOptions(epochs=60, patience=3), seed=0)

    assert result.stopped_early
    assert result.epochs == result.kept_epoch + 3
    best = max(record.validation_top1 or 0.0 for record in result.history)
    assert measure_head(ours, VALIDATION).top1 == best


class Stop(Exception):
    """What ends a training from outside."""


class Stopping:
    """Progress that raises after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    @contextmanager
    def start(self, title: str, total: int, unit: str = "", *, done: int = 0) -> Iterator[Any]:
        self.done = done
        yield self

    def advance(self, n: int = 1, **figures: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop

    def note(self, message: str) -> None:
        raise AssertionError(message)


@pytest.mark.parametrize("epochs", [1, 4])
def test_stopped_it_goes_on_to_the_same_bytes(tmp_path: Path, epochs: int) -> None:
    options = FusionOptions(epochs=6, checkpoint_every=0, lr=0.01)
    whole, parts = head(), head()
    expected = fit_head(whole, TRAIN, VALIDATION, options, seed=3)
    with pytest.raises(Stop):
        fit_head(
            parts,
            TRAIN,
            VALIDATION,
            options,
            directory=tmp_path,
            seed=3,
            progress=Stopping(epochs),
        )
    # Another process would begin with a fresh head and other random numbers.
    again, told = head(9), Stopping(99)
    result = fit_head(again, TRAIN, VALIDATION, options, directory=tmp_path, seed=3, progress=told)

    assert told.done == epochs
    assert (result.epochs, result.kept_epoch) == (6, expected.kept_epoch)
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[key]), key
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    # Asked once more it gives the stored result, and trains nothing.
    stored, untouched = head(8), Stopping(1)
    again_result = fit_head(
        stored, TRAIN, VALIDATION, options, directory=tmp_path, seed=3, progress=untouched
    )
    assert again_result == result
    assert torch.equal(stored[0].weight, whole[0].weight)


def test_another_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    options = FusionOptions(epochs=1)
    fit_head(head(), TRAIN, VALIDATION, options, directory=tmp_path, seed=0, source="a")

    for other in ({"source": "b"}, {"source": "a", "seed": 1}):
        with pytest.raises(CheckpointError, match="holds a training of other options"):
            fit_head(
                head(),
                TRAIN,
                VALIDATION,
                options,
                directory=tmp_path,
                **{"seed": 0, **other},  # type: ignore[arg-type]
            )


def test_generators_and_modes_are_left_as_they_were() -> None:
    ours, before = head().eval(), torch.get_rng_state()
    fit_head(ours, TRAIN, VALIDATION, FusionOptions(epochs=1), seed=0)

    assert not ours.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_not_finite_is_said() -> None:
    broken = Features(TRAIN.values * math.inf, TRAIN.labels, TRAIN.sizes)
    with pytest.raises(DivergenceError, match=r"fusion: the loss is nan in epoch 1, batch 1"):
        fit_head(head(), broken, VALIDATION, FusionOptions(epochs=1), seed=0)
    single = Features(TRAIN.values[:1], TRAIN.labels[:1], (1,))
    with pytest.raises(TrainingError, match="fusion: expected two training images or more"):
        fit_head(head(), single, VALIDATION, FusionOptions(epochs=1), seed=0)


def test_cached_features_give_what_the_fused_network_does(
    make_model: Callable[..., nn.Module], few_digits: Splits
) -> None:
    experts = [Expert(make_model(seed=seed), (3, 32, 32)) for seed in (1, 2)]
    torch.manual_seed(0)
    fusion = FusionHead(64, 10)

    seen = cached_features(experts, few_digits.test, device="cpu")

    assert seen.values.shape == (40, 64)
    assert seen.values.dtype == torch.float32
    assert seen.values.abs().max() < 1
    fused = FusedNetwork(experts, fusion)
    assert measure_head(fusion, seen) == evaluate(fused, few_digits.test, device="cpu")


def test_killed_at_any_file_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_fusion.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    whole, *killed = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(killed) == 2
    for found in killed:
        assert found["kills"] >= 2
        assert found["digest"] == whole["digest"]
