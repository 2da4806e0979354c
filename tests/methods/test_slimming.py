from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastprune as fp
from fastprune import data, models
from fastprune.artifact import load_state
from fastprune.errors import FastpruneError, PlanError
from fastprune.graph import ChannelGraph
from fastprune.methods import MethodContext, MethodOptions, PruneOptions
from fastprune.methods.slimming import (
    SlimmingOptions,
    check_scales,
    plan_by_ratio,
    slimming,
)
from fastprune.nn import SparsityPenalty
from fastprune.training import TrainingOptions
from fastprune.training.progress import SilentProgress

VECTORS = [
    vector
    for vector in json.loads((Path(__file__).parents[1] / "vectors.json").read_text())["vectors"]
    if vector["method"] == "slimming"
]
PRUNED = [vector for vector in VECTORS if "baseline" not in vector["config"]["name"]]
IDS = [vector["config"]["name"] for vector in VECTORS]


def network_of(vector: dict[str, Any]) -> tuple[nn.Module, ChannelGraph, dict[str, int]]:
    """The network of a published configuration, its graph, and the widths by batch norm."""
    depth = next(d for d in ("vgg13", "vgg16", "resnet164") if d in vector["config"]["name"])
    name = {"resnet164": "preresnet164_cifar"}.get(depth, f"{depth}_cifar")
    model = models.build(name)
    kept = [width for width in vector["config"]["cfg"] if width != "M"]
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    graph = fp.trace(model, torch.zeros(1, 3, 32, 32), select="auto")
    return model, graph, dict(zip(norms, kept, strict=True))


def set_scales(model: nn.Module, kept: dict[str, int], seed: int) -> None:
    """Distinct γ of either sign of which exactly ``kept`` are the largest, layer by layer."""
    generator = torch.Generator().manual_seed(seed)
    norms = {name: model.get_submodule(name) for name in kept}
    total = sum(norm.num_features for norm in norms.values())
    falling = total - sum(kept.values())
    values = torch.linspace(0.01, 1, total)
    low = iter(values[:falling][torch.randperm(falling, generator=generator)])
    high = iter(values[falling:][torch.randperm(total - falling, generator=generator)])
    for name, norm in norms.items():
        count = norm.num_features
        some = [next(high) for _ in range(kept[name])]
        some += [next(low) for _ in range(count - kept[name])]
        signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
        with torch.no_grad():
            shuffled = torch.randperm(count, generator=generator)
            norm.weight.copy_((torch.stack(some) * signs)[shuffled])


def widths_of(graph: ChannelGraph, kept: dict[str, int]) -> dict[str, int]:
    """Widths by group of widths by batch norm; groups without a batch norm stay whole."""
    found = graph.widths()
    for group in graph.groups:
        for slot in graph.group_slots(group):
            for name in slot.parameters:
                if slot.role in ("scale", "selected scale"):
                    found[group.name] = kept[name.removesuffix(".weight")]
    return found


@pytest.mark.parametrize("vector", VECTORS, ids=IDS)
def test_the_published_configurations_have_the_published_cost(vector: dict[str, Any]) -> None:
    _, graph, kept = network_of(vector)
    expected = vector["expect"]
    cost = graph.cost(widths_of(graph, kept))

    assert sum(kept.values()) == expected["kept"]
    assert cost.macs == pytest.approx(
        expected.get("macs_conv_fc", expected.get("macs_conv_fc_approx")),
        rel=0 if "macs_conv_fc" in expected else 5e-6,
    )
    assert cost.params == expected.get("params", expected.get("params_excl_indexes"))


@pytest.mark.parametrize("vector", PRUNED, ids=[v["config"]["name"] for v in PRUNED])
def test_the_published_rule_finds_the_published_configurations(vector: dict[str, Any]) -> None:
    model, graph, kept = network_of(vector)
    set_scales(model, kept, seed=0)
    ratio = 0.6 if "0.6" in vector["config"]["name"] else 0.4
    plan = plan_by_ratio(model, graph, ratio, on_empty="error")

    assert plan.widths() == widths_of(graph, kept)
    total = sum(norm.num_features for norm in map(model.get_submodule, kept))
    assert total - sum(kept.values()) == int(total * ratio) + 1
    small = fp.apply_plan(model, graph, plan).eval()
    masked = fp.mask_plan(model, graph, plan).eval()
    inputs = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(small(inputs), masked(inputs))


class Plain(nn.Module):
    """conv - norm - conv - norm, and a residual stream that three batch norms scale."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6, affine=affine)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4, affine=affine)
        self.conv3 = nn.Conv2d(4, 6, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(6, affine=affine)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x))))))
        return self.fc(x.mean((2, 3)))


def plain(*scales: list[float]) -> tuple[Plain, ChannelGraph]:
    model = Plain()
    with torch.no_grad():
        for norm, values in zip((model.bn1, model.bn2, model.bn3), scales, strict=True):
            norm.weight.copy_(torch.tensor(values))
    return model, fp.trace(model, torch.zeros(1, 3, 8, 8))


def test_a_shared_channel_goes_only_if_all_its_scales_fall() -> None:
    model, graph = plain(
        [0.1, 0.9, 0.1, 0.9, 0.1, 0.9], [0.1, 0.9, 0.8, 0.7], [-0.1, 0.1, -0.9, 0.9, 0.1, 0.1]
    )
    plan = plan_by_ratio(model, graph, 0.45)

    assert plan.keep["conv1"] == (1, 2, 3, 5)
    assert plan.keep["conv2"] == (1, 2, 3)


def test_scales_equal_to_the_threshold_fall() -> None:
    model, graph = plain([0.5] * 6, [0.5, 0.5, 0.9, 0.8], [0.7] * 6)

    assert plan_by_ratio(model, graph, 0.1).keep["conv2"] == (2, 3)


def test_an_emptied_layer_keeps_its_largest_scale_or_is_an_error() -> None:
    model, graph = plain([0.9] * 5 + [0.8], [0.1, -0.3, 0.2, 0.1], [0.7] * 6)

    assert plan_by_ratio(model, graph, 0.25).keep["conv2"] == (1,)
    with pytest.raises(PlanError, match=r"group 'conv2' is at most the threshold 0\.7; expected"):
        plan_by_ratio(model, graph, 0.25, on_empty="error")


def test_scales_that_rank_nothing_are_refused() -> None:
    with pytest.raises(FastpruneError, match="all 16 batch norm scales are 1, so no channel"):
        check_scales(Plain())
    with pytest.raises(FastpruneError, match="has no batch norm with scales"):
        check_scales(Plain(affine=False))
    model, _ = plain([0.1] * 6, [0.2] * 4, [0.3] * 6)
    model.bn2.weight.requires_grad_(False)
    with pytest.raises(FastpruneError, match=r"1 of 3 batch norms are frozen \(bn2\)"):
        check_scales(model)
    with torch.no_grad():
        model.bn2.weight.requires_grad_(True)[0] = float("nan")
    with pytest.raises(FastpruneError, match="not finite"):
        check_scales(model)


def test_the_subgradient_is_added_where_there_is_a_gradient() -> None:
    model, _ = plain([0.5, -0.5, 0, 1, -1, 0], [1, 1, 1, 1], [1] * 6)
    model.bn1.weight.grad = torch.full((6,), 2.0)
    model.bn3.weight.grad = None
    before = model.bn1.weight.detach().clone()
    SparsityPenalty(model, 0.25)()

    assert model.bn1.weight.grad.tolist() == [2.25, 1.75, 2, 2.25, 1.75, 2]
    assert model.bn3.weight.grad is None
    assert torch.equal(model.bn1.weight, before)


def test_the_proximal_step_shrinks_and_makes_exact_zeros() -> None:
    model, _ = plain([0.5, -0.5, 0, 0.01, -0.01, 1], [1, 1, 1, 1], [1] * 6)
    model.bn3.weight.requires_grad_(False)
    SparsityPenalty(model, 0.5).proximal(0.1)

    torch.testing.assert_close(
        model.bn1.weight.detach(), torch.tensor([0.45, -0.45, 0, 0, 0, 0.95])
    )
    assert (model.bn1.weight == 0).sum() == 3
    assert torch.equal(model.bn3.weight, torch.ones(6))


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    return data.load(
        data.DataOptions(name="digits", train_limit=128, test_limit=32, batch_size=32), 0
    )


def context(folder: Path, splits: data.Splits, options: MethodOptions, **prune: Any) -> Any:
    def fresh(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return models.build("preresnet164_cifar", depth=11)

    example = torch.zeros(1, 3, 32, 32)
    model = fresh(0)
    return MethodContext(
        model=model,
        graph=fp.trace(model, example, select=options.selected),
        example=example,
        splits=splits,
        prune=PruneOptions(**prune),
        directory=folder,
        seed=0,
        device=torch.device("cpu"),
        fresh=fresh,
        finetune=None,
        progress=SilentProgress(),
    )


TRAIN = TrainingOptions(epochs=1, lr=0.05)


@pytest.mark.parametrize("penalty", ["subgradient", "proximal"])
def test_sparse_training_shrinks_the_scales_and_happens_once(
    tmp_path: Path, splits: data.Splits, penalty: str
) -> None:
    options = SlimmingOptions(train=TRAIN, ratio=0.4, strength=1.0, penalty=penalty)
    here = context(tmp_path, splits, options)
    result = slimming(here, options)

    norms = [m for m in result.model.modules() if isinstance(m, nn.BatchNorm2d)]
    mean = torch.cat([norm.weight.abs() for norm in norms]).mean()
    assert mean < 0.4  # from 0.5
    assert result.trained is result.model
    kept = sum(result.plan.widths()[g.name] for g in here.graph.groups)
    assert kept < here.graph.total
    state = load_state(tmp_path / "sparse.safetensors")
    assert all(torch.equal(state[k], v) for k, v in result.model.state_dict().items())
    assert slimming(here, options).plan == result.plan


def test_a_budget_takes_the_place_of_the_ratio(tmp_path: Path, splits: data.Splits) -> None:
    options = SlimmingOptions(train=TRAIN)
    here = context(tmp_path, splits, options, budget={"macs": 0.5})
    result = slimming(here, options)

    assert 0.49 < here.graph.cost(result.plan).macs / here.graph.cost().macs <= 0.5


def test_scratch_trains_fresh_weights_for_as_many_epochs_or_macs(
    tmp_path: Path, splits: data.Splits
) -> None:
    longer = TrainingOptions(epochs=10, lr=0.05, warmup_epochs=1)
    found = {}
    for scratch in ("E", "B"):
        options = SlimmingOptions(train=TRAIN, ratio=0.4, scratch=scratch)
        here = context(tmp_path, splits, options)
        slimming(here, options)  # trains sparsely; what follows finds that done
        found[scratch] = slimming(here, options.model_copy(update={"train": longer}))
    plan = found["E"].plan
    full, small = here.graph.cost().macs, here.graph.cost(plan).macs

    assert found["E"].finetune == longer
    assert found["B"].finetune.epochs == round(10 * full / small)
    assert found["B"].finetune.warmup_epochs == found["B"].finetune.epochs / 10
    fresh, trained = (m.get_submodule("bn").weight for m in (found["E"].model, found["E"].trained))
    assert not torch.equal(fresh, trained)


def test_without_training_the_baselines_scales_decide(tmp_path: Path, splits: data.Splits) -> None:
    options = SlimmingOptions(start="baseline", ratio=0.4, mode="masked")
    here = context(tmp_path, splits, options)
    with pytest.raises(FastpruneError, match=r"are 0\.5, so no channel is better"):
        slimming(here, options)
    for module in here.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    result = slimming(here, options)

    assert result.masked
    assert result.trained is None
    assert result.plan == plan_by_ratio(here.model, here.graph, 0.4)
