"""Commands that make networks: ``run`` and ``prune``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fastprune.cli._app import (
    Classes,
    Device,
    Fresh,
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
    this_command,
)

_TIMEOUT = 1800.0


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="For instance finetune.epochs=3."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run directory; runs/<name of CONFIG> if not given."),
    ] = None,
    fresh: Fresh = False,
    fresh_search: Annotated[
        bool,
        typer.Option(
            "--fresh-search",
            help="Keep the baseline, start anew from the method on; method, prune and finetune "
            "may be other than before.",
        ),
    ] = False,
    until: Annotated[
        str,
        typer.Option(
            help="Last stage to run: baseline, plan, prune, finetune or report; of papm_split "
            "baseline, group, experts, fuse, infer or report."
        ),
    ] = "report",
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Run on so many GPUs of this machine, a process each, as torchrun begins them; "
            "with device=cpu, in so many processes on the CPU.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            min=1,
            help="With several processes: seconds that one waits for another before the run ends.",
        ),
    ] = _TIMEOUT,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run an experiment: baseline, plan, prune, fine-tune, report. Repeat the command to go on."""
    from fastprune.config import load_config
    from fastprune.run.launch import check_ranks, launch, rank, started
    from fastprune.run.pipeline import run as run_pipeline

    with started(timeout):
        settings = load_config(config, overrides or ())
        if gpus is not None:
            check_ranks(gpus, settings)
        if gpus is None or gpus == 1:
            report = run_pipeline(
                settings,
                out or Path("runs") / config.stem,
                fresh=fresh,
                fresh_search=fresh_search,
                until=until,
                quiet=quiet,
                command=this_command(),
            )
            if rank() == 0:
                show_report(report, as_json)
            return
    raise typer.Exit(launch(gpus, _without_gpus(sys.argv[1:]), settings.threads))


def _without_gpus(arguments: Sequence[str]) -> list[str]:
    """What each of several processes is given."""
    left: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument == "--gpus":
            next(given)
        elif not argument.startswith("--gpus="):
            left.append(argument)
    return left


@app.command()
def prune(
    model: Model,
    weights: Weights = None,
    criterion: Annotated[
        str, typer.Option(help="How channels are scored; see `fastprune list criteria`.")
    ] = "l1",
    macs: Annotated[
        float | None, typer.Option(help="Budget: fraction kept, or an absolute above 1.")
    ] = None,
    params: Annotated[float | None, typer.Option(help="Budget, as --macs.")] = None,
    channels: Annotated[float | None, typer.Option(help="Budget, as --macs.")] = None,
    size_mb: Annotated[float | None, typer.Option("--size-mb", help="Budget, as --macs.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", help="Budget, as --macs.")
    ] = None,
    round_to: Annotated[
        str,
        typer.Option(
            metavar="N|auto", help="Widths become multiples of this; auto: what the device likes."
        ),
    ] = "1",
    ranking: Annotated[str, typer.Option(help="global, layer or isomorphic.")] = "global",
    keep: Annotated[
        list[str] | None, typer.Option(help="Pattern of channel groups never pruned; repeatable.")
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of gradual pruning.")] = 1,
    data: Annotated[str, typer.Option(help="Dataset; see `fastprune list datasets`.")] = "digits",
    root: Root = None,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning; 0 for none.")] = 10,
    baseline_epochs: Annotated[
        int,
        typer.Option(
            min=0, help="Epochs that train the network first, where no weights are given."
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run directory; runs/prune-<model> if not given."),
    ] = None,
    num_classes: Classes = None,
    model_option: Option = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prune a network without writing a config: score, prune to the budget, fine-tune, report.

    Fine-tuning is SGD, learning rate 0.01 with a cosine schedule, momentum 0.9, weight decay 5e-4.
    """
    from fastprune.run.commands import prune_config, run_name
    from fastprune.run.launch import rank, started
    from fastprune.run.pipeline import run as run_pipeline

    budget = {
        "macs": macs,
        "params": params,
        "channels": channels,
        "size_mb": size_mb,
        "latency_ms": latency_ms,
    }
    with started(_TIMEOUT):
        settings = prune_config(
            model,
            weights=weights,
            num_classes=num_classes,
            model_options=model_option or (),
            criterion=criterion,
            iterations=iterations,
            budget={metric: value for metric, value in budget.items() if value is not None},
            round_to=int(round_to) if round_to.isdecimal() else round_to,
            ranking=ranking,
            keep=keep or (),
            data=data,
            root=root,
            epochs=epochs,
            baseline_epochs=baseline_epochs,
            seed=seed,
            device=device,
            threads=threads,
        )
        folder = out or Path("runs") / f"prune-{run_name(model)}"
        report = run_pipeline(settings, folder, fresh=fresh, quiet=quiet, command=this_command())
        if rank() == 0:
            show_report(report, as_json)


def show_report(report: dict[str, Any], as_json: bool) -> None:
    from fastprune.run.ensemble_report import print_ensemble_report
    from fastprune.run.tables import print_report, print_stage

    if as_json:
        print_json(report)
    elif "stage" in report:
        print_stage(report)
    elif "fusions" in report:
        print_ensemble_report(report)
    else:
        print_report(report)
