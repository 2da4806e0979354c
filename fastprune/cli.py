"""Arguments, exit codes, printing. What a command computes is in `fastprune.run`.

Nothing here imports torch until a command that needs it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastprune.errors import ConfigError, FastpruneError

__all__ = ["app"]

_GOES_ON = ("run", "prune")
_ANEW = ("--fresh", "--fresh-search")


class _Commands(TyperGroup):
    """What the user can mend becomes one line and exit code 2; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FastpruneError as error:
            lines = error.problems if isinstance(error, ConfigError) else (str(error),)
            for line in lines:
                print(f"fastprune: error: {line}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print(f"fastprune: interrupted{_how_to_go_on(ctx)}", file=sys.stderr)
            raise typer.Exit(130) from None


def _how_to_go_on(ctx: Any) -> str:
    if ctx.invoked_subcommand not in _GOES_ON:
        return ""
    anew = next((f" without {word}" for word in sys.argv if word in _ANEW), "")
    return f"; the same command{anew} goes on from here"


app = typer.Typer(
    cls=_Commands,
    name="fastprune",
    help="Structured pruning of PyTorch networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Forget what is in the run directory; start anew.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; torch's own choice if not given.")
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A registered name, torchvision:NAME, timm:NAME, package.module:function "
        "or file.py:function.",
    ),
]
Classes = Annotated[
    int | None, typer.Option("--num-classes", min=1, help="Classes; the usual ones if not given.")
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--model-option",
        metavar="KEY=VALUE",
        help="An argument of the network's builder; repeatable.",
    ),
]


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
        typer.Option(help="Last stage to run: baseline, plan, prune, finetune or report."),
    ] = "report",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run an experiment: baseline, plan, prune, fine-tune, report. Repeat the command to go on."""
    from fastprune.config import load_config
    from fastprune.run.pipeline import run as run_pipeline

    settings = load_config(config, overrides or ())
    report = run_pipeline(
        settings,
        out or Path("runs") / config.stem,
        fresh=fresh,
        fresh_search=fresh_search,
        until=until,
        quiet=quiet,
        command=_this_command(),
    )
    _show_report(report, as_json)


@app.command()
def prune(
    model: Model,
    weights: Annotated[
        str | None, typer.Option(help="A weights file, or a torchvision name such as DEFAULT.")
    ] = None,
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
    round_to: Annotated[int, typer.Option(min=1, help="Widths become multiples of this.")] = 1,
    ranking: Annotated[str, typer.Option(help="global, layer or isomorphic.")] = "global",
    keep: Annotated[
        list[str] | None, typer.Option(help="Pattern of channel groups never pruned; repeatable.")
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of gradual pruning.")] = 1,
    data: Annotated[str, typer.Option(help="Dataset; see `fastprune list datasets`.")] = "digits",
    root: Annotated[str | None, typer.Option(help="Folder of the dataset.")] = None,
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
    seed: Annotated[int, typer.Option(min=0)] = 0,
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
    from fastprune.run.pipeline import run as run_pipeline

    budget = {
        "macs": macs,
        "params": params,
        "channels": channels,
        "size_mb": size_mb,
        "latency_ms": latency_ms,
    }
    settings = prune_config(
        model,
        weights=weights,
        num_classes=num_classes,
        model_options=model_option or (),
        criterion=criterion,
        iterations=iterations,
        budget={metric: value for metric, value in budget.items() if value is not None},
        round_to=round_to,
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
    report = run_pipeline(settings, folder, fresh=fresh, quiet=quiet, command=_this_command())
    _show_report(report, as_json)


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
    from fastprune.run.report import print_counts

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
        _print_json(counts)
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
    weights: Annotated[
        str | None, typer.Option(help="A weights file, or a torchvision name such as DEFAULT.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Dataset; see `fastprune list datasets`.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the dataset.")] = None,
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
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a network on a dataset, in percent."""
    from fastprune.run.commands import evaluate as evaluate_model
    from fastprune.run.report import print_metrics

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
        _print_json(figures)
    else:
        print_metrics(figures)


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run directories, for instance runs/*.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder of comparison.csv, .json and .png; default: here."),
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Compare finished runs of any method: accuracy, cost and time, as table, files and figure."""
    from fastprune.run.compare import compare as compare_runs
    from fastprune.run.compare import print_comparison

    found = compare_runs(runs, out)
    for line in found.notes:
        print(f"fastprune: {line}", file=sys.stderr)
    if as_json:
        _print_json(found.to_dict())
    else:
        print_comparison(found)


@app.command()
def plot(
    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory; the run need not be finished.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the figures; by default RUN.")
    ] = None,
) -> None:
    """Draw the figures of a run: training curves, search, kept channels, states, penalty."""
    from fastprune.run.figures import draw_run

    for file in draw_run(path, out):
        print(file)


@app.command()
def group(
    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory with a trained baseline.")
    ],
    similarity: Annotated[
        str, typer.Option(help="Of two classes' mean logits: cosine or covariance.")
    ] = "cosine",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the files; by default RUN.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Group the classes that a run's baseline finds alike, for 2 devices up to one a class."""
    from fastprune.run.grouping import group_run, print_groups

    found = group_run(path, similarity, out, quiet=quiet)
    if as_json:
        _print_json(found.to_dict())
    else:
        print_groups(found)


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="models, datasets, criteria or methods.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what can be named: networks, datasets, criteria, methods."""
    from fastprune.run.commands import members
    from fastprune.run.report import print_members

    found = members(kind)
    if as_json:
        _print_json(found)
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
        _print_json(json_schema())
        return
    if file is None:
        raise ConfigError("config: expected a YAML file, or --schema")
    settings = load_config(file, overrides or ())
    if as_json:
        _print_json(settings.to_dict())
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
        _print_json(found)
    else:
        print("\n".join(said))


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from fastprune import __version__

        print(__version__)
        raise typer.Exit


def _show_report(report: dict[str, Any], as_json: bool) -> None:
    from fastprune.run.report import print_report, print_stage

    if as_json:
        _print_json(report)
    elif "stage" in report:
        print_stage(report)
    else:
        print_report(report)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _this_command() -> list[str]:
    return ["fastprune", *sys.argv[1:]]
