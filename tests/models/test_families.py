"""Every registered network against its published size, and its state dict's published names."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fastprune.errors import ConfigError
from fastprune.graph import trace
from fastprune.models import build, list_networks, registry, resolve
from fastprune.testing import check_pruning, check_trained, fill, random_plan

# Parameters with 10 and with 100 classes; with 10, MACs of conv and linear, and conv channels.
PUBLISHED = {
    "resnet20_cifar": (269_722, 275_572, 40_551_040, 688),
    "resnet32_cifar": (464_154, 470_004, 68_862_592, 1136),
    "resnet44_cifar": (658_586, 664_436, 97_174_144, 1584),
    "resnet56_cifar": (853_018, 858_868, 125_485_696, 2032),
    "resnet110_cifar": (1_727_962, 1_733_812, 252_887_680, 4048),
    "resnet18_cifar": (11_173_962, 11_220_132, 555_422_720, 4800),
    "wide_resnet32_cifar": (1_860_522, 1_872_132, 275_612_928, 2464),
    "vgg11_cifar": (9_228_362, 9_274_532, 152_769_536, 2752),
    "vgg13_cifar": (9_413_066, 9_459_236, 228_267_008, 2944),
    "vgg16_cifar": (14_724_042, 14_770_212, 313_201_664, 4224),
    "vgg19_cifar": (20_035_018, 20_081_188, 398_136_320, 5504),
    "vgg16_cifar_abc": (14_728_266, 14_774_436, 313_201_664, 4224),
    "preresnet164_cifar": (1_703_258, 1_726_388, 247_646_720, 12_560),
    "densenet40_cifar": (1_059_298, 1_100_428, 282_917_328, 936),
    "googlenet_cifar": (6_166_250, 6_258_500, 1_521_756_160, 7904),
    "mobilenet_cifar": (3_217_226, 3_309_476, 46_354_432, 10_944),
}
# Parameters with 1000 and with 100 classes; with 1000, MACs and conv channels, at 224x224.
LARGE = {
    "mobilenet_v1": (4_231_976, 3_309_476, 568_740_352, 10_944),
    "mobilenet_v2_metapruning": (5_313_198, 4_160_298, 569_521_240, 23_180),
}
TORCHVISION = {
    "resnet18": (11_689_512, 1_814_073_344, 4800),
    "resnet34": (21_797_672, 3_663_761_408, 8512),
    "resnet50": (25_557_032, 4_089_184_256, 26_560),
    "resnet101": (44_549_160, 7_801_405_440, 52_672),
    "resnet152": (60_192_808, 11_513_626_624, 75_712),
}
# torchvision's with the stem for 32x32 images and 10 classes, where kuangliu's pytorch-cifar has
# the same networks.
SMALL_STEM = {
    "resnet18": (11_173_962, 555_422_720, 4800),
    "resnet34": (21_282_122, 1_159_402_496, 8512),
    "resnet50": (23_520_842, 1_297_829_888, 26_560),
    "resnet101": (42_512_970, 2_509_983_744, 52_672),
    "resnet152": (58_156_618, 3_722_137_600, 75_712),
}


def on_meta(name, **options):
    with torch.device("meta"):
        return build(name, **options).eval()


def params(model):
    return sum(parameter.numel() for parameter in model.parameters())


def counted(model, shape):
    """MACs of conv and linear layers, conv output channels, and the output's shape."""
    macs = channels = 0

    def hook(module, inputs, output):
        nonlocal macs, channels
        if isinstance(module, nn.Conv2d):
            macs += output[0].numel() * module.weight[0].numel()
            channels += module.out_channels
        else:
            macs += output[0].numel() * module.in_features

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(hook)
    output = model(torch.empty(1, *shape, device="meta"))
    return macs, channels, tuple(output.shape)


def test_every_registered_network_is_held_to_its_published_size():
    own = {
        name
        for name in registry.names()
        if registry.get(name).build.__module__.startswith("fastprune.")
    }
    assert own == {*PUBLISHED, *LARGE}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name):
    ten, hundred, macs, channels = PUBLISHED[name]
    model = on_meta(name)
    assert params(model) == ten
    assert counted(model, (3, 32, 32)) == (macs, channels, (1, 10))
    assert params(on_meta(name, num_classes=100)) == hundred


@pytest.mark.parametrize("name", LARGE)
def test_published_size_of_large_networks(name):
    thousand, hundred, macs, channels = LARGE[name]
    model = on_meta(name)
    assert params(model) == thousand
    assert counted(model, (3, 224, 224)) == (macs, channels, (1, 1000))
    assert params(on_meta(name, num_classes=100)) == hundred


@pytest.mark.parametrize("name", TORCHVISION)
def test_published_size_of_torchvision_networks(name):
    network = resolve(name)
    model = on_meta(name)
    assert (params(model), *counted(model, network.input_shape)) == (*TORCHVISION[name], (1, 1000))


@pytest.mark.parametrize("name", SMALL_STEM)
def test_published_size_of_torchvision_networks_with_a_small_stem(name):
    network = resolve(name).given({"stem": "small"})
    model = on_meta(name, num_classes=10, stem="small")
    assert network.input_shape == (3, 32, 32)
    assert (params(model), *counted(model, network.input_shape)) == (*SMALL_STEM[name], (1, 10))


@pytest.mark.parametrize("name", [*PUBLISHED, *LARGE])
def test_runs_on_images_of_other_sizes(name):
    model = on_meta(name, num_classes=7)
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 7)


def test_the_page_on_networks_says_the_same():
    text = (Path(__file__).parents[2] / "docs/models.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \|(?: (.*?) ?\|(.*)\|(.*)\|)?$", text, re.M
    )
    told = {
        name: tuple(int(n.replace(",", "")) for n in numbers) for name, *numbers, _, _, _ in rows
    }
    sizes = {name: (row[0], row[2]) for name, row in PUBLISHED.items()}
    sizes |= {name: (row[0], row[2]) for name, row in LARGE.items()}
    assert told == sizes | {name: row[:2] for name, row in SMALL_STEM.items()}
    for name, _, _, options, units, genes in rows:
        if name in registry.names():
            model, network = registry.get(name).options, resolve(name)
            assert re.findall(r"\w+", options) == (
                [] if model is None else list(model.model_fields)
            )
            assert (units.strip() == "yes", genes.strip() == "yes") == (
                network.units is not None,
                network.genes is not None,
            )


@pytest.mark.parametrize("name", ["mobilenet_cifar", "wide_resnet32_cifar"])
def test_pruned_equals_masked(name):
    model = fill(build(name, num_classes=100)).double().eval()
    example = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    graph = trace(model, example)
    assert [row.reason for row in graph.unprunable] == ["network output"]
    small = check_pruning(model, graph, random_plan(graph, 0), [example], batches=(1, 2))
    check_trained(small, [example])


@pytest.mark.parametrize("name", ["resnet20_cifar", "vgg11_cifar", "vgg16_cifar_abc", *LARGE])
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    model = build(name)
    output = model(torch.randn(2, 3, 32, 32))
    assert torch.isfinite(output).all()
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "keys"),
    [
        (
            "resnet20_cifar",
            {},
            "conv1.weight bn1.running_var layer1.0.conv1.weight layer2.0.bn2.bias "
            "layer3.2.conv2.weight linear.weight linear.bias",
        ),
        (
            "resnet20_cifar",
            {"shortcut": "B"},
            "layer2.0.shortcut.0.weight layer3.0.shortcut.1.bias",
        ),
        (
            "resnet18_cifar",
            {},
            "conv1.weight layer2.0.shortcut.1.weight layer4.1.bn2.weight linear.bias",
        ),
        (
            "wide_resnet32_cifar",
            {},
            "conv1.weight layer1.4.bn2.weight layer2.0.shortcut.0.weight layer3.0.shortcut.1.bias "
            "linear.weight",
        ),
        (
            "mobilenet_cifar",
            {},
            "conv1.weight bn1.bias layers.0.conv1.weight layers.0.bn1.running_mean "
            "layers.12.conv2.weight layers.12.bn2.weight linear.weight linear.bias",
        ),
        (
            "resnet18",
            {"stem": "small"},
            "conv1.weight bn1.weight layer2.0.downsample.1.weight layer4.1.conv2.weight fc.bias",
        ),
        (
            "vgg16_cifar",
            {},
            "feature.0.weight feature.1.weight feature.41.running_mean classifier.bias",
        ),
        (
            "vgg16_cifar_abc",
            {},
            "features.0.bias features.1.weight features.40.bias classifier.weight",
        ),
        (
            "preresnet164_cifar",
            {"depth": 20},
            "conv1.weight layer1.0.bn1.weight layer1.0.downsample.0.weight layer3.1.conv3.weight "
            "bn.bias fc.weight",
        ),
        (
            "densenet40_cifar",
            {},
            "conv1.weight dense1.0.bn1.weight dense3.11.conv1.weight trans1.conv1.weight "
            "trans2.bn1.bias bn.weight fc.bias",
        ),
        (
            "googlenet_cifar",
            {},
            "pre_layers.0.bias inception_a3.branch1x1.0.weight "
            "inception_b5.branch5x5.7.running_var inception_e4.branch_pool.1.weight linear.weight",
        ),
    ],
)
def test_state_dict_names_are_the_published_ones(name, options, keys):
    assert set(keys.split()) <= set(on_meta(name, **options).state_dict())


@pytest.mark.parametrize("name", ["vgg11_cifar", "preresnet164_cifar", "densenet40_cifar"])
def test_batch_norm_scales_of_network_slimming_start_at_a_half(name):
    options = {"depth": 11} if name.startswith("preresnet") else {}
    scales = [m.weight for m in build(name, **options).modules() if isinstance(m, nn.BatchNorm2d)]
    assert scales
    assert all((scale == 0.5).all() for scale in scales)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("vgg13_cifar", 2944),
        ("vgg16_cifar", 4224),
        ("vgg19_cifar", 5504),
        ("preresnet164_cifar", 12_112),
    ],
)
def test_published_number_of_batch_norm_channels(name, channels):
    norms = [m for m in on_meta(name).modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(norm.num_features for norm in norms) == channels


def test_mobilenet_for_small_images_has_27_convolutions_and_halves_the_image_four_times():
    convs = [m for m in on_meta("mobilenet_cifar").modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 27
    assert [conv.out_channels for conv in convs if conv.stride == (2, 2)] == [64, 128, 256, 512]
    assert [conv.groups for conv in convs[1::2]] == [conv.out_channels for conv in convs[1::2]]


def test_shortcut_a_pads_and_b_projects():
    padded, projected = build("resnet20_cifar"), build("resnet20_cifar", shortcut="B")
    image = torch.randn(1, 16, 8, 8)
    out = padded.layer2[0].shortcut(image)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], image[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    assert projected.layer2[0].shortcut(image).shape == (1, 32, 4, 4)
    assert params(on_meta("resnet56_cifar", shortcut="B")) == 855_770


@pytest.mark.parametrize(
    ("name", "options", "same"),
    [
        ("resnet20_cifar", {"depth": 56}, PUBLISHED["resnet56_cifar"][0]),
        ("preresnet164_cifar", {"depth": 164}, PUBLISHED["preresnet164_cifar"][0]),
        ("densenet40_cifar", {"depth": 40, "growth": 12}, PUBLISHED["densenet40_cifar"][0]),
        ("densenet40_cifar", {"depth": 7, "growth": 4}, 2290),
    ],
)
def test_depth_by_option(name, options, same):
    assert params(on_meta(name, **options)) == same


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet20_cifar",
            {"depth": 21},
            r"resnet20_cifar: depth: expected a depth of 6n\+2 .* got 21",
        ),
        ("preresnet164_cifar", {"depth": 165}, r"expected a depth of 9n\+2 .* got 165"),
        ("densenet40_cifar", {"depth": 41}, r"expected a depth of 3n\+4 .* got 41"),
        ("densenet40_cifar", {"growth": 0}, r"growth: .* got 0"),
        ("resnet20_cifar", {"shortcut": "C"}, r"shortcut: .*'A' or 'B'.* got 'C'"),
        ("resnet20_cifar", {"dept": 20}, r"dept: unknown option; did you mean 'depth'\?"),
        ("vgg16_cifar", {"depth": 16}, r"vgg16_cifar: takes no options, got depth"),
        (
            "resnet20_cifar",
            {"num_classes": 0},
            r"num_classes: expected a whole number from 1 on, got 0",
        ),
        ("resnet20_cifar", {"num_classes": True}, r"num_classes: .* got True"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **options)


def test_all_bad_options_are_said_at_once():
    with pytest.raises(ConfigError) as caught:
        build("resnet20_cifar", depth=21, shortcut="C", width=3)
    assert len(caught.value.problems) == 3


def test_listed_networks_know_their_input_and_classes():
    networks = {network.name: network for network in list_networks()}
    assert set(PUBLISHED) <= set(networks)
    for name in PUBLISHED:
        assert networks[name].input_shape == (3, 32, 32)
        assert networks[name].num_classes == 10
        assert networks[name].summary
    assert networks["resnet56_cifar"].normalization == (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
    assert networks["vgg16_cifar"].normalization is None
