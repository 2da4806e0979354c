"""CIFAR-10."""

from __future__ import annotations

from pathlib import Path

from fastprune.data._cifar import Layout, cifar
from fastprune.data._dataset import Dataset, registry
from fastprune.data._options import DataOptions


@registry.register("cifar10")
def build(options: DataOptions) -> Dataset:
    """60,000 photographs of 32x32 in 10 classes; 10,000 of them are the test set."""
    layout = Layout(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        names="batches.meta",
        label_key="labels",
        name_key="label_names",
        fetch=_fetch,
    )
    return cifar(options, layout, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def _fetch(root: Path) -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10(str(root), download=True)
