"""gather_channels: what the cases of fastprune.testing do not say."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastprune.errors import BackendError
from fastprune.ops import GatherPlan, gather_channels, registered, use_backend
from fastprune.ops._extension import extension
from fastprune.ops._op import Unavailable
from fastprune.testing.ops import OpCase, cases_of

OUT, IN = [0, 3, 4, 7], [1, 2, 9]


@pytest.fixture
def plan() -> GatherPlan:
    return GatherPlan.of([(8, 10, 3, 3), (8,)], [{0: OUT, 1: IN}, {0: torch.tensor(OUT)}])


def layers() -> list[Tensor]:
    return [torch.randn(8, 10, 3, 3), torch.randn(8)]


def compiled() -> bool:
    try:
        extension()
    except Unavailable:
        return False
    return True


needs_extension = pytest.mark.skipif(not compiled(), reason="fastprune._C was not built")


def test_it_is_the_two_steps_in_one(plan: GatherPlan) -> None:
    weight, vector = layers()

    got = gather_channels([weight, vector], plan)

    assert torch.equal(got[0], weight[OUT][:, IN])
    assert torch.equal(got[1], vector[OUT])
    assert plan.kept_shapes == ((4, 3, 3, 3), (4,))


def test_one_plan_serves_weights_gradients_and_momentum(plan: GatherPlan) -> None:
    model = nn.ParameterList([nn.Parameter(t) for t in layers()])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sum(p.square().sum() for p in model).backward()
    optimizer.step()
    averages = [p.detach().to(torch.bfloat16) for p in model]
    momenta = [optimizer.state[p]["momentum_buffer"] for p in model]

    for tensors in (list(model), [p.grad for p in model], momenta, averages):
        weight, vector = gather_channels(tensors, plan)
        assert torch.equal(weight, tensors[0][OUT][:, IN])
        assert torch.equal(vector, tensors[1][OUT])
        assert weight.dtype == tensors[0].dtype


def test_results_are_of_their_own_and_require_nothing(plan: GatherPlan) -> None:
    tensors = [t.requires_grad_() for t in layers()]

    got = gather_channels(tensors, plan)

    assert not any(t.requires_grad for t in got)
    assert type(gather_channels([nn.Parameter(t.detach()) for t in tensors], plan)[0]) is Tensor
    whole = GatherPlan.of([(8,)], [{0: range(8)}])
    copy = gather_channels(tensors[1:], whole)[0]
    assert torch.equal(copy, tensors[1])
    assert copy.data_ptr() != tensors[1].data_ptr()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_memory_formats_stay(backend: str) -> None:
    if backend == "cpp" and not compiled():
        pytest.skip("fastprune._C was not built")
    weight = torch.randn(8, 10, 3, 3)
    last = weight.contiguous(memory_format=torch.channels_last)
    volume = torch.randn(8, 10, 3, 3, 2).contiguous(memory_format=torch.channels_last_3d)
    cuts = {0: OUT, 1: IN}
    with use_backend(backend):
        got = gather_channels(
            [weight, last, volume],
            GatherPlan.of([weight.shape, last.shape, volume.shape], [cuts] * 3),
        )

    assert got[0].is_contiguous()
    assert got[1].is_contiguous(memory_format=torch.channels_last)
    assert not got[1].is_contiguous()
    assert got[2].is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[2], volume[OUT][:, IN])


def test_strided_tensors_go_to_the_reference_and_come_back_contiguous() -> None:
    weight = torch.randn(10, 8, 3, 3).transpose(0, 1)
    plan = GatherPlan.of([weight.shape], [{0: OUT, 1: IN}])

    explanation = gather_channels.explain([weight], plan)
    got = gather_channels([weight], plan)[0]

    assert explanation.backend == "reference"
    if compiled():
        assert "neither contiguous nor channels_last" in str(explanation)
    assert got.is_contiguous()
    assert torch.equal(got, weight[OUT][:, IN])


@needs_extension
def test_dense_tensors_go_to_the_extension(plan: GatherPlan) -> None:
    assert gather_channels.explain(layers(), plan).backend == "cpp"
    weight = torch.randn(10, 8, 3, 3).transpose(0, 1)
    with use_backend("cpp"), pytest.raises(BackendError, match=r"tensors\[0\]: strides"):
        gather_channels([weight], GatherPlan.of([weight.shape], [{0: OUT}]))


def test_lazily_conjugated_tensors_are_conjugated() -> None:
    x = torch.randn(6, 4, dtype=torch.complex64)

    got = gather_channels([x.conj()], GatherPlan.of([x.shape], [{0: [1, 5]}]))[0]

    assert torch.equal(got, x.conj()[[1, 5]])


@pytest.mark.parametrize(
    ("shapes", "indices", "error", "message"),
    [
        ([(4,)], [], ValueError, "indices: expected one mapping a tensor, 1, got 0"),
        ([(4,)], [{1: [0]}], ValueError, r"indices\[0\]: expected dimensions below 1, got 1"),
        ([(4,)], [{-1: [0]}], ValueError, r"indices\[0\]: expected dimensions below 1, got -1"),
        (
            [(4,), (4, 6)],
            [{}, {1: [0, 6]}],
            ValueError,
            r"indices\[1\]\[1\]: expected positions of 0 to 5, got 6",
        ),
        ([(4,)], [{0: [-1]}], ValueError, r"indices\[0\]\[0\]: expected positions of 0 to 3, got"),
        ([(4,)], [{0: torch.tensor([[0]])}], ValueError, r"1-D positions, got shape \[1, 1\]"),
        ([(4,)], [{0: [0.0]}], TypeError, r"indices\[0\]\[0\]: expected whole numbers, got flo"),
        (
            [(2,)],
            [{0: torch.tensor([True, False])}],
            TypeError,
            "whole numbers, got a mask",
        ),
    ],
)
def test_wrong_positions_are_refused(
    shapes: list[tuple[int, ...]], indices: list[dict], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        GatherPlan.of(shapes, indices)


def test_wrong_tensors_are_refused(plan: GatherPlan) -> None:
    weight, vector = layers()
    with pytest.raises(ValueError, match="tensors: expected 2, as the plan has, got 1"):
        gather_channels([weight], plan)
    with pytest.raises(ValueError, match=r"tensors\[1\]: expected shape \[8\], got \[9\]"):
        gather_channels([weight, torch.randn(9)], plan)
    with pytest.raises(ValueError, match=r"tensors\[1\]: expected device cpu, as .* got meta"):
        gather_channels([weight, vector.to("meta")], plan)


def test_positions_may_be_of_any_kind() -> None:
    x = torch.arange(40).view(8, 5)
    kinds = (OUT, tuple(OUT), np.array(OUT), torch.tensor(OUT, dtype=torch.int16))
    for positions in kinds:
        plan = GatherPlan.of([x.shape], [{0: positions}])
        assert torch.equal(gather_channels([x], plan)[0], x[OUT])


def test_a_plan_copies_its_positions() -> None:
    positions = torch.tensor([0, 1])
    plan = GatherPlan.of([(4,)], [{0: positions}])
    positions.add_(2)

    assert torch.equal(gather_channels([torch.arange(4)], plan)[0], torch.tensor([0, 1]))


def test_shared_positions_are_held_once() -> None:
    shared = torch.tensor(OUT)
    plan = GatherPlan.of([(8, 3), (8,), (8,)], [{0: shared}] * 3)

    assert plan.index.tolist() == OUT
    assert GatherPlan.of([(4, 3)], [{0: range(4)}]).index.numel() == 0


@needs_extension
def test_threads_do_not_change_the_result() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(512, 512, 3, 3), (1024, 512, 1, 1), (300_000,), (400, 1000), (2000,)]
    dtypes = [torch.float32, torch.float16, torch.uint8, torch.float64, torch.float32]
    indices = [
        {
            dim: torch.randperm(size, generator=generator)[: size // 2].sort().values
            for dim, size in enumerate(shape[:2])
        }
        for shape in shapes
    ]
    tensors = [
        torch.randn(shape, generator=generator).mul(50).to(dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    plan = GatherPlan.of(shapes, indices)
    for arrange in (lambda x: x, channels_last):
        arranged = [arrange(x) for x in tensors]
        torch.set_num_threads(1)
        alone = gather_channels(arranged, plan)
        torch.set_num_threads(4)
        several = gather_channels(arranged, plan)
        with use_backend("reference"):
            expected = gather_channels(arranged, plan)
        for a, b, c in zip(alone, several, expected, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, c)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def tiles(case: OpCase) -> tuple[list[Tensor], list[Tensor]]:
    """Results of what the CUDA kernel's threads do, run on the CPU; and the reference's."""
    from fastprune.ops.gather_channels import _arguments

    tensors, index, layout = case.make(torch.device("cpu"), torch.Generator().manual_seed(0))
    results, arguments = _arguments(tensors, index, layout)
    extension().gather_channels_tiles(*arguments)
    with use_backend("reference"):
        return results, registered()["gather_channels"](tensors, index, layout)


@needs_extension
@pytest.mark.parametrize("case", cases_of("gather_channels"), ids=lambda case: case.name)
def test_the_tiles_of_the_cuda_kernel_are_right(case: OpCase) -> None:
    if case.name in ("strided", "four"):
        pytest.skip("refused before the kernel is launched")

    got, expected = tiles(case)

    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine, theirs)


@needs_extension
@pytest.mark.parametrize("function", ["gather_channels", "gather_channels_tiles"])
def test_offsets_past_32_bits(function: str) -> None:
    """4.3 GB of which a few pages are ever touched: the rest is never given memory."""
    rows, columns = 2**22 + 3, 1024
    try:
        memory = np.zeros((rows, columns), np.uint8)
    except MemoryError:
        pytest.skip("this machine does not promise 4.3 GB")
    x = torch.from_numpy(memory)
    kept, read = [0, rows - 2, rows - 1], [*range(0, 500, 7), 1022, 1023]
    for row in kept:
        x[row] = torch.randint(0, 256, (columns,), dtype=torch.uint8)
    plan = GatherPlan.of([x.shape], [{0: kept, 1: read}])
    result = torch.empty(plan.kept_shapes[0], dtype=torch.uint8)

    arguments = [[x.data_ptr()], [result.data_ptr()], [0], [1], plan.index.data_ptr(), plan.layout]
    threads = [1] if function == "gather_channels" else []
    getattr(extension(), function)(*arguments, *threads)

    assert torch.equal(result, x[kept][:, read])


@needs_extension
def test_a_layout_that_does_not_fit_is_refused_by_the_extension(plan: GatherPlan) -> None:
    weight, vector = layers()
    addresses = [weight.data_ptr(), vector.data_ptr()]
    rest = ([0, 0], [4, 4], plan.index.data_ptr())
    gather = extension().gather_channels
    with pytest.raises(ValueError, match="ends too early"):
        gather(addresses, addresses, *rest, list(plan.layout[:-1]), 1)
    with pytest.raises(ValueError, match="goes on after the last"):
        gather(addresses, addresses, *rest, [*plan.layout, 0], 1)
    with pytest.raises(ValueError, match="as many results"):
        gather(addresses, addresses[:1], *rest, list(plan.layout), 1)


def test_a_compiled_graph_holds_the_op_alone(plan: GatherPlan) -> None:
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    weight, vector = layers()
    torch._dynamo.reset()
    got = torch.compile(gather_channels, fullgraph=True, backend=backend)([weight, vector], plan)

    assert torch.equal(got[0], weight[OUT][:, IN])
    calls = [str(n.target) for n in seen[0].graph.nodes if n.op == "call_function"]
    assert sum("gather_channels" in c for c in calls) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")
def test_one_launch_and_no_waiting_on_a_gpu(plan: GatherPlan) -> None:
    tensors = [t.cuda() for t in layers()] * 160
    many = GatherPlan.of([t.shape for t in tensors], [{0: OUT, 1: IN}, {0: OUT}] * 160)
    gather_channels(tensors, many)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            got = gather_channels(tensors, many)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert torch.equal(got[-2], tensors[-2][OUT][:, IN])
    if gather_channels.explain(tensors, many).backend == "cuda":
        assert [e.name for e in kernels if "gather_channels" in e.name] == [
            e.name for e in kernels
        ]
        assert len(kernels) == 1
