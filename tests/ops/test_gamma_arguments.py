"""Wrong arguments of the ops on batch norm scales: expected and got, and nothing touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastprune.ops import gamma_penalty, gamma_proximal_, gamma_subgradient_

WRONG: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: gamma_subgradient_([torch.ones(2)], [], 1.0),
        ValueError,
        "gradients: expected 1, one for each scale, got 0",
    ),
    (
        lambda: gamma_subgradient_([], [torch.ones(2)], 1.0),
        ValueError,
        "gradients: expected 0, one for each scale, got 1",
    ),
    (
        lambda: gamma_subgradient_([torch.ones(2)], [torch.ones(2, 1)], 1.0),
        ValueError,
        r"gradients\[0\]: expected shape \[2\], got \[2, 1\]",
    ),
    (
        lambda: gamma_subgradient_([torch.ones(2)], [None], 1.0),  # type: ignore[list-item]
        TypeError,
        r"gradients\[0\]: expected a tensor, got NoneType",
    ),
    (
        lambda: gamma_subgradient_(["γ"], [torch.ones(2)], 1.0),  # type: ignore[list-item]
        TypeError,
        r"scales\[0\]: expected a tensor, got str",
    ),
    (
        lambda: gamma_subgradient_([torch.ones(2)], [torch.ones(2).half()], 1.0),
        TypeError,
        r"gradients\[0\]: expected torch.float32, got torch.float16",
    ),
    (
        lambda: gamma_subgradient_([torch.ones(2).int()], [torch.ones(2).int()], 1.0),
        TypeError,
        r"scales\[0\]: expected a floating dtype, got torch.int32",
    ),
    (
        lambda: gamma_subgradient_([torch.ones(2)], [torch.ones(2, device="meta")], 1.0),
        ValueError,
        r"gradients\[0\]: expected device cpu, got meta",
    ),
    (
        lambda: gamma_penalty([torch.ones(2), torch.ones(2, device="meta")]),
        ValueError,
        r"scales\[1\]: expected device cpu, as scales\[0\] has, got meta",
    ),
    (
        lambda: gamma_proximal_([torch.ones(2)], -0.5),
        ValueError,
        "threshold: expected finite numbers of at least 0, got -0.5",
    ),
    (
        lambda: gamma_proximal_([torch.ones(2)], float("nan")),
        ValueError,
        "threshold: expected finite numbers of at least 0, got nan",
    ),
    (
        lambda: gamma_subgradient_([torch.ones(2)], [torch.ones(2)], [1.0, float("inf")]),
        ValueError,
        "strength: expected finite numbers of at least 0, got inf",
    ),
    (
        lambda: gamma_subgradient_([torch.ones(2)], [torch.ones(2)], [1.0, 2.0]),
        ValueError,
        "strength: expected one number, or 1, one a layer, got 2",
    ),
    (
        lambda: gamma_proximal_([torch.ones(2)], torch.ones(2)),
        ValueError,
        r"threshold: expected shape \[\] or \[1\], one entry a layer, got \[2\]",
    ),
    (
        lambda: gamma_proximal_([torch.ones(2)], torch.ones(1, 1)),
        ValueError,
        r"threshold: expected shape \[\] or \[1\], one entry a layer, got \[1, 1\]",
    ),
    (
        lambda: gamma_proximal_([torch.ones(2)], torch.ones(1).double()),
        TypeError,
        "threshold: expected float32, got torch.float64",
    ),
    (
        lambda: gamma_proximal_([torch.ones(2)], torch.ones((), device="meta")),
        ValueError,
        "threshold: expected device cpu, as the scales have, got meta",
    ),
    (
        lambda: gamma_proximal_([torch.ones(2)] * 2, torch.ones(4)[::2]),
        ValueError,
        "threshold: expected contiguous memory, got stride",
    ),
]


@pytest.mark.parametrize("place", range(len(WRONG)))
def test_wrong_arguments(place: int) -> None:
    call, error, words = WRONG[place]
    with pytest.raises(error, match=words):
        call()


def test_a_wrong_list_changes_nothing() -> None:
    scales = [torch.ones(3), torch.ones(3)]
    gradients = [torch.zeros(3), torch.zeros(2)]

    with pytest.raises(ValueError, match=r"gradients\[1\]"):
        gamma_subgradient_(scales, gradients, 1.0)

    assert not gradients[0].any()
