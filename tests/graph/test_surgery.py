"""Surgery: what a pruned network keeps of the old one, what optimizers keep, what is refused."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastprune.errors import GraphError, PlanError
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, mask_plan, trace
from fastprune.testing import check_pruning, fill, random_plan

EXAMPLE = torch.zeros(1, 3, 8, 8)
PLAN = PruningPlan({"0": (0, 2, 5), "3": (1, 2, 3, 7)}, {"0": 8, "3": 12})


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    fill(model)
    return model.eval()


@pytest.fixture
def graph() -> ChannelGraph:
    return trace(network(), EXAMPLE)


def test_weights_are_cut_and_nothing_else(graph: ChannelGraph) -> None:
    model = network()

    small = apply_plan(model, graph, PLAN)

    kept, read = [0, 2, 5], [1, 2, 3, 7]
    assert torch.equal(small[0].weight, model[0].weight[kept])
    assert torch.equal(small[1].running_var, model[1].running_var[kept])
    assert torch.equal(small[3].weight, model[3].weight[read][:, kept])
    assert torch.equal(small[6].weight, model[6].weight[:, read])
    assert (small[0].out_channels, small[3].in_channels, small[3].out_channels) == (3, 3, 4)
    assert (small[1].num_features, small[6].in_features) == (3, 4)


def test_the_masked_network_has_zeros_and_keeps_them() -> None:
    model = network()
    graph = trace(model, EXAMPLE)
    masked = mask_plan(model, graph, PLAN).train()
    optimizer = torch.optim.SGD(masked.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        masked(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()

    dropped = [i for i in range(8) if i not in PLAN.keep["0"]]
    assert not masked[0].weight[dropped].any()
    assert not masked[1].bias[dropped].any()
    assert not masked[3].weight[:, dropped].any()
    assert masked[0].weight[list(PLAN.keep["0"])].all()
    assert model[0].weight.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_type_and_memory_format_stay(dtype: torch.dtype) -> None:
    model = network().to(dtype).to(memory_format=torch.channels_last)
    small = apply_plan(model, trace(model, EXAMPLE.to(dtype)), PLAN)

    assert {p.dtype for p in small.parameters()} == {dtype}
    weight = small[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_frozen_parameters_modes_and_hooks_stay(graph: ChannelGraph) -> None:
    model = network().train()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))

    small = apply_plan(model, graph, PLAN)

    flags = [name for name, p in small.named_parameters() if not p.requires_grad]
    assert flags == ["0.weight"]
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert all(p.grad is None for p in small.parameters())
    calls.clear()
    small(EXAMPLE)
    assert calls == [1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_modes_do_not_matter(graph: ChannelGraph, mode: Any) -> None:
    with mode():
        small = apply_plan(network(), graph, PLAN)

    assert all(p.requires_grad for p in small.parameters())


def test_a_network_without_memory_is_cut() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18(weights=None)
    graph = trace(model, torch.zeros(1, 3, 64, 64, device="meta"))
    plan = random_plan(graph, 0)

    small = apply_plan(model, graph, plan)

    assert sum(p.numel() for p in small.parameters()) == graph.cost(plan).params


def test_a_pruned_network_is_an_ordinary_one() -> None:
    model = fill(torchvision.models.resnet18(weights=None)).eval()
    image = torch.randn(2, 3, 64, 64)
    graph = trace(model, image)
    small = apply_plan(model, graph, random_plan(graph, 0))
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again = apply_plan(model, graph, random_plan(graph, 0))
    again.load_state_dict(loaded)

    expected = small(image)
    assert torch.equal(copy.deepcopy(small)(image), expected)
    assert torch.equal(pickle.loads(pickle.dumps(small))(image), expected)
    assert torch.equal(again(image), expected)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-3),
    "adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_with_its_state(graph: ChannelGraph, name: str) -> None:
    model = network().train()
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = OPTIMIZERS[name]([{"params": weights}, {"params": rest}])
    images = torch.randn(4, 3, 8, 8)

    def step(of: nn.Module) -> None:
        optimizer.zero_grad()
        of(images).square().mean().backward()
        optimizer.step()

    step(model)
    held = {k: v.clone() for k, v in optimizer.state[model[3].weight].items() if v.ndim == 4}
    small = apply_plan(model, graph, PLAN, optimizer=optimizer)

    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in small.parameters())
    assert {id(p) for p in optimizer.state} == set(owned)
    assert held or name == "adafactor"
    for key, value in held.items():
        for dim, index in ((0, [1, 2, 3, 7]), (1, [0, 2, 5])):
            if value.shape[dim] == model[3].weight.shape[dim]:
                value = value.index_select(dim, torch.tensor(index))
        assert torch.equal(optimizer.state[small[3].weight][key], value), key
    before = small[0].weight.detach().clone()
    step(small)
    step(small)
    assert not torch.equal(small[0].weight, before)
    optimizer.load_state_dict(optimizer.state_dict())


def test_another_networks_optimizer_is_refused_and_left_alone(graph: ChannelGraph) -> None:
    model = network()
    extra = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([*model.parameters(), extra], 0.1)
    before = [id(p) for p in optimizer.param_groups[0]["params"]]

    with pytest.raises(GraphError, match="optimizer"):
        apply_plan(model, graph, PLAN, optimizer=optimizer)

    assert [id(p) for p in optimizer.param_groups[0]["params"]] == before


def test_pruning_many_times_leaks_nothing() -> None:
    model = network()

    def once() -> None:
        graph = trace(model, EXAMPLE)
        apply_plan(model, graph, PLAN)(EXAMPLE)
        mask_plan(model, graph, PLAN)

    def alive() -> int:
        gc.collect()
        return sum(isinstance(o, Tensor) for o in gc.get_objects())

    once()
    before = alive()
    for _ in range(50):
        once()

    assert alive() == before


def test_the_pruned_network_lets_go_of_the_old_one(graph: ChannelGraph) -> None:
    model = network()
    small = apply_plan(model, graph, PLAN)
    old = weakref.ref(model[0].weight)
    del model
    gc.collect()

    assert old() is None
    assert small[0].weight.shape == (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (PruningPlan({"1": (0,)}), "group '1': not a group"),
        (PruningPlan({"0": (0, 8)}), "channel 8 does not exist; the group has 8"),
        (PruningPlan({"0": (0,)}, {"0": 16}), "of a network with 16 channels there"),
        (PruningPlan({"0": range(8)}), "drops no channel"),
        (PruningPlan({}), "drops no channel"),
        ({"0": [0]}, "expected a PruningPlan, got dict"),
        (None, "expected a PruningPlan, got NoneType"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(graph: ChannelGraph, plan: Any, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        apply_plan(network(), graph, plan)


def test_a_plan_that_drops_nothing_can_be_asked_for(graph: ChannelGraph) -> None:
    model = network()
    same = apply_plan(model, graph, graph.full_plan(), allow_unchanged=True)

    assert torch.equal(same(EXAMPLE), model(EXAMPLE))
    assert same[0].weight is not model[0].weight


@pytest.mark.parametrize("prune", [apply_plan, mask_plan])
def test_another_network_is_refused(graph: ChannelGraph, prune: Any) -> None:
    pruned = apply_plan(network(), graph, PLAN)

    with pytest.raises(PlanError, match=r"another network: 0.weight should be \[8, 3, 3, 3\]"):
        prune(pruned, graph, PLAN)
    with pytest.raises(PlanError, match="got nothing of that name"):
        prune(nn.Linear(2, 2), graph, PLAN)


def test_a_selected_norm_gets_a_channel_select() -> None:
    model = network().double()
    example = EXAMPLE.double()
    graph = trace(model, example, select=["1"])

    small = check_pruning(model, graph, PruningPlan({"1": (1, 4), "3": (0, 2)}), [example])

    assert small[0].out_channels == 8
    assert small[1].select.index.tolist() == [1, 4]
    assert (small[1].reader.num_features, small[3].in_channels) == (8, 2)


def test_gradual_pruning_keeps_group_names_and_composes() -> None:
    """Grouped convolutions of either way: sixteen narrow groups, and two wide ones."""
    layers = [nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1, groups=16), nn.Conv2d(64, 48, 1, groups=2)]
    model = fill(nn.Sequential(*layers, nn.Conv2d(48, 2, 1))).double().eval()
    example = EXAMPLE.double()
    graph = trace(model, example)
    whole, plan, small = graph.widths(), graph.full_plan(), model
    for seed in range(4):
        now = trace(small, example)
        step = random_plan(now, seed)
        small = apply_plan(small, now, step)
        plan = PruningPlan.compose(plan, step)

    assert plan.channels == whole
    once = apply_plan(model, graph, plan)
    torch.testing.assert_close(small(example + 1), once(example + 1))
