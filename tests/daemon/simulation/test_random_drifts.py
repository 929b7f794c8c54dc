"""Random drifts are within what can be named, differ, and are the same again for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import images

from daemon.simulation.drifts import DRIFT_KINDS, Drift, parse_drift
from daemon.simulation.random_drifts import COLOUR_KINDS, REFERENCE_SIDE, STRENGTHS, film, random_drifts


def test_every_kind_has_a_range():
    assert STRENGTHS.keys() == DRIFT_KINDS.keys()


@pytest.mark.parametrize("side", [REFERENCE_SIDE, 2048])
@pytest.mark.parametrize("seed", range(5))
def test_they_can_be_named_and_every_kind_comes_as_often_as_asked(seed, side):
    drifts = list(random_drifts(3, side, grey=False, seed=seed))
    assert len(drifts) == 3 * len(DRIFT_KINDS)
    assert all(parse_drift(str(drift), drift.seed) == drift for drift in drifts)
    assert all(sum(kind in drift.strengths for drift in drifts) >= 3 for kind in DRIFT_KINDS)
    assert any(len(drift.strengths) == 2 for drift in drifts)
    assert len(set(map(str, drifts))) > 0.8 * len(drifts)


def test_the_same_seed_gives_the_same_drifts():
    first, again, other = ([*map(str, random_drifts(2, 64, False, seed))] for seed in (1, 1, 2))
    assert first == again != other


def test_a_grey_camera_has_no_colour_drifts():
    drifts = list(random_drifts(2, REFERENCE_SIDE, grey=True, seed=0))
    assert not any(kind in drift.strengths for drift in drifts for kind in COLOUR_KINDS)


def test_lengths_grow_with_the_picture():
    small, large = (list(random_drifts(4, REFERENCE_SIDE * scale, False, 0)) for scale in (1, 4))
    for one, other in zip(small, large, strict=True):
        scale = 4 if "blur" in one.strengths else 1
        assert other.strengths.get("blur", (0,))[0] == pytest.approx(scale * one.strengths.get("blur", (0,))[0])
        assert other.strengths.get("haze") == one.strengths.get("haze")


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_shape_and_none_drifts_without_strengths(channels):
    shown = images(4, seed=0)[..., :channels]
    assert np.array_equal(film(Drift({}), shown), shown)
    darker = film(Drift({"exposure": (-1.0,)}), shown)
    assert darker.shape == shown.shape and darker.dtype == shown.dtype and darker.mean() < 0.6 * shown.mean()
