"""What a forward pass may do in Python: writing in place, several outputs, branches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastprune.errors import PlanError
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


@NETWORKS.of("c1:8", trains=False, c1=conv(3, 8), c2=conv(3, 8), head=head(8))
def in_place_ops(m, x):
    y = m.c1(x)
    y.relu_()
    y += m.c2(x)
    y.mul_(2)
    y.add_(y).sub_(1)
    return m.head(y)


@NETWORKS.of(
    "c2:6", {"c1": "writing to parts of a tensor"}, c1=conv(3, 8), c2=conv(8, 6), head=head(6)
)
def setitem_channels(m, x):
    y = m.c1(x)
    y[:, :4] = 0
    return m.head(m.c2(y))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def setitem_space(m, x):
    y = m.c1(x)
    y[:, :, 0] = 0
    return m.head(m.c2(y))


@NETWORKS.of(
    why={
        "c1": "what reads the result of add was not seen",
        "c2": "what reads the result of add was not seen",
    },
    c1=conv(3, 8),
    c2=conv(3, 8),
    head=head(8),
)
def out(m, x):
    y = m.c1(x)
    z = y.new_empty(y.shape)
    torch.add(y, m.c2(x), out=z)
    return m.head(z)


@NETWORKS.of(
    "c1:4 c2:6",
    {"c1": "what reads the result of mul was not seen"},
    c1=conv(3, 8),
    c2=conv(8, 6),
    head=head(6),
)
def view_in_place(m, x):
    y = m.c1(x)
    y[:, :4].mul_(0.5)
    return m.head(m.c2(y))


@NETWORKS.of(
    "c2:6",
    {"c1": "what reads the result of chunk was not seen"},
    trains=False,
    c1=conv(3, 8),
    c2=conv(8, 6),
    head=head(6),
)
def chunk_in_place(m, x):
    y = m.c1(x)
    a, _ = y.chunk(2, 1)
    a.relu_()
    return m.head(m.c2(y))


@NETWORKS.of(
    "c2:6",
    {
        "c1": "what reads the result of add was not seen",
        "f": "what reads the result of add was not seen",
    },
    c1=conv(3, 8),
    f=nn.Linear(192, 512),
    c2=conv(8, 6),
    head=head(6),
)
def view_in_place_tie(m, x):
    y = m.c1(x)
    v = y.view(y.shape[0], -1)
    v += m.f(x.flatten(1))
    return m.head(m.c2(y))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def copy_and_shifted_add(m, x):
    y = m.c1(x)
    z = torch.zeros_like(y)
    z.copy_(y)
    z[:, :, 1:] += y[:, :, :-1]
    return m.head(m.c2(z))


@NETWORKS.of(
    "c2:6", {"c1": "writing to parts of a tensor"}, c1=conv(3, 8), c2=conv(8, 6), head=head(6)
)
def temporal_shift(m, x):
    y = m.c1(x)
    f = y.shape[1] // 4
    o = torch.zeros_like(y)
    o[:, :f, :-1] = y[:, :f, 1:]
    o[:, f:] = y[:, f:]
    return m.head(m.c2(o))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def alias_in_place(m, x):
    y = m.c1(x)
    z = y
    z += 1
    return m.head(m.c2(y) + 0 * m.c2(z))


@NETWORKS.of(
    "c1:8 c2:6",
    c1=conv(3, 8),
    c2=conv(8, 6),
    head=head(6),
    count=torch.zeros(1),
    ema=torch.zeros(1),
)
def buffer_counters(m, x):
    m.count.add_(1)
    m.ema.mul_(0.9).add_(0.1 * x.mean().detach())
    return m.head(m.c2(F.relu(m.c1(x))) * 1.0)


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def output_object(m, x):
    return SimpleNamespace(logits=m.head(m.c2(m.c1(x))))


@NETWORKS.of(c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def output_features(m, x):
    a = m.c1(x)
    b = m.c2(a)
    return [a, b, m.head(b)]


@NETWORKS.of(
    "c1:8",
    inputs=(
        (1, 3, 8, 8),
        (1, 4, 8, 8),
    ),
    c1=conv(3, 8),
    c2=conv(4, 8),
    head=head(8),
)
def two_inputs(m, x, z):
    return m.head(m.c1(x) + m.c2(z))


@NETWORKS.of(
    why={"c1": "add combines them with a tensor of shape [1, 8, 8, 8], which has a fixed size"},
    inputs=(
        (1, 3, 8, 8),
        (1, 8, 8, 8),
    ),
    c1=conv(3, 8),
    head=head(8),
)
def two_inputs_residual(m, x, z):
    return m.head(m.c1(x) + z)


@NETWORKS.of(
    "c1:8 c2:6",
    inputs=(
        (1, 3, 8, 8),
        (1, 7),
    ),
    c1=conv(3, 8),
    g=nn.Linear(7, 8),
    b=nn.Linear(7, 8),
    c2=conv(8, 6),
    head=head(6),
)
def two_inputs_film(m, x, z):
    return m.head(m.c2(m.c1(x) * m.g(z)[:, :, None, None] + m.b(z)[:, :, None, None]))


@NETWORKS.of(
    "c1:8 c2:6",
    inputs=(
        (1, 3, 8, 8),
        (1, 7),
    ),
    c1=conv(3, 8),
    g=nn.Linear(7, 16),
    c2=conv(8, 6),
    head=head(6),
)
def film_chunk(m, x, z):
    y, s, t = (m.c1(x), *m.g(z).chunk(2, -1))
    return m.head(m.c2(y * (1 + s[..., None, None]) + t[..., None, None]))


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6), aux=nn.Linear(8, 5))
def aux_train(m, x):
    y = m.c1(x)
    o = m.head(m.c2(y))
    return (o, m.aux(y.mean((2, 3)))) if m.training else o


@NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6), deploy=conv(8, 5))
def deploy_branch_eval(m, x):
    y = m.c1(x)
    return m.head(m.c2(y)) if m.training else m.deploy(y).mean((2, 3))


@NETWORKS.of(
    "c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6), dead=nn.Linear(8, 8), deadp=P(4)
)
def unused_params(m, x):
    return m.head(m.c2(m.c1(x)))


@NETWORKS.of("c1:8 c2:6", refused="does not run", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def checks_8(m, x):
    y = m.c1(x)
    if y.shape[1] != 8:
        raise ValueError("expected 8 channels")
    return m.head(m.c2(y))


@NETWORKS.of("c1:8 c2:6", refused="does not run", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def asserts_8(m, x):
    y = m.c1(x)
    assert y.size(1) == 8
    return m.head(m.c2(y))


@NETWORKS.of("c1:8 c2:6", refused="runs", c1=conv(3, 8), c2=conv(8, 6), head=head(6))
def branches_on_8(m, x):
    y = m.c1(x)
    if y.shape[1] == 8:
        y = F.relu(y)
    return m.head(m.c2(y))


@NETWORKS.of("c1:8", c1=conv(3, 8), c2=conv(8, 8), head=head(8))
def residual_if_shapes_equal(m, x):
    y = m.c1(x)
    z = m.c2(y)
    if z.shape == y.shape:
        z = z + y
    return m.head(z)


def stochastic_depth(m, x):
    y = m.c1(x)
    if not m.training or torch.rand(1).item() > 0.5:
        y = y + m.c2(y)
    return m.head(y)


def recomputed(m, x):
    return m.head(m.c2(checkpoint(lambda t: F.relu(m.c1(t)), x, use_reentrant=False)))


def wants_targets_in_training(m, x):
    if m.training:
        raise ValueError("targets should not be none when in training mode")
    return m.head(m.c2(m.c1(x)))


def two_convolutions() -> nn.Module:
    return Assembled(
        lambda m, x: m.head(m.c2(m.c1(x))), c1=conv(3, 8), c2=conv(8, 6), head=head(6)
    )


def hooked() -> nn.Module:
    model = two_convolutions()
    model.c1.register_forward_hook(lambda module, inputs, output: F.relu(output))
    model.c2.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return model


class Hidden(nn.Module):
    """Keeps a layer where no module looks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.head = conv(3, 8), conv(8, 6), head(6)
        self.layers = [nn.Conv2d(8, 8, 1).double().requires_grad_(False)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c2(self.layers[0](self.c1(x))))


def sequential() -> nn.Module:
    return nn.Sequential(
        conv(3, 8), bn(8), nn.ReLU(True), nn.Dropout(0.1), conv(8, 6), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


NETWORKS.of("c1:8", c1=conv(3, 8), c2=conv(8, 8), head=head(8))(stochastic_depth)
NETWORKS.of("c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6))(recomputed)
NETWORKS.of(
    "c1:8 c2:6", c1=conv(3, 8), c2=conv(8, 6), head=head(6), unused=nn.Linear(3, 3), trains=False
)(wants_targets_in_training)
NETWORKS += [
    Case("hooked", hooked, "c1:8 c2:6"),
    Case("data_parallel", lambda: nn.DataParallel(two_convolutions()), "module.c1:8 module.c2:6"),
    Case(
        "compiled",
        lambda: torch.compile(two_convolutions(), backend="eager"),
        "_orig_mod.c1:8 _orig_mod.c2:6",
    ),
    Case(
        "hidden_layer",
        Hidden,
        "c2:6",
        {
            "c1": "the weight of conv2d is computed in the forward pass",
            "conv2d (op 1)": "the weight of conv2d is computed in the forward pass",
        },
    ),
    Case("sequential", sequential, "0:8 4:6"),
]


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_code(case: Case) -> None:
    check_case(case)


def test_widths_that_take_another_branch_are_refused() -> None:
    def run(m, x):
        y = m.c1(x)
        z = m.c2(y)
        if z.shape[1] != y.shape[1]:
            z = torch.cat([z, y], 1)
        return m.head(z)

    model = fill(Assembled(run, c1=conv(3, 8), c2=conv(8, 6), head=head(14))).eval()
    graph = trace(model, torch.zeros(1, 3, 8, 8))

    apply_plan(model, graph, PruningPlan({"c1": range(5), "c2": range(4)}))
    with pytest.raises(PlanError, match="does not run"):
        apply_plan(model, graph, PruningPlan({"c1": range(4), "c2": range(4)}))


def test_what_a_forward_pass_keeps_is_real() -> None:
    def run(m, x):
        if "scale" not in m.cache:
            m.cache["scale"] = torch.sigmoid(m.scale)
        m.seen.append(x)
        m.mean = 0.5 * m.mean + 0.5 * x.mean()
        return m.head(m.c2(m.c1(x) * m.cache["scale"]))

    parts = {"c1": conv(3, 8), "c2": conv(8, 6), "head": head(6)}
    model = Assembled(
        run, **parts, scale=P(8, 1, 1), mean=torch.zeros(()), cache={}, seen=[]
    ).eval()
    mean = model.mean

    graph = trace(model, torch.zeros(1, 3, 8, 8))

    assert graph.widths() == {"c1": 8, "c2": 6}
    assert not model.cache
    assert not model.seen
    assert model.mean is mean
