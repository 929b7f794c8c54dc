"""Pictures of random scenes with the spectrum of natural ones, for what is read from pictures alone."""

from __future__ import annotations

import functools

import numpy as np

SIDE = 32


@functools.cache
def scenes(count: int, seed: int, channels: int = 3) -> np.ndarray:
    """Draw pictures (n, SIDE, SIDE, channels) uint8: detail falls off as 1 / frequency, colours vary together."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    fall_off = 1 / (frequency + 0.5 / SIDE)

    def texture(colours: int) -> np.ndarray:
        spectrum = np.fft.rfft2(random.normal(size=(count, colours, SIDE, SIDE))) * fall_off
        return np.fft.irfft2(spectrum).transpose(0, 2, 3, 1)

    light = texture(1) + (0.35 * texture(channels) if channels == 3 else 0)
    brightness = random.normal(110, 12, (count, 1, 1, 1)) + np.array([15, 0, -20])[:channels]
    return (brightness + 42 * light / light.std()).clip(0, 255).astype(np.uint8)
