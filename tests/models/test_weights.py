"""Weights files of other people's making: layouts that load, and files that are refused whole."""

import argparse
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from fastprune.errors import WeightsError
from fastprune.models import build, load_weights


class Small(nn.Module):
    def __init__(self, width=4, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)


@pytest.fixture
def trained():
    """The state dict of a network whose every value is its own."""
    torch.manual_seed(0)
    model = Small()
    for value in model.state_dict().values():
        value.copy_(torch.randint(1, 100, value.shape))
    return model.state_dict()


def loaded(path, want):
    """The message, after checking that the file's weights arrived."""
    model = Small()
    message = load_weights(model, path)
    assert message is None or "\n" not in message
    for key, value in model.state_dict().items():
        if key in want:
            assert torch.equal(value, want[key]), key
    return message


def refused(path, model=None):
    """The error's message, after checking that the network was left as it was."""
    model = model or Small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt"])
def test_plain_state_dict(trained, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    torch.save(trained, path)
    assert loaded(path, trained) is None
    assert loaded(str(path), trained) is None


def test_safetensors(trained, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(trained, path)
    assert loaded(path, trained) is None


def test_old_torch_format(trained, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(trained, path, _use_new_zipfile_serialization=False)
    assert loaded(path, trained) is None


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "net", "model_state", "model_state_dict", "ema"]
)
def test_wrapped_in_a_checkpoint(trained, tmp_path, key):
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "best": torch.tensor(93.0), key: trained}, path)
    assert loaded(path, trained) == f"w.pth: took {key!r}"


def test_wrapped_twice_beside_a_config(trained, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": {"name": "small"}, "net": {"state_dict": trained, "epoch": 1}}, path)
    assert loaded(path, trained) == "w.pth: took 'net.state_dict'"


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module.", "module.model."]
)
def test_prefixes(trained, tmp_path, prefix):
    path = tmp_path / "w.pth"
    torch.save({prefix + key: value for key, value in trained.items()}, path)
    assert loaded(path, trained) == f"w.pth: stripped the prefix {prefix!r}"


def test_a_prefix_that_is_the_networks_own_stays(trained, tmp_path):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Small()

    path = tmp_path / "w.pth"
    torch.save({"model." + key: value for key, value in trained.items()}, path)
    model = Outer()
    assert load_weights(model, path) is None
    assert torch.equal(model.model.fc.weight, trained["fc.weight"])
    torch.save({"module.model." + key: value for key, value in trained.items()}, path)
    assert load_weights(model, path) == "w.pth: stripped the prefix 'module.'"


def test_mark_inside_names(trained, tmp_path):
    path = tmp_path / "w.pth"
    inside = {key.replace("conv.", "conv.module."): value for key, value in trained.items()}
    torch.save(inside, path)
    assert loaded(path, trained) == "w.pth: stripped 'module' inside names"


def test_counters_of_thop(trained, tmp_path):
    path = tmp_path / "w.pth"
    counters = {
        f"module.{layer}{kind}": torch.zeros(1, dtype=torch.float64)
        for layer in ("", "conv.", "bn.")
        for kind in ("total_ops", "total_params")
    }
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.items()} | counters}, path)
    assert loaded(path, trained) == (
        "w.pth: took 'state_dict', stripped the prefix 'module.', "
        "dropped 6 counters (total_ops, total_params)"
    )


def test_averaged_model(trained, tmp_path):
    path = tmp_path / "w.pth"
    averaged = torch.optim.swa_utils.AveragedModel(Small())
    averaged.module.load_state_dict(trained)
    torch.save(averaged.state_dict(), path)
    assert "n_averaged" in loaded(path, trained)


def test_without_num_batches_tracked(trained, tmp_path):
    path = tmp_path / "w.pth"
    del trained["bn.num_batches_tracked"]
    torch.save(trained, path)
    assert loaded(path, trained) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast(trained, tmp_path, dtype):
    path = tmp_path / "w.pth"
    torch.save({key: value.to(dtype) for key, value in trained.items()}, path)
    assert loaded(path, trained) is None
    model = Small().to(torch.bfloat16)
    load_weights(model, path)
    assert model.fc.weight.dtype == torch.bfloat16


def test_harmless_company(trained, tmp_path):
    path = tmp_path / "w.pth"
    company = {"args": argparse.Namespace(lr=0.1), "best": np.float64(93.4), "top": np.int64(3)}
    torch.save({"state_dict": trained, **company}, path)
    assert loaded(path, trained) == "w.pth: took 'state_dict'"


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_a_hostile_pickle_is_refused_and_does_not_run(trained, tmp_path, kind):
    path, made = tmp_path / "w.pth", tmp_path / "made"
    content = {"state_dict": trained, "extra": Hostile(str(made))}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    message = refused(path)
    assert not made.exists()
    if kind == "zip":
        assert "could run code (posix.mkdir)" in message or "could run code (nt.mkdir)" in message


@pytest.mark.parametrize("new", [True, False])
def test_a_pickled_network_is_refused_with_what_to_save(tmp_path, new):
    path = tmp_path / "w.pth"
    torch.save(nn.Sequential(nn.Linear(2, 2)), path, _use_new_zipfile_serialization=new)
    assert "whole pickled network" in refused(path)
    assert "torch.save(network.state_dict(), FILE)" in refused(path)


def test_missing_empty_folder(tmp_path):
    assert "there is no such file" in refused(tmp_path / "nothing.pth")
    (tmp_path / "w.pth").touch()
    assert "the file is empty" in refused(tmp_path / "w.pth")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated_anywhere(trained, tmp_path, kind):
    whole, path = tmp_path / "whole", tmp_path / "w.pth"
    if kind == "safetensors":
        path = tmp_path / "w.safetensors"
        safetensors.torch.save_file(trained, whole)
    else:
        torch.save(trained, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    for length in {*range(1, 20), *range(20, len(content), len(content) // 40), len(content) - 1}:
        path.write_bytes(content[:length])
        refused(path)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>", b"\x00" * 64, b"\x80\x04.", b"cos\n"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_not_a_weights_file(tmp_path, content, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "expected a state dict .* got a Tensor"),
        ([1, 2], "got a list"),
        ({"epoch": 3, "lr": 0.1}, "no tensors found; its keys: 'epoch', 'lr'"),
        ({}, "no tensors found; its keys: none"),
    ],
)
def test_no_state_dict_in_it(tmp_path, content, message):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        load_weights(Small(), path)


def test_another_head_names_the_keys_and_both_shapes(trained, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(trained, path)
    message = refused(path, Small(classes=5))
    assert "fc.weight: expected (5, 4), got (3, 4)" in message
    assert "fc.bias: expected (5,), got (3,)" in message
    assert "more" not in message


def test_another_network_names_the_first_keys_and_how_many_more(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(build("resnet20_cifar").state_dict(), path)
    message = refused(path)
    assert "conv.weight: expected (4, 3, 3, 3), got nothing" in message
    assert message.count("expected") == 3
    assert " more" in message


def test_missing_and_unexpected_keys(trained, tmp_path):
    path = tmp_path / "w.pth"
    del trained["fc.bias"]
    trained["head.bias"] = torch.zeros(3)
    torch.save(trained, path)
    message = refused(path)
    assert "fc.bias: expected (3,), got nothing" in message
    assert "head.bias: expected nothing, got (3,)" in message


def test_build_logs_what_was_done(tmp_path, caplog):
    path = tmp_path / "w.pth"
    source = build("resnet20_cifar")
    torch.save({f"module.{key}": value for key, value in source.state_dict().items()}, path)
    model = build("resnet20_cifar", weights=path)
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert "stripped the prefix 'module.'" in caplog.text
    with pytest.raises(WeightsError, match=r"linear.weight: expected \(100, 64\), got \(10, 64\)"):
        build("resnet20_cifar", num_classes=100, weights=path)
