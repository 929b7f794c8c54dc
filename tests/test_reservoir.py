"""The reservoir holds the newest frames, bounded, whoever reads it meanwhile."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.reservoir import Reservoir


def frame(number: int) -> np.ndarray:
    return np.full((2, 3, 1), number % 256, np.uint8)


def numbers(images: np.ndarray) -> list[int]:
    return [int(image.flat[0]) for image in images]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 60), st.integers(0, 20))
def test_it_holds_the_newest_of_one_in_every_so_many(capacity, every, offered, count):
    reservoir = Reservoir(capacity, every)
    for number in range(1, offered + 1):
        reservoir.add(frame(number))
    kept = [n for n in range(1, offered + 1) if n % every == 0]
    assert reservoir.added == len(kept)
    newest = kept[-capacity:]
    assert numbers(reservoir.latest(count)) == newest[max(0, len(newest) - count) :]
    assert reservoir.collected == len(newest)


@given(st.integers(1, 10), st.lists(st.one_of(st.just("mark"), st.integers(1, 8)), max_size=20))
def test_collected_counts_frames_held_since_the_mark(capacity, happenings):
    reservoir, since = Reservoir(capacity), 0
    for happening in happenings:
        if happening == "mark":
            reservoir.mark()
            since = 0
        else:
            for _ in range(happening):
                reservoir.add(frame(since))
            since += happening
        assert reservoir.collected == min(since, capacity)


def test_what_is_collected_is_of_the_camera_after_the_mark():
    reservoir = Reservoir(8)
    for number in range(8):
        reservoir.add(frame(number))
    reservoir.mark()
    for number in range(100, 105):
        reservoir.add(frame(number))
    assert numbers(reservoir.latest(reservoir.collected)) == [100, 101, 102, 103, 104]


@pytest.mark.parametrize("count", [0, 5])
def test_an_empty_one_gives_no_frames(count):
    images = Reservoir(4).latest(count)
    assert len(images) == 0 and images.dtype == np.uint8 and images.ndim == 4


def test_what_is_read_is_a_copy():
    reservoir = Reservoir(4)
    reservoir.add(frame(1))
    reservoir.latest(1)[:] = 77
    assert numbers(reservoir.latest(1)) == [1]


def test_it_is_read_while_it_is_filled():
    """Every reading is a run of consecutive frames."""
    reservoir, done = Reservoir(50), threading.Event()

    def fill():
        for number in range(5000):
            reservoir.add(np.array([[[number]]], np.int64))
        done.set()

    filling = threading.Thread(target=fill)
    filling.start()
    readings = 0
    while not done.is_set() or readings < 10:
        values = reservoir.latest(50).ravel()
        assert (np.diff(values.astype(np.int64)) == 1).all()
        assert 0 <= reservoir.collected <= 50
        readings += 1
    filling.join()
    assert reservoir.added == 5000
