"""A part of `mutations.py`, which tries a thousand mutants."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import KINDS, Assets, problem

FEW = 100


@pytest.mark.parametrize("name", KINDS)
def test_a_mutant_is_accepted_or_refused_by_name(
    name: str, assets: Assets, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, share = KINDS[name]

    @settings(
        max_examples=max(4, round(FEW * share / 100)),
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        folder: Path = tmp_path_factory.mktemp("mutant")
        command = kind(data.draw, assets, folder)
        outcome, wrong = problem(command)
        assert wrong is None, f"{' '.join(command.words)}: {outcome}: {wrong}"

    tried()
