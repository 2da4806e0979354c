"""gamma_subgradient_ and gamma_proximal_: what the cases do not say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastprune.errors import BackendError
from fastprune.ops import (
    gamma_penalty,
    gamma_proximal_,
    gamma_subgradient_,
    registered,
    use_backend,
)
from fastprune.ops._extension import extension, reading_tensors
from fastprune.ops._op import Unavailable

SIZES = (64, 3, 0, 257, 1)


def compiled() -> bool:
    try:
        extension()
    except Unavailable:
        return False
    return True


needs_extension = pytest.mark.skipif(not compiled(), reason="fastprune._C is not there")


def scales_of(*sizes: int) -> list[Tensor]:
    found = []
    for size in sizes or SIZES:
        x = torch.randn(size)
        x[::5] = 0.0
        found.append(nn.Parameter(x))
    return found


def gradients_of(scales: list[Tensor]) -> list[Tensor]:
    return [torch.randn_like(scale).detach() for scale in scales]


def after_loop(scales: list[Tensor], gradients: list[Tensor], strength: float) -> list[Tensor]:
    """The usual loop, on copies."""
    return [g + strength * torch.sign(s.detach()) for s, g in zip(scales, gradients, strict=True)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(mine, theirs), f"layer {i}: {mine}, expected {theirs}"


@pytest.fixture(params=["exchange", "methods"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways in which C++ reads tensors; older versions of torch have the second alone."""
    if not compiled():
        pytest.skip("fastprune._C is not there")
    if request.param == "methods":
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__", raising=False)
    elif not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch has no C interface for exchange")
    reading_tensors(extension())
    yield request.param
    monkeypatch.undo()
    reading_tensors(extension())


def test_what_the_usual_loop_does(reader: str) -> None:
    scales = scales_of()
    gradients = gradients_of(scales)
    expected = after_loop(scales, gradients, 0.25)

    gamma_subgradient_(scales, gradients, 0.25)

    assert_equal(gradients, expected)


def test_a_list_of_zero_nan_and_negative_zero() -> None:
    scale = torch.tensor([0.0, -0.0, float("nan"), 2.0, -2.0])
    gradient = torch.full((5,), 1.0)

    gamma_subgradient_([scale], [gradient], 0.5)

    assert gradient.tolist() == [1.0, 1.0, 1.0, 1.5, 0.5]


def test_the_proximal_step_stops_at_zero_and_keeps_nan(reader: str) -> None:
    scale = torch.tensor([0.0, -0.0, float("nan"), 2.0, -2.0, 0.25, -0.25, float("-inf")])

    gamma_proximal_([scale], 0.5)

    assert scale.nan_to_num(7).tolist()[:7] == [0.0, 0.0, 7.0, 1.5, -1.5, 0.0, -0.0]
    assert scale.signbit().tolist() == [False, False, False, False, True, False, True, True]
    assert scale[7] == float("-inf")


def test_strengths_for_each_layer_and_as_tensors(reader: str) -> None:
    scales = scales_of(4, 9)
    base = gradients_of(scales)
    for strength, numbers in [
        ([0.5, 2.0], (0.5, 2.0)),
        ((0.5, 2), (0.5, 2.0)),
        (torch.tensor([0.5, 2.0]), (0.5, 2.0)),
        (torch.tensor(0.5), (0.5, 0.5)),
        (torch.tensor([0.5]), (0.5, 0.5)),
        (nn.Parameter(torch.tensor(0.5)), (0.5, 0.5)),
        (3, (3.0, 3.0)),
        (0, (0.0, 0.0)),
    ]:
        gradients = [g.clone() for g in base]
        gamma_subgradient_(scales, gradients, strength)
        for s, g, b, number in zip(scales, gradients, base, numbers, strict=True):
            assert torch.equal(g, b + number * torch.sign(s.detach()))
        shrunk = [s.detach().clone() for s in scales]
        gamma_proximal_(shrunk, strength)
        for s, found, number in zip(scales, shrunk, numbers, strict=True):
            assert torch.equal(found, nn.functional.softshrink(s.detach(), number))


def test_a_strength_tensor_is_read_at_each_call() -> None:
    scales, strength = scales_of(6), torch.tensor(1.0)
    gradients = gradients_of(scales)
    gamma_subgradient_(scales, gradients, strength)
    expected = after_loop(scales, gradients, 3.0)
    strength.fill_(3.0)

    gamma_subgradient_(scales, gradients, strength)

    assert_equal(gradients, expected)


def test_gradients_that_are_new_objects_each_step(reader: str) -> None:
    scales = scales_of(33, 64)
    for _ in range(20):
        for scale in scales:
            scale.grad = None
        sum((scale**2).sum() for scale in scales).backward()
        gradients = [scale.grad for scale in scales]
        expected = after_loop(scales, gradients, 0.1)
        gamma_subgradient_(scales, gradients, 0.1)
        assert_equal(gradients, expected)


def test_scales_whose_memory_was_swapped_or_resized(reader: str) -> None:
    scales = scales_of(8, 8)
    gradients = gradients_of(scales)
    gamma_subgradient_(scales, gradients, 1.0)

    scales[0].data = torch.randn(8)
    expected = after_loop(scales, gradients, 1.0)
    gamma_subgradient_(scales, gradients, 1.0)
    assert_equal(gradients, expected)

    scales[0].data = torch.randn(100)
    with pytest.raises(ValueError, match=r"gradients\[0\]: expected shape \[100\], got \[8\]"):
        gamma_subgradient_(scales, gradients, 1.0)
    assert_equal(gradients, expected)

    gradients[0].resize_(100).zero_()
    gamma_subgradient_(scales, gradients, 1.0)
    assert torch.equal(gradients[0], torch.sign(scales[0].detach()))

    gradients[0].resize_(2)
    with pytest.raises(ValueError, match=r"gradients\[0\]: expected shape \[100\], got \[2\]"):
        gamma_subgradient_(scales, gradients, 1.0)


def test_scales_that_changed_their_dtype() -> None:
    layer = nn.BatchNorm2d(5)
    gamma_subgradient_([layer.weight], [torch.zeros(5)], 1.0)
    layer.double()

    with pytest.raises(TypeError, match=r"gradients\[0\]: expected torch.float64, got"):
        gamma_subgradient_([layer.weight], [torch.zeros(5)], 1.0)

    gradient = torch.zeros(5, dtype=torch.float64)
    gamma_subgradient_([layer.weight], [gradient], 1.0)
    assert gradient.tolist() == [1.0] * 5


def test_a_new_parameter_in_the_place_of_a_dead_one() -> None:
    places = set()
    for i in range(100):
        size = (4, 4000, 40)[i % 3]
        scale = nn.Parameter(torch.randn(size))
        places.add(id(scale))
        gradient = torch.zeros(size)
        gamma_subgradient_([scale], [gradient], 1.0)
        assert torch.equal(gradient, torch.sign(scale.detach()))
        del scale, gradient
    assert len(places) < 100


@pytest.mark.parametrize("layers", [1, 53, 200, 2000])
def test_any_number_of_layers(layers: int, reader: str) -> None:
    scales = scales_of(*[1 + i % 7 for i in range(layers)])
    gradients = gradients_of(scales)
    expected = after_loop(scales, gradients, 0.5)

    gamma_subgradient_(scales, gradients, 0.5)

    assert_equal(gradients, expected)
    with torch.no_grad():
        total = sum(float(s.double().abs().sum()) for s in scales)
        assert float(gamma_penalty(scales)) == pytest.approx(total, rel=1e-6)


def test_nothing_to_do() -> None:
    gamma_subgradient_([], [], 1.0)
    gamma_proximal_([], 1.0)
    assert gamma_penalty([]) == 0.0
    gamma_subgradient_([torch.zeros(0)], [torch.zeros(0)], 1.0)
    gamma_proximal_([torch.zeros(0)], 1.0)
    assert gamma_penalty([torch.zeros(0)]) == 0.0
    with pytest.raises(ValueError, match="nothing to compute"):
        gamma_penalty.explain([])


def test_tuples_and_scales_of_other_shapes(reader: str) -> None:
    scales = (torch.randn(2, 3), torch.randn(()), torch.randn(1, 4, 1, 1))
    gradients = tuple(torch.zeros_like(s) for s in scales)

    gamma_subgradient_(scales, gradients, 1.0)

    assert_equal(list(gradients), [torch.sign(s) for s in scales])


def test_a_strided_gradient_is_changed_where_it_lies() -> None:
    scales, memory = [torch.randn(5)], torch.zeros(10)

    gamma_subgradient_(scales, [memory[::2]], 1.0)

    assert torch.equal(memory[::2], torch.sign(scales[0]))
    assert not memory[1::2].any()
    reason = "tensors that are not contiguous"
    if compiled():
        explained = gamma_subgradient_.explain(scales, [memory[::2]], 1.0)
        assert explained.backend == "reference"
        assert explained.refused[-1] == ("cpp", reason)
        with use_backend("cpp"), pytest.raises(BackendError, match=reason):
            gamma_subgradient_(scales, [memory[::2]], 1.0)


def test_an_expanded_gradient_has_no_place_to_write_to() -> None:
    scales = [torch.randn(5)]

    with pytest.raises(ValueError, match=r"gradients\[0\]: expected memory of its own"):
        gamma_subgradient_(scales, [torch.ones(1).expand(5)], 1.0)
    with pytest.raises(ValueError, match=r"scales\[0\]: expected memory of its own"):
        gamma_proximal_([torch.ones(1).expand(5)], 1.0)

    one = torch.zeros(1).expand(1)
    gamma_subgradient_([torch.ones(1)], [one], 1.0)
    assert one.item() == 1.0


def test_the_first_call_of_all_may_be_a_compiled_one() -> None:
    assert "overload" in vars(registered()["gamma_subgradient_"])


@needs_extension
def test_explain_and_use_backend() -> None:
    scales = scales_of(5)
    gradients = gradients_of(scales)
    before = [g.clone() for g in gradients]

    assert gamma_subgradient_.explain(scales, gradients, 1.0).backend == "cpp"
    assert gamma_proximal_.explain(scales, 1.0).backend == "cpp"
    assert gamma_penalty.explain(scales).backend == "cpp"
    assert_equal(gradients, before)
    with use_backend("reference"):
        assert gamma_subgradient_.explain(scales, gradients, 1.0).backend == "reference"
    mixed = [torch.ones(2), torch.ones(2).half()]
    explained = gamma_penalty.explain(mixed)
    assert explained.backend == "reference"
    assert explained.refused == (("cpp", "dtypes torch.float16, torch.float32 in one call"),)
    for backend in ("triton", "cuda"):
        with use_backend(backend), pytest.raises(BackendError, match=f"{backend} was asked for"):
            gamma_subgradient_(scales, gradients, 1.0)


@needs_extension
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_backend_asked_for_runs(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, ran = registered()["gamma_subgradient_"], []
    monkeypatch.setattr(op, "reference", lambda *_: ran.append("reference"))
    for i in op.of("cpu"):
        # Loading it is what tells the extension how to read tensors.
        op.kernel(i)
        monkeypatch.setitem(op._loaded, (i.backend, i.device), lambda *_: ran.append("cpp"))

    with use_backend(backend):
        gamma_subgradient_([torch.ones(2)], [torch.ones(2)], 1.0)

    assert ran == [backend]


def test_version_counters_rise(reader: str) -> None:
    scales = scales_of(5, 6)
    gradients = gradients_of(scales)
    before = [t._version for t in (*scales, *gradients)]

    gamma_subgradient_(scales, gradients, 1.0)
    assert [t._version for t in scales] == before[:2]
    assert [t._version for t in gradients] == [v + 1 for v in before[2:]]

    gamma_proximal_(scales, 0.1)
    assert [t._version for t in scales] == [v + 1 for v in before[:2]]


def test_autograd_notices_a_proximal_step_between() -> None:
    scale = nn.Parameter(torch.randn(4))
    loss = (scale * scale).sum()
    gamma_proximal_([scale], 0.1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Names(TorchDispatchMode):
    """The names of the ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_op() -> None:
    scales = scales_of(5)
    gradients = gradients_of(scales)
    expected = after_loop(scales, gradients, 1.0)
    with Names() as names:
        gamma_subgradient_(scales, gradients, 1.0)

    assert "fastprune.gamma_subgradient_.default" in names.seen
    assert_equal(gradients, expected)


def test_tensors_without_memory() -> None:
    with FakeTensorMode():
        gamma_subgradient_([torch.ones(3)], [torch.ones(3)], 1.0)
        assert gamma_penalty([torch.ones(3)]).shape == ()
    meta = torch.ones(3, device="meta")
    gamma_subgradient_([meta], [meta.clone()], 1.0)
    assert gamma_penalty([meta]).device.type == "meta"


class Subclass(Tensor):
    pass


def test_a_subclass_goes_through_the_dispatcher() -> None:
    scales = [torch.randn(4).as_subclass(Subclass)]
    gradients = [torch.zeros(4)]

    gamma_subgradient_(scales, gradients, 1.0)

    assert torch.equal(gradients[0], torch.sign(scales[0].as_subclass(Tensor)))


def test_inside_inference_mode() -> None:
    scales = [torch.tensor([1.0, -1.0])]
    gradients = [torch.zeros(2)]
    with torch.inference_mode():
        gamma_subgradient_(scales, gradients, 1.0)
        made = [torch.zeros(2)]
        gamma_subgradient_(scales, made, 2.0)
        assert gamma_penalty(scales) == 2.0

    assert gradients[0].tolist() == [1.0, -1.0]
    assert made[0].tolist() == [2.0, -2.0]


def test_threads_change_nothing() -> None:
    scales = [torch.randn(n) for n in (400_000, 3, 300_000, 200_000)]
    gradients = [torch.randn(s.shape) for s in scales]
    found = []
    threads = torch.get_num_threads()
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        try:
            mine = [g.clone() for g in gradients]
            gamma_subgradient_(scales, mine, 0.1)
            shrunk = [s.clone() for s in scales]
            gamma_proximal_(shrunk, 0.1)
            found.append([*mine, *shrunk, gamma_penalty(scales)])
        finally:
            torch.set_num_threads(threads)

    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


def test_tensors_without_memory_are_not_written_to() -> None:
    zero = torch._efficientzerotensor(4)

    with torch.no_grad():
        assert float(gamma_penalty([zero])) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_by_the_reference_too(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(4096, generator=generator).to(dtype)
    scale = torch.randn(4096, generator=generator).to(dtype)
    expected = (gradient.float() + 0.3 * scale.float().sign()).to(dtype)
    moved = (scale.float().sign() * (scale.float().abs() - 0.3).clamp(min=0)).to(dtype)
    for backend in ("cpp", "reference"):
        with use_backend(backend):
            sums, scales = gradient.clone(), scale.clone()
            gamma_subgradient_([scale], [sums], 0.3)
            gamma_proximal_([scales], 0.3)
        assert torch.equal(sums, expected)
        assert torch.equal(scales, moved)
