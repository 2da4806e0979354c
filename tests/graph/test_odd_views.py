"""Splits, slices, reshapes and permutes: what a size of the forward pass may be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastprune.testing import Assembled, Case, Cases, check_case

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


@NETWORKS.of("c1:6", c1=conv(3, 12), head=head(6))
def chunk(m, x):
    a, b = m.c1(x).chunk(2, 1)
    return m.head(a * b)


@NETWORKS.of("c1:6 c2:7", c1=conv(3, 12), c2=conv(6, 7), c3=conv(6, 7), head=head(7))
def chunk_separate(m, x):
    a, b = m.c1(x).chunk(2, 1)
    return m.head(m.c2(a) + m.c3(b))


@NETWORKS.of(
    "c2:7",
    {"c1": "chunk cuts them at hard-coded sizes"},
    c1=conv(3, 11),
    c2=conv(4, 7),
    c3=conv(3, 7),
    head=head(7),
)
def chunk_uneven(m, x):
    a, _, c = m.c1(x).chunk(3, 1)
    return m.head(m.c2(a) + m.c3(c))


@NETWORKS.of(
    "c2:7",
    {"c1": "split cuts them at hard-coded sizes"},
    c1=conv(3, 12),
    c2=conv(8, 7),
    c3=conv(4, 7),
    head=head(7),
)
def split_hard(m, x):
    a, b = m.c1(x).split([8, 4], 1)
    return m.head(m.c2(a) + m.c3(b))


@NETWORKS.of("c1:6 c2:7", c1=conv(3, 12), c2=conv(6, 7), c3=conv(6, 7), head=head(7))
def split_traced(m, x):
    y = m.c1(x)
    a, b = torch.split(y, y.shape[1] // 2, 1)
    return m.head(m.c2(a) + m.c3(b))


@NETWORKS.of("c1:4 c2:7", c1=conv(3, 12), c2=conv(4, 7), c3=conv(8, 7), head=head(7))
def split_traced_list(m, x):
    y = m.c1(x)
    a, b = torch.split(y, [y.size(1) // 3, y.size(1) - y.size(1) // 3], 1)
    return m.head(m.c2(a) + m.c3(b))


@NETWORKS.of(
    "c2:7",
    {"c1": "split cuts them at hard-coded sizes"},
    c1=conv(3, 12),
    c2=conv(7, 7),
    c3=conv(5, 7),
    head=head(7),
)
def split_traced_ceil(m, x):
    y = m.c1(x)
    a, b = torch.split(y, [y.size(1) // 2 + 1, y.size(1) - y.size(1) // 2 - 1], 1)
    return m.head(m.c2(a) + m.c3(b))


@NETWORKS.of("c1:6 c2:7", c1=conv(3, 12), c2=conv(6, 7), c3=conv(6, 7), head=head(7))
def tensor_split(m, x):
    a, b = m.c1(x).tensor_split(2, 1)
    return m.head(m.c2(a) + m.c3(b))


@NETWORKS.of(
    "c2:7",
    {"c1": "tensor_split cuts them at hard-coded sizes"},
    c1=conv(3, 12),
    c2=conv(5, 7),
    c3=conv(7, 7),
    head=head(7),
)
def tensor_split_indices(m, x):
    a, b = m.c1(x).tensor_split((5,), 1)
    return m.head(m.c2(a) + m.c3(b))


@NETWORKS.of("c1:12", c1=conv(3, 12), head=head(12))
def chunk_spatial(m, x):
    a, b = m.c1(x).chunk(2, 2)
    return m.head(a + b)


@NETWORKS.of(
    "c1:6",
    {"c1": "getitem takes channels by number", "c2": "getitem takes channels by number"},
    c1=conv(3, 12),
    c2=conv(3, 6),
    head=head(6),
)
def slice_hard(m, x):
    return m.head(m.c1(x)[:, :6] + m.c2(x))


@NETWORKS.of("c1:6", c1=conv(3, 12), head=head(6))
def slice_half_traced(m, x):
    y = m.c1(x)
    return m.head(y[:, : y.shape[1] // 2] * y[:, y.shape[1] // 2 :])


@NETWORKS.of("c1:6 c1:1:6", c1=conv(3, 12), c2=conv(3, 6), head=head(6))
def slice_to_other_s_width(m, x):
    y, z = (m.c1(x), m.c2(x))
    return m.head(y[:, : z.shape[1]] + z)


@NETWORKS.of(why={"c1": "getitem takes channels by number"}, c1=conv(3, 12), head=head(6))
def slice_step(m, x):
    return m.head(m.c1(x)[:, ::2])


@NETWORKS.of("c1:10", {"c1": "getitem takes channels by number"}, c1=conv(3, 12), head=head(10))
def slice_negative(m, x):
    return m.head(m.c1(x)[:, :-2])


@NETWORKS.of("c1:12", c1=conv(3, 12), head=head(12))
def slice_whole_number(m, x):
    return m.head(m.c1(x)[:, 0:12])


@NETWORKS.of(why={"c1": "indexing takes a channel by number"}, c1=conv(3, 4), fc=nn.Linear(64, 5))
def getitem_channel(m, x):
    return m.fc(m.c1(x)[:, 0].flatten(1))


@NETWORKS.of(why={"c1": "indexing by a tensor or list"}, c1=conv(3, 4), head=head(3))
def getitem_list(m, x):
    return m.head(m.c1(x)[:, [0, 2, 3]])


@NETWORKS.of(
    why={"c1": "indexing by a tensor or list"},
    c1=conv(3, 4),
    head=head(3),
    idx=torch.tensor([0, 2, 3]),
)
def getitem_buffer(m, x):
    return m.head(m.c1(x)[:, m.idx])


@NETWORKS.of("c1:4", c1=conv(3, 4), head=head(4))
def getitem_ellipsis_none(m, x):
    return m.head(m.c1(x)[..., None][..., 0])


@NETWORKS.of("c1:4", c1=conv(3, 4), fc=nn.Linear(4, 5))
def getitem_mask(m, x):
    return m.fc(m.c1(x).permute(0, 2, 3, 1)[:, 0, 0])


@NETWORKS.of("c1:4", c1=conv(3, 4), fc=nn.Linear(4, 5))
def getitem_spatial_int(m, x):
    return m.fc(m.c1(x)[:, :, -1, 0])


@NETWORKS.of(why={"c1": "index_select takes channels by number"}, c1=conv(3, 4), head=head(2))
def index_select_tensor(m, x):
    return m.head(m.c1(x).index_select(1, torch.tensor([2, 0])))


@NETWORKS.of("c1:2", {"c1": "narrow takes channels by number"}, c1=conv(3, 4), head=head(2))
def narrow_hard(m, x):
    return m.head(m.c1(x).narrow(1, 0, 2))


@NETWORKS.of("c1:2", c1=conv(3, 4), head=head(2))
def narrow_traced(m, x):
    y = m.c1(x)
    return m.head(y.narrow(1, 0, y.shape[1] // 2))


@NETWORKS.of(why={"c1": "unbind takes channels by number"}, c1=conv(3, 4), fc=nn.Linear(64, 5))
def unbind(m, x):
    return m.fc(sum(m.c1(x).unbind(1)).flatten(1))


@NETWORKS.of("c1:4", c1=conv(3, 4), fc=nn.Linear(256, 5))
def flatten_num_flat_features(m, x):
    y = m.c1(x)
    s = y.size()[1:]
    return m.fc(y.view(-1, s[0] * s[1] * s[2]))


@NETWORKS.of(
    "c1:4 fc:12", c1=conv(3, 4), fc=nn.Linear(256, 12), b=nn.BatchNorm1d(12), f2=nn.Linear(12, 3)
)
def flatten_bn1d(m, x):
    return m.f2(F.relu(m.b(m.fc(m.c1(x).flatten(1)))))


@NETWORKS.of("c1:4", c1=conv(3, 4), fc=nn.Linear(256, 12), b=nn.BatchNorm1d(256))
def flatten_bn1d_direct(m, x):
    return m.fc(m.b(m.c1(x).flatten(1)))


@NETWORKS.of(
    why={"c1": "layer_norm normalises over these channels"},
    c1=conv(3, 4),
    fc=nn.Linear(4, 12),
    ln=nn.LayerNorm(4),
)
def flatten_tokens(m, x):
    return m.fc(m.ln(m.c1(x).flatten(2).transpose(1, 2)).mean(1))


@NETWORKS.of("c1:4 c2:6", c1=conv(3, 4), c2=conv(4, 6), head=head(6))
def flatten_then_unflatten(m, x):
    y = m.c1(x)
    return m.head(m.c2(y.flatten(1).view(y.shape)))


@NETWORKS.of(
    "c2:6",
    {"c1": "view to the hard-coded sizes [4, 8, 8]"},
    c1=conv(3, 4),
    c2=conv(4, 6),
    head=head(6),
)
def flatten_then_unflatten_hard(m, x):
    y = m.c1(x)
    return m.head(m.c2(y.flatten(1).view(-1, 4, 8, 8)))


@NETWORKS.of(
    "c1:6",
    {"fc": "view to the hard-coded sizes [8, 4, 4]"},
    inputs=((1, 10),),
    fc=nn.Linear(10, 128),
    c1=conv(8, 6),
    c2=conv(6, 3),
)
def linear_to_image(m, x):
    return m.c2(F.relu(m.c1(m.fc(x).view(-1, 8, 4, 4))))


@NETWORKS.of("fc:8 c1:6", inputs=((1, 10),), fc=nn.Linear(10, 128), c1=conv(8, 6), c2=conv(6, 3))
def linear_to_image_rest(m, x):
    return m.c2(F.relu(m.c1(m.fc(x).view(x.shape[0], -1, 4, 4))))


@NETWORKS.of("fc:8 c1:6", inputs=((1, 10),), fc=nn.Linear(10, 128), c1=conv(8, 6), c2=conv(6, 3))
def linear_unflatten(m, x):
    return m.c2(F.relu(m.c1(m.fc(x).unflatten(1, (-1, 4, 4)))))


@NETWORKS.of("c1:8 f1:16", c1=conv(3, 8), f1=nn.Linear(8, 16), f2=nn.Linear(16, 8))
def channels_last_linear(m, x):
    return m.f2(F.gelu(m.f1(m.c1(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2).mean((2, 3))


@NETWORKS.of(
    "f1:32",
    {
        "c1": "layer_norm normalises over these channels",
        "dw": "layer_norm normalises over these channels",
        "f2": "layer_norm normalises over these channels",
    },
    c1=conv(3, 8),
    dw=conv(8, 8, 7, groups=8),
    ln=nn.LayerNorm(8),
    f1=nn.Linear(8, 32),
    f2=nn.Linear(32, 8),
    g=P(8),
    head=head(8),
)
def convnext_block(m, x):
    y = m.c1(x)
    return m.head(
        y
        + m.g.view(1, -1, 1, 1)
        * m.f2(F.gelu(m.f1(m.ln(m.dw(y).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
    )


@NETWORKS.of(
    "c1:8 f1:32",
    c1=conv(3, 8),
    dw=conv(8, 8, 7, groups=8),
    f1=nn.Linear(8, 32),
    f2=nn.Linear(32, 8),
    g=P(8),
    head=head(8),
)
def convnext_last_gamma(m, x):
    y = m.c1(x)
    return m.head(y + (m.g * m.f2(F.gelu(m.f1(m.dw(y).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2))


@NETWORKS.of("c1:8", c1=conv(3, 8), fc=nn.Linear(8, 4))
def movedim_einops_like(m, x):
    return m.fc(m.c1(x).movedim(1, -1)).mean((1, 2))


FLATTENED = {
    "flatten": lambda y: y.flatten(1),
    "module": nn.Flatten(),
    "view_rest": lambda y: y.view(y.size(0), -1),
    "reshape_rest": lambda y: y.reshape(y.shape[0], -1),
    "sizes_multiplied": lambda y: torch.reshape(y, (-1, y.shape[1] * y.shape[2] * y.shape[3])),
    "prod_of_sizes": lambda y: y.view(y.size(0), math.prod(y.shape[1:])),
    "numel_of_one": lambda y: y.view(y.shape[0], y[0].numel()),
    "twice": lambda y: y.flatten(2).flatten(1),
    "squeezed": lambda y: F.adaptive_avg_pool2d(y, 1).squeeze(-1).squeeze(-1).repeat(1, 16),
    "constant": lambda y: y.view(-1, 8 * 16),
    "prod_as_tensor": lambda y: y.view(-1, int(torch.tensor(y.shape[1:]).prod().item())),
}
UNSEEN = {"constant", "prod_as_tensor"}


@pytest.mark.parametrize("how", FLATTENED)
def test_flattening(how: str) -> None:
    def build() -> nn.Module:
        flatten = FLATTENED[how]
        return Assembled(
            lambda m, x: m.fc(flatten(F.max_pool2d(m.c1(x), 2))),
            c1=conv(3, 8),
            fc=nn.Linear(128, 5),
        )

    if how in UNSEEN:
        why = {"c1": "view to the hard-coded sizes [128]"}
        check_case(Case(how, build, "", why))
    else:
        check_case(Case(how, build, "c1:8"))


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_rearrangements(case: Case) -> None:
    check_case(case)
