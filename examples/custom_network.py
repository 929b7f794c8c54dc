"""A network of your own: built here, trained for some seconds, then frozen and served by recald.

python custom_network.py                    # writes weights.safetensors
recald export --builder custom_network:build --weights weights.safetensors --input 3x48x48 \
  --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --classes circle,square,triangle -o model.pt2
recald run --config recald.yaml
"""

from __future__ import annotations

import time

import numpy as np
import shapes
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

MEAN, STD = 0.5, 0.25  # of the pixels, in 0..1; `recald export` is given the same
PICTURES, BATCH, EPOCHS, LEARNING_RATE = 3000, 50, 4, 0.03
UNSEEN = range(0, 2000, 4)  # frames that the camera shows; the training shows much later ones


def build() -> nn.Module:
    """Return the network without weights: any torch.nn.Module with BatchNorm layers will do."""

    def layer(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    head = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, len(shapes.NAMES))]
    return nn.Sequential(layer(3, 8), layer(8, 16), layer(16, 32), *head)


def film(numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures (N, 3, H, W), normalised as recald normalises frames, and labels (N,)."""
    pictures, labels = zip(*map(shapes.frame, numbers), strict=True)
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return (batch / 255 - MEAN) / STD, torch.tensor(labels)


def train() -> nn.Module:
    torch.manual_seed(0)
    network = build()
    pictures, labels = film(range(1_000_000, 1_000_000 + 7 * PICTURES, 7))
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * PICTURES // BATCH)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(PICTURES).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(pictures[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def accuracy(network: nn.Module) -> float:
    pictures, labels = film(UNSEEN)
    with torch.no_grad():
        return (network(pictures).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # with so little work each, more threads would only wait for one another
    began = time.monotonic()
    network = train()
    save_file(network.state_dict(), "weights.safetensors")
    print(f"weights.safetensors: {accuracy(network):.1%} of unseen pictures right, {time.monotonic() - began:.0f} s")
