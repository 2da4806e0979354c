"""Commands about this installation and its names: ``list``, ``config`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastprune.cli._app import (
    Json,
    Quiet,
    app,
    print_json,
)
from fastprune.errors import ConfigError


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="models, datasets, criteria or methods.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what can be named: networks, datasets, criteria, methods."""
    from fastprune.run.commands import members
    from fastprune.run.tables import print_members

    found = members(kind)
    if as_json:
        print_json(found)
    else:
        print_members(found)


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]…")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema, for editors.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print a configuration with every default filled in, or the schema of all configurations."""
    from fastprune.config import json_schema, load_config, to_yaml

    if schema:
        print_json(json_schema())
        return
    if file is None:
        raise ConfigError("config: expected a YAML file, or --schema")
    settings = load_config(file, overrides or ())
    if as_json:
        print_json(settings.to_dict())
    else:
        print(to_yaml(settings), end="")


@app.command()
def doctor(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="CONFIG",
            help="Measure every input pipeline on the dataset of a YAML file instead.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="With --data, for instance data.root=DIR."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what this installation can do, and why not the rest."""
    if data is None:
        from fastprune.doctor import lines, report

        if overrides:
            raise ConfigError(f"{overrides[0]}: only --data CONFIG takes overrides")
        found = report()
        said = lines(found)
    else:
        from fastprune.config import load_config
        from fastprune.run.speeds import speed_lines, speed_report

        found = speed_report(load_config(data, overrides or ()), quiet=quiet)
        said = speed_lines(found)
    if as_json:
        print_json(found)
    else:
        print("\n".join(said))
