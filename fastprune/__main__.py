"""``python -m fastprune``: the command line, under torchrun too."""

from __future__ import annotations

import io
import sys

from fastprune.cli import app


def main() -> None:
    """Runs the command line and exits."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is no UTF-8 must not end a run that only names it. In JSON it is right.
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="fastprune")


if __name__ == "__main__":
    main()
