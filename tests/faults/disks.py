"""A small disk of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["Disk"]


class Disk:
    """A file system of its own, in memory.

    Args:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, *options: str) -> None:
        """Mounts it, or again with other options, such as ``size=64k`` or ``ro``."""
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)]
        subprocess.run(words, check=True, capture_output=True)
