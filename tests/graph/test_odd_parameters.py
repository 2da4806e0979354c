"""Gates, bare parameters, functional layers, shared and computed weights."""

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


@NETWORKS.of("c1:8 f1:4", c1=conv(3, 8), f1=nn.Linear(8, 4), f2=nn.Linear(4, 8), head=head(8))
def se_linear_view(m, x):
    y = m.c1(x)
    return m.head(
        y
        * torch.sigmoid(
            m.f2(F.relu(m.f1(F.adaptive_avg_pool2d(y, 1).view(y.size(0), y.size(1)))))
        ).view(y.size(0), y.size(1), 1, 1)
    )


@NETWORKS.of("c1:8 f1:4", c1=conv(3, 8), f1=nn.Linear(8, 4), f2=nn.Linear(4, 8), head=head(8))
def se_unpack_expand_as(m, x):
    y, b, c = ((y0 := m.c1(x)), *y0.size()[:2])
    return m.head(
        y
        * torch.sigmoid(m.f2(F.relu(m.f1(F.adaptive_avg_pool2d(y, 1).view(b, c)))))
        .view(b, c, 1, 1)
        .expand_as(y)
    )


@NETWORKS.of("c1:8 f1:4", c1=conv(3, 8), f1=conv(8, 4, 1), f2=conv(4, 8, 1), head=head(8))
def se_conv(m, x):
    y = m.c1(x)
    return m.head(y * m.f2(F.relu(m.f1(y.mean((2, 3), keepdim=True)))).sigmoid())


@NETWORKS.of("c1:8 f1:4", c1=conv(3, 8), f1=nn.Linear(8, 4), f2=nn.Linear(4, 8), head=head(8))
def se_none_index(m, x):
    y = m.c1(x)
    return m.head(y * m.f2(m.f1(y.mean((2, 3)))).sigmoid()[:, :, None, None])


@NETWORKS.of(
    why={
        "c1": "conv1d mixes channels along another axis",
        "k": "mul combines channels along different axes",
    },
    c1=conv(3, 8),
    k=nn.Conv1d(1, 1, 3, padding=1),
    head=head(8),
)
def eca(m, x):
    y = m.c1(x)
    return m.head(y * m.k(y.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1))


@NETWORKS.of(
    why={
        "c1": "mean reduces over these channels",
        "k": "a single channel that mul applies to all of another tensor's",
    },
    c1=conv(3, 8),
    k=conv(2, 1, 7),
    head=head(8),
)
def spatial_attention(m, x):
    y = m.c1(x)
    return m.head(
        y * torch.sigmoid(m.k(torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]], 1)))
    )


@NETWORKS.of(
    "c1:8 c2:6",
    {"k": "a single channel that mul applies to all of another tensor's"},
    c1=conv(3, 8),
    k=conv(8, 1, 1),
    c2=conv(8, 6),
    head=head(6),
)
def gate_one_channel(m, x):
    return m.head(m.c2((y := m.c1(x)) * torch.sigmoid(m.k(y))))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def gate_from_input(m, x):
    return m.head(m.c2(m.c1(x) * x.mean(1, keepdim=True)))


@NETWORKS.of(
    "c1:8 c2:6", c1=conv(3, 8), g=P(8, 1, 1), b=P(1, 8, 1, 1), c2=conv(8, 6), head=head(6)
)
def param_c11(m, x):
    return m.head(m.c2(m.c1(x) * m.g + m.b))


@NETWORKS.of(
    "c1:8 c2:6",
    c1=conv(3, 8),
    g=P(1),
    b=nn.Parameter(torch.tensor(0.3)),
    c2=conv(8, 6),
    head=head(6),
)
def param_scalar(m, x):
    return m.head(m.c2(m.c1(x) * m.g + m.b))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), g=P(8), c2=conv(8, 6), head=head(6))
def param_view(m, x):
    return m.head(m.c2(m.c1(x) * m.g.view(1, -1, 1, 1)))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), g=P(8), c2=conv(8, 6), head=head(6))
def param_index_none(m, x):
    return m.head(m.c2(m.c1(x) * m.g[:, None, None]))


@NETWORKS.of(
    "c2:6",
    {"c1": "reshape to the hard-coded sizes [1, 8]"},
    c1=conv(3, 8),
    g=P(8),
    c2=conv(8, 6),
    head=head(6),
)
def param_reshape_hard(m, x):
    return m.head(m.c2(m.c1(x) * m.g.reshape(1, 8, 1, 1)))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), g=P(8), c2=conv(8, 6), head=head(6))
def param_unsqueeze(m, x):
    return m.head(m.c2(m.c1(x) * m.g.unsqueeze(-1).unsqueeze(-1)))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), g=P(8, 1, 1), c2=conv(8, 6), head=head(6))
def param_sigmoid(m, x):
    return m.head(m.c2(m.c1(x) * torch.sigmoid(m.g)))


@NETWORKS.of("c1:8", c1=conv(3, 8), g=P(8, 1, 1), c2=conv(8, 8), head=head(8))
def layer_scale(m, x):
    return m.head((y := m.c1(x)) + m.g * m.c2(y))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), pos=P(1, 8, 8, 8), c2=conv(8, 6), head=head(6))
def pos_embed(m, x):
    return m.head(m.c2(m.c1(x) + m.pos))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), pos=P(1, 1, 8, 8), c2=conv(8, 6), head=head(6))
def pos_embed_spatial(m, x):
    return m.head(m.c2(m.c1(x) + m.pos))


@NETWORKS.of("c2:6", g=P(3, 1, 1), c2=conv(3, 6), head=head(6))
def param_c11_on_input(m, x):
    return m.head(m.c2(x * m.g))


@NETWORKS.of(
    "c1:8 c2:6",
    c1=conv(3, 8),
    mu=torch.randn(1, 8, 1, 1),
    sd=torch.rand(8, 1, 1) + 1,
    c2=conv(8, 6),
    head=head(6),
)
def buffer_combined(m, x):
    return m.head(m.c2((m.c1(x) - m.mu) / m.sd))


@NETWORKS.of("w1:8 w2:6", w1=P(8, 3, 3, 3), b1=P(8), w2=P(6, 8, 3, 3), b2=P(6), head=head(6))
def functional_conv(m, x):
    return m.head(
        F.conv2d(F.relu(F.conv2d(x, m.w1, m.b1, padding=1)), m.w2, bias=m.b2, stride=1, padding=1)
    )


@NETWORKS.of("w1:8 w2:6", w1=P(8, 3, 3, 3), b1=P(8), w2=P(6, 8, 3, 3), b2=P(6), head=head(6))
def functional_all_kw(m, x):
    return m.head(
        F.conv2d(
            input=F.relu(F.conv2d(weight=m.w1, input=x, bias=m.b1, padding=1)),
            weight=m.w2,
            bias=m.b2,
            stride=1,
            padding=1,
        )
    )


@NETWORKS.of("w1:8", inputs=((1, 10),), w1=P(8, 10), w2=P(4, 8), b2=P(4))
def functional_linear_kw(m, x):
    return F.linear(bias=m.b2, weight=m.w2, input=F.relu(F.linear(x, m.w1)))


@NETWORKS.of(
    "c1:8 c2:6",
    c1=conv(3, 8),
    rm=torch.zeros(8),
    rv=torch.ones(8),
    w=P(8),
    b=P(8),
    c2=conv(8, 6),
    head=head(6),
)
def functional_bn_kw(m, x):
    return m.head(
        m.c2(F.batch_norm(m.c1(x), running_mean=m.rm, running_var=m.rv, weight=m.w, bias=m.b))
    )


@NETWORKS.of("w1:8 w2:6", w1=P(8, 3, 3, 3), b1=P(8), w2=P(6, 8, 3, 3), head=head(6))
def torch_conv2d(m, x):
    return m.head(torch.conv2d(torch.conv2d(x, m.w1, m.b1), m.w2))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), w=P(8, 1, 3, 3), c2=conv(8, 6), head=head(6))
def functional_depthwise_by_shape(m, x):
    return m.head(m.c2(F.conv2d((y := m.c1(x)), m.w, padding=1, groups=y.shape[1])))


@NETWORKS.of(
    "c2:6",
    {"c1": "all of them live or die together", "w": "all of them live or die together"},
    c1=conv(3, 8),
    w=P(8, 1, 3, 3),
    c2=conv(8, 6),
    head=head(6),
)
def functional_depthwise_hard(m, x):
    return m.head(m.c2(F.conv2d(m.c1(x), m.w, padding=1, groups=8)))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), w=torch.rand(8, 1, 3, 3), c2=conv(8, 6), head=head(6))
def blur_buffer_depthwise(m, x):
    return m.head(m.c2(F.conv2d((y := m.c1(x)), m.w, padding=1, groups=y.shape[1])))


@NETWORKS.of(
    "c2:6",
    {
        "c1": "the weight of conv2d is computed in the forward pass",
        "w": "the weight of conv2d is computed in the forward pass",
    },
    c1=conv(3, 8),
    w=torch.rand(1, 1, 3, 3),
    c2=conv(8, 6),
    head=head(6),
)
def blur_expand(m, x):
    return m.head(
        m.c2(
            F.conv2d(
                (y := m.c1(x)), m.w.expand(y.shape[1], -1, -1, -1), padding=1, groups=y.shape[1]
            )
        )
    )


@NETWORKS.of("f:8", inputs=((1, 10),), f=nn.Linear(10, 8), w=P(8, 4), b=P(4))
def addmm(m, x):
    return torch.addmm(m.b, m.f(x), m.w)


@NETWORKS.of("f:8", inputs=((1, 10),), f=nn.Linear(10, 8), w=P(8, 4))
def matmul_param(m, x):
    return m.f(x) @ m.w


@NETWORKS.of(
    why={"f": "matmul mixes these channels"}, inputs=((1, 10),), f=nn.Linear(10, 8), w=P(4, 8)
)
def matmul_param_t(m, x):
    return m.f(x) @ m.w.t()


@NETWORKS.of(
    why={"f": "matmul mixes these channels"}, inputs=((1, 10),), f=nn.Linear(10, 8), w=P(4, 8)
)
def matmul_param_left(m, x):
    return (m.w @ m.f(x).t()).t()


@NETWORKS.of(
    why={"f": "the weight of linear is computed in the forward pass"},
    inputs=((1, 10),),
    f=nn.Linear(10, 8),
)
def linear_no_bias_tied_weights(m, x):
    return F.linear(m.f(x), m.f.weight.t())


@NETWORKS.of(
    why={"f": "bilinear has no rule", "g": "bilinear has no rule"},
    inputs=((1, 10),),
    f=nn.Linear(10, 8),
    g=nn.Linear(10, 6),
    bi=nn.Bilinear(8, 6, 7),
    o=nn.Linear(7, 2),
)
def bilinear(m, x):
    return m.o(m.bi(m.f(x), m.g(x)))


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_parameters(case: Case) -> None:
    check_case(case)
