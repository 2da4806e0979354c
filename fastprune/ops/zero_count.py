"""Zeros of an activation by channel: the statistic behind APoZ (Hu et al., 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastprune.ops._checks import check_activation, check_counter
from fastprune.ops._extension import DTYPES, extension
from fastprune.ops._layout import layout_of, not_dense
from fastprune.ops._op import Implementation, define, public

__all__ = ["add_zeros", "not_supported", "zero_count"]


def add_zeros(x: Tensor, counter: Tensor) -> None:
    """The reference: adds the zeros of ``x`` ``[N, C, ...]`` to ``counter``, in plain torch."""
    dims = [d for d in range(x.ndim) if d != 1]
    counter.add_((x == 0).sum(dims) if dims else (x == 0).to(torch.int64))


def _fake(x: Tensor, counter: Tensor) -> None:
    return None


def _cpp() -> Callable[[Tensor, Tensor], None]:
    count = extension().zero_count

    def run(x: Tensor, counter: Tensor) -> None:
        layout = layout_of(x)
        count(
            x.data_ptr(),
            counter.data_ptr(),
            DTYPES[x.dtype],
            layout.outer,
            layout.channels,
            layout.inner,
            layout.channels_last,
            torch.get_num_threads(),
        )

    return run


def _numba() -> Callable[[Tensor, Tensor], None]:
    from fastprune.kernels.numba.zero_count import zero_count

    kernel: Callable[[Tensor, Tensor], None] = zero_count
    return kernel


def _triton() -> Callable[[Tensor, Tensor], None]:
    from fastprune.kernels.triton.zero_count import zero_count

    kernel: Callable[[Tensor, Tensor], None] = zero_count
    return kernel


def not_supported(x: Tensor, *others: object) -> str | None:
    """Why the compiled implementations of ops that count zeros do not take ``x``, or None."""
    if x.dtype not in DTYPES:
        return f"dtype {x.dtype}"
    return not_dense(x)


_op = define(
    "zero_count",
    "(Tensor x, Tensor(a!) counter) -> ()",
    fake=_fake,
    reference=add_zeros,
    implementations=[
        Implementation("triton", "cuda", _triton, not_supported),
        Implementation("cpp", "cpu", _cpp, not_supported),
        Implementation("numba", "cpu", _numba, not_supported),
    ],
)


@public
def zero_count(x: Tensor, *, counter: Tensor | None = None) -> Tensor:
    """Number of exact zeros in each channel, −0.0 included, NaN not.

    Args:
        x: ``[N, C, ...]``, any floating dtype; read once where it is contiguous or channels_last.
        counter: int64 ``[C]`` on the same device that the counts are added to; zeros if None.

    Returns:
        The counter.

    Raises:
        TypeError: dtypes are not as above.
        ValueError: shapes or devices are not.
    """
    check_activation(x)
    if counter is None:
        counter = torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)
    check_counter(counter, x)
    _op(x.detach(), counter)
    return counter
