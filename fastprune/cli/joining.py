"""Commands that join networks: ``fuse`` and ``infer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastprune.cli._app import Device, Json, Quiet, Root, Threads, app, print_json

DataOption = Annotated[
    list[str] | None,
    typer.Option("--data-option", metavar="KEY=VALUE", help="Of the dataset; repeatable."),
]


@app.command()
def fuse(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…",
            help="A run of papm_split; or the experts, run directories or saved networks, in the "
            "order of the head's inputs.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the fused network of given experts.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Dataset; that of the first run if not given.")
    ] = None,
    root: Root = None,
    data_option: DataOption = None,
    head_option: Annotated[
        list[str] | None,
        typer.Option(
            "--head-option", metavar="KEY=VALUE", help="For instance epochs=50; repeatable."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="That of the first run if not given, or 0.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a head on what several networks see. Repeat the command to go on."""
    from fastprune.run.joining import fuse_networks, print_fusions

    fusions = fuse_networks(
        runs,
        out,
        data=data,
        root=root,
        given_data=data_option or (),
        given_head=head_option or (),
        seed=seed,
        device=device,
        threads=threads,
        quiet=quiet,
    )
    if as_json:
        print_json([fusion.to_dict() for fusion in fusions])
    else:
        print_fusions(fusions)


@app.command()
def infer(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run of papm_split, or the folder of a fused network."
        ),
    ],
    root: Root = None,
    data_option: DataOption = None,
    devices: Annotated[
        list[str] | None,
        typer.Option("--device", help="Of each expert in turn, or one for all: cpu, cuda:1, …"),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, max=1024, help="CPU threads of each process.")
    ] = 1,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Images at a time, repeatable; 1, and as many as accuracy was measured with, if "
            "not given.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Turns that are measured.")] = 30,
    unpruned: Annotated[
        Path | None,
        typer.Option(help="A run whose baseline is measured beside; RUN itself if it has one."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of inference.csv; that of the fused network."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run fused networks, a process for each expert: accuracy, and how long each part takes."""
    from fastprune.run.joining import infer_fusions, print_inferred

    found = infer_fusions(
        path,
        root=root,
        given_data=data_option or (),
        devices=devices or ("auto",),
        threads=threads,
        batches=batch or (),
        repeats=repeats,
        unpruned=unpruned,
        out=out,
        quiet=quiet,
    )
    if as_json:
        print_json([each.to_dict() for each in found])
    else:
        print_inferred(found)
