"""CIFAR-100."""

from __future__ import annotations

from pathlib import Path

from fastprune.data._cifar import Layout, cifar
from fastprune.data._dataset import Dataset, registry
from fastprune.data._options import DataOptions


@registry.register("cifar100")
def build(options: DataOptions) -> Dataset:
    """60,000 photographs of 32x32 in 100 classes; 10,000 of them are the test set."""
    layout = Layout(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        names="meta",
        label_key="fine_labels",
        name_key="fine_label_names",
        fetch=_fetch,
    )
    return cifar(options, layout, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))


def _fetch(root: Path) -> None:
    from torchvision.datasets import CIFAR100

    CIFAR100(str(root), download=True)
