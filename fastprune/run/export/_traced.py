"""torch.export of a network for batches of any size."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

from fastprune.errors import GraphError
from fastprune.run.export._subject import Subject

__all__ = ["quietly", "reason_of", "traced"]

FAILURES = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AssertionError,
    AttributeError,
)
"""What a network's own code and torch's exporters raise; torch's errors are all of them."""


def traced(subject: Subject, network: nn.Module) -> ExportedProgram:
    """What ``network`` does, for any number of images, as torch.export records it.

    Args:
        subject: whose images it gets.
        network: `Subject.network` or `Subject.whole`.

    Raises:
        GraphError: torch.export cannot follow it; the message says why in one line.
    """
    dtype = subject.dtype if network is subject.network else subject.image_dtype
    # Two images: torch.export takes a size of one for a fixed one.
    example = torch.zeros(2, *subject.input_shape, dtype=dtype)
    try:
        # Without gradients, a network's own no_grad blocks are part of the same list of steps.
        with torch.no_grad(), quietly():
            return export(
                network,
                (example,),
                dynamic_shapes=({0: Dim("batch", min=1)},),
                strict=False,
            )
    except FAILURES as error:
        raise GraphError(
            f"{subject.name}: torch.export cannot follow this network: {reason_of(error)}"
        ) from error


def reason_of(error: BaseException) -> str:
    """The line of an error of torch's that says what is wrong."""
    # The exporter of ONNX wraps what went wrong in what it was about to do.
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Constraints violated"):
        # What follows are torch's own names of the sizes, and how to see more of them.
        return "its code fixes the number of images of a batch"
    if "data-dependent" in lines[0]:
        return f"its code decides by what is in the images ({lines[0]})"
    # Advice that torch numbers and shows beneath is for those who change the network.
    return lines[0]


@contextmanager
def quietly() -> Iterator[None]:
    """No warnings, log lines or prints of torch's exporters; what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        # Before it raises, torch.export prints all it has recorded.
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
