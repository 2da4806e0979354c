"""Two torchrun agents that meet on loopback, and ranks of theirs that are killed.

`killed_ranks.py` does it ten times over.
"""

from __future__ import annotations

import random
from pathlib import Path

import yaml
from killed_ranks import CONFIG, killed, left
from rank_processes import Ranks

WORK = Path(__file__).with_name("rank_runs.py")


def test_a_run_on_two_machines_goes_on_after_a_kill(ranks: Ranks, tmp_path: Path) -> None:
    config = tmp_path / "killed.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    found = killed(config, tmp_path / "killed", ["plan"], random.Random(0))
    ranks.run(2, WORK, "run", CONFIG, str(tmp_path / "whole"))
    assert found == left(tmp_path / "whole")
