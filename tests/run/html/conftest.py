"""A run whose every name is an attack on the page that shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attack import ATTACK, NETWORK

from fastprune.config import make_config
from fastprune.run import pipeline


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its folder, file, layers, options and classes have such names."""
    folder = tmp_path_factory.mktemp("hostile")
    code = folder / "<b>&net.py"
    code.write_text(f"NAME = {ATTACK!r}\n{NETWORK}")
    run = folder / "<script>alert(0)" / "<img src=x onerror=alert(3)>"
    given = {
        "model": {"name": f"{code}:Hostile", "options": {"shape": "</td><script>alert(4)"}},
        "data": {"name": "digits", "train_limit": 64, "test_limit": 40, "batch_size": 32},
        "baseline": {"epochs": 1, "lr": 0.05},
        "method": {"name": "apoz", "classes": [1, 2]},
        "prune": {"budget": {"macs": 0.6}},
        "threads": 1,
        "device": "cpu",
        "latency": {"repeats": 2},
    }
    pipeline.run(make_config(given), run, quiet=True, command=["fastprune", ATTACK])
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {ATTACK: ATTACK}))
    classes = (run / "classes.csv").read_text().replace("\n3,3,", f'\n3,"{ATTACK[:24]}",')
    (run / "classes.csv").write_text(classes)
    return run
