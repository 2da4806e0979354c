from __future__ import annotations

import pytest
import torch
from torch import nn

from fastprune.errors import DivergenceError
from fastprune.training._guard import check_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 70, 4094])
def test_one_bad_weight_is_found(dtype: torch.dtype, bad: float, place: int) -> None:
    layer = nn.Linear(4095, 1, dtype=dtype)
    # The largest numbers are still finite, though their sum is not.
    nn.init.constant_(layer.weight, torch.finfo(dtype).max)
    check_weights(layer, "layer", "nothing is kept")
    with torch.no_grad():
        layer.weight[0, place] = bad
    with pytest.raises(DivergenceError, match=r"^layer: weight holds numbers that are not finite"):
        check_weights(layer, "layer", "nothing is kept")


def test_weights_may_be_complex_or_none_at_all() -> None:
    layer = nn.ParameterList([torch.zeros(0), torch.ones(2, dtype=torch.complex64)])
    check_weights(layer, "layer", "nothing is kept")
    with torch.no_grad():
        layer[1][0] = complex(0, float("nan"))
    with pytest.raises(DivergenceError, match=r"^layer: 1 holds"):
        check_weights(layer, "layer", "nothing is kept")
