"""Times on disk: measured once a device, and again where they are not whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import fastprune as fp
from fastprune import models
from fastprune.latency.cache import tables_of
from fastprune.latency.calls import Call, calls_of
from fastprune.testing.latency import FormulaClock
from fastprune.training.progress import SilentProgress


class Told(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def start(self, title: str, total: int, unit: str = "", *, done: int = 0) -> Iterator[object]:  # type: ignore[override]
        self.notes.append(f"{title}: {total} {unit}")
        with super().start(title, total, unit, done=done) as task:
            yield task


@pytest.fixture(scope="module")
def calls() -> tuple[Call, ...]:
    graph = fp.trace(models.build("resnet20_cifar", depth=8), torch.zeros(1, 3, 32, 32))
    return calls_of(graph, 16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastprune" / "latency"


def test_a_device_is_measured_once(calls: tuple[Call, ...], folder: Path) -> None:
    first, again, told = FormulaClock(), FormulaClock(), Told()
    kinds = len({call.kind for call in calls})
    found = tables_of(calls, first, told)

    assert first.layers == kinds == len(found) == len(list(folder.glob("*.json")))
    assert told.notes == [f"latency of layers: {kinds} kinds"]
    assert tables_of(calls, again, told) == found
    assert again.layers == 0


def test_another_setting_is_measured_for_itself(calls: tuple[Call, ...], folder: Path) -> None:
    tables_of(calls, FormulaClock(), SilentProgress())
    other = FormulaClock(batch_size=8)
    tables_of(calls, other, SilentProgress())

    assert other.layers == len({call.kind for call in calls})


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"times": [1.0]}', '{"times": ["x"]}'])
def test_what_is_not_whole_is_measured_again(
    calls: tuple[Call, ...], folder: Path, damage: str
) -> None:
    found = tables_of(calls, FormulaClock(), SilentProgress())
    broken = sorted(folder.glob("*.json"))[0]
    whole = json.loads(broken.read_text())
    broken.write_text(damage)
    clock = FormulaClock()

    assert tables_of(calls, clock, SilentProgress()) == found
    assert clock.layers == 1
    assert json.loads(broken.read_text()) == whole


def test_where_nothing_can_be_kept_that_is_said_once(
    calls: tuple[Call, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fastprune").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = Told()
    found = tables_of(calls, FormulaClock(), told)

    assert len(found) == len({call.kind for call in calls})
    assert [note for note in told.notes if "is not kept there" in note] == told.notes[1:]
    assert len(told.notes) == 2
