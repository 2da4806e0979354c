"""The growing penalty against its definition, in training loops of every kind."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastprune.errors import FastpruneError
from fastprune.nn import GrowingPenalty
from fastprune.nn.growing_penalty import Schedule, strength_at

E1 = math.e - 1

# r after k growths with g, at t of the training, with p.
SCHEDULES: dict[Schedule, Callable[[float, int, float, float], float]] = {
    "x": lambda g, k, t, p: g * k,
    "x^2": lambda g, k, t, p: (g * k) ** 2,
    "x^3": lambda g, k, t, p: (g * k) ** 3,
    "exp": lambda g, k, t, p: math.exp(g * k) - 1,
    "exp_custom": lambda g, k, t, p: g / E1 * (math.exp(t) - 1),
    "exp_custom_exponents": lambda g, k, t, p: g / E1 * (math.exp(t**p) - 1),
}


@dataclass(frozen=True)
class Seen:
    epoch: int
    validation_top1: float | None


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten())


def _images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 7, 7, generator=torch.Generator().manual_seed(1))


def _masks(model: nn.Module, seed: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Half of the weights of both layers penalised, a quarter held; these are set to zero."""
    generator = torch.Generator().manual_seed(seed)
    penalised, kept = {}, {}
    for name in ("0.weight", "2.weight"):
        weight = model.get_parameter(name)
        drawn = torch.rand(weight.shape, generator=generator)
        penalised[name], kept[name] = drawn < 0.5, drawn < 0.75
        with torch.no_grad():
            weight[~kept[name]] = 0
    return penalised, kept


def _penalty(model: nn.Module, **given: Any) -> GrowingPenalty:
    recipe: dict[str, Any] = {"schedule": "x", "granularity": 0.1, "limit": 1e3, "steps": 20}
    return GrowingPenalty(dict(model.named_parameters()), **{**recipe, **given})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("interval", "limit"), [(1, 1e9), (3, 1e9), (1, 0.004)])
def test_gradients_are_those_of_the_definition(
    schedule: Schedule, interval: int, limit: float
) -> None:
    g, steps, p = 0.03, 8, 2.5
    model = _network()
    penalised, kept = _masks(model)
    penalty = _penalty(
        model,
        penalised=penalised,
        kept=kept,
        schedule=schedule,
        granularity=g,
        steps=steps,
        limit=limit,
        update_interval=interval,
        exponents=p,
    )
    seen = []
    for step in range(steps):
        model.zero_grad()
        model(_images()).square().mean().backward()
        plain = {name: w.grad.double() for name, w in model.named_parameters()}
        k = step // interval
        r = min(SCHEDULES[schedule](g, k, k * interval / steps, p), limit)
        assert penalty.strength == pytest.approx(r, rel=1e-12, abs=1e-15)
        penalty()
        for name, weight in model.named_parameters():
            expected = plain[name]
            if name in penalised:
                expected = (expected + r * weight.double() * penalised[name]) * kept[name]
            torch.testing.assert_close(weight.grad.double(), expected, rtol=1e-6, atol=1e-9)
        seen.append(r)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[-1] > 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_float32_on_the_device_is_the_schedule_to_rounding(schedule: Schedule) -> None:
    steps, g = 1000, 0.01
    weight = nn.Parameter(torch.ones(2))
    penalty = GrowingPenalty(
        {"w": weight},
        penalised={"w": torch.tensor([True, False])},
        schedule=schedule,
        granularity=g,
        limit=1e9,
        steps=steps,
    )
    # Beyond the last step r stays, at t = 1.
    for step in range(steps + 3):
        weight.grad = torch.zeros(2)
        penalty()
        k = min(step, steps)
        expected = SCHEDULES[schedule](g, k, k / steps, 4.0)
        assert weight.grad[0].item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert weight.grad[1].item() == 0
    if schedule.startswith("exp_custom"):
        assert penalty.strength == pytest.approx(g, rel=1e-12)


def test_strengths_past_the_largest_float_are_the_limit() -> None:
    for schedule in ("x^3", "exp"):
        r = strength_at(10, schedule=schedule, granularity=1e200, limit=7.0, steps=10)
        assert r == 7.0
    # A long interval is not laid out step by step.
    weight = nn.Parameter(torch.ones(1))
    penalty = GrowingPenalty(
        {"w": weight}, schedule="x", granularity=1, limit=9, steps=5, update_interval=10**12
    )
    penalty()
    assert penalty.strength == 0


@pytest.mark.parametrize(
    "given",
    [
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 0.1, "foreach": False},
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_held_weights_stay_zero_and_penalised_ones_shrink(
    given: dict[str, Any], channels_last: bool
) -> None:
    left = {}
    for granularity in (0.0, 0.2):
        model = _network()
        penalised, kept = _masks(model)
        penalty = _penalty(
            model, penalised=penalised, kept=kept, granularity=granularity, steps=40, limit=3.0
        )
        if channels_last:
            # After the penalty was made, as a trainer does.
            model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **given)
        for _ in range(40):
            optimizer.zero_grad(set_to_none=True)
            for part in _images().split(2):
                (model(part) - 1).square().mean().backward()
            penalty()
            norm = torch.stack([w.grad.norm() for w in model.parameters()]).norm()
            clipped = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            assert clipped.item() == pytest.approx(norm.item())
            optimizer.step()
            for name, mask in kept.items():
                held = model.get_parameter(name)[~mask]
                assert held.numel() > 5
                assert held.abs().max().item() == 0
        left[granularity] = sum(
            model.get_parameter(name)[mask].norm().item() for name, mask in penalised.items()
        )
    assert left[0.2] < 0.25 * left[0.0]


def test_clipping_does_not_see_gradients_of_held_weights() -> None:
    weight = nn.Parameter(torch.tensor([0.0, 2.0]))
    kept = {"w": torch.tensor([False, True])}
    penalty = GrowingPenalty(
        {"w": weight}, kept=kept, schedule="x", granularity=0, limit=1, steps=3
    )
    weight.grad = torch.tensor([4.0, 3.0])
    penalty()
    assert nn.utils.clip_grad_norm_([weight], 3.0).item() == 3.0
    torch.testing.assert_close(weight.grad, torch.tensor([0.0, 3.0]))


def test_frozen_layers_are_left_out_and_gradients_may_be_new_ones() -> None:
    model = _network()
    penalised, kept = _masks(model)
    penalty = _penalty(model, penalised=penalised, kept=kept)
    model.get_parameter("0.weight").requires_grad_(False)
    for r in (0.0, 0.1, 0.2):
        model.zero_grad(set_to_none=True)
        weight = model.get_parameter("2.weight")
        weight.grad = torch.zeros_like(weight)
        penalty()
        assert model.get_parameter("0.weight").grad is None
        torch.testing.assert_close(weight.grad, r * weight.detach() * penalised["2.weight"])


def test_masks_are_copies_and_stay_as_they_were_given() -> None:
    model = _network()
    penalised, kept = _masks(model)
    before = {name: mask.clone() for name, mask in penalised.items()}
    penalty = _penalty(model, penalised=penalised, kept=kept)
    for mask in (*penalised.values(), *kept.values()):
        mask.logical_not_()
    # Masks are laid out anew, as their weights are.
    model.to(memory_format=torch.channels_last)
    weight = model.get_parameter("0.weight")
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        penalty()
    expected = 0.1 * weight.detach() * before["0.weight"] + 1
    assert penalty._masks[0].stride() == weight.stride() != before["0.weight"].stride()
    # The masks' complement is what was kept.
    torch.testing.assert_close(weight.grad, expected * ~kept["0.weight"])


def test_a_state_goes_through_a_file_and_on_to_the_same_gradients() -> None:
    def trained(penalty: GrowingPenalty, weight: Tensor, steps: int) -> list[Tensor]:
        found = []
        for _ in range(steps):
            weight.grad = torch.zeros_like(weight)
            penalty()
            found.append(weight.grad)
        return found

    model = _network()
    weight = model.get_parameter("0.weight")
    given: dict[str, Any] = {
        "penalised": {"0.weight": torch.ones_like(weight, dtype=torch.bool)},
        "target": 50,
        "schedule": "exp",
    }
    whole = _penalty(model, **given)
    trained(whole, weight, 3)
    whole.after_epoch(Seen(1, 40.0))
    stream = io.BytesIO()
    torch.save(whole.state_dict(), stream)
    stream.seek(0)
    resumed = _penalty(model, **given)
    place = resumed._done.data_ptr()
    resumed.load_state_dict(torch.load(stream, weights_only=True))
    assert resumed._done.data_ptr() == place
    assert (resumed.strength, resumed.strengths) == (whole.strength, whole.strengths)
    expected = trained(whole, weight, 4)
    for one, other in zip(expected, trained(resumed, weight, 4), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(expected[0], expected[1])

    other = _penalty(model, **{**given, "granularity": 0.2})
    with pytest.raises(FastpruneError, match=r"granularity is 0\.2, and .* made with 0\.1"):
        other.load_state_dict(whole.state_dict())


def test_the_strength_is_halved_while_accuracy_is_under_the_target() -> None:
    weight = nn.Parameter(torch.ones(1))
    mask = {"w": torch.tensor([True])}
    given: dict[str, Any] = {"schedule": "x", "granularity": 0.5, "limit": 100, "steps": 9}
    penalty = GrowingPenalty({"w": weight}, penalised=mask, target=60, **given)
    applied = []
    for epoch, top1 in enumerate((59.9, 60.0, 10.0), start=1):
        for _ in range(2):
            weight.grad = torch.zeros(1)
            penalty()
            applied.append(weight.grad.item())
        penalty.after_epoch(Seen(epoch, top1))
    assert applied == [0.0, 0.5, 0.5, 0.75, 2.0, 2.5]
    assert penalty.strengths == ((1, 1.0), (2, 1.0), (3, 3.0))
    assert penalty.strength == 1.5
    with pytest.raises(FastpruneError, match=r"target: 60 % .* no validation images"):
        penalty.after_epoch(Seen(4, None))
    untargeted = GrowingPenalty({"w": weight}, penalised=mask, **given)
    untargeted.after_epoch(Seen(1, None))
    assert untargeted.strengths == ((1, 0.0),)


class Calls(TorchDispatchMode):
    """The operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_call_is_the_same_operators_whatever_the_number_of_layers() -> None:
    called = []
    for layers in (2, 9):
        weights = {str(i): nn.Parameter(torch.randn(3, 4)) for i in range(layers)}
        masks = {name: torch.rand(3, 4) < 0.5 for name in weights}
        with torch.no_grad():
            for name, weight in weights.items():
                weight *= masks[name]
        penalty = GrowingPenalty(
            weights,
            penalised=masks,
            kept=masks,
            schedule="exp_custom",
            granularity=1,
            limit=1,
            steps=9,
        )
        for weight in weights.values():
            weight.grad = torch.ones_like(weight)
        for _ in range(2):
            with Calls() as calls:
                penalty()
            called.append(calls.names)
    assert called[0] == called[1] == called[2] == called[3]
    assert [n for n in called[0] if n.startswith("_foreach")] == [
        "_foreach_mul",
        "_foreach_addcmul_",
        "_foreach_mul_",
    ]
    # What would wait for a GPU, or be fixed in its graph.
    assert not {"_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal"} & set(called[0])


def test_a_step_reads_no_value_on_the_host() -> None:
    """Meta tensors have none, so a look at one is an error."""
    model = _network()
    penalised, kept = _masks(model)
    penalty = _penalty(model, penalised=penalised, kept=kept, schedule="x^2")
    # The parameters stay the same objects, as they do on the way to a GPU.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to("meta")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    for _ in range(3):
        penalty()
    with pytest.raises(RuntimeError):
        penalty.state_dict()


def test_what_does_not_fit_is_named() -> None:
    model = _network()
    shape = model.get_parameter("0.weight").shape
    yes, no = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    wrong: list[tuple[type[Exception], dict[str, Any], str]] = [
        (FastpruneError, {"penalised": {"0.wieght": yes}}, "'0.wieght' .* did you mean"),
        (ValueError, {"penalised": {"2.weight": yes}}, r"penalised: .* \[5, 4, 3, 3\]"),
        (ValueError, {"kept": {"0.weight": yes.float()}}, "kept: .* of torch.float32"),
        (ValueError, {"granularity": -0.1}, "granularity: .* -0.1"),
        (ValueError, {"granularity": math.nan}, "granularity: .* nan"),
        (ValueError, {"limit": math.inf}, "limit: .* inf"),
        (ValueError, {"steps": 0}, "steps: .* 0"),
        (TypeError, {"steps": 2.5}, "steps: .* float"),
        (ValueError, {"update_interval": 0}, "update_interval: .* 0"),
        (ValueError, {"exponents": 0}, "exponents: .* > 0"),
        (ValueError, {"schedule": "y"}, "schedule: expected one of x, .* got 'y'"),
        (ValueError, {"target": 101}, "target: .* 101"),
        (FastpruneError, {"kept": {"0.weight": no}}, "kept: 108 weights of '0.weight'"),
    ]
    for error, given, said in wrong:
        with pytest.raises(error, match=said):
            _penalty(model, **given)
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    with pytest.raises(ValueError, match=r"penalised: 108 weights of '0.weight' are held"):
        _penalty(model, penalised={"0.weight": yes}, kept={"0.weight": no})
    with pytest.raises(ValueError, match="step: "):
        strength_at(-1, schedule="x", granularity=1, limit=1, steps=1)


def test_parameters_that_do_not_go_together_are_named() -> None:
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    counts = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    masks = {name: torch.ones(2, dtype=torch.bool) for name in ("a", "b")}
    given: dict[str, Any] = {"schedule": "x", "granularity": 1, "limit": 1, "steps": 1}
    with pytest.raises(ValueError, match=r"'a' torch.float32 on cpu, 'b' torch.float64 on cpu"):
        GrowingPenalty({"a": one, "b": other}, penalised=masks, **given)
    with pytest.raises(ValueError, match=r"'a' and 'b' are one parameter"):
        GrowingPenalty({"a": one, "b": one}, penalised=masks, **given)
    with pytest.raises(ValueError, match=r"expected floats, got torch.int64 in 'a'"):
        GrowingPenalty({"a": counts}, kept={"a": masks["a"]}, **given)
    with pytest.raises(ValueError, match="parameters: expected at least one"):
        GrowingPenalty({}, **given)
    # Others may be of any kind.
    GrowingPenalty({"a": one, "b": other}, penalised={"a": masks["a"]}, **given)()
