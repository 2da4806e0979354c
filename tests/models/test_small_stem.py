"""torchvision's ResNets with a stem for 32x32 images: what it changes, and what it leaves."""

import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

import fastprune as fp
from fastprune.config import ModelOptions
from fastprune.data import DataOptions
from fastprune.errors import ConfigError, WeightsError
from fastprune.graph import trace
from fastprune.models import build, resolve
from fastprune.run.networks import choose_normalization
from fastprune.testing import check_pruning, check_trained, fill, random_plan

RESNETS = [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
    "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
]  # fmt: skip


def test_these_are_all_of_torchvisions_resnets():
    names = torchvision.models.list_models(module=torchvision.models)
    assert {name for name in names if resolve(name).changed is not None} == set(RESNETS)


@pytest.mark.parametrize("name", RESNETS)
def test_only_the_stem_is_another(name):
    with torch.device("meta"):
        large, small = build(name), build(name, stem="small")
    shapes = {key: value.shape for key, value in large.state_dict().items()}
    assert shapes.pop("conv1.weight") == (64, 3, 7, 7)
    others = {key: value.shape for key, value in small.state_dict().items()}
    assert others.pop("conv1.weight") == (64, 3, 3, 3)
    assert list(others) == list(shapes)
    assert others == shapes
    conv = small.conv1
    assert (conv.stride, conv.padding, conv.bias) == ((1, 1), (1, 1), None)
    assert isinstance(small.maxpool, nn.Identity)
    # A 32x32 image is halved three times, by the stages.
    shapes = []
    small.layer4.register_forward_hook(lambda module, inputs, maps: shapes.append(maps.shape[-2:]))
    small.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    assert shapes == [(4, 4)]


def test_the_large_stem_is_torchvisions_network():
    torch.manual_seed(0)
    given = build("resnet18", stem="large", num_classes=3)
    torch.manual_seed(0)
    plain = build("resnet18", num_classes=3)
    assert all(map(torch.equal, given.state_dict().values(), plain.state_dict().values()))
    network = resolve("resnet18")
    assert network.given({"stem": "large"}) == network.given({}) == network
    assert network.input_shape == (3, 224, 224)


def test_weights_of_the_stem_start_as_torchvisions_do():
    torch.manual_seed(0)
    weight = build("resnet18", stem="small").conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet18",
            {"stem": "smal"},
            r"torchvision:resnet18: stem: expected large or small, .*'smal'",
        ),
        ("resnet18", {"stem": None}, r"stem: expected large or small, got None"),
        ("resnet18", {"stem": ["small"]}, r"stem: expected large or small, got \['small'\]"),
        ("vgg16", {"stem": "small"}, r"torchvision:vgg16: stem: only torchvision's ResNets"),
        ("resnet18", {"stem": "small", "widht": 2}, r"torchvision:resnet18: .*widht"),
        ("resnet20_cifar", {"stem": "small"}, r"resnet20_cifar: stem: unknown option"),
        ("torch.nn:Linear", {"stem": "small"}, r"torch.nn:Linear: unknown option 'stem'"),
    ],
)
def test_bad_stems(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **options)


@pytest.mark.parametrize("classes", [None, 10])
def test_published_weights_are_of_the_large_stem(classes):
    with pytest.raises(
        WeightsError, match=r"DEFAULT of torchvision:resnet18 are for its large stem"
    ):
        build("resnet18", weights="DEFAULT", num_classes=classes, stem="small")


def test_a_file_of_weights_is_of_one_stem(tmp_path):
    small = build("resnet18", num_classes=10, stem="small")
    torch.save(small.state_dict(), tmp_path / "small.pt")
    again = build("resnet18", num_classes=10, stem="small", weights=tmp_path / "small.pt")
    assert torch.equal(again.conv1.weight, small.conv1.weight)
    with pytest.raises(
        WeightsError, match=r"conv1.weight: expected \(64, 3, 7, 7\), got \(64, 3, 3, 3\)"
    ):
        build("resnet18", num_classes=10, weights=tmp_path / "small.pt")


def test_images_are_normalised_as_the_datasets_with_a_small_stem():
    def chosen(**options):
        model = ModelOptions(name="resnet18", weights="w.pt", options=options)
        return choose_normalization(model, DataOptions(name="cifar10")).source

    assert chosen(stem="small") == "dataset"
    assert chosen(stem="large") == "weights"


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_pruned_equals_masked(name):
    model = fill(build(name, num_classes=100, stem="small")).double().eval()
    example = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    graph = trace(model, example)
    assert [row.reason for row in graph.unprunable] == ["network output"]
    small = check_pruning(model, graph, random_plan(graph, 0), [example], batches=(2,))
    check_trained(small, [example])


def test_a_pruned_network_comes_back_in_another_process(tmp_path):
    model = fill(build("resnet18", num_classes=10, stem="small")).eval()
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    plan = random_plan(graph, 0)
    small = fp.apply_plan(model, graph, plan).eval()
    options = {"stem": "small"}
    fp.save(
        tmp_path / "net",
        small,
        plan=plan,
        architecture="resnet18",
        options=options,
        num_classes=10,
    )
    images = torch.randn(2, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch, fastprune as fp; torch.set_num_threads(1)\n"
        "net = fp.load('net'); torch.save(net(torch.load('images.pt')), 'out.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

    assert torch.equal(torch.load(tmp_path / "out.pt"), small(images))
    assert fp.artifact.describe(tmp_path / "net")[1]["input_shape"] == [3, 32, 32]
