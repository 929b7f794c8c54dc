"""Golden frames have the levels of the camera's frames, and nobody can see in them what the camera saw."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.store.artefacts import StoreError
from deploy.store.golden import LEVELS, describe_golden, golden_of, pick_golden


@given(
    seed=st.integers(0, 1000),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_they_have_the_range_and_the_levels_of_the_frames(seed, channels, size, scale):
    random = np.random.default_rng(seed)
    frames = (scale * random.normal(random.normal(), 1, (4, channels, *size))).astype(np.float32)
    manifest = json.loads(json.dumps({"version": "a", "golden": describe_golden(frames)}))
    golden = golden_of(manifest, (channels, *size))
    assert golden.shape == frames.shape and golden.dtype == np.float32
    assert (golden.min((0, 2, 3)) == frames.min((0, 2, 3))).all()
    assert (golden.max((0, 2, 3)) == frames.max((0, 2, 3))).all()


def test_frames_of_the_same_levels_cannot_be_told_apart():
    random = np.random.default_rng(0)
    frames = random.normal(size=(4, 3, 8, 8)).astype(np.float32)
    shuffled = random.permuted(frames.swapaxes(0, 1).reshape(3, -1), axis=1).reshape(3, 4, 8, 8).swapaxes(0, 1)
    assert describe_golden(shuffled) == describe_golden(frames)
    assert len(describe_golden(frames)["levels"][0]) == LEVELS


def test_four_frames_are_picked_from_all_of_the_time():
    assert pick_golden(np.arange(512)).tolist() == [0, 128, 256, 384]
    assert pick_golden(np.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("golden", [1, None, {}, {"levels": [["x"]]}, {"levels": [[float("nan")] * LEVELS]}])
def test_levels_that_cannot_be_used_are_refused(golden):
    with pytest.raises(StoreError, match="golden: not"):
        golden_of({"golden": golden}, (1, 4, 4))


def test_an_older_manifest_has_none():
    assert golden_of({}, (1, 4, 4)) is None
