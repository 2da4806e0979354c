from __future__ import annotations

import pytest

from fastprune.run.tables import print_report, print_stage


def test_what_a_search_found_is_said_and_that_weights_are_new(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cost = {"macs": 10, "params": 10, "channels": 10, "size_mb": 1.0}
    measured = {"top1": 10.0, "top5": 50.0, "loss": 2.3}
    none = {"baseline": None, "trained_by_method": None}
    notes = {"gene": [3, -1], "weights": "fresh"}
    report = {
        **{"model": "m", "dataset": "d", "method": "metapruning", "seed": 0, "latency": None},
        "cost": {"unpruned": cost, "pruned": cost},
        "accuracy": {**none, "pruned": measured, "finetuned": measured},
        **{"notes": notes, "narrowest": [], "unprunable": [], "seconds": {}, "kills": {}},
        **{"warnings": [], "directory": "r", "command": "c"},
    }
    print_report(report)
    shown = capsys.readouterr().out
    assert "pruned, new weights" in shown
    assert "fine-tuned" not in shown
    assert "gene: 3 -1\n" in shown
    assert "unpruned network was not trained" in shown

    print_stage({"stage": "plan", "notes": notes})
    assert capsys.readouterr().out == "plan: gene 3 -1\n"

    report["notes"] = {"prunable_weights": 4000, "remaining_weights": 1000}
    report["accuracy"]["baseline"] = measured
    print_report(report)
    shown = capsys.readouterr().out
    assert "fine-tuned" in shown
    weights = next(line for line in shown.splitlines() if "prunable weights" in line)
    assert all(figure in weights for figure in ("4,000", "1,000", "25.0 %"))
    assert not any(words in shown for words in ("new weights", "gene", "not trained"))
