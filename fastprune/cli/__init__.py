"""The command line: arguments, exit codes, printing; `fastprune.run` computes.

Nothing here imports torch until a command that needs it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

# In the order in which --help lists their commands.
from fastprune.cli import (  # isort: skip
    running,
    measuring,
    timing,
    reading,
    exporting,
    joining,
    telling,
)
from fastprune.cli._app import app

__all__ = [
    "app",
    "exporting",
    "joining",
    "measuring",
    "reading",
    "running",
    "telling",
    "timing",
]
