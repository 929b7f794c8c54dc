"""Frames that show nothing of a drift are refused, by reason; those of a badly drifted camera are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import synthetic

from bench.material.cifar import lossless
from daemon.demo.digits import load_digits, render_split
from daemon.frames.quality_filter import DUPLICATE_INTERVAL_S, QualityFilter, clipped_share
from daemon.levels import to_depth
from daemon.simulation.drifts import parse_drift

FPS = 10
STRONG = (
    "",
    "exposure=-2",
    "exposure=1",
    "haze=0.8",
    "haze=0.9",
    "fixed-pattern=40",
    "fixed-pattern=40,exposure=-2",
    "temporal-noise=40",
    "blur=4",
    "gamma=4",
    "gamma=0.25",
    "black-level=-60",
    "black-level=100",
    "vignetting=0.8",
    "dead-pixels=0.3",
    "cross-talk=0.6",
    "gain=0.3:1:0.3",
    "jpeg=5",
    "fixed-pattern=16,cross-talk=0.25,blur=0.7,exposure=-0.5",
)


def refusals(images: Sequence[np.ndarray], fps: float = FPS) -> list[str | None]:
    quality_filter = QualityFilter()
    return [quality_filter(image, number / fps) for number, image in enumerate(images)]


def kept_share(images: np.ndarray, drift: str) -> float:
    drifted = parse_drift(drift, seed=1)
    return refusals([drifted(image, number) for number, image in enumerate(images)]).count(None) / len(images)


def scene(size: int = 224, seed: int = 0) -> np.ndarray:
    """A picture of blotches, without noise: (size, size, 3) uint8."""
    blotches = np.random.default_rng(seed).integers(60, 180, (7, 7, 3), np.uint8)
    return np.kron(blotches, np.ones((size // 7, size // 7, 1), np.uint8))


def noisy(image: np.ndarray, sd: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sd, image.shape)
    return np.rint((image + noise).clip(0, 255)).astype(np.uint8)


# ---- what must pass


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return render_split(*load_digits(), np.arange(200), np.random.default_rng(0)).images


@pytest.mark.parametrize("drift", STRONG)
def test_frames_of_a_badly_drifted_camera_are_kept(digits: np.ndarray, drift: str):
    assert kept_share(digits, drift) >= 0.99
    assert kept_share(synthetic.images(100, 3), drift) >= 0.99


@pytest.mark.data
@pytest.mark.parametrize("drift", [*STRONG, "exposure=-3", "haze=0.95"])
def test_drifted_photographs_are_kept_too(recald_data, drift: str):
    assert kept_share(lossless(recald_data / "cifar10_test.npz").pictures[:300], drift) >= 0.99


def test_a_clean_dark_background_is_not_blank():
    stroke = np.zeros((28, 28, 1), np.uint8)
    stroke[4:24, 13] = 200  # one pixel in forty, as of a thin handwritten 1
    assert refusals([stroke]) == [None]


# ---- blank and saturated


@pytest.mark.parametrize("level", [0, 16, 128, 255])
@pytest.mark.parametrize("sd", [0, 10])
def test_a_covered_lens_is_blank_whatever_its_noise(level: int, sd: float):
    frames = [noisy(np.full((224, 224, 3), level, np.uint8), sd, seed) for seed in range(5)]
    assert set(refusals(frames)) == {"blank"}


def test_a_picture_that_is_clipped_but_for_a_spot_is_saturated_and_a_half_clipped_one_is_kept():
    glare = np.full((224, 224, 3), 255, np.uint8)
    glare[:20, :20] = 90
    half = scene()
    half[:112] = 255
    assert refusals([glare, half]) == ["saturated", None]


def test_only_black_and_white_are_clipped():
    assert clipped_share(np.array([[[0, 1, 2, 128]], [[253, 254, 255, 255]]], np.uint8)) == 3 / 8


def test_clipped_is_what_has_reached_the_end_of_its_type():
    assert clipped_share(np.array([[[0, 1, 2, 255]], [[256, 65534, 65535, 65535]]], np.uint16)) == 3 / 8
    assert clipped_share(np.array([[[0, 0.01, 1, 128]], [[254, 254.99, 255, 254.99998]]], np.float32)) == 3 / 8


# ---- other depths


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_every_depth_is_judged_alike(dtype: type):
    glare = np.full((224, 224, 3), 255, np.uint8)
    glare[:20, :20] = 90
    covered = noisy(np.full((224, 224, 3), 16, np.uint8), 10, 3)
    still = [noisy(scene(), 5, seed) for seed in range(5)]
    frames = [*still, still[-1], glare, covered, noisy(scene(seed=2), 5, 9), *[scene()] * 2]
    assert refusals([to_depth(frame, np.dtype(dtype)) for frame in frames]) == refusals(frames)
    assert {"duplicate", "frozen", "saturated", "blank", None} == set(refusals(frames))


def test_frames_of_a_detector_of_12_bits_in_words_of_16_are_kept():
    """Also where nobody said how many bits are significant: a fit is what can help."""
    frames = [to_depth(image, np.dtype(np.uint16)) // 16 for image in synthetic.images(100, 3)]
    assert refusals(frames).count(None) >= 99


# ---- frozen and duplicate


def test_a_repeated_frame_is_frozen_at_any_time():
    assert refusals([scene()] * 5, fps=1 / 3600) == [None, *["frozen"] * 4]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_driver_buffers_that_repeat_in_turn_are_frozen(count: int):
    buffers = [noisy(scene(seed=number), 2, number) for number in range(count)]
    assert refusals(buffers * 5, fps=0.1) == [None] * count + ["frozen"] * 4 * count


def test_frames_that_differ_in_noise_alone_are_not_frozen():
    assert "frozen" not in refusals([noisy(scene(), 0.6, number) for number in range(60)], fps=0.5)


def test_a_repeat_of_a_refused_frame_is_frozen_too():
    stuck = noisy(scene(), 1, 0)
    assert refusals([scene(), stuck, stuck, stuck], fps=1) == [None, None, "frozen", "frozen"]
    assert refusals([scene(), stuck, stuck, stuck], fps=2) == [None, "duplicate", "frozen", "frozen"]


def test_a_repeated_frame_is_frozen_after_a_refused_one():
    glare = np.full((224, 224, 3), 255, np.uint8)
    assert refusals([scene(), glare, scene()], fps=0.1) == [None, "blank", "frozen"]


@pytest.mark.parametrize("sd", [1, 5, 20])
def test_a_still_scene_is_kept_once_an_interval_at_any_noise(sd: float):
    seconds = 6
    reasons = refusals([noisy(scene(), sd, seed) for seed in range(seconds * FPS)])
    assert Counter(reasons).keys() == {None, "duplicate"}
    assert reasons.count(None) == pytest.approx(seconds / DUPLICATE_INTERVAL_S, abs=1)


def test_a_slow_change_counts_once_it_has_added_up():
    """Each frame is compared with the one that was kept, not with the one before."""
    brighter = [noisy(scene() + 0.4 * step, 1, step) for step in range(30)]
    assert refusals(brighter, fps=1000) == [None, "duplicate", "duplicate"] * 10


def test_another_scene_is_kept_at_once_also_in_thick_haze():
    haze = parse_drift("haze=0.96")
    one, other = haze(scene(seed=1)), haze(scene(seed=2))
    assert refusals([one, noisy(one, 1, 0), other]) == [None, "duplicate", None]


def test_grey_and_tiny_frames_are_judged_too():
    random = np.random.default_rng(0)
    for shape in [(4, 5, 1), (8, 8, 1), (3, 300, 3)]:
        image = random.integers(0, 256, shape, np.uint8)
        assert refusals([image, image, np.zeros(shape, np.uint8)]) == [None, "frozen", "blank"]
