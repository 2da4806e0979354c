from __future__ import annotations

from collections.abc import Iterator

from fastprune.training._pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def slow(clock: Clock, seconds: float) -> Iterator[int]:
    for batch in range(4):
        clock.now += seconds
        yield batch
    clock.now += seconds


def test_waits_are_told_from_work() -> None:
    clock = Clock()
    pace = Pace(clock)
    for batch in pace.of(slow(clock, 0.5)):
        clock.now += 1.5
        pace.images += 10
        if batch == 1:
            assert pace.figures() == {"images_per_second": 5.0, "data_wait": 0.25}
    # The end of the epoch is waited for too.
    assert (pace.seconds, pace.waited, pace.images) == (8.5, 2.5, 40)


def test_what_lies_between_a_checkpoint_and_going_on_does_not_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    batches = pace.of(slow(clock, 1.0))
    next(batches)
    pace.images += 10
    clock.now += 3.0
    state = pace.state_dict()
    clock.now += 100.0
    other = Pace(clock)
    clock.now += 100.0
    other.load_state_dict(state)
    clock.now += 1.0
    assert (other.seconds, other.waited, other.images) == (5.0, 1.0, 10)
    assert other.figures() == {"images_per_second": 2.0, "data_wait": 0.2}
