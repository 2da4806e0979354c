"""Tracing: what the graph says of ordinary networks, and what tracing leaves alone."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastprune as fp
from fastprune.errors import GraphError
from fastprune.graph import trace
from fastprune.testing import Assembled

EXAMPLE = torch.zeros(1, 3, 8, 8)


def network() -> nn.Module:
    return Assembled(
        lambda m, x: m.head(m.c2(torch.relu(m.bn(m.c1(x)))).mean((2, 3))),
        c1=nn.Conv2d(3, 8, 3),
        bn=nn.BatchNorm2d(8),
        c2=nn.Conv2d(8, 12, 3),
        head=nn.Linear(12, 5),
    )


def test_groups_slots_and_reasons() -> None:
    graph = trace(network(), EXAMPLE)

    assert graph.widths() == {"c1": 8, "c2": 12}
    places = {(s.parameters, s.dim, s.role) for s in graph.group_slots("c1")}
    assert places == {
        (("c1.weight",), 0, "out"),
        (("c1.bias",), 0, "bias"),
        (("bn.weight",), 0, "scale"),
        (("bn.bias", "bn.running_mean", "bn.running_var"), 0, "norm"),
        (("c2.weight",), 1, "in"),
    }
    assert [(u.name, u.channels, u.reason) for u in graph.unprunable] == [
        ("head", 5, "network output")
    ]
    assert "c1: 8 channels" in str(graph)
    assert "head: 5 channels: network output" in str(graph)


def test_nothing_of_the_network_changes() -> None:
    model = network().train()
    model.bn.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    held = {name: dict(vars(m)) for name, m in model.named_modules()}

    trace(model, EXAMPLE)

    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert {name: dict(vars(m)) for name, m in model.named_modules()} == held


def test_random_numbers_are_not_used_up() -> None:
    model = Assembled(lambda m, x: m.c(x) * torch.rand(1), c=nn.Conv2d(3, 4, 1))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    trace(model, EXAMPLE)

    assert torch.equal(torch.rand(3), expected)


def test_the_graph_holds_no_weights() -> None:
    model = network()
    graph = trace(model, EXAMPLE)
    weight, whole = weakref.ref(model.c1.weight), weakref.ref(model)
    del model
    gc.collect()

    assert weight() is None
    assert whole() is None
    assert graph.cost().params > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_modes_do_not_matter(mode: Any) -> None:
    with mode():
        assert trace(network(), EXAMPLE).widths() == {"c1": 8, "c2": 12}


def test_autocast_and_half_precision_do_not_matter() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trace(network(), EXAMPLE).total == 20
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert trace(network().to(dtype), EXAMPLE.to(dtype)).total == 20


def test_a_network_without_memory_is_traced() -> None:
    assert trace(network().to("meta"), EXAMPLE.to("meta")).total == 20


def test_threads_trace_side_by_side() -> None:
    found: list[int] = []
    work = [
        threading.Thread(target=lambda: found.append(trace(network(), EXAMPLE).total))
        for _ in "ab"
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()

    assert found == [20, 20]


def test_keep_leaves_layers_whole() -> None:
    graph = trace(network(), EXAMPLE, keep=["c1"])

    assert graph.widths() == {"c2": 12}
    assert graph.unprunable[0].reason == "kept on request (c1)"
    assert trace(network(), EXAMPLE, keep="c*").widths() == {}


def test_select_gives_a_norm_layer_a_group_of_its_own() -> None:
    graph = trace(network(), EXAMPLE, select=["bn"])

    assert graph.widths() == {"bn": 8, "c2": 12}
    assert graph.group("bn").kind == "selected"


class Auxiliary(nn.Module):
    """A head that runs in training mode only, and a layer that runs in evaluation mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.tuned, self.head = nn.Conv2d(8, 6, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        if not self.training:
            return self.head(x.mean((2, 3))), self.tuned(x)
        return self.head(x.mean((2, 3))), self.aux(x.amax((2, 3)))


def test_layers_of_either_mode_are_cut() -> None:
    graph = trace(Auxiliary(), EXAMPLE)

    names = {name for slot in graph.group_slots("body") for name in slot.parameters}
    assert names == {"body.weight", "body.bias", "aux.weight", "head.weight", "tuned.weight"}
    assert not graph.unused
    # The auxiliary head costs parameters, but no work in evaluation mode.
    assert graph.cost().macs == 36 * 8 * 27 + 8 * 5 + 36 * 8 * 6


@pytest.mark.parametrize(
    "example",
    [None, 3, "x", (), [], (1, 2), {"x": EXAMPLE}],
    ids=lambda example: type(example).__name__,
)
def test_what_is_no_example_is_refused(example: Any) -> None:
    with pytest.raises(GraphError, match="example: expected a tensor"):
        trace(network(), example)


@pytest.mark.parametrize("model", [None, lambda x: x])
def test_what_is_no_network_is_refused(model: Any) -> None:
    with pytest.raises(GraphError, match="expected a torch"):
        trace(model, EXAMPLE)


def test_an_example_that_does_not_fit_says_where() -> None:
    with pytest.raises(GraphError, match=r"conv2d \(op 0\).*expects 3 input channels, got 4"):
        trace(network(), torch.zeros(1, 4, 8, 8))
    with pytest.raises(GraphError, match="no tensor"):
        trace(Assembled(lambda m, x: 1), EXAMPLE)


def test_sizes_that_leave_nothing_are_refused() -> None:
    with pytest.raises(GraphError, match=r"kernel .* is larger"):
        trace(network(), torch.zeros(1, 3, 4, 4))


def test_unknown_names_name_the_nearest() -> None:
    with pytest.raises(GraphError, match=r"keep 'haed'.*'head'"):
        trace(network(), EXAMPLE, keep=["haed"])
    with pytest.raises(GraphError, match=r"select 'bm'.*known: bn"):
        trace(network(), EXAMPLE, select=["bm"])


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_any_batch_gives_the_same_graph(batch: int) -> None:
    graph = trace(network(), torch.zeros(batch, 3, 8, 8))

    assert graph.widths() == {"c1": 8, "c2": 12}


def test_an_example_may_have_no_batch() -> None:
    model = Assembled(lambda m, x: m.c2(m.c1(x)), c1=nn.Conv2d(3, 8, 3), c2=nn.Conv2d(8, 2, 3))

    assert trace(model, torch.zeros(3, 8, 8)).widths() == {"c1": 8}


def test_functions_without_a_rule_are_named() -> None:
    model = Assembled(
        lambda m, x: m.c2(torch.tril(m.c1(x))), c1=nn.Conv2d(3, 8, 3), c2=nn.Conv2d(8, 2, 3)
    )

    graph = trace(model, EXAMPLE)

    assert graph.program.ruleless == ("tril",)
    assert graph.unprunable[0].reason == "tril (op 1) has no rule"
    assert "ops without a rule: tril" in str(graph)


@pytest.mark.parametrize(
    "look", [lambda y: float(y.max()), lambda y: y.sum().item(), lambda y: bool((y > 0).any())]
)
def test_layers_behind_a_choice_by_the_images_are_not_passed_over(look: Any) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.c1(x)
        return m.head((m.one(y) if look(y) > 0 else m.other(y)).mean((2, 3)))

    layers = {"one": nn.Conv2d(8, 12, 3), "other": nn.Conv2d(8, 12, 3)}
    model = Assembled(forward, c1=nn.Conv2d(3, 8, 3), head=nn.Linear(12, 5), **layers)
    with pytest.raises(GraphError, match=r"looks at numbers .* 2 parameters were not reached"):
        trace(model, EXAMPLE)


def test_what_is_only_looked_at_or_only_unused_is_no_matter() -> None:
    def checked(m: Any, x: Tensor) -> Tensor:
        y = m.c1(x)
        assert not bool(y.isnan().any())
        return m.head(y.mean((2, 3)))

    model = Assembled(checked, c1=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5))
    assert trace(model, EXAMPLE).unused == ()
    spare = network()
    spare.add_module("spare", nn.Conv2d(3, 8, 3))
    assert trace(spare, EXAMPLE).unused == ("spare.weight", "spare.bias")


def test_what_prune_gives_prints_in_a_line() -> None:
    found = repr(fp.prune(network(), EXAMPLE, budget={"macs": 0.5}))
    assert found.startswith("Pruned(Assembled: Cost(macs=")
    assert len(found) < 250
