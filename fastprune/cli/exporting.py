"""The command that hands networks on: ``export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastprune.cli._app import Json, Quiet, Root, Threads, app, print_json


@app.command()
def export(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run directory, a saved network or fused ones."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="Options of the dataset of the check."),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="safetensors, torch-export, onnx or standalone.")
    ] = "standalone",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the files; RUN/exported/FORMAT if not given."),
    ] = None,
    pixels: Annotated[
        str,
        typer.Option(
            help="What the exported network gets: normalized images, or pixels that it "
            "normalises itself: unit (0 to 1) or uint8 (0 to 255)."
        ),
    ] = "normalized",
    data: Annotated[
        str | None, typer.Option(help="Dataset to check on; the run's if not given.")
    ] = None,
    root: Root = None,
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a pruned network for others: safetensors, torch.export, ONNX, or a file of Python.

    It is run as it was written, on images of the run's test set, and kept if it gives the same.
    """
    from fastprune.run.export import export as export_network

    found = export_network(
        path,
        format,
        out=out,
        pixels=pixels,
        data=data,
        root=root,
        data_options=overrides or (),
        threads=threads,
        quiet=quiet,
    )
    notes = [part["checked"]["note"] for part in found["parts"] if part["checked"]["note"]]
    for note in dict.fromkeys(notes):
        print(f"fastprune: {note}", file=sys.stderr)
    if as_json:
        print_json(found)
        return
    for file in found["files"]:
        print(f"{file['file']}  {file['bytes']:,} bytes")
    for part in found["parts"]:
        checked = part["checked"]
        same = f"{checked['same']} the same top-1, " if part["output"] == "logits" else ""
        print(
            f"{part['model']}: checked on {checked['images']} images ({checked['on']}): {same}"
            f"{part['output']} differ by {checked['difference']:.2g} at most "
            f"(rounding: {checked['tolerance']:.2g})"
        )
