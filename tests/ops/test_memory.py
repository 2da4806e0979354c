from __future__ import annotations

import gc

import pytest
import torch

from fastprune.ops._memory import LARGE, recycled_empty

SHAPE = (4, 3, 512, 512)


def taken() -> torch.Tensor:
    return recycled_empty(SHAPE, torch.float32, channels_last=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 5, 7), (0, 3, 5, 7), (6, 1, 1025, 1027)])
def test_it_is_laid_out_as_torch_empty(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    found = recycled_empty(shape, dtype, channels_last=channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    wanted = torch.empty(shape, dtype=dtype, memory_format=memory_format)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert found.is_contiguous(memory_format=memory_format)
    assert found.data_ptr() % 64 == 0
    assert found.fill_(1).sum(dtype=torch.float64) == wanted.numel()


def test_memory_is_used_again_once_nobody_refers_to_it() -> None:
    first, second = taken().fill_(1), taken().fill_(2)
    address = first.data_ptr()
    del first
    gc.collect()
    third = taken()
    assert third.data_ptr() == address
    assert (second == 2).all()


def test_a_view_holds_the_memory() -> None:
    batch = taken().fill_(1)
    row = batch[1:2, 0].detach().view(-1)[5:]
    del batch
    others = [taken().fill_(float(i)) for i in range(2, 6)]
    assert (row == 1).all()
    assert len({other.data_ptr() for other in others}) == 4


def test_a_shorter_last_batch_takes_the_memory_of_a_whole_one() -> None:
    address = taken().data_ptr()
    rest = recycled_empty((3, *SHAPE[1:]), torch.float32, channels_last=True)
    assert rest.data_ptr() == address
    assert rest.nbytes > LARGE
