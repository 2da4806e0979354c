"""Commands that look at networks: ``count`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastprune.cli._app import (
    Classes,
    Device,
    Json,
    Model,
    Option,
    Quiet,
    Root,
    Seed,
    Threads,
    Weights,
    app,
    print_json,
)


@app.command()
def count(
    model: Model,
    shape: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="CxHxW", help="Input shape; the network's usual one if not given."
        ),
    ] = None,
    num_classes: Classes = None,
    plan: Annotated[
        Path | None, typer.Option(help="A pruning plan: also count the pruned network.")
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='Widths, {"group": n}: also count that network.'),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(help="A code, one number from 1 to 10 a unit: also count that network."),
    ] = None,
    gene: Annotated[
        str | None,
        typer.Option(
            help="A gene of MetaPruning, one number from -1 to 30 an id, or baseline: "
            "also count that network."
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="With --gene: paper (the default) or table, what MobileNetV2's middle widths are "
            "shares of."
        ),
    ] = None,
    published_quirks: Annotated[
        bool,
        typer.Option(
            "--published-quirks",
            help="With --gene: count as the published table does, ResNet-50's stem padded by one "
            "pixel, MobileNetV2's last convolution at stride 2.",
        ),
    ] = False,
    counting: Annotated[
        str,
        typer.Option(
            help="macs (conv and linear, exact), or the rules of thop, ptflops or metapruning."
        ),
    ] = "macs",
    groups: Annotated[
        bool, typer.Option("--groups", help="List the channel groups and the units of a code too.")
    ] = False,
    model_option: Option = None,
    as_json: Json = False,
) -> None:
    """Count MACs, parameters and channels, of a pruned version too."""
    from fastprune.run.commands import count as count_model
    from fastprune.run.tables import print_counts

    counts = count_model(
        model,
        shape=shape,
        num_classes=num_classes,
        model_options=model_option or (),
        plan=plan,
        channels=channels,
        code=code,
        gene=gene,
        rule=rule,
        published_quirks=published_quirks,
        counting=counting,
        groups=groups,
    )
    if as_json:
        print_json(counts)
    else:
        print_counts(counts)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A network's name, a saved network, or a run directory."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]…", help="Options of the dataset, for instance batch_size=512."
        ),
    ] = None,
    weights: Weights = None,
    data: Annotated[
        str | None, typer.Option(help="Dataset; see `fastprune list datasets`.")
    ] = None,
    root: Root = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    normalization: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|JSON",
            help='dataset, imagenet, none or {"mean": […], "std": […]}; by default what is saved '
            "with the weights or usual for them.",
        ),
    ] = None,
    num_classes: Classes = None,
    model_option: Option = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a network on a dataset, in percent."""
    from fastprune.run.commands import evaluate as evaluate_model
    from fastprune.run.tables import print_metrics

    figures = evaluate_model(
        model,
        weights=weights,
        data=data,
        root=root,
        data_options=overrides or (),
        split=split,
        normalization=normalization,
        num_classes=num_classes,
        model_options=model_option or (),
        seed=seed,
        device=device,
        threads=threads,
        quiet=quiet,
    )
    if as_json:
        print_json(figures)
    else:
        print_metrics(figures)
