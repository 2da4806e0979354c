"""``python -m fastprune``: the command line, under torchrun too."""

from __future__ import annotations

from fastprune.cli import app


def main() -> None:
    """Runs the command line and exits."""
    app(prog_name="fastprune")


if __name__ == "__main__":
    main()
