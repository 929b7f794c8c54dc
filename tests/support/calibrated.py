"""Outputs of a made-up classifier that is surer where it is right more often."""

from __future__ import annotations

import torch

CLASSES = 5


def outputs(count: int, margin: float, right: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (count, CLASSES) that prefer one class by 0 to 2 * margin, and the true classes (count,).

    right: share of right answers where it is surest; where it is least sure they are half as many.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    margins = 2 * margin * torch.rand(count, generator=generator)
    wrong = torch.rand(count, generator=generator) > right * (0.5 + margins / margin / 4)
    named = torch.where(wrong, (labels + 1) % CLASSES, labels)
    return torch.nn.functional.one_hot(named, CLASSES) * margins[:, None], labels
