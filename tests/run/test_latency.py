"""`fastprune latency`: pruned beside unpruned, and what cannot run said."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

import fastprune as fp
from fastprune import models
from fastprune.errors import ArtifactError, ConfigError
from fastprune.run import latency
from fastprune.run.latency import measure, print_latency
from fastprune.training._compile import Compiled


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model = models.build("resnet20_cifar", depth=8)
    small = fp.prune(model, torch.zeros(1, 3, 32, 32), budget={"macs": 0.3})
    fp.save(
        folder / "small",
        small.model,
        plan=small.plan,
        architecture="resnet20_cifar",
        options={"depth": 8},
    )
    return folder / "small"


def test_both_networks_are_timed_in_turns(saved: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    found = measure(
        str(saved),
        modes=["eager", "channels_last"],
        batches=[1, 3],
        repeats=4,
        out=tmp_path / "out",
        quiet=True,
    )
    shape = [(r.threads, r.mode, r.batch, r.network) for r in found.rows]

    assert shape == [
        (1, mode, batch, network)
        for mode in ("eager", "channels_last")
        for batch in (1, 3)
        for network in ("unpruned", "pruned")
    ]
    for unpruned, pruned in zip(found.rows[::2], found.rows[1::2], strict=True):
        assert unpruned.speedup == 1
        assert pruned.speedup == pytest.approx(unpruned.median_ms / pruned.median_ms, rel=0.02)
        for row in (unpruned, pruned):
            assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
            assert row.image_ms == pytest.approx(row.median_ms / row.batch, rel=0.02)
            assert row.repeats == 4
    assert torch.get_num_threads() == before
    table, content = found.files
    with table.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["median_ms"]) for row in rows] == [row.median_ms for row in found.rows]
    assert json.loads(content.read_text()) == found.to_dict()


def test_numbers_of_threads_are_measured_and_left_as_they_were(
    saved: Path, tmp_path: Path
) -> None:
    found = measure(
        str(saved),
        modes=["eager"],
        batches=[1],
        threads=[1, 2],
        repeats=2,
        out=tmp_path,
        quiet=True,
    )

    assert [row.threads for row in found.rows] == [1, 1, 2, 2]
    assert torch.get_num_threads() == 1


def test_what_cannot_run_here_is_said(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(latency, "compile_refusal", lambda: "torch cannot compile here: no C++")
    monkeypatch.setattr("fastprune.latency.options.bf16_instructions", lambda: [])
    found = measure(
        str(saved),
        modes=["eager", "bf16", "compiled"],
        batches=[1],
        repeats=2,
        out=tmp_path,
        quiet=True,
    )
    print_latency(found)
    told = capsys.readouterr().out

    assert {row.mode for row in found.rows} == {"eager"}
    assert [mode for mode, _ in found.skipped] == ["bf16", "compiled"]
    assert "left out: bf16: this CPU has no bf16 instructions" in told
    assert "left out: compiled: torch cannot compile here: no C++" in told
    assert found.to_dict()["skipped"][1]["mode"] == "compiled"


class Refusing(Compiled):
    """Finds out at the first call that it cannot be compiled."""

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.refusal = "no working compiler"
        return inputs


def test_a_compiler_that_fails_when_called_is_said(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "Compiled", Refusing)
    found = measure(str(saved), modes=["compiled"], batches=[1], out=tmp_path, quiet=True)

    assert found.rows == ()
    assert found.skipped == (("compiled", "no working compiler"),)
    assert found.why == ()


def test_why_it_is_hardly_faster_is_said(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fastprune.run.timing.hardly_faster", lambda *given: True)
    found = measure(str(saved), modes=["eager"], batches=[1], repeats=2, out=tmp_path, quiet=True)
    print_latency(found)

    assert len(found.why) >= 2
    assert capsys.readouterr().out.count("hardly faster: ") == len(found.why)


@pytest.mark.parametrize(
    "options",
    [{"modes": []}, {"batches": [0]}, {"threads": [0]}, {"repeats": 1}, {"modes": ["fast"]}],
)
def test_wrong_options_are_refused(saved: Path, tmp_path: Path, options: dict) -> None:
    with pytest.raises(ConfigError):
        measure(str(saved), out=tmp_path / "new", quiet=True, **options)
    assert not (tmp_path / "new").exists()


def test_what_is_no_saved_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no saved network there"):
        measure(str(tmp_path / "nothing"), quiet=True)


def test_a_folder_that_cannot_be_written_is_said(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write there"):
        measure(
            str(saved), modes=["eager"], batches=[1], repeats=2, out=tmp_path / "file", quiet=True
        )
