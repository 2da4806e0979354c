"""What the commands have in common: the application, its errors, options and printing."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastprune.errors import ConfigError, FastpruneError, StorageError, ToldElsewhere

__all__ = [
    "Classes",
    "Device",
    "Fresh",
    "Json",
    "Model",
    "Option",
    "Quiet",
    "Root",
    "Seed",
    "Threads",
    "Weights",
    "app",
    "print_json",
    "this_command",
]

_GOES_ON = ("run", "prune", "fuse")
_ANEW = ("--fresh", "--fresh-search")


class _Commands(TyperGroup):
    """What the user can mend becomes one line and exit code 2; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ToldElsewhere as error:
            raise typer.Exit(error.code) from None
        except FastpruneError as error:
            lines = error.problems if isinstance(error, ConfigError) else (str(error),)
            for line in lines:
                print(f"fastprune: error: {line}", file=sys.stderr)
            raise typer.Exit(2) from None
        except OSError as error:
            told = StorageError.of(error)
            if told is None:
                raise
            print(f"fastprune: error: {told}", file=sys.stderr)
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
    int | None, typer.Option(min=1, max=1024, help="CPU threads; torch's own choice if not given.")
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A registered name, torchvision:NAME, timm:NAME, package.module:function "
        "or file.py:function.",
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="A weights file, or a torchvision name such as DEFAULT.")
]
Root = Annotated[str | None, typer.Option(help="Folder of the dataset.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")]
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


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from fastprune import __version__

        print(__version__)
        raise typer.Exit


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def this_command() -> list[str]:
    return ["fastprune", *sys.argv[1:]]
