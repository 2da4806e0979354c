"""What promises the same bits by every implementation, interpreted.

Not bfloat16: the interpreter cuts float32 off where a GPU rounds it.
"""

from __future__ import annotations

import os

import pytest
import torch

from fastprune.ops import crop_flip_normalize, use_backend

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET is not 1: make interpret", allow_module_level=True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_crop_flip_normalize(dtype: torch.dtype, channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 9, 11), dtype=torch.uint8, generator=generator)
    boxes = torch.randint(0, 5, (5, 3), dtype=torch.int32, generator=generator)
    boxes[:, 2] %= 2
    found = []
    for backend in ("reference", "cpp", "triton"):
        with use_backend(backend):
            batch = crop_flip_normalize(
                pixels,
                torch.tensor([0, 5, 2, 2, 1]),
                boxes,
                mean=torch.tensor([125.3, 122.9, 113.8]),
                std=torch.tensor([63.0, 62.1, 66.7]),
                padding=2,
                dtype=dtype,
                channels_last=channels_last,
            )
        found.append(batch)
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])
