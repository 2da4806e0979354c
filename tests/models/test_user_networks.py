"""The user's own networks by import path: what can be pruned of them, and that it is exact."""

import pathlib

import pytest
import torch
import user_networks

import fastprune as fp
from fastprune.graph import trace
from fastprune.models import build
from fastprune.testing import check_pruning, check_trained, fill, random_plan

FILE = pathlib.Path(user_networks.__file__)
RESNET, VGG, HIDDEN = "TutorialResNet32", "CustomVGG", "custom_vgg_with_hidden_layer"


def traced(name, **options):
    """A network of the file in float64, its example and its graph."""
    model = fill(build(f"{FILE}:{name}", **options)).double().eval()
    example = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    return model, example, trace(model, example)


def test_the_tutorials_resnet_has_the_published_size():
    model = build(f"{FILE}:{RESNET}", num_classes=100)
    same = build("resnet32_cifar", num_classes=100, shortcut="B")

    assert sum(p.numel() for p in model.parameters()) == 472_756
    assert [p.shape for p in model.parameters()] == [p.shape for p in same.parameters()]


def test_all_channels_of_the_tutorials_resnet_can_be_pruned():
    _, _, graph = traced(RESNET)
    inner = {f"blocks.{i}.conv_block.0": 16 * 2 ** (i // 5) for i in range(15)}
    stages = {"stem.0": 16, "blocks.5.conv_block.3": 32, "blocks.10.conv_block.3": 64}

    assert {group.name: group.channels for group in graph.groups} == inner | stages
    assert [(row.name, row.reason) for row in graph.unprunable] == [("fc", "network output")]


@pytest.mark.parametrize(("name", "hidden"), [(VGG, {}), (HIDDEN, {"classifier.0": 256})])
def test_all_channels_of_the_custom_vgg_can_be_pruned(name, hidden):
    model, _, graph = traced(name)
    widths = {
        f"features.{i}": width
        for i, width in zip((0, 3, 7, 10, 14, 17), (32, 32, 64, 64, 128, 128), strict=True)
    }
    head = "classifier.3" if hidden else "classifier"

    assert {group.name: group.channels for group in graph.groups} == widths | hidden
    assert [(row.name, row.reason) for row in graph.unprunable] == [(head, "network output")]
    # Each channel of the last maps is sixteen features of the head.
    plan = fp.PruningPlan({"features.17": (0, 5, 127)}, graph.widths())
    first = "classifier.0.weight" if hidden else "classifier.weight"
    whole, cut = (m.state_dict()[first] for m in (model, fp.apply_plan(model, graph, plan)))
    assert torch.equal(cut, torch.cat([whole[:, 16 * i : 16 * i + 16] for i in (0, 5, 127)], 1))


@pytest.mark.parametrize("name", [RESNET, VGG, HIDDEN])
@pytest.mark.parametrize("seed", [0, 1])
def test_pruned_equals_masked(name, seed):
    model, example, graph = traced(name, num_classes=100)
    plan = random_plan(graph, seed)
    small = check_pruning(model, graph, plan, [example], batches=(1, 2))
    check_trained(small, [example])

    again = trace(small, example)
    assert again.widths() == plan.widths()
    check_pruning(small, again, random_plan(again, 7), [example], batches=(2,))
