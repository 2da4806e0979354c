from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastprune.errors import BackendError
from fastprune.ops import Moments, batch_norm_recalibrate, registered, use_backend

BACKENDS = [
    backend
    for backend, missing in registered()["batch_norm_recalibrate"].availability("cpu")
    if missing is None
]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def pooled(*batches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and M2 of each channel of all of them, float64."""
    values = torch.cat([x.double().transpose(0, 1).flatten(1) for x in batches], 1)
    mean = values.mean(1, keepdim=True)
    return mean.squeeze(1), (values - mean).square().sum(1)


@pytest.mark.parametrize("arrange", [Tensor.contiguous, last])
def test_equals_batch_norm_in_training_mode(
    backend: str, arrange: Callable[[Tensor], Tensor]
) -> None:
    x = arrange(torch.randn(4, 7, 9, 9))
    weight, bias, mask = torch.randn(7), torch.randn(7), torch.tensor([1, 0, 1, 1, 1, 0, 1])
    for relu in (False, True):
        with use_backend(backend):
            moments = Moments.zeros(7)
            y = batch_norm_recalibrate(
                x, moments, weight, bias, eps=1e-3, mask=mask.float(), relu=relu
            )
        expected = F.batch_norm(x, None, None, weight, bias, True, eps=1e-3)
        expected = (F.relu(expected) if relu else expected) * mask.view(1, -1, 1, 1)
        torch.testing.assert_close(y, expected)
        assert y.stride() == x.stride()
        assert moments.count == 4 * 81


@pytest.mark.parametrize("arrange", [Tensor.contiguous, last])
@pytest.mark.parametrize("sizes", [(8, 8), (33, 29), (70, 64)])
def test_far_from_zero_no_digits_are_lost(
    backend: str, sizes: tuple[int, int], arrange: Callable[[Tensor], Tensor]
) -> None:
    """E[x²] − E[x]² in float32 has none left here; that of one wrong shift has two or three."""
    batches = [arrange(1e3 + 1e-2 * torch.randn(n, 5, *sizes)) for n in (3, 1, 6)]
    moments = Moments.zeros(5)
    with use_backend(backend):
        for x in batches:
            y = batch_norm_recalibrate(x, moments, None, None)
            exact = F.batch_norm(x.double(), None, None, training=True)
            assert (y - exact).abs().max() < 3e-6
    mean, m2 = pooled(*batches)
    assert (moments.mean - mean).abs().max() < 1e-2 * 1e-7
    assert (moments.m2 / m2 - 1).abs().max() < 1e-6


@pytest.mark.parametrize("arrange", [Tensor.contiguous, last])
def test_an_outlier_at_the_start_spoils_nothing(
    backend: str, arrange: Callable[[Tensor], Tensor]
) -> None:
    """The first values, images and batch are near zero, all others are not."""
    x = arrange(1e3 + torch.randn(40, 3, 24, 24))
    x[0, :, :4] = 0
    x[:2, 1] = 0
    batches = [arrange(torch.randn(4, 3, 24, 24)), x]
    moments = Moments.zeros(3)
    with use_backend(backend):
        for x in batches:
            batch_norm_recalibrate(x, moments, None, None)
    mean, m2 = pooled(*batches)
    assert (moments.mean / mean - 1).abs().max() < 1e-6
    assert (moments.m2 / m2 - 1).abs().max() < 3e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_of_any_dtype(backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 6, 5, 5)
    weight, bias = torch.randn(6).to(dtype), torch.randn(6)
    with use_backend(backend):
        y = batch_norm_recalibrate(x, Moments.zeros(6), weight, bias)
    expected = F.batch_norm(x, None, None, weight.float(), bias, True)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(9, 40, 41, 43), (4, 600, 30, 30), (33, 3, 90, 90), (6000, 70)])
def test_every_number_of_threads_gives_the_same_bits(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape).to(dtype)
    found: list[tuple[Tensor, ...]] = []
    for arranged in (x, last(x)) if len(shape) == 4 else (x,):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            moments = Moments.zeros(shape[1])
            y = batch_norm_recalibrate(arranged, moments, None, None, relu=True)
            found.append((y, moments.mean, moments.m2))
        torch.set_num_threads(1)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
        found.clear()


def test_gradients_are_refused_not_cut_off() -> None:
    x, weight = torch.randn(3, 4, 2, 2), torch.ones(4, requires_grad=True)
    with pytest.raises(ValueError, match=r"weight: .* got requires_grad=True"):
        batch_norm_recalibrate(x, Moments.zeros(4), weight, None)
    with pytest.raises(ValueError, match=r"x: .* got requires_grad=True"):
        batch_norm_recalibrate(x.requires_grad_(), Moments.zeros(4), None, None)
    with torch.no_grad():
        y = batch_norm_recalibrate(x, Moments.zeros(4), weight, None)
    assert not y.requires_grad


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, r"x: expected a floating dtype", {"x": torch.ones(2, 3, dtype=torch.int64)}),
        (ValueError, r"x: expected \[N, C, \.\.\.\]", {"x": torch.randn(3)}),
        (ValueError, r"moments: expected shape \[4\]", {"x": torch.randn(2, 4)}),
        (ValueError, r"more than 1 value per channel", {"x": torch.randn(1, 3)}),
        (ValueError, r"more than 1 value per channel", {"x": torch.randn(1, 3, 1, 1)}),
        (ValueError, r"weight: expected shape \[3\]", {"weight": torch.ones(4)}),
        (TypeError, r"weight: expected a floating", {"weight": torch.ones(3, dtype=torch.int32)}),
        (ValueError, r"bias: expected shape \[3\]", {"bias": torch.ones(1)}),
        (ValueError, r"bias: expected contiguous", {"bias": torch.ones(6)[::2]}),
        (ValueError, r"mask: expected shape \[3\]", {"mask": torch.ones(3, 1)}),
        (ValueError, r"weight: expected device cpu", {"weight": torch.ones(3, device="meta")}),
        (ValueError, r"moments: expected device", {"moments": Moments.zeros(3, device="meta")}),
        (ValueError, r"eps: expected 0 or more, got -1", {"eps": -1.0}),
    ],
)
def test_wrong_arguments(error: type[Exception], match: str, arguments: dict[str, object]) -> None:
    given = {"x": torch.randn(2, 3, 2, 2), "moments": Moments.zeros(3), "weight": None}
    before = given["moments"]
    with pytest.raises(error, match=match):
        batch_norm_recalibrate(**{**given, "bias": None, **arguments})
    assert before.count == 0


def test_an_empty_batch_changes_nothing(backend: str) -> None:
    moments = Moments.of(torch.randn(4, 3))
    kept = [t.clone() for t in (moments.count, moments.mean, moments.m2)]
    with use_backend(backend):
        y = batch_norm_recalibrate(torch.empty(0, 3, 2, 2), moments, None, None)
    assert y.shape == (0, 3, 2, 2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(kept, (moments.count, moments.mean, moments.m2), strict=True)
    )


def test_what_runs_can_be_asked() -> None:
    x = torch.randn(2, 6, 4, 4)
    moments = Moments.zeros(6)
    assert batch_norm_recalibrate.explain(x, moments, None, None).backend == BACKENDS[0]
    half = Moments.zeros(3)
    explained = batch_norm_recalibrate.explain(x[:, ::2], half, None, None)
    assert explained.backend == "reference"
    assert "neither contiguous nor channels_last" in str(explained)
    assert moments.count == 0
    assert half.count == 0
    with use_backend("numba"), pytest.raises(BackendError, match="numba was asked for"):
        batch_norm_recalibrate(x, moments, None, None)


def test_moments_merge_as_one_set() -> None:
    parts = [1e3 + torch.randn(n, 4, 3) for n in (1, 5, 2)]
    whole = Moments.zeros(4)
    for part in parts:
        whole = whole.merge(Moments.of(part))
    other = Moments.of(parts[0]).merge(Moments.of(parts[1]).merge(Moments.of(parts[2])))
    mean, m2 = pooled(*parts)
    for found in (whole, other, Moments.of(torch.cat(parts))):
        assert found.count == 24
        torch.testing.assert_close(found.mean, mean, rtol=1e-9, atol=0)
        torch.testing.assert_close(found.variance(), m2 / 23, rtol=1e-6, atol=0)
        torch.testing.assert_close(found.variance(unbiased=False), m2 / 24, rtol=1e-6, atol=0)
    nothing = Moments.zeros(4).merge(Moments.zeros(4))
    assert torch.equal(nothing.mean, torch.zeros(4, dtype=torch.float64))
    assert nothing.variance().isnan().all()
    assert Moments.of(torch.randn(1, 4)).variance().isnan().all()
    assert torch.equal(Moments.of(torch.empty(0, 4)).m2, torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected 4 channels, got 5"):
        whole.merge(Moments.zeros(5))


def test_wrong_moments() -> None:
    count, mean = torch.tensor(0), torch.zeros(3, dtype=torch.float64)
    for arguments, error, match in (
        ((count.float(), mean, mean), TypeError, "count: expected int64"),
        ((torch.zeros(2, dtype=torch.int64), mean, mean), ValueError, "count: expected one"),
        ((count, mean.float(), mean), TypeError, "expected float64"),
        ((count, mean, mean[:2]), ValueError, r"expected the same shape \[C\]"),
        ((count, mean, torch.stack([mean, mean], 1)[:, 0]), ValueError, "expected contiguous"),
        ((count, mean.to("meta"), mean), ValueError, "expected one device"),
    ):
        with pytest.raises(error, match=match):
            Moments(*arguments)


def test_the_host_is_not_waited_for() -> None:
    """A fake tensor has no values: whatever asked for one would raise."""
    with FakeTensorMode():
        x, moments = torch.randn(4, 3, 5, 5), Moments.zeros(3)
        batch_norm_recalibrate(x, moments, None, None, relu=True)
        moments.merge(Moments.of(x)).variance()


@on_gpu
@pytest.mark.parametrize("arrange", [Tensor.contiguous, last])
def test_a_gpu_is_not_waited_for(arrange: Callable[[Tensor], Tensor]) -> None:
    for shape in ((4, 32, 7, 7), (8, 32, 56, 56)):
        x, moments = arrange(torch.randn(shape, device="cuda")), Moments.zeros(32, device="cuda")
        batch_norm_recalibrate(x, moments, None, None)
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch_norm_recalibrate(x, moments, None, None)
            moments.merge(moments).variance()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.parametrize("arrange", [Tensor.contiguous, last])
def test_the_same_bits_every_time(arrange: Callable[[Tensor], Tensor]) -> None:
    x = arrange(torch.randn(64, 48, 50, 50, device="cuda", dtype=torch.float16))
    found = []
    for _ in range(20):
        moments = Moments.zeros(48, device="cuda")
        y = batch_norm_recalibrate(x, moments, None, None)
        found.append((y, moments.count, moments.mean, moments.m2))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@on_gpu
@pytest.mark.parametrize("arrange", [Tensor.contiguous, last])
def test_more_than_two_to_the_31_elements(arrange: Callable[[Tensor], Tensor]) -> None:
    x = torch.empty((1040, 64, 256, 128), dtype=torch.float16, device="cuda")
    x = arrange(x).normal_()
    moments = Moments.zeros(64, device="cuda")
    y = batch_norm_recalibrate(x, moments, None, None)
    assert moments.count == x.numel() // 64
    expected = Moments.zeros(64, device="cuda")
    for part in x.split(16):
        expected = expected.merge(Moments.of(part))
    torch.testing.assert_close(moments.mean, expected.mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(moments.m2, expected.m2, rtol=1e-6, atol=0)
    mean, variance = expected.mean.float(), expected.variance(unbiased=False).float()
    for at in (0, 511, 1039):
        exact = F.batch_norm(x[at : at + 1].float(), mean, variance)
        torch.testing.assert_close(y[at : at + 1].float(), exact, rtol=2e-3, atol=2e-3)
