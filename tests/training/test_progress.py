from __future__ import annotations

import io

from fastprune.training.progress import (
    BarProgress,
    LineProgress,
    SilentProgress,
    choose_progress,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_stream_chooses() -> None:
    assert isinstance(choose_progress(stream=Terminal()), BarProgress)
    assert isinstance(choose_progress(stream=io.StringIO()), LineProgress)
    assert isinstance(choose_progress(quiet=True, stream=Terminal()), SilentProgress)


def test_lines_come_every_ten_seconds_and_at_the_end() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = LineProgress(stream, clock=lambda: now[0])
    with progress.start("train", 300, "batches", done=100) as task:
        for _ in range(200):
            now[0] += 0.25
            task.advance(1, loss=0.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "train: 140/300 batches, 40 s left, loss 0.5"
    assert lines[-1] == "train: 300/300 batches, loss 0.5"


def test_the_end_of_work_is_said_where_a_line_was_out_of_date() -> None:
    now = [0.0]
    stream = io.StringIO()
    with LineProgress(stream, clock=lambda: now[0]).start("train", 3, "batches") as task:
        for _ in range(3):
            now[0] += 6
            task.advance(1)
    assert stream.getvalue().splitlines() == ["train: 2/3 batches, 6 s left", "train: 3/3 batches"]


def test_work_inside_work_is_on_one_line() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = LineProgress(stream, clock=lambda: now[0])
    with progress.start("search", 4, "candidates", done=1) as outer:
        for _ in range(3):
            with progress.start("candidate", 2, "batches") as inner:
                now[0] += 8
                inner.advance(1, loss=0.5)
                now[0] += 8
                inner.advance(1, loss=0.25)
            outer.advance(1, best=90.0)
    assert stream.getvalue().splitlines() == [
        "search: 1/4 candidates | candidate: 2/2 batches, loss 0.25",
        "search: 2/4 candidates, 1 min 4 s left, best 90 | candidate: 2/2 batches, loss 0.25",
        "search: 3/4 candidates, 24 s left, best 90 | candidate: 2/2 batches, loss 0.25",
        "search: 4/4 candidates, best 90",
    ]


def test_short_work_prints_no_line_and_notes_always() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    for _ in range(5):
        with progress.start("evaluate", 1) as task:
            task.advance()
    progress.note("a broken file")
    assert stream.getvalue() == "a broken file\n"


def test_bars_can_be_inside_one_another() -> None:
    stream = Terminal()
    progress = BarProgress(stream)
    with progress.start("search", 2, "candidates") as outer:
        with progress.start("evaluate", 3, "batches") as inner:
            inner.advance(3, top1=91.25)
        progress.note("[not markup]")
        outer.advance(1)
    with progress.start("again", 1) as task:
        task.advance()
    assert "search" in stream.getvalue()
    assert "[not markup]" in stream.getvalue()
