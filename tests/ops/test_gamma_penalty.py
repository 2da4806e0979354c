"""gamma_penalty: what the cases do not say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastprune.ops import gamma_penalty


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_penalty_dtype_and_error(dtype: torch.dtype) -> None:
    scales = [torch.randn(n).to(dtype) for n in (3000, 5, 64)]
    total = gamma_penalty(scales)

    assert total.shape == ()
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(total) == pytest.approx(sum(float(s.double().abs().sum()) for s in scales), 1e-6)
    assert gamma_penalty([*scales, torch.ones(1, dtype=torch.float64)]).dtype == torch.float64


def test_gradients_of_the_penalty() -> None:
    scales = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (4, 1, 3)]
    assert torch.autograd.gradcheck(lambda *s: gamma_penalty(s) ** 2, scales)

    half = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float16, requires_grad=True)
    (3 * gamma_penalty([half, torch.ones(2)])).backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float16
    assert half.grad.tolist() == [3.0, 0.0, -3.0]


def test_the_penalty_in_a_compiled_loss() -> None:
    scales = [nn.Parameter(torch.tensor([1.0, 0.0, -2.0])), nn.Parameter(torch.ones(7))]

    def loss(scales: list[Tensor]) -> Tensor:
        return 2 * gamma_penalty(scales)

    torch._dynamo.reset()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(scales).backward()

    for scale in scales:
        assert scale.grad is not None
        assert torch.equal(scale.grad, 2 * torch.sign(scale.detach()))


def test_the_penalty_under_functorch() -> None:
    scale = torch.tensor([1.0, -2.0, 0.0])

    assert torch.func.functionalize(lambda s: gamma_penalty([s]))(scale) == 3.0
