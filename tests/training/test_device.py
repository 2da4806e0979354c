from __future__ import annotations

import pytest
import torch

from fastprune.training._device import name_of, precision_of


@pytest.mark.parametrize(
    ("has", "precision"),
    [
        (["avx512_bf16"], "bf16"),
        (["amx_bf16", "avx512_bf16"], "bf16"),
        ([], "fp32"),
        (["sve_bf16"], "fp32"),
    ],
)
def test_auto_is_bf16_on_processors_where_it_was_measured_faster(
    monkeypatch: pytest.MonkeyPatch, has: list[str], precision: str
) -> None:
    monkeypatch.setattr("fastprune.training._device.bf16_instructions", lambda: has)
    assert name_of(precision_of("auto", torch.device("cpu"))) == precision
    assert name_of(precision_of("fp32", torch.device("cpu"))) == "fp32"
    assert name_of(precision_of("bf16", torch.device("cpu"))) == "bf16"
