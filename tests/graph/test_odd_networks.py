"""Residual adds, concatenations and shuffles: tied channels."""

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


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def shuffle_by_reshape(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.size()
    rows = x.reshape(n, groups, c // groups, h, w)
    return rows.permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


@NETWORKS.of("c1:8 c2:8", c1=conv(3, 8), b1=bn(8), c2=conv(8, 8), b2=bn(8), head=head(8))
def plain(m, x):
    return m.head(m.b2(m.c2(F.relu(m.b1(m.c1(x))))))


@NETWORKS.of("c1:8", c1=conv(3, 8), b1=bn(8), c2=conv(8, 8), b2=bn(8), head=head(8))
def residual(m, x):
    return m.head(F.relu(m.b2(m.c2(F.relu(y := m.b1(m.c1(x))))) + y))


@NETWORKS.of(
    "c1:8 c2:12", c1=conv(3, 8), c2=conv(8, 12), b2=bn(12), p=conv(8, 12, 1), head=head(12)
)
def residual_projection(m, x):
    return m.head(F.relu(m.b2(m.c2(y := m.c1(x))) + m.p(y)))


@NETWORKS.of(
    "c1:8",
    {"c2": "add combines them with a tensor of shape [1, 3, 8, 8], which has a fixed size"},
    c1=conv(3, 8),
    c2=conv(8, 3),
)
def residual_of_input(m, x):
    return m.c2(F.relu(m.c1(x))) + x


@NETWORKS.of(
    "c1:8",
    {
        "c2": "tied to padding or another position of fixed size",
        "c3": "tied to padding or another position of fixed size",
    },
    c1=conv(3, 8),
    b1=bn(8),
    c2=conv(8, 16, stride=2),
    b2=bn(16),
    c3=conv(16, 16),
    b3=bn(16),
    head=head(16),
)
def opta_pad(m, x):
    y = F.relu(m.b1(m.c1(x)))
    z = m.b2(m.c2(y)) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
    return m.head(F.relu(m.b3(m.c3(z)) + z))


@NETWORKS.of("c1:8", c1=conv(3, 8), b1=bn(8), c2=conv(8, 16, stride=2), b2=bn(16), head=head(16))
def opta_cat_zeros_like(m, x):
    y = F.relu(m.b1(m.c1(x)))
    s = F.avg_pool2d(y, 1, 2)
    s = torch.cat([s, torch.zeros_like(s)], 1)
    return m.head(F.relu(m.b2(m.c2(y)) + s))


@NETWORKS.of(
    why={
        "c1": "zeros needs their number",
        "c2": "tied to padding or another position of fixed size; zeros needs their number",
    },
    c1=conv(3, 8),
    b1=bn(8),
    c2=conv(8, 16, stride=2),
    b2=bn(16),
    head=head(16),
)
def opta_cat_zeros_hardcoded_16(m, x):
    y = F.relu(m.b1(m.c1(x)))
    s = y[:, :, ::2, ::2]
    z = torch.zeros(s.shape[0], 16 - s.shape[1], s.shape[2], s.shape[3], dtype=s.dtype)
    s = torch.cat([s, z], 1)
    return m.head(F.relu(m.b2(m.c2(y)) + s))


@NETWORKS.of(
    "c1:8",
    {"c2": "tied to padding or another position of fixed size"},
    c1=conv(3, 8),
    b1=bn(8),
    c2=conv(8, 16, stride=2),
    b2=bn(16),
    head=head(16),
)
def opta_cat_zeros_fixed_8(m, x):
    y = F.relu(m.b1(m.c1(x)))
    s = y[:, :, ::2, ::2]
    z = torch.zeros(s.shape[0], 8, s.shape[2], s.shape[3], dtype=s.dtype)
    s = torch.cat([s, z], 1)
    return m.head(F.relu(m.b2(m.c2(y)) + s))


@NETWORKS.of(
    "c1:8",
    {"c2": "tied to padding or another position of fixed size"},
    c1=conv(3, 8),
    b1=bn(8),
    c2=conv(8, 16, stride=2),
    b2=bn(16),
    head=head(16),
)
def opta_cat_new_zeros_computed(m, x):
    y = F.relu(m.b1(m.c1(x)))
    s = y[:, :, ::2, ::2]
    o = m.b2(m.c2(y))
    z = s.new_zeros(s.shape[0], o.shape[1] - s.shape[1], *s.shape[2:])
    s = torch.cat([s, z], 1)
    return m.head(F.relu(o + s))


@NETWORKS.of(
    "c1:8",
    {"c2": "tied to padding or another position of fixed size"},
    c1=conv(3, 8),
    b1=bn(8),
    c2=conv(8, 16, stride=2),
    b2=bn(16),
    head=head(16),
)
def opta_pad_computed(m, x):
    y = F.relu(m.b1(m.c1(x)))
    s = y[:, :, ::2, ::2]
    o = m.b2(m.c2(y))
    s = F.pad(s, (0, 0, 0, 0, 0, o.shape[1] - s.shape[1]))
    return m.head(F.relu(o + s))


@NETWORKS.of("c1:4 c2:6 c3:5", c1=conv(3, 4), c2=conv(3, 6), c3=conv(14, 5), head=head(19))
def cat_nest(m, x):
    a = m.c1(x)
    b = m.c2(x)
    c = torch.cat([a, torch.cat([b, a], 1)], 1)
    d = m.c3(c)
    return m.head(torch.cat((d, c), dim=1))


@NETWORKS.of(
    "c0:6 cs.0:4 cs.1:4 cs.2:4",
    c0=conv(3, 6),
    bs=nn.ModuleList([bn(6), bn(10), bn(14)]),
    cs=nn.ModuleList([conv(6, 4), conv(10, 4), conv(14, 4)]),
    bf=bn(18),
    fc=nn.Linear(18, 5),
)
def densenet(m, x):
    fs = [m.c0(x)]
    for b, c in zip(m.bs, m.cs, strict=True):
        fs.append(c(F.relu(b(torch.cat(fs, 1)))))
    return m.fc(F.adaptive_avg_pool2d(m.bf(torch.cat(fs, 1)), 1).flatten(1))


@NETWORKS.of(
    "c0:6 c1:4 c2:5 c3:7 c4:3 c5:6",
    c0=conv(3, 6),
    c1=conv(6, 4, 1),
    c2=conv(6, 5, 1),
    c3=conv(5, 7),
    c4=conv(6, 3, 1),
    c5=conv(14, 6),
    head=head(6),
)
def inception(m, x):
    x = m.c0(x)
    return m.head(m.c5(torch.cat([m.c1(x), m.c3(m.c2(x)), m.c4(F.max_pool2d(x, 3, 1, 1))], 1)))


@NETWORKS.of("c1:4 c2:6", c1=conv(3, 4), c2=conv(3, 6), c3=conv(3, 10), head=head(10))
def cat_then_add(m, x):
    a, b = (m.c1(x), m.c2(x))
    return m.head(torch.cat([a, b], 1) + m.c3(x))


@NETWORKS.of("c1:4 c2:6", c1=conv(3, 4), c2=conv(7, 6), head=head(6))
def cat_with_input(m, x):
    return m.head(m.c2(torch.cat([m.c1(x), x], 1)))


@NETWORKS.of("c1:4", c1=conv(3, 4), c2=conv(3, 4), head=head(4))
def cat_spatial(m, x):
    return m.head(torch.cat([m.c1(x), m.c2(x)], 2))


@NETWORKS.of(
    why={"c1": "cat joins tensors with different channel axes"}, c1=conv(3, 4), head=head(4)
)
def cat_spatial_with_const(m, x):
    return m.head(torch.cat([m.c1(x), x.new_zeros(x.shape[0], 4, 2, 8)], 2))


@NETWORKS.of("c1:4", c1=conv(3, 4), c2=conv(3, 4), head=head(4))
def stack_sum(m, x):
    return m.head(torch.stack([m.c1(x), m.c2(x)]).sum(0))


@NETWORKS.of("c1:4", c1=conv(3, 4), c2=conv(3, 4), fc=nn.Linear(8, 5))
def stack_dim1_flatten(m, x):
    return m.fc(torch.stack([m.c1(x), m.c2(x)], 1).flatten(1, 2).mean((2, 3)))


@NETWORKS.of("c1:4", c1=conv(3, 16), c2=conv(4, 3))
def pixel_shuffle(m, x):
    return m.c2(F.pixel_shuffle(m.c1(x), 2))


@NETWORKS.of("c1:4 c2:6", c1=conv(3, 4), c2=conv(16, 6), head=head(6))
def pixel_unshuffle(m, x):
    return m.head(m.c2(F.pixel_unshuffle(m.c1(x), 2)))


@NETWORKS.of("c2:6", u=nn.PixelUnshuffle(2), c2=conv(12, 6), head=head(6))
def pixel_unshuffle_input(m, x):
    return m.head(m.c2(m.u(x)))


@NETWORKS.of("c1:4 c2:6", c1=conv(3, 4), c2=conv(16, 6), head=head(6))
def space2depth_slices(m, x):
    return m.head(
        m.c2(
            torch.cat(
                [
                    (y := m.c1(x))[..., ::2, ::2],
                    y[..., 1::2, ::2],
                    y[..., ::2, 1::2],
                    y[..., 1::2, 1::2],
                ],
                1,
            )
        )
    )


@NETWORKS.of("c1:6 c2:6", c1=conv(3, 12), c2=conv(12, 6), head=head(6))
def shuffle_view(m, x):
    return m.head(m.c2(shuffle(m.c1(x), 2)))


@NETWORKS.of("c1:4 c2:6", c1=conv(3, 12), c2=conv(12, 6), head=head(6))
def shuffle_reshape_g3(m, x):
    return m.head(m.c2(shuffle_by_reshape(m.c1(x), 3)))


@NETWORKS.of("c1:4 c2:6", s=nn.ChannelShuffle(3), c1=conv(3, 12), c2=conv(12, 6), head=head(6))
def nn_channelshuffle(m, x):
    return m.head(m.c2(m.s(m.c1(x))))


@NETWORKS.of("c1:6 c2:6", c1=conv(3, 12), c2=conv(12, 6), head=head(6))
def shuffle_flatten(m, x):
    return m.head(m.c2(m.c1(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)))


@NETWORKS.of(
    "c2:6",
    {"c1": "view to the hard-coded sizes [2, 6]"},
    c1=conv(3, 12),
    c2=conv(12, 6),
    head=head(6),
)
def shuffle_hard(m, x):
    return m.head(m.c2(m.c1(x).view(-1, 2, 6, 8, 8).transpose(1, 2).reshape(-1, 12, 8, 8)))


@NETWORKS.of(
    "c0:8",
    {"g1": "all of them live or die together", "dw": "all of them live or die together"},
    c0=conv(3, 24),
    g1=conv(24, 12, 1, groups=3),
    b1=bn(12),
    dw=conv(12, 12, groups=12),
    b2=bn(12),
    g2=conv(12, 24, 1, groups=3),
    b3=bn(24),
    head=head(24),
)
def shufflenet_v1(m, x):
    x = m.c0(x)
    y = F.relu(m.b1(m.g1(x)))
    y = shuffle(y, 3)
    y = m.b2(m.dw(y))
    y = m.b3(m.g2(y))
    return m.head(F.relu(x + y))


@NETWORKS.of(
    "c0:8 g2:8",
    {"g1": "all of them live or die together", "dw": "all of them live or die together"},
    c0=conv(3, 24),
    g1=conv(24, 12, 1, groups=3),
    b1=bn(12),
    dw=conv(12, 12, groups=12, stride=2),
    b2=bn(12),
    g2=conv(12, 24, 1, groups=3),
    b3=bn(24),
    head=head(48),
)
def shufflenet_v1_stride(m, x):
    x = m.c0(x)
    y = F.relu(m.b1(m.g1(x)))
    y = shuffle(y, 3)
    y = m.b2(m.dw(y))
    y = m.b3(m.g2(y))
    return m.head(F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1)))


@NETWORKS.of(
    "c0:4 p1:8 q1:8",
    c0=conv(3, 16),
    p1=conv(8, 8, 1),
    dw=conv(8, 8, groups=8),
    p2=conv(8, 8, 1),
    q1=conv(8, 8, 1),
    dx=conv(8, 8, groups=8),
    q2=conv(8, 8, 1),
    head=head(16),
)
def shufflenet_v2(m, x):
    x = m.c0(x)
    a, b = x.chunk(2, dim=1)
    b = m.p2(m.dw(m.p1(b)))
    x = shuffle(torch.cat((a, b), 1), 2)
    a, b = x.chunk(2, dim=1)
    b = m.q2(m.dx(m.q1(b)))
    x = shuffle(torch.cat((a, b), 1), 2)
    return m.head(x)


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_branches_that_meet(case: Case) -> None:
    check_case(case)
