"""Rendered digits: the same for the same seed, and none both trained on and held out."""

import sys

import numpy as np
import pytest

from daemon.demo.digits import DemoError, make_splits


def test_the_same_seed_renders_the_same_bytes(splits):
    again = make_splits(3, train_renderings=1, test_renderings=2)
    for one, other in zip(splits, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(make_splits(4, train_renderings=1, test_renderings=2)[1].source, splits[1].source)


def test_no_digit_is_both_trained_on_and_held_out(splits):
    training, held_out = splits
    assert not set(training.source) & set(held_out.source)
    assert len(set(training.source) | set(held_out.source)) == 1797
    assert set(held_out.labels) == set(range(10))


def test_pictures_are_what_a_colour_camera_gives_and_each_is_its_own(splits):
    held_out = splits[1]
    assert held_out.images.dtype == np.uint8 and held_out.images.shape == (2 * 449, 32, 32, 3)
    assert held_out.source[0] == held_out.source[1] and held_out.labels[0] == held_out.labels[1]
    assert not np.array_equal(held_out.images[0], held_out.images[1])
    assert np.abs(held_out.images.mean(axis=(0, 1, 2)) - 127.5).max() < 15  # no colour cast


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DemoError, match=r"recald\[demo\]"):
        make_splits(0, train_renderings=1, test_renderings=1)
