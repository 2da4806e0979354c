"""What must hold of every op: its values, its registration, its behaviour under compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastprune.errors import BackendError
from fastprune.ops import registered, use_backend
from fastprune.testing.ops._case import OpCase

__all__ = ["check_compiled", "check_implementation", "check_registration"]


def check_implementation(op: str, case: OpCase, backend: str, device: torch.device) -> str | None:
    """Compares one implementation with the reference, for what it returns and what it changes.

    Whole numbers must be equal. Floating ones must be as near to the reference in float64 as the
    reference in their own dtype is, times the case's slack; where that is exact, they must be
    exact, up to ``slack - 1`` rounding steps of the largest value.

    Returns:
        Why the implementation does not take these arguments, or None: it took them and was right.

    Raises:
        AssertionError: it was wrong.
    """
    arguments = _arguments(case, device)
    with use_backend(backend):
        try:
            registered()[op].choose(device.type, arguments)
        except BackendError as refusal:
            return str(refusal)
    found = _outcome(op, case, device, backend)
    plain = _outcome(op, case, device, "reference")
    exact = _outcome(op, case, device, "reference", torch.float64)
    assert len(found) == len(plain), f"{op}: {len(found)} tensors, expected {len(plain)}"
    for place, (got, expected, best) in enumerate(zip(found, plain, exact, strict=True)):
        where = f"{op}[{case.name}] {backend} on {device}, tensor {place}"
        assert got.shape == expected.shape, f"{where}: {got.shape}, expected {expected.shape}"
        assert got.dtype == expected.dtype, f"{where}: {got.dtype}, expected {expected.dtype}"
        assert got.stride() == expected.stride(), (
            f"{where}: strides {got.stride()}, expected {expected.stride()}"
        )
        if not got.is_floating_point():
            assert torch.equal(got, expected), f"{where}: {got}, expected {expected}"
            continue
        odd = ~best.isfinite() | ~expected.isfinite()
        assert torch.equal(got.isnan(), expected.isnan()), f"{where}: NaN elsewhere"
        assert torch.equal(got[odd].nan_to_num(), expected[odd].nan_to_num()), where
        if got[~odd].numel():
            got, expected, best = (t[~odd].double() for t in (got, expected, best))
            step = torch.finfo(found[place].dtype).eps * float(best.abs().max())
            allowed = case.slack * float((expected - best).abs().max()) + (case.slack - 1) * step
            error = float((got - best).abs().max())
            assert error <= allowed, f"{where}: error {error:.3g}, allowed {allowed:.3g}"
    return None


def check_registration(op: str, case: OpCase, device: torch.device) -> None:
    """``torch.library.opcheck``: schema, fake, dispatch and compilation of the registered op."""
    # opcheck takes a NaN for different from a NaN.
    arguments = _map(_arguments(case, device), _finite)
    torch.library.opcheck(registered()[op].overload, arguments)


def check_compiled(op: str, case: OpCase, device: torch.device) -> None:
    """The public call gives under ``torch.compile(fullgraph=True)`` what it gives without.

    Raises:
        ValueError: the case has no public call.
    """
    if case.call is None:
        raise ValueError(f"{op}[{case.name}]: has no public call")
    call: Callable[..., Any] = case.call
    eager, compiled = _arguments(case, device), _arguments(case, device)
    expected = _tensors((call(*eager), eager))
    torch._dynamo.reset()
    whole = torch.compile(call, fullgraph=True, backend="aot_eager")
    got = _tensors((whole(*compiled), compiled))
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine.nan_to_num(), theirs.nan_to_num()), f"{op}[{case.name}]: compiled"


def _arguments(case: OpCase, device: torch.device) -> tuple[Any, ...]:
    return case.make(device, torch.Generator().manual_seed(0))


def _outcome(
    op: str, case: OpCase, device: torch.device, backend: str, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """What a call returns, then every tensor it was given, changed or not."""
    arguments = _arguments(case, device)
    if dtype is not None:
        arguments = _map(arguments, lambda t: _to(t, dtype))
    with use_backend(backend), torch.no_grad():
        result = registered()[op](*arguments)
    return _tensors((result, arguments))


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0, 1, -1) if tensor.is_floating_point() else tensor


def _map(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, change, tree)


def _tensors(tree: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
