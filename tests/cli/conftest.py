from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_calls import CONFIG, call


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory, finished."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    code, _, err = call("run", folder / "tiny.yaml", "--out", folder / "a", "--quiet")
    assert code == 0, err
    return folder / "a"
