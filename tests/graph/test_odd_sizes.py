"""Sizes as numbers, pooling and resizing, and other functions."""

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


@NETWORKS.of("c1:8 c2:6", refused="computes with", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def fixed_seed_scale(m, x):
    return m.head(m.c2(m.c1(x)) / m.c1.out_channels)


@NETWORKS.of(
    "c2:6", {"c1": "div computes with their number"}, c1=conv(3, 8), c2=conv(8, 6), head=head(6)
)
def scale_by_shape(m, x):
    return m.head(m.c2((y := m.c1(x)) / y.shape[1]))


@NETWORKS.of("c1:8 c2:6", refused="computes with", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def scale_by_sqrt_shape(m, x):
    return m.head(m.c2((y := m.c1(x)) * y.shape[1] ** (-0.5)))


@NETWORKS.of(
    "c2:6",
    {"c1": "add combines them with a tensor of shape [1, 8, 1, 1], which has a fixed size"},
    c1=conv(3, 8),
    c2=conv(8, 6),
    head=head(6),
)
def arange_shape(m, x):
    return m.head(m.c2((y := m.c1(x)) + torch.arange(y.shape[1], dtype=y.dtype).view(1, -1, 1, 1)))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def ones_shape(m, x):
    return m.head(m.c2((y := m.c1(x)) + torch.ones(1, y.shape[1], 1, 1, dtype=y.dtype)))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def rand_noise(m, x):
    return m.head(m.c2((y := m.c1(x)) + 0 * torch.randn_like(y)))


@NETWORKS.of(
    "c2:6",
    {"c1": "normalize computes across these channels"},
    c1=conv(3, 8),
    c2=conv(8, 6),
    head=head(6),
)
def normalize_ch(m, x):
    return m.head(m.c2(F.normalize(m.c1(x), dim=1)))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def normalize_space(m, x):
    return m.head(m.c2(F.normalize(m.c1(x).flatten(2), dim=2).view(x.shape[0], -1, 8, 8)))


@NETWORKS.of(
    why={
        "c1": "normalize computes across these channels",
        "w": "the weight of linear is computed in the forward pass",
    },
    c1=conv(3, 8),
    w=P(5, 8),
)
def normalize_weight_head(m, x):
    return F.linear(F.normalize(m.c1(x).mean((2, 3))), F.normalize(m.w))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), o=conv(14, 2))
def interp_cat(m, x):
    return m.o(
        torch.cat(
            [
                (a := m.c1(x)),
                F.interpolate(m.c2(F.max_pool2d(a, 2)), scale_factor=2, mode="bilinear"),
            ],
            1,
        )
    )


@NETWORKS.of("c1:8", c1=conv(3, 8), c2=conv(3, 8), o=conv(8, 2))
def interp_size(m, x):
    return m.o(m.c1(x) + F.interpolate(m.c2(F.max_pool2d(x, 2)), size=x.shape[2:], mode="nearest"))


@NETWORKS.of(
    "c1:8 c2:10 la:6",
    c1=conv(3, 8),
    c2=conv(8, 10),
    la=conv(8, 6, 1),
    lb=conv(10, 6, 1),
    oa=conv(6, 2),
    ob=conv(6, 2),
)
def fpn(m, x):
    a = m.c1(x)
    b = m.c2(F.max_pool2d(a, 2))
    return [m.oa(m.la(a) + F.interpolate(m.lb(b), size=a.shape[-2:])), m.ob(m.lb(b))]


@NETWORKS.of(
    "c1:8 a:4 b:5 p:6",
    c1=conv(3, 8),
    a=conv(8, 4, 1),
    b=nn.Conv2d(8, 5, 3, padding=2, dilation=2),
    p=conv(8, 6, 1),
    o=conv(15, 2),
)
def aspp(m, x):
    y = m.c1(x)
    return m.o(
        torch.cat(
            [
                m.a(y),
                m.b(y),
                F.interpolate(
                    m.p(F.adaptive_avg_pool2d(y, 1)),
                    size=y.shape[-2:],
                    mode="bilinear",
                    align_corners=False,
                ),
            ],
            1,
        )
    )


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(8 * 21, 3))
def spp(m, x):
    return m.fc(torch.cat([F.adaptive_max_pool2d(m.c1(x), s).flatten(1) for s in (1, 2, 4)], 1))


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(72, 3))
def unfold(m, x):
    return m.fc(F.unfold(m.c1(x), 3, padding=1).mean(2))


@NETWORKS.of("c1:8", c1=conv(3, 8), c2=conv(8, 8), o=conv(8, 2))
def max_pool_idx_unpool(m, x):
    y = F.max_pool2d(m.c1(x), 2, return_indices=True)
    return m.o(F.max_unpool2d(*(m.c2(y[0]) * 0 + y[0], y[1]), 2))


@NETWORKS.of(why={"c1": "topk runs along these channels"}, c1=conv(3, 8), fc=nn.Linear(3, 3))
def topk_channels(m, x):
    return m.fc(m.c1(x).mean((2, 3)).topk(3, dim=1)[0])


@NETWORKS.of(why={"c1": "matmul mixes these channels"}, c1=conv(3, 4), fc=nn.Linear(16, 3))
def bilinear_pooling(m, x):
    return m.fc(((y := m.c1(x).flatten(2)) @ y.transpose(1, 2)).flatten(1))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def type_as(m, x):
    return m.head(m.c2(m.c1(x).float().type_as(x)))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def checkpoint_reentrant(m, x):
    from torch.utils.checkpoint import checkpoint

    return m.head(m.c2(checkpoint(m.c1, x, use_reentrant=True)))


@NETWORKS.of("ps:8 ps:1:6", ps=nn.ParameterList([P(8, 3, 3, 3), P(6, 8, 3, 3)]), head=head(6))
def parameterlist(m, x):
    return m.head(F.conv2d(F.conv2d(x, m.ps[0]), m.ps[1]))


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(16, 5))
def repeat_channels(m, x):
    return m.fc(m.c1(x).repeat(1, 2, 1, 1).mean((2, 3)))


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(16, 5))
def repeat_interleave(m, x):
    return m.fc(m.c1(x).repeat_interleave(2, dim=1).mean((2, 3)))


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(8, 5))
def roll_space(m, x):
    return m.fc(m.c1(x).roll(1, 2).mean((2, 3)))


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(8, 5))
def flip_space(m, x):
    return m.fc(m.c1(x).flip(2).mean((2, 3)))


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(8, 5))
def flip_dims_list(m, x):
    return m.fc(torch.flip(m.c1(x), [2, 3]).mean((2, 3)))


@NETWORKS.of(
    "c1:8",
    {"th": "view to the hard-coded sizes [2, 3]"},
    c1=conv(3, 8),
    th=nn.Linear(3, 6),
    fc=nn.Linear(8, 5),
)
def grid_sample(m, x):
    return m.fc(
        F.grid_sample(
            m.c1(x),
            F.affine_grid(m.th(x.mean((2, 3))).view(-1, 2, 3), x.size(), align_corners=False),
            align_corners=False,
        ).mean((2, 3))
    )


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(8, 5))
def unbind_space(m, x):
    a = m.c1(x).unbind(2)
    return m.fc((a[0] + a[3]).mean(2))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def split_space_conv(m, x):
    a, b = m.c1(x).split(4, 2)
    return m.head(m.c2(b) + m.c2(a))


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(8, 5))
def max_returns_both(m, x):
    v, i = m.c1(x).flatten(2).max(-1)
    return m.fc(v + 0 * i)


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(9, 6), head=head(6))
def meshgrid_coords(m, x):
    return m.head(
        m.c2(
            torch.cat(
                [
                    m.c1(x),
                    torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype).expand(
                        x.shape[0], 1, x.shape[2], -1
                    ),
                ],
                1,
            )
        )
    )


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c3=conv(3, 8), g=P(8, 1, 1), c2=conv(8, 6), head=head(6))
def addcmul(m, x):
    return m.head(m.c2(torch.addcmul(m.c1(x), m.c3(x), m.g, value=0.5)))


@NETWORKS.of(
    why={
        "f": "mul combines channels along different axes",
        "g": "mul combines channels along different axes",
    },
    inputs=((1, 10),),
    f=nn.Linear(10, 4),
    g=nn.Linear(10, 6),
    fc=nn.Linear(24, 3),
)
def outer_broadcast(m, x):
    return m.fc((m.f(x)[:, :, None] * m.g(x)[:, None, :]).flatten(1))


@NETWORKS.of("c1:8", c1=conv(3, 8), c2=conv(8, 6))
def loop_over_batch(m, x):
    return torch.stack([m.c2(F.relu(m.c1(t[None])))[0] for t in x])


@NETWORKS.of(
    "c1:8 c2:6", inputs=((1, 4, 3, 8, 8),), c1=conv(3, 8), c2=conv(8, 6), fc=nn.Linear(6, 5)
)
def batch_fold(m, x):
    b, t = x.shape[:2]
    return m.fc(m.c2(m.c1(x.flatten(0, 1))).mean((2, 3)).view(b, t, -1).mean(1))


@NETWORKS.of(c=conv(3, 8))
def no_params_used(m, x):
    return x * 2


@NETWORKS.of(
    "c2:6", {"c1": "all of them live or die together"}, c1=conv(3, 1), c2=conv(1, 6), head=head(6)
)
def one_channel_bottleneck(m, x):
    return m.head(m.c2(m.c1(x)))


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_sizes(case: Case) -> None:
    check_case(case)
