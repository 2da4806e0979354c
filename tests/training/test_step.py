from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastprune.data import DataOptions, Placement, Splits, load
from fastprune.errors import TrainingError
from fastprune.nn import GrowingPenalty, SparsityPenalty
from fastprune.training import TrainingOptions, evaluate, fit
from fastprune.training._guard import LossGuard
from fastprune.training._step import TrainingStep
from fastprune.training.metrics import Totals

Make = Callable[..., nn.Sequential]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def recipe(**given: Any) -> TrainingOptions:
    return TrainingOptions.model_validate(
        {"epochs": 3, "lr": 0.05, "precision": "fp32", "warmup_epochs": 1, **given}
    )


def step_of(
    model: nn.Module,
    splits: Splits,
    options: TrainingOptions,
    hooks: tuple[Any, Any] = (None, None),
    said: list[str] | None = None,
) -> TrainingStep:
    return TrainingStep(
        model,
        options,
        torch.device("cpu"),
        None,
        hooks,
        pipeline=splits.train,
        name="step",
        field="finetune",
        say=[].append if said is None else said.append,
    )


def growing(model: nn.Module) -> GrowingPenalty:
    """Penalises the first filters of both convolutions and holds the last, set to zero here."""
    named = {name: w for name, w in model.named_parameters() if w.ndim == 4}
    penalised, kept = {}, {}
    for name, weight in named.items():
        penalised[name] = torch.zeros(weight.shape, dtype=torch.bool)
        penalised[name][:4] = True
        with torch.no_grad():
            weight[6:] = 0
        kept[name] = weight.detach() != 0
    return GrowingPenalty(
        named,
        penalised=penalised,
        kept=kept,
        schedule="x^2",
        granularity=0.2,
        limit=9,
        steps=12,
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().double().cpu() for tensor in model.state_dict().values()])


@pytest.fixture
def odd_digits() -> Splits:
    """100 training images in 3 batches of 32 and one of 4."""
    return load(DataOptions(batch_size=32, validation=40, train_limit=100, test_limit=40), seed=0)


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch, fake_graphs: type[Any]) -> list[Any]:
    """Steps on the CPU are captured, by graphs that need no GPU; they are listed."""
    made: list[Any] = []
    steps: list[TrainingStep] = []
    before = TrainingStep.__init__

    def state() -> list[torch.Tensor]:
        step = steps[-1]
        momenta = [state["momentum_buffer"] for state in step.optimizer.state.values()]
        hook = step._after_backward
        counts = [hook._done] if isinstance(hook, GrowingPenalty) else []
        return [*step._model.state_dict().values(), *momenta, *counts]

    def remembered(self: TrainingStep, *args: Any, **kwargs: Any) -> None:
        steps.append(self)
        before(self, *args, **kwargs)

    def graphs(device: torch.device) -> Any:
        made.append(fake_graphs(state))
        return made[-1]

    for module in ("_possible",):
        monkeypatch.setattr(f"fastprune.training.{module}.capture_refusal", lambda *_: None)
    monkeypatch.setattr("fastprune.training._step.CudaGraphs", graphs)
    monkeypatch.setattr(TrainingStep, "__init__", remembered)
    return made


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"clip_grad_norm": 0.5, "nesterov": True, "label_smoothing": 0.1},
        {"distill": {"temperature": 2}, "no_decay_norm_bias": True},
    ],
)
def test_captured_and_eager_steps_end_in_the_same_weights(
    make_model: Make, odd_digits: Splits, capturing: list[Any], given: dict[str, Any]
) -> None:
    trained = []
    for capture in (False, True):
        model = make_model(dropout=0.0)
        penalty = SparsityPenalty(model, 1e-3)
        result = fit(
            model,
            odd_digits,
            recipe(capture=capture, **given),
            seed=0,
            device="cpu",
            teacher=make_model(seed=4),
            after_backward=penalty,
            after_step=penalty.proximal,
        )
        trained.append((weights(model), result.history[-1]))
    (eager, one), (captured, other) = trained
    # The learning rate is rounded to float32 where it lies on the device.
    torch.testing.assert_close(captured, eager, rtol=1e-5, atol=1e-6)
    assert other.train_loss == pytest.approx(one.train_loss, rel=1e-5)
    assert (one.step, other.step) == ("eager", "captured")
    assert one.step_reason == "not captured: capture: false"
    # Three epochs of three whole batches and a small one, which is not captured.
    assert capturing[0].log == ["aside"] * 3 + ["record"] + ["replay"] * 6


def test_a_growing_penalty_grows_in_captured_steps(
    make_model: Make, odd_digits: Splits, capturing: list[Any]
) -> None:
    trained = []
    for capture in (False, True):
        model = make_model(dropout=0.0)
        penalty = growing(model)
        options = recipe(capture=capture)
        fit(model, odd_digits, options, seed=0, device="cpu", after_backward=penalty)
        assert penalty.strength == pytest.approx((0.2 * 12) ** 2)
        assert not model[0].weight[6:].any()
        trained.append(weights(model))
    assert capturing[0].log.count("replay") == 6
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-5, atol=1e-6)


def test_a_captured_step_leaves_everything_where_it_is(
    make_model: Make, few_digits: Splits, capturing: list[Any]
) -> None:
    model = make_model(dropout=0.0)
    step = step_of(model, few_digits, recipe())
    places = []
    batches = list(few_digits.train.epoch(0))[:3]
    for rate, batch in zip((0.1, 0.05, 0.2, 0.1, 0.3, 0.2), batches * 2, strict=True):
        loss, logits, _ = step.run(batch, 1.0, rate, last=True)
        momenta = [state["momentum_buffer"] for state in step.optimizer.state.values()]
        kept = [*model.state_dict().values(), *momenta]
        places.append([tensor.data_ptr() for tensor in kept])
        assert [group["lr"].data_ptr() for group in step.optimizer.param_groups] == [
            step._rate.data_ptr()
        ]
        assert step._rate.item() == pytest.approx(rate)
    assert all(place == places[0] for place in places)
    # Outputs are copies: the next replay does not change them.
    before = loss.clone(), logits.clone()
    step.run(batches[0], 1.0, 0.1, last=True)
    assert torch.equal(loss, before[0])
    assert torch.equal(logits, before[1])


def test_checkpoints_hold_the_learning_rate_as_a_number(
    make_model: Make, few_digits: Splits, capturing: list[Any]
) -> None:
    step = step_of(make_model(dropout=0.0), few_digits, recipe())
    batches = list(few_digits.train.epoch(0))[:3]
    for batch in batches * 2:
        step.run(batch, 1.0, 0.25, last=True)
    state = step.state_dict()
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == [0.25]
    step.load_state_dict(state)
    step.run(batches[0], 1.0, 0.25, last=True)
    # Loading puts momenta elsewhere, so the graph is made anew.
    assert capturing[0].log[-1] == "aside"


def test_what_cannot_be_captured_is_named(
    make_model: Make, few_digits: Splits, capturing: list[Any]
) -> None:
    def shrink(rate: float) -> None:
        return None

    cases: list[tuple[dict[str, Any], tuple[Any, Any], str]] = [
        ({"accumulate": 2}, (None, None), "accumulate: a step is 2 batches"),
        ({"compile": True}, (None, None), "compile: true"),
        ({}, (None, shrink), r"shrink is called at every step"),
    ]
    for given, hooks, said in cases:
        step = step_of(make_model(), few_digits, recipe(**given), hooks)
        assert step._captured is None
        assert said in (step._uncaptured or "")
        if "compile" not in given:
            with pytest.raises(TrainingError, match=said):
                step_of(make_model(), few_digits, recipe(capture=True, **given), hooks)


def test_a_step_given_up_goes_on_eagerly(
    make_model: Make, few_digits: Splits, capturing: list[Any]
) -> None:
    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model(dropout=0.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # As a network would that calls .item(): the graph's warm-up is told.
            capturing[0].waits = ["network.py:3"]
            return self.inner(x)

    model, plain = Waiting(), make_model(dropout=0.0)
    result = fit(model, few_digits, recipe(), seed=0, device="cpu")
    fit(plain, few_digits, recipe(capture=False), seed=0, device="cpu")
    assert result.history[-1].step == "eager"
    assert result.history[-1].step_reason == (
        "not captured: it waits for the GPU in every batch, at network.py:3"
    )
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-5, atol=1e-6)


def test_compiled_steps_train_alike() -> None:
    # Two whole batches an epoch and one of two images, which runs uncompiled.
    splits = load(DataOptions(batch_size=31, validation=0, train_limit=64), seed=0)
    trained = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Flatten())
        model.append(nn.Linear(64, 10))
        result = fit(model, splits, recipe(compile=compile, epochs=2), seed=0, device="cpu")
        trained.append(weights(model))
    assert (result.history[-1].step, result.history[-1].step_reason) == ("compiled", "asked for")
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-3, atol=1e-4)


def test_compiled_evaluation_finds_the_same(make_model: Make, few_digits: Splits) -> None:
    model = make_model()
    plain = evaluate(model, few_digits.train, device="cpu")
    graphs = []
    for _ in range(2):
        compiled = evaluate(model, few_digits.train, device="cpu", compile=True)
        assert compiled.loss == pytest.approx(plain.loss, rel=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # The second evaluation finds what the first compiled.
    assert graphs[0] == graphs[1]
    with pytest.raises(TrainingError, match=r"evaluate\.capture: the device is cpu"):
        evaluate(model, few_digits.train, device="cpu", capture=True)


def test_captured_evaluation_finds_the_same(
    make_model: Make,
    odd_digits: Splits,
    fake_graphs: type[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = fake_graphs()
    model = make_model()
    plain = evaluate(model, odd_digits.train, device="cpu")
    # By sys.modules: the package has a function of the module's name.
    module = sys.modules["fastprune.training.evaluate"]
    monkeypatch.setattr(module, "capture_refusal", lambda *_: None)
    monkeypatch.setattr(module, "CudaGraphs", lambda _: graphs)
    odd = load(
        DataOptions(batch_size=16, validation=40, train_limit=100, test_limit=40), seed=0
    ).train
    assert evaluate(model, odd, device="cpu").loss == pytest.approx(plain.loss, rel=1e-5)
    assert graphs.log == ["aside"] * 3 + ["record"] + ["replay"] * 3


class Reads(TorchDispatchMode):
    """Notes the operators that would wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal.default")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if any(name in str(func) for name in self.WAITING):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [partial(SparsityPenalty, strength=1e-3), growing])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_batch_waits_for_the_device(
    make_model: Make, few_digits: Splits, precision: str, kind: Callable[[nn.Module], Any]
) -> None:
    options = recipe(clip_grad_norm=1.0, label_smoothing=0.1, precision=precision)
    model = make_model().train()
    step = step_of(model, few_digits, options, (kind(model), None))
    device = torch.device("cpu")
    guard, totals = LossGuard(torch.device("cuda"), "finetune"), Totals(device)
    batches = list(few_digits.train.epoch(0))
    with Reads() as reads:
        for number, host in enumerate(batches):
            batch = Placement(device, channels_last=True).of(host)
            loss, logits, labels = step.run(batch, 1.0, 0.1, last=True)
            guard.watch(loss, 0, number, 0.1, "kept")
            totals.add(logits, labels, loss)
        assert reads.seen == []
        totals.read()
    assert reads.seen


@CUDA
class TestOnAGpu:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_captured_and_eager_steps_end_in_the_same_weights(
        self, make_model: Make, odd_digits: Splits, precision: str
    ) -> None:
        trained, kinds = [], []
        for capture in (False, True):
            model = make_model(dropout=0.0)
            penalty = SparsityPenalty(model, 1e-3)
            result = fit(
                model,
                odd_digits,
                recipe(capture=capture, clip_grad_norm=1.0, precision=precision),
                seed=0,
                device="cuda",
                teacher=None,
                after_backward=penalty,
                after_step=penalty.proximal,
            )
            trained.append(weights(model))
            kinds.append(result.history[-1].step)
        assert kinds == ["eager", "captured"]
        rough = 1e-4 if precision == "fp32" else 2e-2
        torch.testing.assert_close(trained[1], trained[0], rtol=rough, atol=rough)

    def test_a_growing_penalty_grows_in_captured_steps(
        self, make_model: Make, odd_digits: Splits
    ) -> None:
        trained, kinds = [], []
        for capture in (False, True):
            model = make_model(dropout=0.0)
            penalty = growing(model)
            result = fit(
                model,
                odd_digits,
                recipe(capture=capture, clip_grad_norm=1.0),
                seed=0,
                device="cuda",
                after_backward=penalty,
                after_epoch=penalty.after_epoch,
            )
            assert penalty.strength == pytest.approx((0.2 * 12) ** 2)
            assert not model[0].weight[6:].any()
            trained.append(weights(model))
            kinds.append(result.history[-1].step)
        assert kinds == ["eager", "captured"]
        torch.testing.assert_close(trained[1], trained[0], rtol=1e-4, atol=1e-4)

    def test_a_network_that_waits_is_trained_eagerly(
        self, make_model: Make, odd_digits: Splits
    ) -> None:
        class Waiting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = make_model()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.inner(x) * min(1.0, x.abs().max().item())

        result = fit(Waiting(), odd_digits, recipe(), seed=0, device="cuda")
        assert result.history[-1].step == "eager"
        assert "waits for the GPU" in result.history[-1].step_reason

    def test_no_batch_waits(self, make_model: Make, odd_digits: Splits) -> None:
        model = make_model().cuda().train()
        device = torch.device("cuda")
        step = TrainingStep(
            model,
            recipe(clip_grad_norm=1.0),
            device,
            None,
            (None, None),
            pipeline=odd_digits.train,
            name="step",
            field="finetune",
            say=[].append,
        )
        guard, totals = LossGuard(device, "finetune"), Totals(device)
        batches = [Placement(device).of(batch) for batch in odd_digits.train.epoch(0)]
        for batch in batches * 2:
            step.run(batch, 1.0, 0.1, last=True)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches:
                loss, logits, labels = step.run(batch, 1.0, 0.1, last=True)
                guard.watch(loss, 0, 0, 0.1, "kept")
                totals.add(logits, labels, loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert step.kind == "captured"
