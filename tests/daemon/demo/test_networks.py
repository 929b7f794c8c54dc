"""The demo's networks are those of the paper, and take the published weights."""

import numpy as np
import pytest
import torch
from places import DATA
from torch import nn

from daemon.demo import datasets, networks


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_the_cifar_networks_have_the_layers_of_the_paper(depth):
    network = getattr(networks, f"cifar_resnet{depth}")()
    layers = list(network.modules())
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == depth - 1
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == depth - 1
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_shortcut_takes_every_second_pixel_and_pads_the_channels_with_zeros():
    block = networks.Block(16, 32, stride=2)
    x = torch.randn(1, 16, 8, 8)
    shortcut = block.shortcut(x)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut[:, :8].any() and not shortcut[:, 24:].any()


@pytest.mark.data
@pytest.mark.parametrize(("depth", "file"), [(20, "resnet20-12fca82f"), (56, "resnet56-4bfd9763")])
def test_published_weights_load_strictly_and_recognise_cifar(depth, file):
    weights, images = DATA / "models" / f"{file}.th", DATA / "cifar10_test.npz"
    if not weights.exists() or not images.exists():
        pytest.skip(f"{DATA} has no CIFAR-10 or no {file}.th; set RECALD_DATA")
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    network = getattr(networks, f"cifar_resnet{depth}")().eval()
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    with np.load(images, allow_pickle=False) as data:
        chosen = data["lossless"]
        shown, labels = data["images"][chosen][:1000], data["labels"][chosen][:1000]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (datasets.IMAGENET_MEAN, datasets.IMAGENET_STD))
    batch = (torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        named = torch.cat([network(part).argmax(dim=1) for part in batch.split(250)])
    assert (named.numpy() == labels).mean() >= 0.91
