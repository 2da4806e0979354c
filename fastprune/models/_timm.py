"""timm's networks, where timm is installed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from torch import nn

from fastprune.errors import ConfigError, FastpruneError, WeightsError, nearest
from fastprune.models._network import IMAGENET_NORMALIZATION, Network

__all__ = ["timm_network"]


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise _broken(error) from error
        raise FastpruneError(
            "timm is not installed; mend it with: python -m pip install timm"
        ) from error
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise _broken(error) from error


def _broken(error: Exception) -> FastpruneError:
    # timm imports torchvision, so this is met as well where only torchvision does not fit torch.
    reason = str(error).strip().partition("\n")[0]
    return FastpruneError(
        f"timm cannot be imported ({reason}); mend it with: "
        "python -m pip install --upgrade --force-reinstall torch torchvision timm"
    )


def timm_network(name: str) -> Network:
    """The network that timm calls ``name``, with or without the tag of its weights.

    Raises:
        FastpruneError: timm is not installed, or has no such network.
    """
    timm = _timm()
    if not timm.is_model(name):
        raise FastpruneError(
            f"models: timm has no network {name!r}{nearest(name, timm.list_models())}"
        )
    facts = timm.get_pretrained_cfg(name)
    shape, normalization, classes = (3, 224, 224), IMAGENET_NORMALIZATION, 1000
    if facts is not None:
        shape, classes = tuple(facts.input_size), facts.num_classes
        normalization = (tuple(facts.mean), tuple(facts.std))
    usual_classes: int = classes

    def make(num_classes: int | None, *, weights: str | None = None, **options: Any) -> nn.Module:
        given = dict(options) if num_classes is None else {**options, "num_classes": num_classes}
        if weights is None:
            return _build(timm, name, given)
        if num_classes not in (None, usual_classes):
            raise WeightsError(
                f"weights {weights} of timm:{name} are for {usual_classes} classes, "
                f"got num_classes={num_classes}"
            )
        try:
            return _build(timm, name, {**given, "pretrained": True})
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise WeightsError(
                f"weights {weights} of timm:{name} could not be fetched: {reason}"
            ) from error

    return Network(
        name=f"timm:{name}",
        make=make,
        input_shape=shape,
        num_classes=usual_classes,
        normalization=normalization,
        published=("DEFAULT",),
        summary=f"{name} of timm",
    )


def _build(timm: ModuleType, name: str, given: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, **given)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"timm:{name}: could not be built so: {reason}") from error
    return model
