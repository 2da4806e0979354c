from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastprune.data import Splits
from fastprune.errors import TrainingError
from fastprune.training import evaluate


def test_metrics_are_those_of_all_images_at_once(
    make_model: Callable[..., nn.Sequential], few_digits: Splits
) -> None:
    model = make_model()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = evaluate(model, few_digits.train, device="cpu", channels_last=True)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    x, y = (torch.cat(parts) for parts in zip(*few_digits.train.epoch(0), strict=True))
    with torch.no_grad():
        logits = model.eval()(x)
    assert found.images == 112
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert found.top1 == pytest.approx(100 * (logits.argmax(1) == y).float().mean().item())
    assert found.top1 <= found.top5 <= 100


def test_bf16_is_close_to_fp32(
    make_model: Callable[..., nn.Sequential], few_digits: Splits
) -> None:
    model = make_model()
    plain = evaluate(model, few_digits.test, device="cpu")
    short = evaluate(model, few_digits.test, device="cpu", precision="bf16")
    assert short.loss == pytest.approx(plain.loss, rel=0.02)


def test_a_network_of_other_classes_is_refused(few_digits: Splits) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    with pytest.raises(TrainingError, match=r"has 4 classes, but the dataset has a label 9"):
        evaluate(small, few_digits.test, device="cpu")
    with pytest.raises(TrainingError, match=r"expected logits \[40, classes\]"):
        evaluate(nn.Identity(), few_digits.test, device="cpu")
