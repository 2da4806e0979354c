from __future__ import annotations

import pytest
import torch

from fastprune.processor import bf16_instructions, cores


def test_older_torch_is_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert bf16_instructions() == ["avx512_bf16"]


def test_ranks_share_the_cores_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)), raising=False)
    assert cores() == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert cores() == 1
