"""The reservoir is bounded; checks read its newest frames, fits a memory spread over classes and time."""

from __future__ import annotations

import itertools
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.frames.reservoir import FIT_MEMORY_S, MAX_CLASS_SHARE, OVER_SHARE_INTERVAL_S, Reservoir

FPS = 30


def frame(number: int) -> np.ndarray:
    return np.full((2, 3, 1), number, np.int32)


def numbers(images: np.ndarray) -> list[int]:
    return [int(image.flat[0]) for image in images]


def fill(reservoir: Reservoir, labels, start: int = 0, fps: float = FPS) -> None:
    """Frames `start`, `start` + 1, ... with these labels, at a steady rate."""
    for number, label in enumerate(labels, start):
        reservoir.add(frame(number), number / fps, label)


def kept(reservoir: Reservoir) -> list[int]:
    return numbers(reservoir.sample(10**6))


def scenes(count: int, length: int, classes: int) -> list[int]:
    """Labels of a stream of long scenes of one class each."""
    return [scene % classes for scene in range(count) for _ in range(length)]


labelled = st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=60)


# ---- the newest


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 5), labelled, st.integers(0, 20))
def test_checks_read_the_newest_of_the_taken_frames(memory, window, every, labels, count):
    reservoir = Reservoir(memory + window, every, window=window)
    fill(reservoir, labels, start=1)
    taken = [n for n in range(1, len(labels) + 1) if n % every == 0]
    assert reservoir.added == len(taken)
    newest = taken[max(0, len(taken) - min(window, count)) :]
    assert numbers(reservoir.latest(count)) == newest


def test_checks_read_frames_from_before_a_reset_too():
    reservoir = Reservoir(8, window=4)
    fill(reservoir, [None] * 6)
    reservoir.reset_memory()
    assert numbers(reservoir.latest(4)) == [2, 3, 4, 5]


# ---- the memory for fits


@given(st.integers(1, 12), st.integers(0, 4), st.lists(st.one_of(st.just("reset"), labelled), max_size=8))
def test_fits_read_frames_after_the_reset_oldest_first_and_no_more_than_fit_in(memory, window, happenings):
    reservoir, start, reset = Reservoir(memory + window, window=window), 0, 0
    for happening in happenings:
        if happening == "reset":
            reservoir.reset_memory()
            reset = start
        else:
            fill(reservoir, happening, start)
            start += len(happening)
        found = kept(reservoir)
        assert reservoir.collected == len(found) <= memory
        assert found == sorted(set(found)) and all(number >= reset for number in found)
        assert len({*found, *numbers(reservoir.latest(window))}) <= memory + window


@given(st.integers(1, 12), labelled)
def test_each_class_that_was_offered_is_there_while_there_is_room(memory, labels):
    reservoir = Reservoir(memory)
    fill(reservoir, labels, fps=1)
    if len(set(labels)) <= memory:
        assert {labels[number] for number in kept(reservoir)} == set(labels)


@given(st.integers(1, 30), labelled, st.integers(0, 40))
def test_a_sample_is_chosen_from_the_memory_and_has_each_class_while_there_is_room(memory, labels, count):
    reservoir = Reservoir(memory)
    fill(reservoir, labels)
    found, sample = kept(reservoir), numbers(reservoir.sample(count))
    assert len(sample) == min(count, len(found))
    assert set(sample) <= set(found) and sample == sorted(sample)
    classes = {labels[number] for number in found}
    if len(classes) <= count:
        assert {labels[number] for number in sample} == classes


def test_a_scene_of_one_class_takes_its_share_and_then_fills_up_slowly():
    reservoir = Reservoir(100)
    fill(reservoir, [3] * 10 * FPS)
    assert reservoir.collected == pytest.approx(100 * MAX_CLASS_SHARE + 10 / OVER_SHARE_INTERVAL_S, abs=2)
    fill(reservoir, [3] * 100 * FPS, start=10 * FPS)
    assert reservoir.collected == 100


def test_other_classes_replace_frames_of_a_class_over_its_share():
    reservoir = Reservoir(100)
    labels = [3] * 200 + scenes(10, 35, 10)
    fill(reservoir, labels, fps=1)
    counts = Counter(labels[number] for number in kept(reservoir))
    assert reservoir.collected == 100 and len(counts) == 10
    assert max(counts.values()) <= 100 * MAX_CLASS_SHARE


def test_a_stated_mix_is_kept_as_it_comes():
    """A fit that expects a mix must see that mix, also in a part of the memory."""
    mix = [0.6, 0.3, 0.06, 0.03, 0.01]
    labels = np.random.default_rng(0).choice(5, 4000, p=mix)
    reservoir = Reservoir(400, max_share=1.0)
    fill(reservoir, labels.tolist())
    assert np.bincount(labels[kept(reservoir)], minlength=5) / 400 == pytest.approx(mix, abs=0.05)
    sampled = labels[numbers(reservoir.sample(200))]
    assert np.bincount(sampled, minlength=5) / 200 == pytest.approx(mix, abs=0.05)
    assert len(reservoir.reset_memory()) == 400
    fill(reservoir, labels.tolist(), start=4000)
    assert np.bincount(labels[np.array(kept(reservoir)) - 4000], minlength=5) / 400 == pytest.approx(mix, abs=0.05)


def test_a_stream_without_scenes_is_kept_as_it_comes():
    """Full balance would give each class the same, however rarely it is named."""
    random = np.random.default_rng(0)
    labels = random.choice(8, 4000, p=[0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.22, 0.23])
    reservoir = Reservoir(200)
    fill(reservoir, labels.tolist())
    shares = np.bincount(labels[kept(reservoir)], minlength=8) / 200
    assert shares == pytest.approx([0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.22, 0.23], abs=0.07)


@pytest.mark.parametrize("label", [None, 1])
def test_old_frames_grow_sparse_and_stay_evenly_spread(label):
    reservoir = Reservoir(64)
    fill(reservoir, [label] * 3000)
    gaps = np.diff([0, *kept(reservoir), 3000])
    assert gaps.max() <= 4 * 3000 / 64


def test_frames_that_are_too_old_are_dropped_first_but_only_for_others():
    reservoir = Reservoir(10)
    for number in range(10):
        reservoir.add(frame(number), 0.0)
    reservoir.add(frame(10), FIT_MEMORY_S - 1)
    assert kept(reservoir)[0] == 0
    for number in range(11, 14):
        reservoir.add(frame(number), FIT_MEMORY_S + 1)
    assert kept(reservoir)[-4:] == [10, 11, 12, 13] and kept(reservoir)[0] > 1


def test_frames_without_a_label_have_no_share():
    reservoir = Reservoir(20)
    fill(reservoir, [None] * 20)
    assert reservoir.collected == 20


# ---- refused frames


def test_what_the_quality_filter_refuses_is_in_neither_memory_and_the_reason_is_returned():
    asked = []

    def refuse_odd(image: np.ndarray, now: float) -> str | None:
        asked.append((int(image.flat[0]), now))
        return "odd" if image.flat[0] % 2 else None

    reservoir = Reservoir(8, every=3, window=4, quality_filter=refuse_odd)
    reasons = [reservoir.add(frame(number), 0.5 * number) for number in range(1, 13)]
    assert reasons == [None, None, "odd", None, None, None, None, None, "odd", None, None, None]
    assert asked == [(3, 1.5), (6, 3.0), (9, 4.5), (12, 6.0)]  # frames that are left out anyway are not judged
    assert numbers(reservoir.latest(4)) == kept(reservoir) == [6, 12]
    assert reservoir.added == reservoir.collected == 2
    assert reservoir.refused == {"odd": 2}
    reservoir.reset_memory()
    assert reservoir.refused == {}


@pytest.mark.parametrize("reason", ["blank", "saturated"])
def test_a_covered_or_blinded_camera_is_seen_by_checks_and_not_by_fits(reason):
    reservoir = Reservoir(8, window=4, quality_filter=lambda image, now: reason)
    assert reservoir.add(frame(1), 0.0) == reason
    assert numbers(reservoir.latest(4)) == [1] and reservoir.added == 1 and reservoir.collected == 0


# ---- readers


@pytest.mark.parametrize("count", [0, 5])
def test_an_empty_one_gives_no_frames(count):
    reservoir = Reservoir(4, window=2)
    assert reservoir.latest(count) == reservoir.sample(count) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_frames_keep_the_depth_of_the_sensor(dtype):
    reservoir = Reservoir(20, window=10)
    image = (np.arange(27).reshape(3, 3, 3) * 9).astype(dtype)
    reservoir.add(image, 0.0)
    for read in (reservoir.latest(5), reservoir.sample(5)):
        assert [frame.dtype for frame in read] == [dtype]
        np.testing.assert_array_equal(read, [image])


def test_a_camera_that_changes_its_encoding_is_read_in_the_finest_of_its_depths():
    """From JPEG to raw, say: values of one stack must mean the same."""
    reservoir = Reservoir(20, window=10)
    eight = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) * 9
    for number, image in enumerate([eight, eight.astype(np.uint16) * 257 + 1]):
        reservoir.add(image, float(number))
    both = reservoir.latest(5)
    assert [frame.dtype for frame in both] == [np.uint16] * 2
    np.testing.assert_array_equal(both, [eight.astype(int) * 257, eight.astype(int) * 257 + 1])
    reservoir.add(eight.astype(np.float32) + np.float32(0.25), 2.0)
    all_three = reservoir.sample(5)
    assert [frame.dtype for frame in all_three] == [np.float32] * 3
    np.testing.assert_allclose(all_three[0], eight)
    np.testing.assert_allclose(all_three[1], eight + 1 / 257, rtol=1e-6)
    np.testing.assert_allclose(all_three[2], eight + 0.25)


def test_no_frame_is_copied_to_be_read():
    """Copying hundreds of frames into one stack kept the frame thread waiting for 17 ms."""
    reservoir, images = Reservoir(4, window=2), [frame(1), frame(2)]
    for number, image in enumerate(images):
        reservoir.add(image, float(number))
    for read in (reservoir.latest(2), reservoir.sample(2)):
        assert all(got is image for got, image in zip(read, images, strict=True))


def test_its_memory_is_known_and_bounded():
    reservoir = Reservoir(6, window=2)
    for number in range(50):
        reservoir.add(frame(number), float(number))
        assert reservoir.memory_bytes <= 6 * frame(0).nbytes
    assert reservoir.memory_bytes > 3 * frame(0).nbytes


def test_it_is_read_while_it_is_filled():
    """Every reading of the newest is a run of consecutive frames, every sample is in order."""
    reservoir, done = Reservoir(100, window=50), threading.Event()

    def keep_filling():
        fill(reservoir, itertools.islice(itertools.cycle(range(7)), 5000))
        done.set()

    filling = threading.Thread(target=keep_filling)
    filling.start()
    readings = 0
    while not done.is_set() or readings < 10:
        assert (np.diff(numbers(reservoir.latest(50))) == 1).all()
        assert (np.diff(numbers(reservoir.sample(40))) > 0).all()
        assert 0 <= reservoir.collected <= 50
        readings += 1
    filling.join()
    assert reservoir.added == 5000
