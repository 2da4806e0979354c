"""channel_scores: the four vectors, their accuracy, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastprune.errors import BackendError
from fastprune.ops import ChannelScores, channel_scores, channel_scores_of, use_backend

BACKENDS = ("cpp", "reference")


def exact(weight: Tensor) -> ChannelScores:
    rows = weight.double().flatten(1)
    columns = weight.double().transpose(0, 1).flatten(1)
    return ChannelScores(
        rows.abs().sum(1), rows.square().sum(1), columns.abs().sum(1), columns.square().sum(1)
    )


def test_out_and_in_side_of_a_small_weight() -> None:
    weight = torch.tensor([[[1.0, -2.0], [3.0, 0.0]], [[-1.0, 0.5], [0.0, -4.0]]])
    found = channel_scores(weight)
    assert found.out_abs.tolist() == [6.0, 5.5]
    assert found.out_square.tolist() == [14.0, 17.25]
    assert found.in_abs.tolist() == [4.5, 7.0]
    assert found.in_square.tolist() == [6.25, 25.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ndim", [1, 2, 3, 4, 5])
def test_shapes(backend: str, ndim: int) -> None:
    weight = torch.randn(6, 5, 3, 2, 2)[(..., *[0] * (5 - ndim))].contiguous()
    if ndim == 1:
        with use_backend("reference"):
            found = channel_scores(weight)
        assert torch.equal(found.out_abs, weight.abs())
        assert torch.equal(found.out_square, weight.square())
        assert found.in_abs.shape == found.in_square.shape == (0,)
        return
    with use_backend(backend):
        found = channel_scores(weight)
    for got, expected in zip(found, exact(weight), strict=True):
        torch.testing.assert_close(got, expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
def test_each_vector_is_as_accurate_as_torch(dtype: torch.dtype, last: bool) -> None:
    """Rows of 18,432 and columns of 2,048 numbers; the conformance cases are short."""
    for shape in ((40, 2048, 3, 3), (2048, 40, 1, 1), (515, 67, 3, 3)):
        weight = torch.randn(shape).to(dtype)
        if last:
            weight = weight.contiguous(memory_format=torch.channels_last)
        with use_backend("reference"):
            plain = channel_scores(weight)
        with use_backend("cpp"):
            found = channel_scores(weight)
        step = torch.finfo(torch.float32).eps
        for got, torchs, best in zip(found, plain, exact(weight), strict=True):
            assert got.dtype == torch.float32
            error = float(((got - best) / best).abs().max())
            allowed = 4 * float(((torchs - best) / best).abs().max()) + step
            assert error <= allowed, (shape, error, allowed)


def test_float16_is_widened_exactly() -> None:
    """All its numbers, denormal ones, infinities and NaN among them."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    weight = every.view(torch.float16).view(-1, 1)
    with use_backend("cpp"):
        found = channel_scores(weight).out_abs
    assert torch.equal(found.nan_to_num(), weight[:, 0].float().abs().nan_to_num())
    assert torch.equal(found.isnan(), weight[:, 0].isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    weights = [torch.randn(777, 130, 3, 3).to(dtype), torch.randn(2048, 512).to(dtype)]
    alone = channel_scores_of(weights)
    threads = torch.get_num_threads()
    try:
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            for one, many in zip(alone, channel_scores_of(weights), strict=True):
                for a, b in zip(one, many, strict=True):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_many_weights_are_each_in_its_place() -> None:
    """Dtypes, layouts and ranks that different implementations take, mixed."""
    weights = [
        torch.randn(4, 3, 3, 3),
        torch.randn(7),
        torch.randn(5, 6).half(),
        torch.randn(6, 5).t(),
        torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last),
        torch.randn(3, 2).double(),
        torch.randn(5, 4),
    ]
    for weight, found in zip(weights, channel_scores_of(weights), strict=True):
        for got, expected in zip(found, channel_scores(weight), strict=True):
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected)
    assert channel_scores_of([]) == []


def test_nothing_is_differentiated() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    assert not any(vector.requires_grad for vector in channel_scores(weight))


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^weight: expected a floating dtype, got torch.int64"):
        channel_scores(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"^weight: expected \[O, I, ...\] or \[O\], got a single"
    ):
        channel_scores(torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"^weights\[1\]: expected a floating dtype"):
        channel_scores_of([torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)])


def test_explain_says_why_not() -> None:
    weight = torch.randn(6, 5)
    assert channel_scores.explain(weight).backend == "cpp"
    explanation = channel_scores.explain(weight.t())
    assert explanation.backend == "reference"
    assert "strides (1, 5) are neither contiguous nor channels_last" in str(explanation)
    assert "a vector has nothing to add up" in str(channel_scores.explain(weight[0]))
    with use_backend("cpp"), pytest.raises(BackendError, match="neither contiguous"):
        channel_scores(weight.t())


def test_offsets_of_triton_tiles_are_64_bit() -> None:
    """By arithmetic: a weight of 2**33 numbers, 32 GB, and the partial sums of its tiles."""
    pytest.importorskip("triton")
    from fastprune.kernels.triton import channel_scores as kernel

    rows, length = 1 << 20, 1 << 13
    weight = kernel.Weight(1 << 40, rows, length, 1, False)
    work = kernel._planned.__wrapped__((weight,), 4, torch.device("cpu"), 0)
    address, height, width, across, row_sums, column_sums = work.weights.tolist()
    assert work.weights.dtype == work.sides.dtype == torch.int64
    assert (address, height, width) == (1 << 40, rows, length)
    ((divisor, tiles),) = work.tiles
    assert divisor == 4
    assert tiles[-1].tolist() == [0, across * (rows // work.height) - 1]
    assert across * kernel.COLUMNS == length
    assert column_sums - row_sums == across * 2 * rows
    assert work.scratch - column_sums == rows // work.height * 2 * length
