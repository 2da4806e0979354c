"""Activations, attention and functions without a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
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


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s * (1 + x * (1 - s)))


class ThroughNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy().clip(0))

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return torch.ops.aten.add(x, y)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 16), c2=conv(8, 6), head=head(6))
def glu(m, x):
    return m.head(m.c2(F.glu(m.c1(x), 1)))


@NETWORKS.of("c1:8 c2:6", g=nn.GLU(dim=2), c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def glu_module_dim_spatial(m, x):
    return m.head(m.c2(m.g(m.c1(x))))


@NETWORKS.of(
    "f1:16", inputs=((1, 10),), f1=nn.Linear(10, 16), f2=nn.Linear(10, 16), f3=nn.Linear(16, 4)
)
def swiglu(m, x):
    return m.f3(F.silu(m.f1(x)) * m.f2(x))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), p=nn.PReLU(8), c2=conv(8, 6), head=head(6))
def prelu(m, x):
    return m.head(m.c2(m.p(m.c1(x))))


@NETWORKS.of(
    "c2:6", {"c1": "softmax runs along these channels"}, c1=conv(3, 8), c2=conv(8, 6), head=head(6)
)
def softmax_channels(m, x):
    return m.head(m.c2(F.softmax(m.c1(x), 1)))


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(8, 5))
def softmax_space(m, x):
    y = m.c1(x)
    return m.fc((y.flatten(2).softmax(-1) * y.flatten(2)).sum(-1))


@NETWORKS.of("f1:8", inputs=((1, 10),), f1=nn.Linear(10, 16), f2=nn.Linear(8, 4))
def maxout(m, x):
    return m.f2(m.f1(x).view(x.shape[0], -1, 2).max(2)[0])


@NETWORKS.of("c1:8 c2:4", c1=conv(3, 16), c2=conv(8, 4), head=head(4))
def maxout_conv(m, x):
    y = m.c1(x)
    return m.head(m.c2(y.view(y.shape[0], y.shape[1] // 2, 2, *y.shape[2:]).amax(2)))


@NETWORKS.of("c1:8 c2:4", c1=conv(3, 8), c2=conv(16, 4), head=head(4))
def crelu(m, x):
    return m.head(m.c2(F.relu(torch.cat([(y := m.c1(x)), -y], 1))))


@NETWORKS.of("c1:8 c2:4", c1=conv(3, 8), c2=conv(8, 4), head=head(4))
def activation_zoo(m, x):
    return m.head(
        m.c2(
            F.hardswish(
                F.mish(F.softplus(torch.tanh(F.elu(F.leaky_relu(m.c1(x), 0.1, True))))).clamp(
                    min=0, max=6
                )
            )
        )
    )


@NETWORKS.of("c1:8 c2:4", c1=conv(3, 8), c2=conv(8, 4), head=head(4))
def where_(m, x):
    return m.head(m.c2(torch.where((y := m.c1(x)) > 0, y, 0.1 * y)))


@NETWORKS.of("c1:8 c2:4", c1=conv(3, 8), c2=conv(8, 4), head=head(4))
def mask_mult(m, x):
    return m.head(m.c2((y := m.c1(x)) * (y > 0)))


@NETWORKS.of("c1:8 c2:4", c1=conv(3, 8), c2=conv(8, 4), head=head(4))
def mask_mult_reversed(m, x):
    return m.head(m.c2(((y := m.c1(x)) > 0) * y).softmax(2))


@NETWORKS.of("c1:8 c2:4", c1=conv(3, 8), c2=conv(8, 4), head=head(4))
def bool_index_set(m, x):
    y = m.c1(x).clone()
    y[y < 0] = 0
    return m.head(m.c2(y))


@NETWORKS.of(why={"c1": "indexing by a tensor or list"}, c1=conv(3, 8), fc=nn.Linear(8, 2))
def bool_index_get(m, x):
    y = m.c1(x)
    return m.fc(
        y[y > -1000000000.0].view(1, -1) if False else y[y > -1000000000.0].mean() * y.mean((2, 3))
    )


@NETWORKS.of("c1:8 c2:4", c1=conv(3, 8), c2=conv(8, 4), head=head(4))
def masked_fill(m, x):
    return m.head(m.c2((y := m.c1(x)).masked_fill(y < 0, 0.0)))


@NETWORKS.of(
    why={"c1": "nn.MultiheadAttention mixes these channels"},
    c1=conv(3, 8),
    a=nn.MultiheadAttention(8, 2, batch_first=True),
    fc=nn.Linear(8, 3),
)
def mha(m, x):
    t = m.c1(x).flatten(2).transpose(1, 2)
    return m.fc((t + m.a(t, t, t, need_weights=False)[0]).mean(1))


@NETWORKS.of(
    "u:24",
    {
        "c1": "conv1d mixes channels along another axis",
        "v": "add combines channels along different axes",
    },
    c1=nn.Conv2d(3, 8, 2, 2),
    u=nn.Conv1d(16, 24, 1),
    v=nn.Conv1d(24, 16, 1),
    fc=nn.Linear(8, 3),
)
def mixer_conv1d(m, x):
    t = m.c1(x).flatten(2).transpose(1, 2)
    return m.fc((t + m.v(F.gelu(m.u(t)))).mean(1))


@NETWORKS.of(
    "c1:8",
    {
        "v": "matmul mixes these channels",
        "q": "matmul mixes these channels",
        "k": "matmul mixes these channels",
    },
    c1=conv(3, 8),
    q=conv(8, 4, 1),
    k=conv(8, 4, 1),
    v=conv(8, 6, 1),
    o=conv(6, 8, 1),
    head=head(8),
)
def nonlocal_block(m, x):
    y = m.c1(x)
    return m.head(
        y
        + m.o(
            (
                m.v(y).flatten(2)
                @ (m.q(y).flatten(2).transpose(1, 2) @ m.k(y).flatten(2))
                .softmax(-1)
                .transpose(1, 2)
            ).view(y.shape[0], -1, *y.shape[2:])
        )
    )


@NETWORKS.of(why={"c1": "einsum has no rule"}, c1=conv(3, 8), w=P(8, 6), fc=nn.Linear(6, 2))
def einsum_product(m, x):
    return m.fc(torch.einsum("bchw,cd->bdhw", m.c1(x), m.w).mean((2, 3)))


@NETWORKS.of(why={"c1": "einsum has no rule"}, c1=conv(3, 8), fc=nn.Linear(8, 2))
def einsum_gate(m, x):
    return m.fc(
        torch.einsum("bchw,bc->bchw", (y := m.c1(x)), y.mean((2, 3)).sigmoid()).mean((2, 3))
    )


@NETWORKS.of(
    why={"c1": "lstm has no rule"},
    c1=conv(3, 8),
    r=nn.LSTM(8, 12, batch_first=True),
    fc=nn.Linear(12, 2),
)
def lstm_head(m, x):
    return m.fc(m.r(m.c1(x).mean(2).transpose(1, 2))[0][:, -1])


@NETWORKS.of(
    why={"c1": "gru has no rule"},
    c1=conv(3, 8),
    r=nn.GRU(8, 12, batch_first=True, bidirectional=True),
    fc=nn.Linear(12, 2),
)
def gru_head(m, x):
    return m.fc(m.r(m.c1(x).mean(2).transpose(1, 2))[1][-1])


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def autograd_fn(m, x):
    return m.head(m.c2(Swish.apply(m.c1(x))))


@NETWORKS.of(
    "c2:6",
    {"c1": "what reads the result of detach was not seen"},
    c1=conv(3, 8),
    c2=conv(8, 6),
    head=head(6),
)
def autograd_numpy(m, x):
    return m.head(m.c2(ThroughNumpy.apply(m.c1(x))))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def grad_reversal(m, x):
    return m.head(m.c2(Reversed.apply(m.c1(x))))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def straight_through(m, x):
    return m.head(m.c2(Rounded.apply(m.c1(x))))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def aten_op(m, x):
    return m.head(m.c2(torch.ops.aten.relu(m.c1(x))))


@NETWORKS.of("c1:8", c1=conv(3, 8), c2=conv(3, 8), head=head(8))
def aten_add(m, x):
    return m.head(Added.apply(m.c1(x), m.c2(x)))


@NETWORKS.of("c1:8 c2:8", c1=conv(3, 8), c2=conv(3, 8), head=head(16))
def aten_cat(m, x):
    return m.head(torch.ops.aten.cat([m.c1(x), m.c2(x)], 1))


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_functions(case: Case) -> None:
    check_case(case)
