from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed after a fork")
def test_a_training_killed_anywhere_ends_in_the_same_bytes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, *moments = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(moments) == 4
    for moment in moments:
        assert moment["kills"] >= 3, moment
        assert moment["digest"] == whole["digest"], moment
