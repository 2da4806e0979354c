from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastprune.data import DataOptions, Splits, load
from fastprune.errors import CheckpointError, TrainingError
from fastprune.training import TrainingOptions, evaluate, fit
from fastprune.training.progress import SilentProgress

Make = Callable[..., nn.Sequential]


class Notes(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


class StoppedError(Exception):
    """Raised by a hook to end a training in the middle."""


def stop_after(steps: int) -> Callable[[float], None]:
    done = 0

    def after_step(_: float) -> None:
        nonlocal done
        done += 1
        if done == steps:
            raise StoppedError

    return after_step


def recipe(**given: Any) -> TrainingOptions:
    return TrainingOptions.model_validate({"epochs": 3, "lr": 0.05, "precision": "fp32", **given})


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])


def test_digits_are_learnt_without_touching_torchs_generator(make_model: Make) -> None:
    splits = load(DataOptions(batch_size=64), seed=0)
    model = make_model(dropout=0.0)
    model.eval()
    state = torch.get_rng_state()
    result = fit(model, splits, recipe(epochs=10, lr=0.2), seed=1, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert model[0].weight.is_contiguous()
    assert (result.epochs, result.kept_epoch, result.stopped_early) == (10, 10, False)
    assert result.validation == evaluate(
        model, splits.validation, device="cpu", channels_last=True
    )
    assert result.validation is not None
    assert result.validation.top1 > 80
    assert result.history[0].train_loss > result.history[-1].train_loss
    assert evaluate(model, splits.test, device="cpu").top1 > 80


def test_metrics_file_and_stored_result(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    model = make_model()
    result = fit(model, few_digits, recipe(), directory=tmp_path, seed=0, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[2]["validation_top1"] == result.history[2].validation_top1
    assert lines[0]["images_per_second"] > 0
    assert 0 < lines[0]["data_wait"] < 1
    assert lines[0]["precision"] == "fp32"
    assert lines[0]["step"] == "eager"
    assert lines[0]["step_reason"].startswith("not captured: the device is cpu")
    again = make_model(seed=5)

    def never(_: float) -> None:
        pytest.fail("a finished training was trained again")

    stored = fit(
        again,
        few_digits,
        recipe(),
        directory=tmp_path,
        seed=0,
        device="cpu",
        after_step=never,
    )
    assert stored == result
    assert torch.equal(weights(again), weights(model))


@pytest.mark.parametrize("steps", [1, 4, 6, 9])
def test_a_stopped_training_goes_on_to_the_same_weights(
    make_model: Make, few_digits: Splits, tmp_path: Path, steps: int
) -> None:
    whole = make_model()
    options = recipe(checkpoint_every=0, keep="best", recalibrate_batches=2)
    expected = fit(whole, few_digits, options, seed=3, device="cpu")
    with pytest.raises(StoppedError):
        fit(
            make_model(),
            few_digits,
            options,
            directory=tmp_path,
            seed=3,
            device="cpu",
            after_step=stop_after(steps),
        )
    resumed = make_model(seed=9) if steps > 1 else make_model()
    result = fit(resumed, few_digits, options, directory=tmp_path, seed=3, device="cpu")
    assert torch.equal(weights(resumed), weights(whole))
    assert result.validation == expected.validation
    for one, other in zip(result.history, expected.history, strict=True):
        timeless = {"seconds": 0, "images_per_second": 0, "data_wait": 0}
        assert replace(one, **timeless) == replace(other, **timeless)


def test_epochs_trained_again_have_one_line(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    # Four steps an epoch: the checkpoints end with step 6, and epoch 3 is under way at step 9.
    options = recipe(checkpoint_every=0)
    with pytest.raises(StoppedError):
        fit(
            make_model(),
            few_digits,
            options,
            directory=tmp_path,
            seed=0,
            device="cpu",
            after_step=stop_after(9),
        )
    metrics = tmp_path / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 2
    (tmp_path / "last.pt").unlink()
    with metrics.open("a") as stream:
        stream.write('{"epoch": 3, "half')
    fit(make_model(), few_digits, options, directory=tmp_path, seed=0, device="cpu")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("broken", [("last.pt",), ("last.pt", "previous.pt"), ("result.pt",)])
def test_broken_files_are_told_of_and_cost_only_time(
    make_model: Make, few_digits: Splits, tmp_path: Path, broken: tuple[str, ...]
) -> None:
    options = recipe(checkpoint_every=0)
    whole = make_model()
    fit(whole, few_digits, options, directory=tmp_path / "whole", seed=0, device="cpu")
    folder = tmp_path / "broken"
    stopped = None if "result.pt" in broken else stop_after(7)
    model = make_model()
    if stopped is None:
        fit(model, few_digits, options, directory=folder, seed=0, device="cpu")
    else:
        with pytest.raises(StoppedError):
            fit(
                model,
                few_digits,
                options,
                directory=folder,
                seed=0,
                device="cpu",
                after_step=stopped,
            )
    for name in broken:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 255
        (folder / name).write_bytes(content)
    said = Notes()
    again = make_model()
    fit(again, few_digits, options, directory=folder, seed=0, device="cpu", progress=said)
    assert len(said.notes) == len(broken)
    assert f"{broken[0]}: damaged" in said.notes[0]
    assert torch.equal(weights(again), weights(whole))


def test_a_directory_of_another_training_is_refused(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    fit(make_model(), few_digits, recipe(), directory=tmp_path, seed=0, device="cpu")
    for options, seed in ((recipe(lr=0.06), 0), (recipe(), 1)):
        with pytest.raises(CheckpointError, match="training of other options"):
            fit(make_model(), few_digits, options, directory=tmp_path, seed=seed, device="cpu")


def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_good_checkpoint(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    model = make_model()
    steps = 0

    def poison(_: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            with torch.no_grad():
                model[9].bias[0] = math.nan

    def train(directory: Path | None, every: float) -> str:
        with pytest.raises(TrainingError) as caught:
            fit(
                model,
                few_digits,
                recipe(checkpoint_every=every, schedule="constant"),
                directory=directory,
                seed=0,
                device="cpu",
                after_step=poison,
                name="baseline",
            )
        return str(caught.value)

    # With a checkpoint due the weights are looked at before they are written.
    message = train(tmp_path, 0)
    assert "baseline: 9.bias holds numbers that are not finite" in message
    assert "the checkpoint of epoch 2 after 1 batches is kept in" in message
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in kept["step"]["model"].values())
    model, steps = make_model(), 0
    message = train(None, 300)
    assert message.startswith(
        "baseline: the loss is nan in epoch 2, batch 3, at learning rate 0.05; no checkpoint"
    )
    assert "\n" not in message


def test_losses_of_a_gpu_are_read_seldom_and_the_first_bad_one_named() -> None:
    from fastprune.training._guard import LossGuard

    guard = LossGuard(torch.device("cuda"), "finetune")
    for batch in range(49):
        loss = torch.tensor(math.inf if batch >= 30 else 1.0)
        assert guard.watch(loss, 0, batch, 0.1, "kept") is None
    with pytest.raises(TrainingError, match="loss is inf in epoch 1, batch 31, at"):
        guard.watch(torch.tensor(1.0), 0, 49, 0.1, "kept")


@pytest.mark.parametrize("images", [128, 112, 100])
def test_accumulating_equals_larger_batches(make_model: Make, images: int) -> None:
    trained = []
    for size, accumulate in ((32, 1), (16, 2), (8, 4)):
        splits = load(
            DataOptions(batch_size=size, validation=0, train_limit=images, augment=False), seed=0
        )
        model = make_model(norm=False, dropout=0.0)
        options = recipe(accumulate=accumulate, lr=0.02)
        result = fit(model, splits, options, seed=0, device="cpu")
        trained.append((weights(model), result.history[-1]))
    for found, record in trained[1:]:
        torch.testing.assert_close(found, trained[0][0], rtol=1e-4, atol=1e-6)
        assert record.train_loss == pytest.approx(trained[0][1].train_loss, rel=1e-4)
        assert record.learning_rate == trained[0][1].learning_rate


def test_accumulated_trainings_resume_between_steps(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    options = recipe(accumulate=3, checkpoint_every=0)
    whole, part = make_model(), make_model()
    fit(whole, few_digits, options, seed=0, device="cpu")
    with pytest.raises(StoppedError):
        fit(
            part,
            few_digits,
            options,
            directory=tmp_path,
            seed=0,
            device="cpu",
            after_step=stop_after(4),
        )
    fit(part, few_digits, options, directory=tmp_path, seed=0, device="cpu")
    assert torch.equal(weights(part), weights(whole))


def test_hooks_come_once_a_step_in_order(make_model: Make, few_digits: Splits) -> None:
    model = make_model()
    calls: list[tuple[str, float]] = []

    def after_backward() -> None:
        gradient = model[9].weight.grad
        assert gradient is not None
        calls.append(("backward", gradient.norm().item()))
        gradient.mul_(1000)

    fit(
        model,
        few_digits,
        recipe(epochs=1, accumulate=2, clip_grad_norm=0.1, schedule="linear", momentum=0),
        seed=0,
        device="cpu",
        after_backward=after_backward,
        after_step=lambda rate: calls.append(("step", rate)),
    )
    assert [call for call, _ in calls] == ["backward", "step"] * 2
    assert [rate for _, rate in calls[1::2]] == pytest.approx([0.05, 0.025])


def test_clipping_holds_after_the_hook(make_model: Make, few_digits: Splits) -> None:
    model = make_model(norm=False)
    before = weights(model)
    options = recipe(
        epochs=1, clip_grad_norm=1e-4, momentum=0, weight_decay=0, schedule="constant"
    )
    fit(
        model,
        few_digits,
        options,
        seed=0,
        device="cpu",
        after_backward=lambda: model[9].weight.grad.mul_(1000),
    )
    moved = (weights(model) - before).norm().item()
    assert 0 < moved <= 4 * 0.05 * 1e-4 * 1.01


def test_no_decay_on_norm_and_bias(make_model: Make, few_digits: Splits) -> None:
    from fastprune.training._step import make_optimizer

    model = make_model()
    groups = make_optimizer(model, recipe(no_decay_norm_bias=True)).param_groups
    decayed = {id(weight) for weight in groups[0]["params"]}
    assert decayed == {id(model[i].weight) for i in (0, 3, 9)}
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert len(groups[1]["params"]) == 7
    assert len(make_optimizer(model, recipe()).param_groups) == 1


def test_frozen_weights_stay(make_model: Make, few_digits: Splits) -> None:
    model = make_model()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, few_digits, recipe(epochs=1), seed=0, device="cpu")
    assert torch.equal(model[0].weight, before)
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="no weights to train"):
        fit(model, few_digits, recipe(), seed=0, device="cpu")


def test_the_teacher_is_learnt_from_and_left_alone(make_model: Make, few_digits: Splits) -> None:
    teacher = make_model(dropout=0.5, seed=4)
    state = weights(teacher)
    students = []
    for alpha in (0.0, 1.0):
        model = make_model(dropout=0.0)
        options = recipe(distill={"temperature": 2, "alpha": alpha})
        fit(model, few_digits, options, seed=0, device="cpu", teacher=teacher)
        students.append(weights(model))
    assert not torch.equal(*students)
    assert torch.equal(weights(teacher), state)
    assert teacher.training
    assert all(weight.requires_grad and weight.grad is None for weight in teacher.parameters())
    with pytest.raises(TrainingError, match=r"finetune\.distill: needs the unpruned network"):
        fit(make_model(), few_digits, recipe(distill={}), seed=0, device="cpu")


def test_early_stopping_keeps_the_best(make_model: Make, few_digits: Splits) -> None:
    model = make_model()
    options = recipe(
        epochs=50,
        lr=1e-9,
        early_stop={"patience": 3, "metric": "loss", "min_delta": 10},
        keep="best",
    )
    result = fit(model, few_digits, options, seed=0, device="cpu")
    assert result.stopped_early
    assert result.epochs == 4
    top1 = [record.validation_top1 for record in result.history]
    assert result.kept_epoch == top1.index(max(top1)) + 1  # type: ignore[type-var]
    assert result.validation is not None
    assert result.validation.top1 == max(top1)  # type: ignore[type-var]
    assert evaluate(model, few_digits.validation, device="cpu").top1 == result.validation.top1


def test_best_and_last_differ_when_training_gets_worse(
    make_model: Make, few_digits: Splits
) -> None:
    def spoil(model: nn.Sequential) -> Callable[[float], None]:
        steps = iter(range(1000))

        def after_step(_: float) -> None:
            if next(steps) == 11:
                with torch.no_grad():
                    model[9].weight.neg_()

        return after_step

    figures = {}
    for keep in ("last", "best"):
        model = make_model(dropout=0.0)
        options = recipe(keep=keep, lr=0.1)
        result = fit(model, few_digits, options, seed=0, device="cpu", after_step=spoil(model))
        figures[keep] = evaluate(model, few_digits.validation, device="cpu").top1
        assert result.validation is not None
        assert result.validation.top1 == figures[keep]
    assert figures["best"] > figures["last"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": "best"}, r"finetune\.keep: looks at validation images"),
        ({"early_stop": {}}, r"finetune\.early_stop: looks at validation images"),
        ({"precision": "fp16"}, "precision: fp16 needs a GPU, but the device is cpu"),
        ({"capture": True}, r"finetune\.capture: the device is cpu, and CUDA graphs need a GPU"),
    ],
)
def test_what_cannot_work_is_said_before_training(
    make_model: Make, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    splits = load(DataOptions(validation=0, train_limit=32), seed=0)
    with pytest.raises(TrainingError, match=message):
        fit(
            make_model(),
            splits,
            recipe(**given),
            directory=tmp_path / "run",
            seed=0,
            device="cpu",
        )
    assert not (tmp_path / "run").exists()


def test_messages_name_the_field_that_a_configuration_has(
    make_model: Make, few_digits: Splits
) -> None:
    with pytest.raises(TrainingError, match=r"^method\.train\.capture: the device is cpu"):
        fit(
            make_model(),
            few_digits,
            recipe(capture=True),
            seed=0,
            device="cpu",
            name="sparse training",
            field="method.train",
        )


def test_without_validation_the_figures_are_none(make_model: Make) -> None:
    splits = load(DataOptions(validation=0, train_limit=64, batch_size=32), seed=0)
    result = fit(make_model(), splits, recipe(epochs=1), seed=0, device="cpu")
    assert result.validation is None
    assert result.history[0].validation_top1 is None


def test_bf16_trains_too(make_model: Make, few_digits: Splits) -> None:
    plain, short = make_model(dropout=0.0), make_model(dropout=0.0)
    one = fit(plain, few_digits, recipe(), seed=0, device="cpu")
    other = fit(short, few_digits, recipe(precision="bf16"), seed=0, device="cpu")
    assert short[0].weight.dtype == torch.float32
    assert other.history[-1].train_loss == pytest.approx(one.history[-1].train_loss, rel=0.1)


def test_going_on_in_another_precision_is_told(
    make_model: Make, few_digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = recipe(precision="auto", checkpoint_every=0)
    monkeypatch.setattr("fastprune.training._device.bf16_instructions", lambda: ["avx512_bf16"])
    with pytest.raises(StoppedError):
        fit(
            make_model(),
            few_digits,
            options,
            directory=tmp_path,
            seed=0,
            device="cpu",
            after_step=stop_after(6),
        )
    monkeypatch.setattr("fastprune.training._device.bf16_instructions", list)
    said = Notes()
    result = fit(
        make_model(), few_digits, options, directory=tmp_path, seed=0, device="cpu", progress=said
    )
    assert [record.precision for record in result.history] == ["bf16", "fp32", "fp32"]
    assert said.notes == [
        "finetune: precision: auto is fp32 here, and the checkpoint was trained in bf16; going on "
        "in fp32. precision=bf16 would go on as it began"
    ]


def test_recalibration_sets_the_statistics_of_the_kept_weights(
    make_model: Make, few_digits: Splits
) -> None:
    model = make_model()
    result = fit(model, few_digits, recipe(epochs=1, recalibrate_batches=2), seed=0, device="cpu")
    assert model[1].num_batches_tracked == 2
    found = evaluate(model, few_digits.validation, device="cpu", channels_last=True)
    assert result.validation == found


def test_resuming_asks_for_the_batches_that_are_left(
    make_model: Make, few_digits: Splits, tmp_path: Path
) -> None:
    asked: list[tuple[int, int]] = []

    class Watched:
        images, batches, batch_size, highest_label = 112, 4, 32, 9

        def epoch(self, epoch: int, start: int = 0, **options: Any) -> Iterator[Any]:
            asked.append((epoch, start))
            return few_digits.train.epoch(epoch, start, **options)

        def close(self) -> None:
            return None

    splits = replace(few_digits, train=Watched())
    options = recipe(checkpoint_every=0)
    for stop in (stop_after(2), stop_after(3), None):
        model = make_model()
        try:
            fit(
                model,
                splits,
                options,
                directory=tmp_path,
                seed=0,
                device="cpu",
                after_step=stop,
            )
        except StoppedError:
            continue
    # A hook that stops a training does so before its step's checkpoint.
    assert asked == [(0, 0), (0, 1), (0, 3), (1, 0), (2, 0)]
