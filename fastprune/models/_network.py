"""What a name stands for, and the registry of the networks that come with fastprune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fastprune.errors import ConfigError, FastpruneError
from fastprune.graph import ChannelGraph, GeneTable, Units
from fastprune.registry import Registry

__all__ = ["CIFAR_INPUT", "IMAGENET_NORMALIZATION", "Network", "Normalization", "registry"]

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each input channel, for images in [0, 1]."""

CIFAR_INPUT = (3, 32, 32)
IMAGENET_NORMALIZATION: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

registry: Registry[Callable[..., nn.Module]] = Registry("models", "fastprune.models")


@dataclass(frozen=True, slots=True)
class Network:
    """A network that can be built, and what is known of it without building it.

    Attributes:
        name: canonical: ``resnet56_cifar``, ``torchvision:resnet50``, ``package.module:function``.
        make: the builder behind `build`.
        input_shape: usual input ``(C, H, W)``; None where only its author knows.
        num_classes: classes it has unless told otherwise; None where only its author knows.
        normalization: what its usual weights expect; None where there are no usual weights.
        published: names that ``build(weights=...)`` takes besides a file (``DEFAULT``,
            ``IMAGENET1K_V2``).
        units: the units of a code, from the network's channel graph, as the literature has them;
            None where nobody has said, and each group is a unit.
        genes: the ids of a gene, from the network's channel graph; None where there are none.
        gene_network: the name of the network that genes said to be of this one are of, where the
            literature means another by its name; None for this network itself.
        gene_rule: the option that chooses between published readings of a gene (``paper`` or
            ``table``); None where both are the same.
        quirks: makes a built network the one whose cost the published table of genes counts, in
            place; None where that is the network as it is.
        changed: the fields that the family's options make others, from those options; None where
            all stay.
        summary: one line about it.
    """

    name: str
    make: Callable[..., nn.Module]
    input_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    normalization: Normalization | None = None
    published: tuple[str, ...] = ()
    units: Callable[[ChannelGraph], Units] | None = None
    genes: Callable[[ChannelGraph], GeneTable] | None = None
    gene_network: str | None = None
    gene_rule: str | None = None
    quirks: Callable[[nn.Module], None] | None = None
    changed: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    summary: str = ""

    def given(self, options: Mapping[str, Any]) -> Network:
        """What is known of the network that ``build(**options)`` gives.

        Args:
            options: as in `build`; bad ones are its to refuse.
        """
        return self if self.changed is None else replace(self, **self.changed(options))

    def build(self, num_classes: int | None = None, **options: Any) -> nn.Module:
        """A new network with fresh weights, in train mode as its author left it.

        Args:
            num_classes: None keeps the network's own.
            options: the family's options; for a torchvision or timm network what its function
                takes.

        Raises:
            FastpruneError: an unknown option or a bad value, or what was built is not an
                ``nn.Module``.
        """
        if num_classes is not None and (
            isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1
        ):
            raise ConfigError(
                f"num_classes: expected a whole number from 1 on, got {num_classes!r}"
            )
        model = self.make(num_classes, **options)
        if not isinstance(model, nn.Module):
            raise FastpruneError(
                f"models: {self.name} gave a {type(model).__name__}; expected a torch.nn.Module"
            )
        return model
