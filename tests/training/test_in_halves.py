"""Memory that is too small: fewer images, candidates or processes at a time, and the same result.

A device of little memory is a function that raises what torch does on more than it can take.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastprune import data, models
from fastprune.errors import TrainingError
from fastprune.graph import PruningPlan, trace
from fastprune.testing.surgery import fill, random_plan
from fastprune.training import evaluate
from fastprune.training._in_halves import InHalves
from fastprune.training.shared import SharedEvaluator, inherited_subnets

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("room", "sizes"), [(8, [8]), (7, [4, 4]), (3, [2, 2, 2, 2]), (1, [1] * 8)]
)
def test_images_are_halved_until_they_fit(room: int, sizes: list[int]) -> None:
    said: list[str] = []
    halves = InHalves(said.append)

    def function(x: Tensor) -> Tensor:
        if len(x) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 2 * x

    x = torch.arange(8.0)
    parts = halves.parts(function, x)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), 2 * x)
    # It is found out once.
    before = list(said)
    assert [len(part) for part in halves.parts(function, x)] == sizes
    assert said == before
    assert len(said) == {8: 0, 7: 1, 3: 2, 1: 3}[room]
    if said:
        assert said[0] == "memory is too small for 8 images at a time; going on with 4"


def test_one_image_that_does_not_fit_is_an_error() -> None:
    def function(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        InHalves(lambda _: None).parts(function, torch.zeros(4))


def splits() -> data.Splits:
    options = data.DataOptions(batch_size=32, eval_batch_size=40, train_limit=64, test_limit=80)
    return data.load(options, 0)


def test_a_network_is_measured_alike_with_fewer_images_at_a_time() -> None:
    class Small(nn.Module):
        room = 1000

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = models.build("resnet20_cifar", depth=8)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            found: Tensor = self.net(x)
            return found

    model, test = Small(), splits().test
    whole = evaluate(model, test, device="cpu")
    model.room = 10
    assert evaluate(model, test, device="cpu").top1 == whole.top1


@pytest.mark.parametrize("images", [40, 9])
def test_candidates_in_flight_are_halved_and_come_to_the_same(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two candidates at a time fit, or one, of 9 images."""
    torch.manual_seed(0)
    model = fill(models.build("resnet20_cifar", depth=8)).eval()
    graph = trace(model, EXAMPLE)
    plans = [random_plan(graph, seed) for seed in range(6)]
    given, said = splits(), list[str]()

    def evaluator_of() -> SharedEvaluator:
        subnets = inherited_subnets(model, graph, plans)
        made = SharedEvaluator(subnets, EXAMPLE, device=torch.device("cpu"), say=said.append)
        made.recalibrate(given.train, 2)
        return made

    plenty = evaluator_of()
    whole = [plenty.logits(x) for x, _ in given.test.epoch(0)]
    assert not said
    run = SharedEvaluator._run

    def little(
        self: SharedEvaluator, how: object, schedule: object, x: Tensor, *rest: object
    ) -> None:
        candidates = len(schedule.candidates)  # type: ignore[attr-defined]
        # In the middle of the work, of which some was done.
        run(self, how, schedule, x, *rest)  # type: ignore[arg-type]
        if candidates > 2 or (measuring and len(x) > images):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    measuring = False
    monkeypatch.setattr(SharedEvaluator, "_run", little)
    evaluator = evaluator_of()
    assert any("candidates: memory is too small for as many at a time" in line for line in said)
    measuring = True
    for (x, _), wanted in zip(given.test.epoch(0), whole, strict=True):
        found = evaluator.logits(x)
        assert found.keys() == wanted.keys()
        for candidate, row in wanted.items():
            if images == 40:
                assert torch.equal(found[candidate], row)
            else:
                torch.testing.assert_close(found[candidate], row)
    assert any("images at a time" in line for line in said) == (images == 9)


def test_statistics_of_a_candidate_that_does_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models.build("resnet20_cifar", depth=8).eval()
    graph = trace(model, EXAMPLE)
    plans: list[PruningPlan] = [random_plan(graph, seed) for seed in range(2)]
    subnets = inherited_subnets(model, graph, plans)
    evaluator = SharedEvaluator(subnets, EXAMPLE, device=torch.device("cpu"))

    def none(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(SharedEvaluator, "_run", none)
    with pytest.raises(TrainingError, match=r"one candidate and 32 images; .* data\.batch_size"):
        evaluator.recalibrate(splits().train, 1)
