"""A film of moving shapes: what the example camera shows and what the example network learns to tell apart."""

from __future__ import annotations

import numpy as np

NAMES = ["circle", "square", "triangle"]
SIDE = 48  # pixels
EPISODE = 4  # frames until another shape is shown
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def frame(number: int) -> tuple[np.ndarray, int]:
    """Return frame `number` of the film, (SIDE, SIDE, 3) RGB uint8, and which of NAMES it shows."""
    episode, step = divmod(number, EPISODE)
    random = np.random.default_rng(episode)
    label = int(random.integers(len(NAMES)))
    x, y = random.uniform(16, SIDE - 16, 2) + (step - EPISODE / 2) * random.uniform(-0.5, 0.5, 2)
    shape = cover(NAMES[label], x, y, random.uniform(8, 12))[..., None]
    background = random.uniform(70, 180, 3)
    colour = background + random.choice([-1, 1]) * random.uniform(40, 70, 3)
    noise = np.random.default_rng([episode, step]).normal(0, 4, (SIDE, SIDE, 3))  # as in every camera
    picture = shape * colour + (1 - shape) * background + noise
    return np.clip(picture, 0, 255).astype(np.uint8), label


def cover(name: str, x: float, y: float, radius: float) -> np.ndarray:
    """Return (SIDE, SIDE): 1 inside a shape around (x, y), 0 outside, in between on its edge. All in pixels."""
    right, down = abs(COLUMNS - x), ROWS - y
    if name == "circle":
        distance = np.hypot(right, down) - radius
    elif name == "square":
        distance = np.maximum(right, abs(down)) - 0.9 * radius
    else:
        distance = np.maximum(0.9 * right - 0.45 * (down + radius), down - radius)
    return np.clip(0.5 - distance, 0, 1)
