"""The daemon in simulated time decides the same for the same stream, and each stream is as its name says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import drifted, images

from bench.material.cifar import Images
from bench.streams.daemon import Records, SimulatedDaemon
from bench.streams.measure import changes, counts, harm
from bench.streams.stream import ABRUPT_AT_S, COURSES, RATE, SCENE_S, SINGLE_S, STREAMS, Stream, play
from daemon.config import DriftConfig, RecalibrateConfig
from deploy.store.artefacts import FACTORY

TICK_S = 4.0
PICTURES = Images(np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8), torch.arange(100) % 10)


@pytest.fixture(scope="module")
def records(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Records of a camera that drifts after a minute, is clean again for four minutes, and drifts again."""
    daemon = SimulatedDaemon(
        tiny_model, tmp_path_factory.mktemp("state"), DriftConfig(interval=TICK_S), RecalibrateConfig(frames=256), 0
    )
    now = 0.0
    for seconds, drifts in ((60, False), (420, True), (240, False), (240, True)):
        for _ in range(round(seconds / TICK_S)):
            now += TICK_S
            frames = images(16, seed=int(now))
            daemon.tick(now, drifted(frames, light=0.5) if drifts else frames)
    daemon.close()
    return daemon.records


def test_a_stream_leads_to_exactly_these_decisions(records):
    versions = dict.fromkeys(v for _, _, details in records for v in (details.get("candidate"),) if v)
    (version,) = versions
    found = [(at, event, _essence(details)) for at, event, details in records]
    assert found == [
        (4.0, "state", "factory"),
        (72.0, "drift alarm", FACTORY),
        (72.0, "state", "collecting"),
        (192.0, "fit begun", "drift"),
        (192.0, "state", "fitting"),
        (196.0, "state", "compiling"),
        (212.0, "fit", "accepted"),
        (212.0, "state", "shadow"),
        (260.0, "swap begun", version),
        (260.0, "swap", version),
        (260.0, "state", "probation"),
        (320.0, "state", "active"),
        (492.0, "drift alarm", version),
        (492.0, "state", "collecting"),
        (496.0, "swap", FACTORY),  # the frames are clean without it: no proof is needed
        (496.0, "state", "probation"),
        (556.0, "state", "factory"),
        (732.0, "drift alarm", FACTORY),
        (732.0, "state", "collecting"),
        (756.0, "fit", "recalled"),  # without two minutes of collecting and without a fit
        (756.0, "state", "shadow"),
        (804.0, "swap begun", version),
        (804.0, "swap", version),
        (804.0, "state", "probation"),
        (864.0, "state", "active"),
    ]


def _essence(details: dict) -> str:
    names = ("state", "result", "to", "homogenizer", "trigger")
    return next(details[name] for name in names if name in details)


def test_fits_and_swaps_are_counted(records):
    assert counts(records, changed=[60.0, 480.0, 720.0]) == {
        "recalibrations": {"accepted": 1, "recalled": 1},
        "false": 0,
        "swaps": 3,
        "rollbacks": 0,
    }
    assert counts(records, changed=[])["false"] == 1


def ticks(stream: Stream, hours: float = 0.2) -> Iterator:
    return play(stream, PICTURES, seed=3, tick_s=8.0, hours=hours)


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_a_stream_is_the_same_again_and_no_two_frames_are_alike(stream):
    first, again = list(ticks(stream, 0.02)), list(ticks(stream, 0.02))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    frames = np.concatenate([tick.images for tick in first])
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) == len(frames) == 0.02 * 3600 // 8 * 8 * RATE


def test_a_single_class_view_shows_one_class_at_a_time():
    labels = {int(tick.time - 1) // int(SINGLE_S): set() for tick in ticks(Stream("none", "single class"), 0.6)}
    for tick in ticks(Stream("none", "single class"), 0.6):
        labels[int(tick.time - 1) // int(SINGLE_S)] |= set(tick.labels)
    assert [len(seen) for seen in labels.values()] == [1, 1, 1]
    assert len(set.union(*labels.values())) == 3


def test_a_scene_shows_few_classes_and_an_hour_shows_all():
    named = np.concatenate([tick.labels for tick in ticks(Stream("none", "scenes"), 1.0)])
    scenes = named[: len(named) // 240 * 240].reshape(-1, round(SCENE_S * RATE))
    commonest = [np.bincount(scene).max() / scene.size for scene in scenes]
    assert np.mean(commonest) > 0.6
    assert len(np.unique(named)) == 10


@pytest.mark.parametrize("name", COURSES)
def test_a_course_begins_clean(name):
    assert COURSES[name](0.0, 0) == {}


def test_courses_are_as_their_names_say():
    strengths = [COURSES["gradual"](60.0 * minute, 0).get("blur", 0.0) for minute in range(60)]
    assert strengths == sorted(strengths) and strengths[30] > 0 and len(set(strengths)) > 8
    assert [bool(COURSES["recurring"](60.0 * minute, 0)) for minute in (10, 20, 40, 55)] == [False, True, False, True]
    assert COURSES["mixed"](ABRUPT_AT_S, 0) != COURSES["mixed"](ABRUPT_AT_S, 1)


def test_a_change_of_the_camera_is_listed_once():
    assert changes(list(ticks(Stream("abrupt", "i.i.d."), 0.3))) == [ABRUPT_AT_S + 8.0]
    assert changes(list(ticks(Stream("none", "scenes")))) == []


def test_harm_is_the_loss_beyond_noise():
    random = np.random.default_rng(0)
    factory = random.random(3600) < 0.9
    assert harm(factory, factory) == {"worst_block": 0.0, "beyond_noise": 0.0}
    worse = factory.copy()
    worse[1200:2400] &= random.random(1200) < 0.8
    assert 10 < harm(worse, factory)["beyond_noise"] < harm(worse, factory)["worst_block"] < 30
    one = factory.copy()
    one[np.flatnonzero(factory)[0]] = False
    assert harm(one, factory)["beyond_noise"] == 0.0 < harm(one, factory)["worst_block"]
