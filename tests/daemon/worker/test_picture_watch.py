"""What happened to a camera is read from its pictures once there is an alarm, beside those of its healthy time."""

import numpy as np
import pytest
import torch

from calibrate.readouts.picture_statistics import PictureStatistics
from daemon.simulation.drifts import parse_drift
from daemon.worker.picture_watch import (
    MIN_HEALTHY_PICTURES,
    PICTURES_OF_CHECK,
    RECENT_PICTURES,
    REPEAT_S,
    PictureWatch,
)
from deploy.store.baselines import BaselineStore

MODEL, WINDOW = "m" * 64, 64


def taken(count: int, seed: int, drift: str = "") -> np.ndarray:
    """Pictures of smooth scenes, as a camera with this drift takes them."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(count, 3, 3, 3)).repeat(11, 1).repeat(11, 2)[:, :32, :32]
    smooth = 120 + 35 * (waves + np.roll(waves, 5, 1) + np.roll(waves, 5, 2)) / 3 + rng.normal(size=(count, 32, 32, 3))
    filmed = parse_drift(drift, 1)
    return np.stack([filmed(image.clip(0, 255).astype(np.uint8), n) for n, image in enumerate(smooth)])


def watched(folder) -> PictureWatch:
    return PictureWatch(BaselineStore(folder, MODEL), None)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The state directory of a camera that has been healthy for long enough."""
    folder = tmp_path_factory.mktemp("state")
    pictures = watched(folder)
    for number in range(MIN_HEALTHY_PICTURES // PICTURES_OF_CHECK):
        pictures.add_healthy("front", taken(WINDOW, number), 1.0, float(number))
    return folder


def watch(pictures: PictureWatch, drift: str, count: int, now: float = 0.0, alarm: bool = True) -> dict:
    for number in range(count // WINDOW):
        read = pictures.watch("front", taken(WINDOW, 1000 + number, drift), alarm, now)
    return read


def test_an_alarm_is_explained_after_a_restart_too(state):
    pictures = watched(state)
    assert watch(pictures, "exposure=-0.8", RECENT_PICTURES - WINDOW) == {"found": [], "words": []}
    read = watch(pictures, "exposure=-0.8", WINDOW)
    assert read["words"][0].startswith("exposure -0.8 stops; check the exposure table"), read["words"]
    assert read["found"][0].value == pytest.approx(-0.8, rel=0.15)


def test_without_an_alarm_nothing_is_read_and_what_was_read_is_forgotten(state):
    pictures = watched(state)
    assert watch(pictures, "exposure=-0.8", RECENT_PICTURES)["words"]
    assert watch(pictures, "exposure=-0.8", WINDOW, alarm=False) == {"found": [], "words": []}


def test_it_is_read_again_only_after_a_while(state):
    pictures = watched(state)
    first = watch(pictures, "exposure=-0.8", RECENT_PICTURES)
    assert watch(pictures, "exposure=1", 2 * RECENT_PICTURES, now=REPEAT_S / 2) == first
    again = watch(pictures, "exposure=-1.5", RECENT_PICTURES, now=REPEAT_S)
    assert again["found"][0].value == pytest.approx(-1.5, rel=0.15)


def test_without_healthy_pictures_nothing_is_read(tmp_path):
    assert watch(watched(tmp_path), "exposure=-1", 2 * RECENT_PICTURES) == {"found": [], "words": []}


def test_commissioned_pictures_are_the_healthy_ones(tmp_path):
    commissioned = PictureStatistics.of(torch.from_numpy(taken(MIN_HEALTHY_PICTURES, 5)))
    pictures = PictureWatch(BaselineStore(tmp_path, MODEL), commissioned)
    pictures.add_healthy("front", taken(WINDOW, 6, "exposure=-1"), 1.0, 0.0)
    assert watch(pictures, "fixed-pattern=11", RECENT_PICTURES)["words"][0].startswith("fixed pattern 11 levels")


def test_damaged_statistics_are_told_and_taken_again(state, tmp_path, caplog):
    folder = tmp_path / "sensors" / "front"
    folder.mkdir(parents=True)
    (path,) = (state / "sensors" / "front").iterdir()
    (folder / path.name).write_bytes(path.read_bytes()[:1000])
    assert watch(watched(tmp_path), "exposure=-1", RECENT_PICTURES) == {"found": [], "words": []}
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize("shape", [(WINDOW, 8, 8, 3), (WINDOW, 32, 32, 4), (1, 300, 300, 3)])
def test_pictures_that_read_outs_do_not_understand_are_left_alone(tmp_path, shape):
    pictures = watched(tmp_path)
    pictures.add_healthy("front", np.zeros(shape, np.uint8), 1.0, 0.0)
    assert pictures.watch("front", np.zeros(shape, np.uint8), True, 0.0) == {"found": [], "words": []}
    assert not (tmp_path / "sensors").exists()


def test_sixteen_bit_pictures_are_read_in_grey_levels(state):
    pictures = watched(state)
    for number in range(RECENT_PICTURES // WINDOW):
        words = taken(WINDOW, 1000 + number, "exposure=-0.8").astype(np.uint16) * 257
        read = pictures.watch("front", words, True, 0.0)
    assert read["words"][0].startswith("exposure -0.8 stops")


def test_healthy_pictures_are_spread_over_the_time_of_learning(tmp_path):
    pictures, second = watched(tmp_path), 1.0
    for number in range(60):
        pictures.add_healthy("front", taken(PICTURES_OF_CHECK, number), 3600.0, number * second)
    assert not (tmp_path / "sensors").exists(), "a minute is no hour"


def test_pictures_of_another_size_start_anew(tmp_path):
    pictures = watched(tmp_path)
    pictures.add_healthy("front", taken(WINDOW, 1), 1.0, 0.0)
    pictures.add_healthy("front", taken(WINDOW, 2)[:, :20, :20], 1.0, 1.0)
    assert pictures.watch("front", taken(WINDOW, 3), True, 2.0) == {"found": [], "words": []}
