"""Layers that are used twice, weights that are shared or computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fastprune.graph import PruningPlan, apply_plan, trace
from fastprune.testing import Assembled, Case, Cases, check_case, fill

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


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


@NETWORKS.of("c1:8", c1=conv(3, 8), c2=conv(8, 8), head=head(8))
def same_conv_twice(m, x):
    return m.head(m.c2(F.relu(m.c2(m.c1(x)))))


@NETWORKS.of("c1:8 h:6", c1=conv(3, 8), h=conv(8, 6), o=conv(6, 2))
def same_conv_two_scales(m, x):
    return torch.cat(
        [
            m.o(F.relu(m.h(m.c1(x)))).flatten(1),
            m.o(F.relu(m.h(F.avg_pool2d(m.c1(x), 2)))).flatten(1),
        ],
        1,
    )


@NETWORKS.of("c1:8 h:6", c1=conv(3, 8), c2=conv(3, 8), h=conv(8, 6), head=head(6))
def same_conv_on_different_producers(m, x):
    return m.head(m.h(m.c1(x)) + m.h(m.c2(x)))


@NETWORKS.of(
    "h:6",
    {"c1": "h.weight is also used on fixed channels"},
    c1=conv(3, 3),
    h=conv(3, 6),
    head=head(6),
)
def same_conv_on_producer_and_input(m, x):
    return m.head(m.h(m.c1(x)) + m.h(x))


@NETWORKS.of("c1:8", c1=conv(3, 8), c2=conv(3, 8), b=bn(8), head=head(8))
def same_bn_twice(m, x):
    return m.head(m.b(m.c1(x)) + m.b(m.c2(x)))


@NETWORKS.of(
    "c1:8 d:6", c1=conv(3, 8), c2=conv(3, 8), b=bn(8), d=conv(8, 6), e=conv(8, 6), head=head(6)
)
def same_bn_twice_unrelated(m, x):
    return m.head(m.d(m.b(m.c1(x))) + m.e(m.b(m.c2(x))))


@NETWORKS.of("c1:8", c1=conv(3, 8), blk=nn.Sequential(conv(8, 8), bn(8), nn.ReLU()), head=head(8))
def same_block_twice(m, x):
    return m.head(m.blk(m.blk(m.c1(x))))


@NETWORKS.of(
    "e:8 f:6",
    inputs=(torch.zeros(1, 4, dtype=torch.long),),
    e=nn.Embedding(20, 8),
    f=nn.Linear(8, 6),
    f2=nn.Linear(6, 3),
)
def embedding(m, x):
    return m.f2(F.relu(m.f(m.e(x)))).mean(1)


@NETWORKS.of(
    "e:8",
    inputs=(torch.zeros(1, 4, dtype=torch.long),),
    e=nn.Embedding(20, 8, padding_idx=0),
    f2=nn.Linear(8, 3),
)
def embedding_padding_maxnorm(m, x):
    return m.f2(m.e(x)).mean(1)


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def parameter_two_ways(m, x):
    return m.head(m.c2(m.c1(x) * m.c1.bias.view(1, -1, 1, 1)))


@NETWORKS.of(why={"c1": "sum computes with it"}, c1=conv(3, 8), head=head(8))
def weight_used_in_loss_term(m, x):
    return (m.head(m.c1(x)), m.c1.weight.sum())


@NETWORKS.of(
    "c2:6",
    {"c1": "the weight of conv2d is computed in the forward pass"},
    c1=parametrizations.weight_norm(conv(3, 8)),
    c2=conv(8, 6),
    head=head(6),
)
def weight_norm(m, x):
    return m.head(m.c2(F.relu(m.c1(x))))


@NETWORKS.of(
    "c2:6",
    {"c1": "the weight of conv2d is computed in the forward pass"},
    c1=parametrizations.spectral_norm(conv(3, 8)),
    c2=conv(8, 6),
    head=head(6),
)
def spectral_norm(m, x):
    return m.head(m.c2(F.relu(m.c1(x))))


@NETWORKS.of(
    "c2:6",
    {
        "c1": "the weight of conv2d is computed in the forward pass",
        "ws": "the weight of conv2d is computed in the forward pass",
    },
    c1=conv(3, 8),
    ws=Standardised(8, 8, 3, padding=1),
    c2=conv(8, 6),
    head=head(6),
)
def weight_standardisation(m, x):
    return m.head(m.c2(F.relu(m.ws(m.c1(x)))))


@NETWORKS.of(
    "c2:6",
    {
        "c1": "the weight of conv2d is computed in the forward pass",
        "w": "the weight of conv2d is computed in the forward pass",
    },
    c1=conv(3, 8),
    w=P(8, 8, 3, 3),
    mask=(torch.rand(8, 8, 3, 3) > 0.5).float(),
    c2=conv(8, 6),
    head=head(6),
)
def masked_weight(m, x):
    return m.head(m.c2(F.relu(F.conv2d(m.c1(x), m.w * m.mask, padding=1))))


def tied_convolutions() -> nn.Module:
    b, c = conv(8, 8, bias=False), conv(8, 8, bias=False)
    c.weight = b.weight
    return Assembled(
        lambda m, x: m.head(m.c(F.relu(m.b(m.a(x))))), a=conv(3, 8), b=b, c=c, head=head(8)
    )


def tied_autoencoder() -> nn.Module:
    return Assembled(
        lambda m, x: F.linear(F.relu(m.enc(x)), m.enc.weight.t(), m.b),
        enc=nn.Linear(10, 8),
        b=P(10),
    )


def tied_embedding() -> nn.Module:
    table, out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
    out.weight = table.weight
    return Assembled(lambda m, x: m.o(F.relu(m.f(m.e(x)))), e=table, f=nn.Linear(8, 8), o=out)


def shared_between_parents() -> nn.Module:
    c = conv(8, 8)
    return Assembled(
        lambda m, x: m.head(m.b(m.a(x))),
        a=nn.Sequential(conv(3, 8), c),
        b=nn.Sequential(c, conv(8, 6)),
        head=head(6),
    )


def under_two_names() -> nn.Module:
    first = conv(3, 8)
    return Assembled(
        lambda m, x: m.head(m.c2(F.conv2d(x, m.weight, m.c1.bias))),
        weight=first.weight,
        c1=first,
        c2=conv(8, 6),
        head=head(6),
    )


def older_weight_norm() -> nn.Module:
    return Assembled(
        lambda m, x: m.head(m.c2(F.relu(m.c1(x)))),
        c1=torch.nn.utils.weight_norm(conv(3, 8)),
        c2=conv(8, 6),
        head=head(6),
    )


NETWORKS += [
    Case("tied_convolutions", tied_convolutions, "a:8"),
    Case(
        "tied_autoencoder",
        tied_autoencoder,
        "",
        {"enc": "the weight of linear is computed in the forward pass"},
        inputs=((1, 10),),
    ),
    Case(
        "tied_embedding",
        tied_embedding,
        "e:8",
        {"e": "e.weight is also used on fixed channels"},
        inputs=(torch.zeros(1, 4, dtype=torch.long),),
    ),
    Case("shared_between_parents", shared_between_parents, "a.0:8 b.1:6"),
    Case("under_two_names", under_two_names, "weight:8 c2:6"),
    Case(
        "older_weight_norm",
        older_weight_norm,
        "c2:6",
        {"c1": "the weight of conv2d is computed in the forward pass"},
    ),
]


def test_sizes_of_every_module_that_holds_a_cut_weight() -> None:
    model = fill(tied_convolutions()).eval()
    graph = trace(model, torch.zeros(1, 3, 8, 8))

    small = apply_plan(model, graph, PruningPlan({"a": (0, 3, 5)}))

    assert (small.c.in_channels, small.c.out_channels) == (3, 3)
    assert small.c.weight is small.b.weight


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_sharing(case: Case) -> None:
    check_case(case)
