from __future__ import annotations

import pytest
from pydantic import ValidationError

from fastprune.training import TrainingOptions


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": 0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"milestones": [1.5]}, "milestones"),
        ({"milestones": [0]}, "milestones"),
        ({"nesterov": True, "momentum": 0}, "nesterov: needs momentum"),
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs: got 3, but there are 3 epochs"),
        ({"distill": {"alpha": 2}}, "alpha"),
        ({"epoch": 3}, "epoch"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_wrong_options_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainingOptions.model_validate(given)


def test_options_survive_json() -> None:
    options = TrainingOptions.model_validate(
        {"milestones": [0.5, 8], "distill": {}, "early_stop": {"patience": 3}}
    )
    assert TrainingOptions.model_validate_json(options.model_dump_json()) == options
    assert options.milestones == (0.5, 8)
    assert isinstance(options.milestones[1], int)


def test_every_option_is_described_in_the_schema() -> None:
    schema = TrainingOptions.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        fields = part["properties"]
        assert [name for name, field in fields.items() if not field.get("description")] == []
