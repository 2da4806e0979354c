"""How an op chooses among its implementations: on ops of zero_count's kind, made for this."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastprune.errors import BackendError
from fastprune.ops import _op as machinery
from fastprune.ops import registered, use_backend, zero_count
from fastprune.ops._op import BACKENDS, Implementation, Op, PublicOp, Unavailable, define, public

NUMBER = itertools.count()


def refuses_large(x: Tensor) -> str | None:
    return f"{x.numel()} elements, takes 8" if x.numel() > 8 else None


def missing(error: Exception) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


class Example:
    """An op whose implementations answer with their place in `BACKENDS`."""

    def __init__(self, *implementations: Implementation) -> None:
        self.op: Op = define(
            f"example_{next(NUMBER)}",
            "(Tensor x) -> Tensor",
            fake=lambda x: x.new_empty(()),
            reference=lambda x: x.new_tensor(float(BACKENDS.index("reference"))),
            implementations=implementations,
        )

        @public
        def call(x: Tensor) -> Tensor:
            if x.numel() == 0:
                return x.new_zeros(())
            found: Tensor = self.op(x)
            return found

        self.call: PublicOp[[Tensor], Tensor] = call

    def ran(self, x: Tensor) -> str:
        return BACKENDS[int(self.call(x))]


def answers(backend: str, **options: Any) -> Implementation:
    def kernel(x: Tensor) -> Tensor:
        return x.new_tensor(float(BACKENDS.index(backend)))

    return Implementation(backend, "cpu", lambda: kernel, **options)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before = set(machinery._OPS)
    yield
    for name in set(machinery._OPS) - before:
        del machinery._OPS[name]


@pytest.fixture
def example() -> Example:
    return Example(
        Implementation("triton", "cpu", missing(Unavailable("no compiler\nand more"))),
        answers("cpp", unsupported=refuses_large),
        answers("numba"),
    )


SMALL, LARGE = torch.ones(8), torch.ones(9)


def test_the_first_that_loads_and_takes_the_arguments_runs(example: Example) -> None:
    assert example.ran(SMALL) == "cpp"
    assert example.ran(LARGE) == "numba"


def test_an_explanation_names_what_runs_and_each_refusal(example: Example) -> None:
    found = example.call.explain(LARGE)

    assert found.backend == "numba"
    assert found.device == "cpu"
    assert dict(found.refused) == {"triton": "no compiler", "cpp": "9 elements, takes 8"}
    assert str(found) == (
        f"{example.op.name} on cpu: numba; not triton: no compiler; not cpp: 9 elements, takes 8"
    )


def test_an_explanation_runs_nothing() -> None:
    x, counter = torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.int64)

    zero_count.explain(x, counter=counter)

    assert not counter.any()


def test_an_explanation_of_bad_arguments_raises_as_the_call_does() -> None:
    with pytest.raises(ValueError, match="expected"):
        zero_count.explain(torch.zeros(3))
    zero_count(torch.zeros(1, 2))


def test_nothing_to_compute_has_no_explanation(example: Example) -> None:
    with pytest.raises(ValueError, match="nothing to compute"):
        example.call.explain(torch.ones(0))
    assert example.ran(SMALL) == "cpp"


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_what_is_asked_for_runs(example: Example, backend: str) -> None:
    with use_backend(backend):
        assert example.ran(SMALL) == backend
        assert example.call.explain(SMALL).backend == backend
    assert example.ran(SMALL) == "cpp"


@pytest.mark.parametrize(
    ("backend", "x", "reason"),
    [
        ("triton", SMALL, "no compiler"),
        ("cpp", LARGE, "9 elements, takes 8"),
        ("cuda", SMALL, "there is no such implementation for cpu tensors"),
    ],
)
def test_what_is_asked_for_and_cannot_run_raises(
    example: Example, backend: str, x: Tensor, reason: str
) -> None:
    with use_backend(backend), pytest.raises(BackendError, match=reason) as found:
        example.call(x)
    assert f"{example.op.name}: {backend} was asked for" in str(found.value)
    with use_backend(backend), pytest.raises(BackendError, match=reason):
        example.call.explain(x)
    assert example.ran(SMALL) == "cpp"


def test_an_unknown_name_is_refused_at_once() -> None:
    with pytest.raises(BackendError, match="backend: unknown name 'numbra'; did you mean 'numba'"):
        use_backend("numbra").__enter__()


def test_requests_nest_and_none_frees_the_choice(example: Example) -> None:
    with use_backend("reference"):
        with use_backend("numba"):
            with use_backend(None):
                assert example.ran(SMALL) == "cpp"
            assert example.ran(SMALL) == "numba"
        assert example.ran(SMALL) == "reference"
    assert example.ran(SMALL) == "cpp"


def test_a_request_ends_with_an_exception(example: Example) -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert example.ran(SMALL) == "cpp"


def test_a_request_can_decorate_a_function(example: Example) -> None:
    @use_backend("reference")
    def twice() -> list[str]:
        return [example.ran(SMALL) for _ in range(2)]

    assert twice() == twice() == ["reference"] * 2


def test_overlapping_requests_of_two_threads_do_not_end_each_other(example: Example) -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with use_backend("numba"):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with use_backend("reference"):
        thread.start()
        assert entered.wait(60)
        # A request holds for all threads: autograd runs backward passes in its own.
        assert example.ran(SMALL) == "numba"
    assert example.ran(SMALL) == "numba"
    leave.set()
    thread.join()
    assert example.ran(SMALL) == "cpp"


def test_an_explanation_does_not_disturb_other_threads() -> None:
    asking, done = threading.Event(), threading.Event()

    def slow(x: Tensor) -> str | None:
        if x.numel() == 3:
            asking.set()
            done.wait(60)
        return None

    slowly = Example(answers("cpp", unsupported=slow))
    found: list[str] = []
    thread = threading.Thread(
        target=lambda: found.append(slowly.call.explain(torch.ones(3)).backend)
    )
    thread.start()
    assert asking.wait(60)
    assert slowly.ran(SMALL) == "cpp"
    done.set()
    thread.join()
    assert found == ["cpp"]


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_a_compiled_graph_obeys_requests_made_later(example: Example, compiler: str) -> None:
    compiled = torch.compile(example.call, fullgraph=True, backend=compiler)

    assert BACKENDS[int(compiled(SMALL))] == "cpp"
    with use_backend("reference"):
        assert BACKENDS[int(compiled(SMALL))] == "reference"
    with use_backend("triton"), pytest.raises(BackendError, match="no compiler"):
        compiled(SMALL)
    assert BACKENDS[int(compiled(SMALL))] == "cpp"


def test_a_request_inside_a_compiled_function_is_not_lost(example: Example) -> None:
    def inside(x: Tensor) -> Tensor:
        with use_backend("reference"):
            return example.call(x)

    torch._dynamo.reset()
    assert BACKENDS[int(torch.compile(inside, backend="eager")(SMALL))] == "reference"
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(inside, backend="eager", fullgraph=True)(SMALL)


def test_a_backward_pass_obeys() -> None:
    """It runs in a thread of autograd's own on a GPU, and in this one on a CPU."""
    forward = Example(answers("cpp"))
    seen: list[str] = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> Tensor:
            seen.append(forward.ran(SMALL))
            return 2 * upstream[0]

    with use_backend("reference"):
        Doubled.apply(torch.ones(3, requires_grad=True)).sum().backward()  # type: ignore[no-untyped-call]
    assert seen == ["reference"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unavailable("first line\nsecond"), "first line"),
        (ImportError("No module named 'x'"), "No module named 'x'"),
        (OSError("libx.so: cannot open"), "libx.so: cannot open"),
        (RuntimeError("cannot cache function"), "cannot cache function"),
        (ImportError(), "ImportError"),
    ],
)
def test_what_does_not_load_has_one_line_of_reason(error: Exception, reason: str) -> None:
    broken = Example(Implementation("cpp", "cpu", missing(error)))

    assert broken.ran(SMALL) == "reference"
    assert broken.op.availability("cpu") == [("cpp", reason), ("reference", None)]
    assert broken.op.availability("cuda") == [("reference", None)]


def test_a_bug_in_a_kernel_is_not_hidden_by_a_fallback() -> None:
    def wrong(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    bad = Example(Implementation("cpp", "cpu", lambda: wrong), answers("numba"))

    with pytest.raises(ZeroDivisionError):
        bad.call(SMALL)


def test_an_implementation_is_loaded_once_and_only_when_needed() -> None:
    loads: list[str] = []

    def load() -> Callable[[Tensor], Tensor]:
        loads.append("cpp")
        return lambda x: x.new_zeros(())

    late = Example(Implementation("cpp", "cpu", load))
    assert loads == []
    for _ in range(3):
        late.call(SMALL)
        late.call.explain(SMALL)
    assert loads == ["cpp"]


@pytest.mark.parametrize(("backend", "device"), [("fortran", "cpu"), ("cpp", "tpu")])
def test_an_implementation_is_of_known_kinds(backend: str, device: str) -> None:
    with pytest.raises(ValueError, match=f"{backend}.*{device}"):
        Implementation(backend, device, lambda: None)  # type: ignore[arg-type,return-value]


def test_meta_tensors_take_the_fake(example: Example) -> None:
    assert example.op(torch.ones(3, device="meta")).device.type == "meta"


def test_a_device_of_another_type_takes_the_reference_or_refuses(example: Example) -> None:
    assert float(example.op.run_elsewhere(SMALL)) == BACKENDS.index("cpp")
    assert float(example.op.run("mps", SMALL)) == BACKENDS.index("reference")
    with use_backend("numba"), pytest.raises(BackendError, match="for mps tensors"):
        example.op.run("mps", SMALL)


def test_registered_ops_are_sorted(example: Example) -> None:
    assert list(registered()) == sorted(registered())
    assert registered()[example.op.name] is example.op


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


RUN = """
import torch
from fastprune.ops import use_backend, zero_count
x = torch.zeros(2, 3, 4)
print(zero_count.explain(x))
with use_backend(None):
    print(zero_count.explain(x).backend)
assert zero_count(x).tolist() == [8, 8, 8]
"""


def test_the_environment_asks_for_a_whole_process() -> None:
    done = python(RUN, FASTPRUNE_BACKEND="reference")

    assert done.returncode == 0, done.stderr
    asked, free = done.stdout.splitlines()
    assert asked.startswith("zero_count on cpu: reference; not cpp: reference was asked for")
    assert free == zero_count.explain(torch.zeros(2, 3, 4)).backend


def test_an_unknown_name_in_the_environment_is_one_clear_error() -> None:
    done = python(RUN, FASTPRUNE_BACKEND="numbra")

    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "fastprune.errors.BackendError: FASTPRUNE_BACKEND: unknown name 'numbra'; "
        "did you mean 'numba'?"
    )


def test_a_pure_python_install_falls_back_and_says_why() -> None:
    hidden = "import sys; sys.modules['fastprune._C'] = None\n" + RUN

    done = python(hidden, FASTPRUNE_BACKEND="")

    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[0]
    assert said.startswith("zero_count on cpu: numba; not cpp: fastprune._C does not load")
    assert "`fastprune doctor` says why" in said


def test_without_numba_too_the_reference_runs() -> None:
    hidden = "import sys; sys.modules.update({'fastprune._C': None, 'numba': None})\n" + RUN

    done = python(hidden, FASTPRUNE_BACKEND="")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("zero_count on cpu: reference; not cpp: fastprune._C")


def test_the_way_past_the_dispatcher_is_for_plain_calls_alone() -> None:
    def kernel(x: Tensor) -> Tensor:
        return x.new_tensor(1.0)

    op = Example(Implementation("cpp", "cpu", lambda: kernel, direct=True), answers("numba")).op
    second = Example(answers("numba")).op

    assert op.direct("cpu", SMALL).item() == 1
    assert second.direct("cpu", SMALL) is NotImplemented
    assert op.direct("cuda", SMALL) is NotImplemented
    with use_backend("cpp"):
        assert op.direct("cpu", SMALL) is NotImplemented
    with torch.utils._python_dispatch.TorchDispatchMode():
        assert op.direct("cpu", SMALL) is NotImplemented


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_autograd_sees_what_a_kernel_wrote_to(backend: str) -> None:
    counter = torch.zeros(3, dtype=torch.int64)
    before = counter._version

    with use_backend(backend):
        zero_count(torch.zeros(2, 3), counter=counter)
    with torch.inference_mode(), use_backend(backend):
        zero_count(torch.zeros(2, 3), counter=torch.zeros(3, dtype=torch.int64))

    assert counter._version > before
