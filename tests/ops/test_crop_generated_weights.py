"""What the conformance suite does not say of crop_generated_weights."""

from __future__ import annotations

import itertools
import mmap
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastprune.errors import BackendError
from fastprune.ops import crop_generated_weights, use_backend

SHAPE = (6, 5, 3, 3)


def layers(
    shape: tuple[int, ...] = SHAPE,
    units: int = 8,
    features: int = 3,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """FC1's weight and bias, FC2's weight and bias."""
    rows = torch.Size(shape).numel()
    fc1 = torch.randn(units, features, dtype=dtype), torch.randn(units, dtype=dtype)
    fc2 = torch.randn(rows, units, dtype=dtype), torch.randn(rows, dtype=dtype)
    return fc1[0], fc1[1] if bias else None, fc2[0], fc2[1] if bias else None


def widths(most: int, candidates: int) -> list[int]:
    return torch.randint(1, most + 1, (candidates,)).tolist()


def one_by_one(
    encodings: Tensor, *weights: Tensor | None, shape: Any, out_channels: Any, in_channels: Any
) -> list[Tensor]:
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = weights
    assert fc1_weight is not None
    assert fc2_weight is not None
    found = []
    for encoding, out, inside in zip(encodings, out_channels, in_channels, strict=True):
        hidden = F.relu(F.linear(encoding[None], fc1_weight, fc1_bias))
        whole = F.linear(hidden, fc2_weight, fc2_bias).view(shape)
        found.append(whole[:out, :inside].contiguous())
    return found


def test_values() -> None:
    encodings, weights = torch.rand(3, 3), layers()
    sizes: Any = {"shape": SHAPE, "out_channels": [6, 1, 4], "in_channels": [2, 5, 5]}
    found = crop_generated_weights(encodings, *weights, **sizes)
    for block, expected in zip(found, one_by_one(encodings, *weights, **sizes), strict=True):
        assert block.shape == expected.shape
        assert block.is_contiguous()
        torch.testing.assert_close(block, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(20, 30, 3, 3), (7, 90, 1, 1), (40, 1, 3, 3)])
@pytest.mark.parametrize("candidates", [5, 19])
def test_a_candidate_does_not_depend_on_the_others(
    dtype: torch.dtype, shape: tuple[int, ...], candidates: int
) -> None:
    """To the bit, on a CPU: searches that batch candidates find what others find."""
    weights = layers(shape, 32, dtype=dtype)
    encodings = torch.rand(candidates, 3).to(dtype)
    outs, ins = widths(shape[0], candidates), widths(shape[1], candidates)
    together = crop_generated_weights(
        encodings, *weights, shape=shape, out_channels=outs, in_channels=ins
    )
    for k in range(candidates):
        (alone,) = crop_generated_weights(
            encodings[k : k + 1],
            *weights,
            shape=shape,
            out_channels=outs[k : k + 1],
            in_channels=ins[k : k + 1],
        )
        assert torch.equal(together[k], alone)
    (whole,) = crop_generated_weights(
        encodings[:1], *weights, shape=shape, out_channels=shape[:1], in_channels=shape[1:2]
    )
    assert torch.equal(together[0], whole[: outs[0], : ins[0]])


def test_threads_change_nothing() -> None:
    # Two megabytes are read: enough for several threads.
    shape = (64, 256, 1, 1)
    weights, encodings = layers(shape, 32), torch.rand(7, 3)
    sizes: Any = {
        "shape": shape,
        "out_channels": [64, *widths(64, 6)],
        "in_channels": [256, *widths(256, 6)],
    }
    one = crop_generated_weights(encodings, *weights, **sizes)
    torch.set_num_threads(4)
    four = crop_generated_weights(encodings, *weights, **sizes)
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))


def test_blocks_are_views_of_one_buffer_each_as_aligned_as_a_tensor_of_its_own() -> None:
    found = crop_generated_weights(
        torch.rand(4, 3),
        *layers(),
        shape=SHAPE,
        out_channels=[1, 6, 3, 2],
        in_channels=[1, 5, 1, 3],
    )
    assert len({block.untyped_storage().data_ptr() for block in found}) == 1
    assert all(block.data_ptr() % 64 == 0 for block in found)
    ends = [(b.data_ptr(), b.data_ptr() + 4 * b.numel()) for b in found]
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ends))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("candidates", [1, 3])
def test_gradients(candidates: int, bias: bool) -> None:
    weights = layers((3, 4, 1, 2), 4, dtype=torch.float64, bias=bias)
    tensors = [torch.rand(candidates, 3, dtype=torch.float64), *weights]
    given = [t for t in tensors if t is not None]
    for tensor in given:
        tensor.requires_grad_()
    outs, ins = widths(3, candidates), widths(4, candidates)

    def call(*inputs: Tensor) -> list[Tensor]:
        left = iter(inputs)
        arguments: Any = [t if t is None else next(left) for t in tensors]
        return crop_generated_weights(
            *arguments, shape=(3, 4, 1, 2), out_channels=outs, in_channels=ins
        )

    assert torch.autograd.gradcheck(call, given)


@pytest.mark.parametrize("wanted", range(5))
def test_gradient_of_one_tensor_alone(wanted: int) -> None:
    tensors: list[Any] = [torch.rand(2, 3), *layers()]
    sizes: Any = {"shape": SHAPE, "out_channels": [4, 2], "in_channels": [3, 5]}
    tensors[wanted].requires_grad_()
    gradients = []
    for way in (crop_generated_weights, one_by_one):
        tensors[wanted].grad = None
        sum(block.square().sum() for block in way(*tensors, **sizes)).backward()
        gradients.append(tensors[wanted].grad)
    assert gradients[0].shape == tensors[wanted].shape
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_gradient_of_dropped_rows_is_zero() -> None:
    tensors: list[Any] = [torch.rand(1, 3), *layers()]
    tensors[3].requires_grad_()
    tensors[4].requires_grad_()
    (block,) = crop_generated_weights(*tensors, shape=SHAPE, out_channels=[2], in_channels=[3])
    block.sum().backward()
    weight, bias = tensors[3].grad.view(*SHAPE, -1), tensors[4].grad.view(SHAPE)
    assert not weight[2:].any()
    assert not weight[:, 3:].any()
    assert not bias[2:].any()
    assert (bias[:2, :3] == 1).all()


def test_a_block_that_nobody_uses_has_no_share_in_the_gradient() -> None:
    tensors: list[Any] = [torch.rand(2, 3).requires_grad_(), *layers()]
    blocks = crop_generated_weights(*tensors, shape=SHAPE, out_channels=[2, 3], in_channels=[3, 3])
    blocks[1].sum().backward()
    assert not tensors[0].grad[0].any()


def test_training_compiled_whole() -> None:
    tensors: list[Any] = [torch.rand(1, 3), *layers()]
    images = torch.randn(2, 3, 6, 6)

    def loss(*inputs: Any) -> Tensor:
        (weight,) = crop_generated_weights(*inputs, shape=SHAPE, out_channels=[4], in_channels=[3])
        return F.conv2d(images, weight).square().mean()

    torch._dynamo.reset()
    gradients = []
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        for tensor in tensors[1:]:
            tensor.grad = None
            tensor.requires_grad_()
        call(*tensors).backward()
        gradients.append([tensor.grad for tensor in tensors[1:]])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits(dtype: torch.dtype) -> None:
    """FC2 of all numbers there are, times one hidden unit of 1 and of 1/3."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    fc1 = torch.ones(1, 1, dtype=dtype)
    for scale in (1.0, 1 / 3):
        encoding = torch.full((1, 1), scale, dtype=dtype)
        (found,) = crop_generated_weights(
            encoding,
            fc1,
            None,
            every[:, None],
            None,
            shape=(256, 256, 1, 1),
            out_channels=[256],
            in_channels=[256],
        )
        expected = (every.float() * encoding.float().item()).to(dtype)
        torch.testing.assert_close(found.view(-1), expected, rtol=0, atol=0, equal_nan=True)


def test_offsets_of_64_bits() -> None:
    """FC2 of 2.3·10⁹ elements, of which memory holds the pages that are touched."""
    shape, units = (4, 24 * 1024**2, 1, 1), 32
    rows = shape[0] * shape[1]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, 2 * rows * units, flags=flags)
    fc2 = torch.frombuffer(memory, dtype=torch.bfloat16).view(rows, units)
    kept = fc2.view(*shape[:2], units)[:, :2]
    kept.copy_(torch.randn(kept.shape))
    (found,) = crop_generated_weights(
        torch.ones(1, 1, dtype=torch.bfloat16),
        torch.ones(units, 1, dtype=torch.bfloat16),
        None,
        fc2,
        None,
        shape=shape,
        out_channels=[4],
        in_channels=[2],
    )
    torch.testing.assert_close(found.view(4, 2), kept.sum(-1))


def test_nan_goes_on() -> None:
    weights = layers()
    encodings = torch.rand(2, 3)
    encodings[0] = float("nan")
    found = crop_generated_weights(
        encodings, *weights, shape=SHAPE, out_channels=[6, 6], in_channels=[5, 5]
    )
    assert found[0].isnan().all()
    assert not found[1].isnan().any()


def test_no_candidates() -> None:
    found = crop_generated_weights(
        torch.rand(0, 3), *layers(), shape=SHAPE, out_channels=[], in_channels=[]
    )
    assert found == []


def test_explain_and_use_backend() -> None:
    sizes: Any = {"shape": SHAPE, "out_channels": [2], "in_channels": [3]}
    arguments: Any = [torch.rand(1, 3), *layers()]
    assert crop_generated_weights.explain(*arguments, **sizes).backend == "cpp"
    arguments[3] = arguments[3].T.contiguous().T
    explained = crop_generated_weights.explain(*arguments, **sizes)
    assert explained.backend == "reference"
    assert "strides (1, 270) are not contiguous" in str(explained)
    with use_backend("cpp"), pytest.raises(BackendError, match="not contiguous"):
        crop_generated_weights(*arguments, **sizes)


def test_wrong_dtypes() -> None:
    sizes: Any = {"shape": SHAPE, "out_channels": [2], "in_channels": [3]}
    with pytest.raises(TypeError, match=r"encodings: expected a floating dtype, got torch\.int64"):
        crop_generated_weights(torch.ones(1, 3, dtype=torch.int64), *layers(), **sizes)
    with pytest.raises(TypeError, match=r"fc1_weight: expected torch\.float64.*float32"):
        crop_generated_weights(torch.rand(1, 3, dtype=torch.float64), *layers(), **sizes)


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.rand(3), r"encodings: expected \[K, E\], got shape \[3\]"),
        (1, torch.rand(8), r"fc1_weight: expected \[H, E\], got shape \[8\]"),
        (1, torch.rand(8, 2), r"fc1_weight: expected shape \[8, 3\], got \[8, 2\]"),
        (2, torch.rand(7), r"fc1_bias: expected shape \[8\], got \[7\]"),
        (3, torch.rand(269, 8), r"fc2_weight: expected shape \[270, 8\], got \[269, 8\]"),
        (4, torch.rand(270, 1), r"fc2_bias: expected shape \[270\], got \[270, 1\]"),
        (3, torch.rand(270, 8, device="meta"), "fc2_weight: expected device cpu.* got meta"),
    ],
)
def test_wrong_tensors(place: int, wrong: Tensor, message: str) -> None:
    arguments: list[Any] = [torch.rand(1, 3), *layers()]
    arguments[place] = wrong
    with pytest.raises(ValueError, match=message):
        crop_generated_weights(*arguments, shape=SHAPE, out_channels=[2], in_channels=[3])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": (6, 5, 3)}, r"shape: expected \(O, I, kh, kw\), all positive, got \(6, 5, 3\)"),
        ({"shape": (6, 5, 0, 3)}, r"shape: expected .* got \(6, 5, 0, 3\)"),
        ({"out_channels": [0]}, r"out_channels\[0\]: expected 1 to 6, got 0"),
        ({"out_channels": [7]}, r"out_channels\[0\]: expected 1 to 6, got 7"),
        ({"in_channels": [6]}, r"in_channels\[0\]: expected 1 to 5, got 6"),
        ({"in_channels": []}, r"in_channels: expected 1 numbers, .* got 0"),
    ],
)
def test_wrong_sizes(wrong: dict[str, Any], message: str) -> None:
    sizes: Any = {"shape": SHAPE, "out_channels": [2], "in_channels": [3]}
    with pytest.raises(ValueError, match=message):
        crop_generated_weights(torch.rand(1, 3), *layers(), **(sizes | wrong))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_autocast_changes_no_product(backend: str) -> None:
    """The kernels multiply what they are given; the reference and the gradients do too."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 3), (8, 3), (8,), (4 * 3 * 9, 8), (4 * 3 * 9,))
    tensors = [torch.randn(s, generator=generator, requires_grad=True) for s in sizes]

    def found() -> list[torch.Tensor]:
        pieces = crop_generated_weights(
            *tensors, shape=(4, 3, 3, 3), out_channels=[2, 4], in_channels=[3, 1]
        )
        total = sum(piece.square().sum() for piece in pieces)
        return [*pieces, *torch.autograd.grad(total, tensors)]

    with use_backend(backend):
        expected = found()
        with torch.autocast("cpu"):
            assert all(map(torch.equal, found(), expected))
