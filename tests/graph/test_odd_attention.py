"""Attention and mixers: what mixes channels stays, the rest is pruned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastprune.testing import Case, Cases, check_case

NETWORKS = Cases()


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, kernel, padding=options.pop("padding", kernel // 2), **options
    )


def head(inputs: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 5))


def P(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


bn = nn.BatchNorm2d


class Attention(nn.Module):
    """As people write it: one layer for all three, sizes read from the input."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = 4, fused
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        if self.fused:
            parts = [
                p.view(n, length, self.heads, -1).transpose(1, 2) for p in self.qkv(x).chunk(3, -1)
            ]
            return self.proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        rows = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = rows.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.a, self.n2 = nn.LayerNorm(16), Attention(False), nn.LayerNorm(16)
        self.f1, self.f2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(self.n1(x))
        return x + self.f2(F.gelu(self.f1(self.n2(x))))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.t1, self.t2 = nn.Linear(16, 24), nn.Linear(24, 16)
        self.c1, self.c2 = nn.Linear(8, 20), nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.t2(F.gelu(self.t1(x.transpose(1, 2)))).transpose(1, 2)
        return x + self.c2(F.gelu(self.c1(x)))


def attention_network(m, x):
    tokens = m.c1(x).flatten(2).transpose(1, 2)
    return m.fc((tokens + m.a(tokens)).mean(1))


def vision_transformer(m, x):
    tokens = m.c1(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([m.cls.expand(x.shape[0], -1, -1), tokens], 1) + m.pos
    return m.fc(m.b2(m.b1(tokens))[:, 0])


def token_network(m, x):
    return m.fc(m.b(m.c1(x).flatten(2).transpose(1, 2)).mean(1))


LN = "layer_norm normalises over these channels"
MATMUL = "matmul mixes these channels"
MHA = "nn.MultiheadAttention mixes these channels"
NUMBER = "reshape needs their number"

NETWORKS.of(
    "",
    {"c1": NUMBER, "a.qkv": MATMUL, "a.proj": NUMBER},
    c1=conv(3, 16),
    a=Attention(False),
    fc=nn.Linear(16, 3),
)(attention_network)
NETWORKS.of(
    "c1:16",
    {"a.qkv": "attention mixes these channels"},
    c1=conv(3, 16),
    a=Attention(True),
    fc=nn.Linear(16, 3),
)(attention_network)
NETWORKS.of(
    "b1.f1:32 b2.f1:32",
    {
        "c1": LN,
        **{
            f"{b}.{layer}": why
            for b in ("b1", "b2")
            for layer, why in (("a.qkv", MATMUL), ("a.proj", LN), ("f2", LN))
        },
    },
    c1=nn.Conv2d(3, 16, 4, 4),
    cls=P(1, 1, 16),
    pos=P(1, 5, 16),
    b1=Block(),
    b2=Block(),
    fc=nn.Linear(16, 3),
)(vision_transformer)
NETWORKS.of(
    "b.linear1:32",
    {"c1": MHA, "b.linear2": MHA},
    c1=nn.Conv2d(3, 16, 4, 4),
    b=nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    fc=nn.Linear(16, 3),
)(token_network)
NETWORKS.of(
    "b.t1:24 b.c1:20",
    {
        "c1": "linear mixes channels along another axis",
        "b.t2": "add combines channels along different axes",
        "b.c2": "add combines them with a tensor of shape [1, 16, 8], which has a fixed size",
    },
    c1=nn.Conv2d(3, 8, 2, 2),
    b=Mixer(),
    fc=nn.Linear(8, 3),
)(token_network)


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_attention(case: Case) -> None:
    check_case(case)
