"""What a GPU is not asked about, since asking would wait for it: NaN, and nothing else is read."""

from __future__ import annotations

import os

import pytest
import torch

from fastprune.ops import resized_crop, use_backend

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET is not 1: make interpret", allow_module_level=True)


def test_resized_crop() -> None:
    whole, far = (0, 0, 5, 4, 0), 2**31 - 1
    wanted = (
        # Image, its part, and whether there is such a thing.
        (0, whole, True),
        (2, whole, False),
        (-1, whole, False),
        (1, whole, False),
        (0, (-1, 0, 5, 4, 0), False),
        (0, (1, 0, 5, 4, 0), False),
        (0, (0, 3, 5, 2, 1), False),
        (0, (0, 0, 0, 4, 0), False),
        (0, (0, 0, far, far, 0), False),
        (0, (far, far, 1, 1, 0), False),
        (0, (4, 3, 1, 1, 1), True),
    )
    with use_backend("triton"):
        found = resized_crop(
            torch.arange(60, dtype=torch.uint8),
            torch.tensor([0, 1]),
            torch.tensor([[5, 4], [5, 4]], dtype=torch.int32),
            torch.tensor([image for image, _, _ in wanted]),
            torch.tensor([box for _, box, _ in wanted], dtype=torch.int32),
            size=3,
            mean=torch.zeros(3),
            std=torch.ones(3),
        )
    assert found.isnan().flatten(1).all(1).tolist() == [not there for _, _, there in wanted]
    assert found.isnan().flatten(1).any(1).tolist() == [not there for _, _, there in wanted]
