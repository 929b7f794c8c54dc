"""The corruptions are those of the benchmark in kind and strength, and each frame gets its own random numbers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from bench.material.corruptions import CORRUPTIONS, Corruption, frost

MADE = {name: corrupt for name, corrupt in CORRUPTIONS.items() if corrupt is not None}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A smooth picture with details, 32x32."""
    random = np.random.default_rng(0)
    return cv2.resize(random.integers(20, 236, (9, 9, 3)).astype(np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC)


def test_there_are_fifteen_and_one_needs_photographs():
    assert len(CORRUPTIONS) == 15 and [name for name, corrupt in CORRUPTIONS.items() if corrupt is None] == ["frost"]


@pytest.mark.parametrize("name", MADE)
def test_a_frame_is_corrupted_the_same_way_each_time(image, name):
    camera = Corruption(name, MADE[name], 1)
    once = camera(image, 5)
    assert once.shape == image.shape and once.dtype == np.uint8
    assert np.array_equal(once, camera(image, 5)) and not np.array_equal(once, image)


@pytest.mark.parametrize("name", ["gaussian noise", "shot noise", "impulse noise", "motion blur", "snow", "fog"])
def test_frames_and_seeds_have_their_own_random_numbers(image, name):
    one = Corruption(name, MADE[name], 1)
    assert not np.array_equal(one(image, 5), one(image, 6))
    assert not np.array_equal(one(image, 5), Corruption(name, MADE[name], 2)(image, 5))


def grey(level: float) -> np.ndarray:
    return np.full((64, 64, 3), level, np.float32)


def test_noises_have_the_strength_of_the_benchmark():
    random = np.random.default_rng(0)
    assert np.std(MADE["gaussian noise"](grey(0.5), random)) == pytest.approx(0.1, rel=0.05)
    assert np.std(MADE["shot noise"](grey(0.5), random)) == pytest.approx((0.5 / 50) ** 0.5, rel=0.05)
    spoilt = MADE["impulse noise"](grey(0.5), random)
    assert np.mean(spoilt != 0.5) == pytest.approx(0.07, rel=0.1) and set(np.unique(spoilt)) == {0.0, 0.5, 1.0}
    assert np.mean(spoilt == 1) == pytest.approx(np.mean(spoilt == 0), rel=0.2)


@pytest.mark.parametrize("name", ["defocus blur", "motion blur", "zoom blur", "glass blur", "pixelate"])
def test_what_blurs_leaves_an_even_image_as_it_is(name):
    blurred = MADE[name](grey(0.4), np.random.default_rng(0))
    np.testing.assert_allclose(blurred, 0.4, atol=1e-5)


def test_contrast_keeps_the_mean_of_each_image(image):
    light = image.astype(np.float32) / 255
    found = MADE["contrast"](light, np.random.default_rng(0))
    np.testing.assert_allclose(found.mean((0, 1)), light.mean((0, 1)), atol=1e-5)
    assert found.std() < 0.4 * light.std()


def test_glass_only_exchanges_pixels(image):
    """Between its two blurs no value is lost or made."""
    clear = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    assert MADE["glass blur"](clear, np.random.default_rng(0)).mean() == pytest.approx(clear.mean(), abs=0.01)


def test_frost_needs_pictures(tmp_path, image):
    (tmp_path / "no-picture.txt").write_text("frost")
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        frost(tmp_path)
    cv2.imwrite(str(tmp_path / "frost.png"), np.full((400, 500, 3), 200, np.uint8))
    added = frost(tmp_path)(grey(0.2)[:32, :32], np.random.default_rng(0))
    np.testing.assert_allclose(added, 0.75 * 0.2 + 0.45 * 200 / 255, atol=1e-5)
