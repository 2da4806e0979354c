"""The pruningnet: generated weights, parameter counts, and the networks it gives for genes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastprune.errors import PlanError
from fastprune.graph import GeneTable, apply_plan, gene_scales, gene_table, trace
from fastprune.methods._pruningnet import GeneratedSubnets, PruningNet
from fastprune.models import resolve

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "option A": ("resnet20_cifar", {"depth": 8}),
    "projections": ("resnet20_cifar", {"depth": 8, "shortcut": "B"}),
    "depthwise": ("mobilenet_v1", {"num_classes": 4}),
}


def made(name: str, size: int = 32, device: str = "cpu", **options: Any) -> PruningNet:
    network = resolve(name)
    assert network.genes is not None
    torch.manual_seed(0)
    example = torch.zeros(1, 3, size, size, device=device)
    with torch.device(device):
        model = network.build(**options).eval()
        return PruningNet(model, network.genes(trace(model, example)), example)


@pytest.fixture(scope="module", params=NETWORKS)
def net(request: pytest.FixtureRequest) -> PruningNet:
    name, options = NETWORKS[request.param]
    return made(name, **options)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet50", 776_067_816),
        ("mobilenet_v2_metapruning", 241_985_558),
        # Published: 106,305,294, with a scale and a shift for each of 31 widths of the batch norms
        # at the stem and at the depthwise convolutions. A pruningnet here has none anywhere.
        ("mobilenet_v1", 106_305_294 - 169_830),
    ],
)
def test_parameters_are_as_many_as_published(name: str, count: int) -> None:
    net = made(name, size=64, device="meta")

    assert sum(parameter.numel() for parameter in net.parameters()) == count


def test_what_the_published_mobilenet_v1_has_more_is_in_its_batch_norms() -> None:
    depthwise = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024]
    widths = [channels * (10 + 3 * i) // 100 for channels in (32, *depthwise) for i in range(31)]

    assert 2 * sum(widths) == 169_830


def test_weights_are_generated_from_the_scales_around_them() -> None:
    net = made("resnet20_cifar", depth=14, shortcut="B").double()
    gene = net.draw()
    scales = dict(zip(net.table.names, gene_scales(torch.tensor(gene).numpy()), strict=True))
    # The first block of the second stage: its middle, what the first stage gives, what it gives.
    layer = next(layer for layer in net.layers if layer.name == "layer2.0.conv2")
    read = [scales["layer2.0"], scales["layer1" if "layer1" in scales else "conv1"]]
    encoding = torch.tensor([[*read, scales["layer2"]]], dtype=torch.float64)
    generator = net.generators[layer.number]
    assert isinstance(generator, nn.Module)
    with torch.no_grad():
        hidden = (encoding @ generator.fc1.weight.T + generator.fc1.bias).clamp(min=0)
        whole = (generator.fc2.weight @ hidden[0] + generator.fc2.bias).view(layer.shape)
        out, into = net.shapes([gene])[0][layer.number]
        (found,) = net.generate(layer, [gene], [(out, into)])

    assert (out, into) == tuple(
        int(base * scales[name]) for base, name in ((32, "layer2"), (32, "layer2.0"))
    )
    torch.testing.assert_close(found, whole[:out, :into], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_gene_is_run_as_the_pruned_network_with_its_generated_weights(net: PruningNet) -> None:
    x = torch.randn(3, 3, 32, 32)
    torch.manual_seed(1)
    plans = [net.table.plan(net.draw()) for _ in range(3)]
    subnets = list(GeneratedSubnets(net)(plans))
    whole = net.module([layer.shape[:2] for layer in net.layers])

    for plan, subnet in zip(plans, subnets, strict=True):
        weights = {name: tensor for name, (_, tensor) in subnet.weights.items()}
        small = apply_plan(whole, net.graph, plan)
        for module in (small, subnet.module):
            for name, parameter in module.named_parameters():
                assert weights[name].shape == parameter.shape, name
            alone = torch.func.functional_call(module, weights, (x,))
            assert torch.equal(net.run(x, net.table.gene(plan.widths())), alone)


@torch.no_grad()
def test_widths_are_those_of_the_pruned_network(net: PruningNet) -> None:
    for _ in range(5):
        gene = net.draw()
        whole = net.module([layer.shape[:2] for layer in net.layers])
        small = apply_plan(whole, net.graph, net.table.plan(gene))
        weights = [small.get_parameter(f"{layer.name}.weight") for layer in net.layers]
        assert [tuple(weight.shape[:2]) for weight in weights] == net.shapes([gene])[0]


@torch.no_grad()
def test_weights_in_common_are_generated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = made("resnet20_cifar", depth=8)
    subnets = GeneratedSubnets(net)
    asked: list[int] = []
    generate = net.generate

    def counted(layer: Any, genes: Any, shapes: Any) -> list[Tensor]:
        asked.append(len(genes))
        return generate(layer, genes, shapes)

    monkeypatch.setattr(net, "generate", counted)
    # Ids are of the three blocks' middles.
    genes = [(5, 9, 20), (5, 9, 21), (5, 12, 20)]
    plans = [net.table.plan(gene) for gene in genes]
    first = list(subnets(plans))

    # The stem; then two convolutions of each block.
    assert asked == [1, 1, 1, 2, 2, 2, 2]
    key, tensor = first[0].weights["layer1.0.conv1.weight"]
    assert first[1].weights["layer1.0.conv1.weight"] == (key, tensor)

    asked.clear()
    again = list(subnets([net.table.plan((5, 12, 21)), net.table.plan((9, 12, 20))]))
    assert asked == [0, 1, 1, 0, 0, 0, 0]
    for name, (_, tensor) in again[0].weights.items():
        if "layer3" in name:
            assert first[1].weights[name][1] is tensor
        elif "layer1" in name:
            assert first[0].weights[name][1] is tensor


def test_no_candidates_have_no_weights(net: PruningNet) -> None:
    assert list(GeneratedSubnets(net)([])) == []


def test_every_call_in_training_draws_a_structure(net: PruningNet) -> None:
    torch.manual_seed(3)
    genes = [net.draw() for _ in range(200)]
    free = [i for i in range(len(net.table)) if i not in net.table.fixed]
    torch.manual_seed(3)

    assert genes[0] == net.draw()
    for i, ids in enumerate(zip(*genes, strict=True)):
        assert (min(ids), max(ids)) == ((0, 30) if i in free else (-1, -1))
    x = torch.randn(2, 3, 32, 32)
    net.train()
    torch.manual_seed(4)
    one, two = net(x), net(x)
    assert not torch.equal(one, two)
    torch.manual_seed(4)
    assert torch.equal(one, net(x))
    net.eval()
    assert torch.equal(net(x), net.run(x, net.middle))


def test_every_generating_network_learns(net: PruningNet) -> None:
    net.zero_grad()
    net.run(torch.randn(4, 3, 32, 32), net.draw()).square().sum().backward()

    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_networks_that_it_cannot_be_made_for() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 20, 1)
            self.b = nn.Conv2d(20, 20, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.a(x)).mean((2, 3))
            return y

    example = torch.zeros(1, 3, 8, 8)
    graph = trace(Biased().eval(), example)
    plain = gene_table(graph, {"a": ["a"]}, outputs=["a"])
    with pytest.raises(PlanError, match="what this network's weights are generated"):
        PruningNet(Biased(), plain, example)
    encoded: GeneTable = gene_table(
        graph, {"a": ["a"]}, outputs=["a"], encodings={"a": (["a"], 8), "b": (["a"], 8)}
    )
    with pytest.raises(PlanError, match=r"'a\.bias' has channels that genes drop"):
        PruningNet(Biased(), encoded, example)
    with pytest.raises(PlanError, match="the weights of 'b' have no encoding"):
        gene_table(graph, {"a": ["a"]}, outputs=["a"], encodings={"a": (["a"], 8)})


@torch.no_grad()
def test_one_image_alone_is_measured(net: PruningNet) -> None:
    x = torch.randn(1, 3, 32, 32)

    assert net.eval()(x).isfinite().all()
