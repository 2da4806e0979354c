"""What a fresh Python loads: importing fastprune and asking for help stay cheap."""

from __future__ import annotations

import subprocess
import sys


def loaded_after(code: str) -> set[str]:
    """Top-level packages in ``sys.modules`` of a fresh Python that ran ``code``."""
    program = f"import sys\n{code}\nprint('\\n', *sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_fastprune_loads_no_optional_or_slow_package() -> None:
    loaded = loaded_after("import fastprune")

    assert "fastprune" in loaded
    assert not loaded & {"torchvision", "triton", "numba", "scipy", "sklearn", "timm", "pydantic"}


def test_help_loads_no_torch() -> None:
    loaded = loaded_after(
        "from typer.testing import CliRunner\n"
        "from fastprune.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'run' in result.output"
    )

    assert "typer" in loaded
    assert not loaded & {"torch", "torchvision", "numba", "numpy"}


def test_the_installed_command_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastprune", "--version"],
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
