"""Functions compiled by torch.compile, with a way on where they cannot be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Compiled", "compile_refusal"]


def compile_refusal() -> str | None:
    """Why torch.compile takes no function at all here, as on a Python that is too new, or None.

    Whether it takes a certain one turns out when that is first called.
    """
    try:
        torch.compile(_first_line)
    except RuntimeError as error:
        return f"torch cannot compile here: {_first_line(error)}"
    return None


class Compiled:
    """A function of a batch, compiled for batches of one size; others run as they are, since
    compiling again for the last batch of an epoch costs more than it saves.

    Args:
        function: of tensors that have the images in front.
        images: of a whole batch.
        say: told in one line where the function cannot be compiled, or only in parts.

    Attributes:
        refusal: why the function runs uncompiled; None as long as it is compiled.
        parts: why it is compiled in parts, with Python between them; None if it is one whole.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        *,
        images: int,
        say: Callable[[str], None],
    ) -> None:
        self._function, self._images, self._say = function, images, say
        self._compiled = torch.compile(function, fullgraph=True, dynamic=False)
        self.refusal: str | None = None
        self.parts: str | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the function gives for a batch."""
        # Here, since it takes a second to load, and was loaded by compiling.
        from torch._dynamo.exc import TorchDynamoException, Unsupported

        if self.refusal is not None or len(inputs[0]) != self._images:
            return self._function(*inputs)
        # Both come from compiling, and of a whole function before anything of it is computed.
        try:
            return self._compiled(*inputs)
        except Unsupported as error:
            if self.parts is not None:
                return self._uncompiled(error, inputs)
            self.parts = _first_line(error)
            self._say(f"compile: in parts, since torch cannot take it as a whole: {self.parts}")
            self._compiled = torch.compile(self._function, dynamic=False)
            return self(*inputs)
        except TorchDynamoException as error:
            return self._uncompiled(error, inputs)

    def _uncompiled(self, error: Exception, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.refusal = _first_line(error)
        self._say(f"compile: not possible here, going on without: {self.refusal}")
        return self._function(*inputs)


def _first_line(error: Exception) -> str:
    first, _, rest = str(error).strip().partition("\n")
    # Some begin with where it was raised alone.
    return f"{first} {rest.strip().partition(chr(10))[0]}" if first.endswith(":") else first
