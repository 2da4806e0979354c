"""Families of timm: pruned exactly, and no op without a rule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fastprune.graph import trace
from fastprune.testing import check_pruning, fill, random_plan

timm = pytest.importorskip("timm", reason="timm is not installed")

# Input size, groups that can be pruned, and whether anything but the class logits must stay.
NETWORKS = {
    "resnetv2_50": (64, 37, False),
    "efficientnet_b0": (64, 40, False),
    "ghostnet_100": (64, 31, False),
    "hrnet_w18_small": (64, 45, False),
    "dla34": (64, 25, False),
    "res2net50_26w_4s": (64, 29, True),
    "skresnet18": (64, 16, True),
    "cspresnet50": (64, 38, True),
    "repvgg_a0": (64, 5, False),
    "mobileone_s0": (64, 4, False),
    "ese_vovnet19b_dw": (64, 23, False),
    "nfnet_l0": (64, 12, True),
    "convnextv2_atto": (64, 0, True),
    "mixer_s32_224": (224, 16, True),
    "levit_128s": (224, 17, True),
    "edgenext_xx_small": (64, 12, True),
    "tiny_vit_5m_224": (64, 17, True),
    "mobilenetv4_conv_small": (64, 21, False),
    "resnest14d": (64, 19, False),
    "densenet121": (64, 120, False),
}


@pytest.fixture(autouse=True)
def _uninitialised(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    size, groups, more_stays = NETWORKS[name]
    model = fill(timm.create_model(name)).double().eval()
    example = torch.zeros(1, 3, size, size, dtype=torch.float64)

    graph = trace(model, example)

    assert len(graph.groups) == groups, str(graph)
    assert any(u.reason != "network output" for u in graph.unprunable) is more_stays, str(graph)
    assert not graph.program.ruleless
    if groups:
        check_pruning(model, graph, random_plan(graph, 1), [example], batches=(2,))
