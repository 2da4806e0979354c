"""The published CIFAR-10 ResNets, on real images (FASTPRUNE_DATA)."""

import pickle
import subprocess
import sys

import pytest
import torch

from fastprune.models import load_weights, resolve

WEIGHTS = {
    20: "resnet20-12fca82f.th",
    32: "resnet32-d509ac18.th",
    44: "resnet44-014dd654.th",
    56: "resnet56-4bfd9763.th",
}


@pytest.mark.parametrize("depth", WEIGHTS)
def test_published_weights_load(depth, fastprune_data):
    model = resolve(f"resnet{depth}_cifar").build()
    message = load_weights(model, fastprune_data / "weights" / WEIGHTS[depth])
    assert message == f"{WEIGHTS[depth]}: took 'state_dict', stripped the prefix 'module.'"


def test_resnet20_on_the_first_thousand_test_images(fastprune_data, tmp_path):
    subprocess.run(
        [sys.executable, fastprune_data / "unpack.py", tmp_path, "test_batch"], check=True
    )
    with open(tmp_path / "cifar-10-batches-py" / "test_batch", "rb") as file:
        batch = pickle.load(file, encoding="bytes")
    images = torch.tensor(batch[b"data"][:1000]).view(-1, 3, 32, 32) / 255
    network = resolve("resnet20_cifar")
    model = network.build().eval()
    load_weights(model, fastprune_data / "weights" / WEIGHTS[20])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in network.normalization)
    with torch.inference_mode():
        predicted = model((images - mean) / std).argmax(1)
    right = (predicted == torch.tensor(batch[b"labels"][:1000])).float().mean().item()
    assert right >= 0.905
