"""Convolutions of every kind, and norm layers."""

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


@NETWORKS.of("c1:8 pw:6", c1=conv(3, 8), dw=conv(8, 8, groups=8), pw=conv(8, 6, 1), head=head(6))
def depthwise(m, x):
    return m.head(m.pw(F.relu(m.dw(m.c1(x)))))


@NETWORKS.of(
    "c1:8 pw:6", c1=conv(3, 8), dw=conv(8, 16, groups=8), b=bn(16), pw=conv(16, 6, 1), head=head(6)
)
def depthwise_multiplier_2(m, x):
    return m.head(m.pw(F.relu(m.b(m.dw(m.c1(x))))))


@NETWORKS.of("dw:4 pw:6", dw=conv(3, 12, groups=3), pw=conv(12, 6, 1), head=head(6))
def depthwise_on_input(m, x):
    return m.head(m.pw(F.relu(m.dw(x))))


@NETWORKS.of("c1:4 c2:6", c1=conv(3, 8), g=conv(8, 12, groups=4), c2=conv(12, 6), head=head(6))
def grouped(m, x):
    return m.head(m.c2(F.relu(m.g(m.c1(x)))))


@NETWORKS.of(
    "c1:8 g:12 c2:6", c1=conv(3, 16), g=conv(16, 24, groups=2), c2=conv(24, 6), head=head(6)
)
def grouped_2(m, x):
    return m.head(m.c2(F.relu(m.g(m.c1(x)))))


@NETWORKS.of(
    "c1:8 g:3", c1=conv(3, 16), g=conv(16, 24, groups=2), h=conv(24, 24, groups=6), head=head(24)
)
def grouped_chain_different_g(m, x):
    return m.head(m.h(F.relu(m.g(m.c1(x)))))


@NETWORKS.of(c1=conv(3, 16), g=conv(16, 4, groups=2))
def grouped_out(m, x):
    return m.g(m.c1(x))


@NETWORKS.of(
    "c0:8 c1:8",
    c0=conv(3, 8),
    c1=conv(8, 32, 1),
    c2=conv(32, 32, groups=8),
    c3=conv(32, 8, 1),
    head=head(8),
)
def resnext(m, x):
    return m.head(F.relu((y := m.c0(x)) + m.c3(F.relu(m.c2(F.relu(m.c1(y)))))))


@NETWORKS.of(
    "c1:8 c2:12 c3:6 fc:10",
    c1=conv(3, 16),
    c2=conv(16, 24, groups=2),
    c3=conv(24, 12, groups=2),
    fc=nn.Linear(12 * 16, 10),
    f2=nn.Linear(10, 4),
)
def alexnet_2_groups(m, x):
    return m.f2(
        F.relu(m.fc(F.max_pool2d(F.relu(m.c3(F.relu(m.c2(F.relu(m.c1(x)))))), 2).flatten(1)))
    )


@NETWORKS.of("c0:4", c0=conv(3, 16), g=conv(16, 16, groups=4), head=head(16))
def group_residual(m, x):
    return m.head((y := m.c0(x)) + m.g(y))


@NETWORKS.of(
    "d1:8 d2:16 u:8 c:8",
    d1=conv(3, 8),
    d2=conv(8, 16),
    u=nn.ConvTranspose2d(16, 8, 2, stride=2),
    c=conv(16, 8),
    o=conv(8, 2, 1),
)
def unet(m, x):
    a = F.relu(m.d1(x))
    b = F.relu(m.d2(F.max_pool2d(a, 2)))
    u = m.u(b)
    return m.o(F.relu(m.c(torch.cat([u, a], 1))))


@NETWORKS.of(
    "c:4", c=conv(3, 8), u=nn.ConvTranspose2d(8, 16, 2, stride=2, groups=4), o=conv(16, 2, 1)
)
def transposed_grouped(m, x):
    return m.o(m.u(m.c(x)))


@NETWORKS.of(
    "c:8 u:12",
    c=conv(3, 16),
    u=nn.ConvTranspose2d(16, 24, 2, stride=2, groups=2),
    o=conv(24, 2, 1),
)
def transposed_grouped_2(m, x):
    return m.o(m.u(m.c(x)))


@NETWORKS.of(
    "c:8 u:6", c=conv(3, 8), u=nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1), o=conv(6, 2, 1)
)
def transposed_output_size(m, x):
    return m.o(m.u(m.c(x), output_size=(16, 16)))


@NETWORKS.of(
    "c1:8 c2:6",
    inputs=((1, 3, 32),),
    c1=nn.Conv1d(3, 8, 3),
    b=nn.BatchNorm1d(8),
    c2=nn.Conv1d(8, 6, 3, dilation=2),
    fc=nn.Linear(6, 3),
)
def conv1d(m, x):
    return m.fc(F.adaptive_avg_pool1d(m.c2(F.relu(m.b(m.c1(x)))), 1).squeeze(-1))


@NETWORKS.of(
    "c1:8 c2:6",
    inputs=((1, 3, 6, 6, 6),),
    c1=nn.Conv3d(3, 8, 3),
    b=nn.BatchNorm3d(8),
    c2=nn.Conv3d(8, 6, 3),
    fc=nn.Linear(6, 3),
)
def conv3d(m, x):
    return m.fc(F.adaptive_avg_pool3d(m.c2(F.relu(m.b(m.c1(x)))), 1).flatten(1))


@NETWORKS.of(
    "c1:8 c2:6",
    c1=nn.Conv2d(3, 8, 3, padding="same"),
    c2=nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
    head=head(6),
)
def conv_padding_same_circular(m, x):
    return m.head(m.c2(m.c1(x)))


@NETWORKS.of(
    "c1:8 c2:6",
    c1=nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
    p=nn.ReflectionPad2d(1),
    c2=nn.Conv2d(8, 6, 3, padding="valid"),
    head=head(6),
)
def conv_reflect(m, x):
    return m.head(m.c2(m.p(m.c1(x))))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 32), n=nn.GroupNorm(8, 32), c2=conv(32, 6), head=head(6))
def group_norm_8(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of("c1:2 c2:6", c1=conv(3, 32), n=nn.GroupNorm(2, 32), c2=conv(32, 6), head=head(6))
def group_norm_2(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of(
    "c2:6",
    {"c1": "group_norm without a module that holds its number of groups"},
    c1=conv(3, 32),
    n=nn.GroupNorm(8, 32, affine=False),
    c2=conv(32, 6),
    head=head(6),
)
def group_norm_affine_false(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of(
    "c2:6",
    {"c1": "group_norm with one group normalises over all its channels"},
    c1=conv(3, 32),
    n=nn.GroupNorm(1, 32),
    c2=conv(32, 6),
    head=head(6),
)
def group_norm_1(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of("c1:16 c2:6", c1=conv(3, 16), n=nn.GroupNorm(16, 16), c2=conv(16, 6), head=head(6))
def group_norm_c(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), n=nn.InstanceNorm2d(8), c2=conv(8, 6), head=head(6))
def instance_norm(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of(
    "c1:8 c2:6",
    c1=conv(3, 8),
    n=nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    c2=conv(8, 6),
    head=head(6),
)
def instance_norm_affine_track(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of(
    why={"f1": "layer_norm normalises over these channels"},
    inputs=((1, 10),),
    f1=nn.Linear(10, 8),
    n=nn.LayerNorm(8),
    f2=nn.Linear(8, 3),
)
def layer_norm_mid(m, x):
    return m.f2(m.n(F.relu(m.f1(x))))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), n=nn.LayerNorm([8, 8]), c2=conv(8, 6), head=head(6))
def layer_norm_spatial(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of(
    "c2:6",
    {"c1": "layer_norm normalises over these channels"},
    c1=conv(3, 8),
    n=nn.LayerNorm([8, 8, 8]),
    c2=conv(8, 6),
    head=head(6),
)
def layer_norm_chw(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of(
    "f1:8",
    inputs=((1, 10),),
    f1=nn.Linear(10, 8, bias=False),
    b=nn.BatchNorm1d(8),
    f2=nn.Linear(8, 3),
)
def bn1d_linear(m, x):
    return m.f2(F.relu(m.b(m.f1(x))))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), b=bn(8, affine=False), c2=conv(8, 6), head=head(6))
def bn_affine_false(m, x):
    return m.head(m.c2(m.b(m.c1(x))))


@NETWORKS.of(
    "c1:8 c2:6", c1=conv(3, 8), b=bn(8, track_running_stats=False), c2=conv(8, 6), head=head(6)
)
def bn_no_stats(m, x):
    return m.head(m.c2(m.b(m.c1(x))))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), b=bn(3), c2=conv(8, 6), head=head(6))
def bn_on_input(m, x):
    return m.head(m.c2(m.c1(m.b(x))))


@NETWORKS.of(
    "c2:6",
    {"c1": "local_response_norm computes across these channels"},
    c1=conv(3, 8),
    n=nn.LocalResponseNorm(3),
    c2=conv(8, 6),
    head=head(6),
)
def lrn(m, x):
    return m.head(m.c2(m.n(m.c1(x))))


@NETWORKS.of(
    why={"f1": "mean reduces over these channels"},
    inputs=((1, 10),),
    f1=nn.Linear(10, 8),
    g=P(8),
    f2=nn.Linear(8, 3),
)
def rmsnorm_hand(m, x):
    y = m.f1(x)
    return m.f2(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-06) * m.g)


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_layers(case: Case) -> None:
    check_case(case)
