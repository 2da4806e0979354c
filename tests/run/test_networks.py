"""What images are normalised with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastprune.config import ModelOptions, make_config, to_yaml
from fastprune.data import DataOptions, Normalization
from fastprune.errors import ConfigError
from fastprune.run.networks import choose_normalization

OWN = Normalization(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def left_by_a_run(folder: Path, **model: Any) -> ModelOptions:
    """A network whose weights are the baseline of a run on digits."""
    given = {
        "model": {"name": "resnet20_cifar", **model},
        "data": {"name": "digits"},
        "baseline": {"epochs": 1, "lr": 0.1},
        "method": {"name": "one_shot", "criterion": "l1"},
        "prune": {"budget": {"macs": 0.5}},
    }
    (folder / "config.yaml").write_text(to_yaml(make_config(given)))
    return ModelOptions(name="resnet20_cifar", weights=str(folder / "baseline.safetensors"))


def test_weights_of_a_run_are_normalised_as_the_run_did(tmp_path: Path) -> None:
    model = left_by_a_run(tmp_path)
    published = ModelOptions(name="resnet20_cifar", weights="resnet20-12fca82f.th")

    # What is usual for the published weights, and was wrong for those of a run on digits.
    assert choose_normalization(published, DataOptions(name="digits")).source == "weights"
    assert choose_normalization(model, DataOptions(name="digits")) == (None, "dataset")


def test_a_normalisation_that_the_run_was_given_counts(tmp_path: Path) -> None:
    model = left_by_a_run(tmp_path, normalization=OWN.model_dump(mode="json"))

    assert choose_normalization(model, DataOptions(name="digits")) == (OWN, "given")
    assert choose_normalization(model, DataOptions(name="cifar10", root="there")) == (OWN, "given")


def test_weights_of_a_run_on_other_images_need_a_normalisation(tmp_path: Path) -> None:
    model, images = left_by_a_run(tmp_path), DataOptions(name="cifar10", root="there")

    with pytest.raises(ConfigError, match=r"is of a run on digits.*expected a normalisation"):
        choose_normalization(model, images)
    given = model.model_copy(update={"normalization": OWN})
    assert choose_normalization(given, images) == (OWN, "given")
