"""The command that takes times: ``latency``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastprune.cli._app import Device, Json, Quiet, app, print_json


@app.command()
def latency(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, or a saved network.")
    ],
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODE",
            help="eager, or channels_last, bf16 and compiled joined by +, such as "
            "compiled+channels_last; repeatable. By default eager, channels_last, bf16, "
            "channels_last+bf16 and compiled.",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Images at a time; repeatable. By default 1 and 16."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=1024, help="CPU threads; repeatable. torch's own choice if not given."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Turns of each pair of networks.")] = 30,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of latency.csv and .json; by default RUN."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Time the pruned network beside the unpruned one, in turns, in several modes."""
    from fastprune.run.latency import DEFAULT_MODES, measure, print_latency

    found = measure(
        run,
        modes=mode or DEFAULT_MODES,
        batches=batch or (1, 16),
        threads=threads or (),
        repeats=repeats,
        device=device,
        out=out,
        quiet=quiet,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        print_latency(found)
