from __future__ import annotations

import pytest
import torch

from fastprune.training.metrics import Totals


@pytest.mark.parametrize("classes", [3, 10])
def test_totals_are_means_over_images(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    totals = Totals(torch.device("cpu"))
    hits = hits5 = 0
    losses = []
    for images in (8, 8, 3):
        logits = torch.randn(images, classes, generator=generator)
        labels = torch.randint(classes, (images,), generator=generator)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        totals.add(logits, labels, loss)
        losses += [loss.item()] * images
        order = logits.argsort(1, descending=True)
        hits += sum(label in row[:1] for label, row in zip(labels, order, strict=True))
        hits5 += sum(label in row[:5] for label, row in zip(labels, order, strict=True))
    found = totals.read()
    assert found.images == 19
    assert found.top1 == pytest.approx(100 * hits / 19)
    assert found.top5 == pytest.approx(100 * hits5 / 19)
    assert found.loss == pytest.approx(sum(losses) / 19)
    if classes < 5:
        assert found.top5 == 100


def test_totals_go_on_from_their_state() -> None:
    whole, first, second = (Totals(torch.device("cpu")) for _ in range(3))
    logits, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    whole.add(logits, labels, torch.tensor(0.5))
    whole.add(logits, labels, torch.tensor(1.0))
    first.add(logits, labels, torch.tensor(0.5))
    second.load_state_dict(first.state_dict())
    second.add(logits, labels, torch.tensor(1.0))
    assert second.read() == whole.read()
    assert first.read().images == 4


def test_nothing_added_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        Totals(torch.device("cpu")).read()
