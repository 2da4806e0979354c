"""Hooks with a state of their own, in trainings that stop and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastprune.data import Splits
from fastprune.errors import CheckpointError
from fastprune.nn import GrowingPenalty
from fastprune.training import EpochRecord, TrainingOptions, fit
from fastprune.training import checkpoint as checkpoints

Make = Callable[..., nn.Sequential]


class StoppedError(Exception):
    """Raised by a hook to end a training in the middle."""


class Counts:
    """A hook of all three kinds, with a state."""

    def __init__(self, stop_in: str = "", stop_at: int = 0) -> None:
        self.stop = (stop_in, stop_at)
        self.calls = {"backward": 0, "step": 0, "epoch": 0}
        self.total = torch.zeros(2)

    def _count(self, kind: str) -> None:
        self.calls[kind] += 1
        self.total += torch.tensor([1.0, 0.5])
        if self.stop == (kind, self.calls[kind]):
            raise StoppedError

    def __call__(self) -> None:
        self._count("backward")

    def after_step(self, rate: float) -> None:
        self._count("step")

    def after_epoch(self, record: EpochRecord) -> None:
        self._count("epoch")

    def state_dict(self) -> dict[str, Any]:
        return {"calls": dict(self.calls), "total": self.total.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls, self.total = dict(state["calls"]), state["total"]

    @property
    def given(self) -> dict[str, Any]:
        return {
            "after_backward": self,
            "after_step": self.after_step,
            "after_epoch": self.after_epoch,
        }


def recipe(**given: Any) -> TrainingOptions:
    return TrainingOptions.model_validate(
        {"epochs": 3, "lr": 0.05, "precision": "fp32", "checkpoint_every": 0, **given}
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])


def test_an_epoch_is_told_after_validation_and_before_its_checkpoint(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    seen: list[EpochRecord] = []
    saved: list[int | None] = []

    def after_epoch(record: EpochRecord) -> None:
        seen.append(record)
        state = checkpoints.load_newest(tmp_path, "cpu", print)
        saved.append(None if state is None else len(state["history"]))

    result = fit(
        make_model(),
        few_digits,
        recipe(),
        directory=tmp_path,
        seed=0,
        device="cpu",
        after_epoch=after_epoch,
    )
    assert tuple(seen) == result.history
    assert all(record.validation_top1 is not None for record in seen)
    assert saved == [0, 1, 2]


@pytest.mark.parametrize(("kind", "at"), [("backward", 3), ("step", 6), ("epoch", 2), ("step", 1)])
def test_a_hook_goes_on_where_the_training_does(
    make_model: Make, few_digits: Splits, tmp_path: Path, kind: str, at: int
) -> None:
    def trained(counts: Counts, model: nn.Module, folder: Path | None) -> Any:
        return fit(
            model, few_digits, recipe(), directory=folder, seed=3, device="cpu", **counts.given
        )

    whole, expected = make_model(), Counts()
    trained(expected, whole, None)
    assert expected.calls == {"backward": 12, "step": 12, "epoch": 3}
    with pytest.raises(StoppedError):
        trained(Counts(kind, at), make_model(), tmp_path)
    model, counts = make_model(), Counts()
    result = trained(counts, model, tmp_path)
    assert counts.calls == expected.calls
    assert torch.equal(counts.total, expected.total)
    assert torch.equal(weights(model), weights(whole))
    # A finished training gives the state back, and calls nothing.
    again = Counts("backward", 13)
    assert trained(again, make_model(seed=5), tmp_path) == result
    assert again.calls == expected.calls
    assert torch.equal(again.total, expected.total)


def test_an_object_of_several_hooks_is_saved_once(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    counts = Counts()
    model, options = make_model(), recipe(epochs=1)
    fit(model, few_digits, options, directory=tmp_path, seed=0, device="cpu", **counts.given)
    for name in ("last.pt", "result.pt"):
        state = checkpoints.read(tmp_path / name)
        assert len(state["hooks"]) == 1
    # Functions have no state.
    other = tmp_path / "other"
    fit(
        make_model(),
        few_digits,
        options,
        directory=other,
        seed=0,
        device="cpu",
        after_step=lambda _: None,
    )
    assert checkpoints.read(other / "result.pt")["hooks"] == []


def test_checkpoints_of_before_hooks_had_states_are_gone_on_from(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        fit(
            make_model(),
            few_digits,
            recipe(),
            directory=tmp_path,
            seed=0,
            device="cpu",
            **Counts("step", 6).given,
        )
    for name in ("last.pt", "previous.pt"):
        state = checkpoints.read(tmp_path / name)
        del state["hooks"]
        checkpoints.write(tmp_path / name, state)
    counts = Counts()
    result = fit(
        make_model(),
        few_digits,
        recipe(),
        directory=tmp_path,
        seed=0,
        device="cpu",
        **counts.given,
    )
    assert result.epochs == 3
    # Step 6 was begun after the checkpoint of step 5.
    assert counts.calls == {"backward": 7, "step": 7, "epoch": 2}


def test_states_of_other_hooks_are_refused(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    def trained(**hooks: Any) -> None:
        fit(
            make_model(),
            few_digits,
            recipe(epochs=1),
            directory=tmp_path,
            seed=0,
            device="cpu",
            **hooks,
        )

    trained(**Counts().given)
    with pytest.raises(CheckpointError, match=r"begun with 1 that have a state.* goes on with 2"):
        trained(after_backward=Counts(), after_step=Counts().after_step)
    # Who wants the weights alone needs no hooks.
    trained()


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"clip_grad_norm": 0.3, "nesterov": True}])
def test_a_growing_penalty_survives_a_stop(
    make_model: Make, few_digits: Splits, tmp_path: Path, options: dict[str, Any]
) -> None:
    def trained(folder: Path | None, stop: int = 0) -> tuple[nn.Module, GrowingPenalty]:
        model = make_model()
        weight = model.get_parameter("3.weight")
        mask = torch.zeros(weight.shape, dtype=torch.bool)
        mask[:4] = True
        with torch.no_grad():
            weight[6:] = 0
        penalty = GrowingPenalty(
            dict(model.named_parameters()),
            penalised={"3.weight": mask},
            kept={"3.weight": weight.detach() != 0},
            schedule="exp_custom_exponents",
            granularity=4.0,
            limit=10.0,
            steps=6 if "accumulate" in options else 12,
            exponents=2.0,
            target=99.0,
        )
        steps = 0

        def after_step(rate: float) -> None:
            nonlocal steps
            steps += 1
            held = model.get_parameter("3.weight")[6:]
            assert not held.any()
            if steps == stop:
                raise StoppedError

        fit(
            model,
            few_digits,
            recipe(**options),
            directory=folder,
            seed=0,
            device="cpu",
            after_backward=penalty,
            after_step=after_step,
            after_epoch=penalty.after_epoch,
        )
        return model, penalty

    whole, expected = trained(None)
    with pytest.raises(StoppedError):
        trained(tmp_path, stop=4)
    model, penalty = trained(tmp_path)
    assert torch.equal(weights(model), weights(whole))
    assert penalty.state_dict() == expected.state_dict()
    assert [epoch for epoch, _ in penalty.strengths] == [1, 2, 3]
    # No epoch reaches 99 %.
    assert penalty.strength == pytest.approx(2.0)
    # Asked for again, it is where it ended.
    assert trained(tmp_path)[1].state_dict() == expected.state_dict()
