"""Cut and put back: the pruned network's masks and state in the unpruned one's coordinates."""

from __future__ import annotations

import copy

import pytest
import torch
from odd_networks import REGISTERED, FlatVGG, odd_cases, registered
from torch import Tensor, nn

import fastprune as fp
from fastprune.errors import GraphError, PlanError
from fastprune.graph import ChannelGraph, PruningPlan, apply_plan, mask_plan
from fastprune.methods._coordinates import gather_masks, scatter_state
from fastprune.methods._weight_masks import channels_alive, live_weights, prunable_weights
from fastprune.testing import Case, fill, outputs, random_plan


def check_coordinates(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, inputs: tuple[Tensor, ...]
) -> None:
    """Masks go to the pruned network, its state comes back, and all compute the same."""
    generator = torch.Generator().manual_seed(5)
    small = apply_plan(model, graph, plan)
    masked = mask_plan(model, graph, plan)
    back = scatter_state(small.state_dict(), graph, plan, model)
    expected = masked.state_dict()
    assert list(back) == list(expected)
    for key, tensor in expected.items():
        assert torch.equal(back[key], tensor), f"{key}: not the unpruned one's times what lives"
    try:
        names = prunable_weights(graph, first=True)
    except GraphError:
        names = ()  # linear layers alone
    masks = {
        name: torch.rand(graph.tensors[name].shape, generator=generator) < 0.7 for name in names
    }
    parts = gather_masks(masks, graph, plan)
    live = live_weights(plan, graph, names)
    for name, part in parts.items():
        # In the order of the positions: the live ones of the mask, one after the other.
        assert torch.equal(part.flatten(), masks[name][live[name]]), name
    both = mask_plan(model, graph, graph.full_plan())  # a copy
    both.load_state_dict(back)
    with torch.no_grad():
        for network, chosen in ((small, parts), (masked, masks), (both, masks)):
            parameters = dict(network.named_parameters())
            for name, mask in chosen.items():
                parameters[name].mul_(mask)
        examples = [
            torch.randn(x.shape, generator=generator, dtype=x.dtype)
            if x.is_floating_point()
            else x
            for x in inputs
        ]
        made = [list(outputs(n(*copy.deepcopy(examples)))) for n in (small, masked, both)]
    for got, one, other in zip(*made, strict=True):
        scale = one.abs().max().clamp(min=1e-12)
        assert one.isfinite().all()
        assert (got - one).abs().max() <= 1e-9 * scale
        assert (other - one).abs().max() <= 1e-9 * scale


@pytest.mark.parametrize("case", odd_cases(), ids=lambda case: case.name)
def test_odd_networks(case: Case) -> None:
    model = fill(case.build()).double().eval()
    inputs = tuple(
        i if isinstance(i, Tensor) else torch.zeros(i, dtype=torch.float64) for i in case.inputs
    )
    graph = fp.trace(model, inputs)
    check_coordinates(model, graph, random_plan(graph, 1), inputs)


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_networks(name: str) -> None:
    model, example = registered(name)
    graph = fp.trace(model, example)
    check_coordinates(model, graph, random_plan(graph, 2), (example,))


def test_a_head_that_reads_every_position_of_a_map() -> None:
    model = fill(FlatVGG()).double().eval()
    example = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    graph = fp.trace(model, example)
    assert graph.widths()["features.7"] == 6
    check_coordinates(model, graph, random_plan(graph, 3), (example,))


def test_selected_channels_come_back_under_their_own_names() -> None:
    model, example = registered("densenet40_cifar")
    graph = fp.trace(model, example, select="auto")
    plan = random_plan(graph, 4)
    small = apply_plan(model, graph, plan)
    assert any(".reader." in key for key in small.state_dict())
    back = scatter_state(small.state_dict(), graph, plan, model)
    model.load_state_dict(back)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(model(images), small(images), rtol=1e-9)


def test_a_module_of_two_names_comes_back_under_both() -> None:
    def build() -> nn.Module:
        twice = nn.Conv2d(6, 6, 3, padding=1)
        return nn.Sequential(nn.Conv2d(3, 6, 1), twice, nn.ReLU(), twice, nn.Conv2d(6, 2, 1))

    model = fill(build()).double()
    example = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    graph = fp.trace(model, example)
    check_coordinates(model, graph, random_plan(graph, 0), (example,))


def test_channels_of_empty_filters_compute_nothing_but_their_shift() -> None:
    """The plan of masks: where filters are empty and shifts zero, cutting changes nothing."""
    model = fill(FlatVGG()).double().eval()
    example = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    graph = fp.trace(model, example)
    names = prunable_weights(graph)
    masks = {n: torch.ones(graph.tensors[n].shape, dtype=torch.bool) for n in names}
    masks["features.3.weight"][[0, 7]] = False
    masks["features.7.weight"][2] = False
    plan = channels_alive(masks, graph)
    assert plan.widths() == {**graph.widths(), "features.3": 10, "features.7": 5}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
        model.features[3].bias[[0, 7]] = 0
        model.features[4].running_mean[[0, 7]] = 0
        model.features[4].bias[[0, 7]] = 0
        model.features[7].bias[2] = 0
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(apply_plan(model, graph, plan)(images), model(images), rtol=1e-9)


def test_nothing_is_shared_and_nothing_altered() -> None:
    model = fill(FlatVGG())
    graph = fp.trace(model, torch.zeros(1, 3, 16, 16))
    full = graph.full_plan()
    state = model.state_dict()
    back = scatter_state(state, graph, full, model)
    masks = {"features.3.weight": torch.ones(12, 8, 3, 3, dtype=torch.bool)}
    gathered = gather_masks(masks, graph, full)
    for tensor in (*back.values(), *gathered.values()):
        tensor.zero_()
    assert masks["features.3.weight"].all()
    assert all(tensor.any() for key, tensor in state.items() if "num_batches" not in key)
    assert not any(tensor.requires_grad for tensor in back.values())


def test_a_state_of_another_plan_is_refused() -> None:
    model = fill(FlatVGG())
    graph = fp.trace(model, torch.zeros(1, 3, 16, 16))
    plan = PruningPlan({"features.3": (0, 1, 2)}, graph.widths())
    with pytest.raises(PlanError, match=r"features\.3\.weight.*expected 3 entries in dimension 0"):
        scatter_state(model.state_dict(), graph, plan, model)
    small = apply_plan(model, graph, plan).state_dict()
    with pytest.raises(PlanError, match=r"features\.3\.weight.*expected shape \[12, 8, 3, 3\]"):
        scatter_state(small, graph, graph.full_plan(), model)
    del small["features.4.bias"]
    with pytest.raises(PlanError, match=r"holds no 'features\.4\.bias'"):
        scatter_state(small, graph, plan, model)
