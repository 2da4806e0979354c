"""An op: one schema, a reference, and implementations tried in order.

The choice of the implementation sits inside the registered op: a compiled graph holds the op
alone, so there is no graph break, and an override reaches graphs that were compiled before it.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import torch

from fastprune.errors import BackendError, nearest

__all__ = [
    "BACKENDS",
    "DEVICES",
    "Explanation",
    "Implementation",
    "Op",
    "PublicOp",
    "Unavailable",
    "define",
    "public",
    "registered",
    "use_backend",
]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Kernel = Callable[..., Any]

BACKENDS = ("cuda", "triton", "cpp", "numba", "reference")
"""Every kind of implementation, by what it is written in."""

DEVICES = ("cpu", "cuda")
"""Device types that have implementations beside the reference, which runs everywhere."""

# Kept for the life of the process: the ops are gone when it is.
_LIBRARY = torch.library.Library("fastprune", "DEF")  # type: ignore[no-untyped-call]
_OPS: dict[str, Op] = {}


class Unavailable(Exception):
    """An implementation does not load on this machine; the message is the reason."""


def _supports_all(*arguments: Any) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        backend: one of ``BACKENDS``.
        device: the device type whose tensors it takes.
        load: imports and returns the kernel, which takes the op's arguments. Raises Unavailable
            with the reason, or ImportError.
        unsupported: given the op's arguments, why the kernel does not take them, or None. It is
            asked at every call, so it must be cheap.
        direct: the kernel checks everything it is given, and returns NotImplemented, having
            touched nothing, where it does not take it: see `Op.direct`.
    """

    backend: str
    device: str
    load: Callable[[], Kernel]
    unsupported: Callable[..., str | None] = _supports_all
    direct: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS or self.device not in DEVICES:
            raise ValueError(
                f"expected a backend of {BACKENDS} and a device of {DEVICES}, got "
                f"{self.backend!r} and {self.device!r}"
            )


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which implementation an op takes for given arguments, and why not the others.

    Attributes:
        op: its name.
        device: device type of the tensors.
        backend: what runs.
        refused: (backend, reason) of each that comes earlier in the order and does not run, or was
            not asked for.
    """

    op: str
    device: str
    backend: str
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        reasons = "".join(f"; not {backend}: {reason}" for backend, reason in self.refused)
        return f"{self.op} on {self.device}: {self.backend}{reasons}"


class _Explained(Exception):
    """Carries an explanation out of an op that was called only to be asked."""

    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation


class _Asked:
    """One request by name; compared by identity, since blocks of several threads may overlap."""

    def __init__(self, backend: str | None) -> None:
        self.backend = backend


class _State:
    """What was asked for by name, and which threads only ask what would run.

    The request is of the process, not of the thread: backward passes run in threads of autograd's
    own.

    Attributes:
        backend: of the innermost request, or None.
        explaining: idents of threads whose calls are only asked about.
    """

    def __init__(self) -> None:
        asked = os.environ.get("FASTPRUNE_BACKEND") or None
        self._lock = threading.Lock()
        self._requests = [_Asked(_known(asked, "FASTPRUNE_BACKEND"))]
        self.backend = self._requests[-1].backend
        self.explaining: set[int] = set()

    def ask(self, request: _Asked) -> None:
        with self._lock:
            self._requests.append(request)
            self.backend = request.backend

    def withdraw(self, request: _Asked) -> None:
        with self._lock:
            self._requests.remove(request)
            self.backend = self._requests[-1].backend


def _known(backend: str | None, where: str) -> str | None:
    if backend is not None and backend not in BACKENDS:
        raise BackendError(f"{where}: unknown name {backend!r}{nearest(backend, BACKENDS)}")
    return backend


_state = _State()


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Makes every op run the implementation of one backend inside the ``with`` block.

    The environment variable ``FASTPRUNE_BACKEND``, read when fastprune.ops is imported, does the
    same for a whole process. An op that has no such implementation, or whose implementation does
    not take its arguments, raises; nothing else is run instead. Compiled graphs obey too: put the
    block around their call. The setting holds for all threads.

    Args:
        backend: ``"cuda"``, ``"triton"``, ``"cpp"``, ``"numba"`` or ``"reference"``; None leaves
            the choice to each op again.

    Raises:
        BackendError: unknown name, or the block is inside a function that is being compiled: the
            graph would hold the op and not the request.
    """
    if torch.compiler.is_compiling():
        raise BackendError(
            "use_backend: inside a function that torch.compile compiles it has no effect; put it "
            "around the call of the compiled function"
        )
    request = _Asked(_known(backend, "backend"))
    _state.ask(request)
    try:
        yield
    finally:
        _state.withdraw(request)


def _plain_eager() -> bool:
    """Whether nothing but the kernel wants to see a call of an op."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


class Op:
    """A registered op, ``torch.ops.fastprune.<name>``; `define` makes one."""

    def __init__(
        self,
        name: str,
        schema: str,
        reference: Kernel,
        implementations: Sequence[Implementation],
    ) -> None:
        self.name = name
        # Lists of written tensors are left to the kernels that take them.
        self._written = tuple(
            place
            for place, argument in enumerate(schema.split(" -> ")[0].split(","))
            if "!)" in argument and "[]" not in argument
        )
        self.reference = reference
        self.implementations = tuple(implementations)
        # The registered overload, once there is one. No cached_property: dynamo cannot trace the
        # lock that Python 3.11's takes, and the first call may be a compiled one.
        self.overload: Any = None
        self._loaded: dict[tuple[str, str], Kernel | str] = {}
        self._order: dict[str, tuple[tuple[Implementation, Kernel], ...]] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self.overload(*arguments)

    def run(self, device: str, *arguments: Any) -> Any:
        """Runs the implementation that is asked for, or the first that takes the arguments.

        Args:
            device: type of the device that the tensors are on.
            arguments: of the op, checked.

        Raises:
            BackendError: the backend asked for cannot run.
        """
        if _state.explaining and threading.get_ident() in _state.explaining:
            raise _Explained(self.choose(device, arguments)[0])
        if _state.backend is None:
            for implementation, kernel in self._usable(device):
                if implementation.unsupported(*arguments) is None:
                    return self._ran(kernel(*arguments), arguments)
            return self.reference(*arguments)
        return self._ran(self.choose(device, arguments)[1](*arguments), arguments)

    def _ran(self, result: Any, arguments: Sequence[Any]) -> Any:
        """Tells autograd which tensors a kernel wrote to, which it did by their addresses."""
        for place in self._written:
            if not arguments[place].is_inference():
                torch.autograd.graph.increment_version(arguments[place])
        return result

    def direct(self, device: str, *arguments: Any) -> Any:
        """Runs the first implementation past the dispatcher, on arguments that nobody checked.

        For ops on lists of many small tensors, where the way there is the cost: with two lists of
        53 tensors the dispatcher takes 10.5 µs, 18 µs with gradients enabled; a list of 53
        ``data_ptr()`` made in Python 3.8 µs, of shapes 5.2, of dtypes 2.9, of contiguity 3.6. The
        kernel reads and checks both lists in 4 µs and computes for 2.

        Args:
            device: type of the device that the tensors should be on.
            arguments: of the op, not checked.

        Returns:
            What the kernel returns. NotImplemented, with nothing touched, where the kernel does
            not take the arguments, a backend was asked for, or something has to see the call:
            a compiler, a mode, functorch. Then check the arguments, and call the op.
        """
        if not _plain_eager() or _state.explaining or _state.backend is not None:
            return NotImplemented
        for implementation, kernel in self._usable(device)[:1]:
            if implementation.direct:
                return kernel(*arguments)
        return NotImplemented

    def choose(self, device: str, arguments: Sequence[Any]) -> tuple[Explanation, Kernel]:
        """The implementation for the arguments, with the reasons against the others.

        Raises:
            BackendError: the backend asked for cannot run.
        """
        asked = _state.backend
        refused: list[tuple[str, str]] = []
        for implementation in self.of(device):
            backend = implementation.backend
            if asked not in (None, backend):
                refused.append((backend, f"{asked} was asked for"))
                continue
            kernel = self.kernel(implementation)
            reason = kernel if isinstance(kernel, str) else implementation.unsupported(*arguments)
            if reason is None and not isinstance(kernel, str):
                return Explanation(self.name, device, backend, tuple(refused)), kernel
            refused.append((backend, reason or ""))
        if asked in (None, "reference"):
            found = Explanation(self.name, device, "reference", tuple(refused))
            return found, self.reference
        reasons = [reason for backend, reason in refused if backend == asked]
        why = reasons[0] if reasons else f"there is no such implementation for {device} tensors"
        raise BackendError(f"{self.name}: {asked} was asked for and cannot run: {why}")

    def run_elsewhere(self, *arguments: Any) -> Any:
        """`run` on a device of any other type: the reference, or a refusal."""
        leaves = torch.utils._pytree.tree_leaves(arguments)
        devices = [leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return self.run(devices[0] if devices else "cpu", *arguments)

    def of(self, device: str) -> tuple[Implementation, ...]:
        """The implementations for a device type in the order of trial, without the reference."""
        return tuple(i for i in self.implementations if i.device == device)

    def availability(self, device: str) -> list[tuple[str, str | None]]:
        """(backend, why it does not load here or None) in the order of trial, reference last."""
        found: list[tuple[str, str | None]] = []
        for implementation in self.of(device):
            kernel = self.kernel(implementation)
            found.append((implementation.backend, kernel if isinstance(kernel, str) else None))
        return [*found, ("reference", None)]

    def kernel(self, implementation: Implementation) -> Kernel | str:
        """The loaded kernel, or the reason why it does not load; tried once."""
        key = (implementation.backend, implementation.device)
        if key not in self._loaded:
            try:
                self._loaded[key] = implementation.load()
            # OSError: a shared library that is there and cannot be loaded. RuntimeError: numba
            # where it finds no folder to cache in.
            except (Unavailable, ImportError, OSError, RuntimeError) as problem:
                said = str(problem).strip().partition("\n")[0]
                self._loaded[key] = said or type(problem).__name__
        return self._loaded[key]

    def _usable(self, device: str) -> tuple[tuple[Implementation, Kernel], ...]:
        """The implementations that load, and their kernels."""
        if device not in self._order:
            kernels = [(i, self.kernel(i)) for i in self.of(device)]
            self._order[device] = tuple((i, k) for i, k in kernels if not isinstance(k, str))
        return self._order[device]


def define(
    name: str,
    schema: str,
    *,
    fake: Kernel,
    reference: Kernel,
    implementations: Sequence[Implementation] = (),
) -> Op:
    """Registers an op.

    Where Triton's interpreter is on, the Triton kernels take CPU tensors too, if asked for by
    name.

    Args:
        name: becomes ``torch.ops.fastprune.<name>``.
        schema: arguments and result as ``torch.library`` writes them, ``"(Tensor x, Tensor(a!)
            counter) -> ()"``; positional arguments alone.
        fake: gives the result's shape and dtype; it sees no data.
        reference: the definition, in plain torch; runs on every device.
        implementations: of each device type, best first.
    """
    implementations = list(implementations)
    if os.environ.get("TRITON_INTERPRET") == "1":
        implementations += [
            Implementation("triton", "cpu", i.load, i.unsupported)
            for i in implementations
            if i.backend == "triton"
        ]
    op = Op(name, schema, reference, implementations)
    # torch's Library has no types.
    library: Any = _LIBRARY
    library.define(name + schema, tags=[torch.Tag.pt2_compliant_tag])
    for device in DEVICES:
        library.impl(name, functools.partial(op.run, device), device.upper())
    library.impl(name, op.run_elsewhere, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastprune::{name}", fake, lib=_LIBRARY)
    op.overload = getattr(torch.ops.fastprune, name).default
    _OPS[name] = op
    return op


def registered() -> dict[str, Op]:
    """Every op by its name, those of imported files."""
    return dict(sorted(_OPS.items()))


class PublicOp(Protocol[P, R_co]):
    """The checked function of an op, which can also be asked what it would run."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Which implementation the same call would run, and why not the others; runs nothing."""
        ...


def public(function: Callable[P, R]) -> PublicOp[P, R]:
    """Decorator of a function that checks its arguments and calls an op: adds ``explain``."""

    def explain(*args: P.args, **kwargs: P.kwargs) -> Explanation:
        thread = threading.get_ident()
        _state.explaining.add(thread)
        try:
            with torch.no_grad():
                function(*args, **kwargs)
        except _Explained as found:
            return found.explanation
        finally:
            _state.explaining.discard(thread)
        raise ValueError(f"{function.__name__}: with these arguments there is nothing to compute")

    function.explain = explain  # type: ignore[attr-defined]
    return cast("PublicOp[P, R]", function)
