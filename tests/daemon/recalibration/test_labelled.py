"""Labelled frames: each counts once, for the ρ that answered it, and the memory has a bound."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.scoring.interval import wilson
from daemon.recalibration import labelled
from daemon.recalibration.labelled import LABEL_RESULTS, MAX_ANSWERS, LabelCounts, LabelledFrames

NONE = dict.fromkeys(LABEL_RESULTS, 0)


def frames(*answers: tuple[int, int | None, str]) -> LabelledFrames:
    remembered = LabelledFrames()
    for answer in answers:
        remembered.answered(*answer)
    return remembered


def test_each_frame_counts_as_what_it_was():
    remembered = frames((1, 7, "a"), (2, 7, "a"), (3, 7, "before"), (4, None, "a"))
    labels = [(1, 7), (2, 6), (3, 7), (4, 7), (5, 7), (1, 6)]
    counted = {"right": 1, "wrong": 2, "outdated": 1, "unknown": 1, "repeated": 1}
    assert remembered.count(labels, "a") == counted
    assert (remembered.right, remembered.wrong) == (1, 2)


def test_a_number_that_is_used_again_means_the_newer_frame():
    remembered = frames((1, 7, "a"))
    remembered.count([(1, 7)], "a")
    remembered.answered(1, 3, "a")
    assert remembered.count([(1, 3)], "a") == NONE | {"right": 1}
    assert remembered.right == 2


def test_the_oldest_answers_are_forgotten_and_one_that_came_again_is_not_old():
    remembered = frames(*((seq, 0, "a") for seq in range(MAX_ANSWERS)))
    remembered.answered(0, 5, "a")
    remembered.answered(MAX_ANSWERS, 0, "a")
    assert remembered.count([(0, 5), (2, 0), (MAX_ANSWERS, 0)], "a") == NONE | {"right": 3}
    assert remembered.count([(1, 0)], "a") == NONE | {"unknown": 1}


def test_what_was_counted_before_a_swap_counts_for_nothing_after_it():
    remembered = frames((1, 0, "a"), (2, 0, "a"))
    remembered.count([(1, 0)], "a")
    remembered.start_over()
    assert remembered.status() is None and math.isnan(remembered.counts.accuracy.value)
    assert remembered.count([(1, 0), (2, 0)], "b") == NONE | {"repeated": 1, "outdated": 1}
    assert (remembered.right, remembered.wrong) == (0, 0)


def test_the_accuracy_is_the_share_with_wilsons_interval():
    accuracy = LabelCounts(385, 27).accuracy
    assert accuracy == (pytest.approx(385 / 412), *wilson(385, 412))
    assert [round(100 * value, 1) for value in accuracy] == [93.4, 90.6, 95.5]


def test_the_status_is_of_plain_rounded_numbers():
    remembered = frames(*((seq, int(seq > 26), "a") for seq in range(412)))
    remembered.count([(seq, 1) for seq in range(412)], "a")
    assert remembered.status() == {
        "right": 385,
        "wrong": 27,
        "accuracy": 0.934466,
        "lower": 0.906331,
        "upper": 0.954574,
    }


answers = st.tuples(st.just("answer"), st.integers(0, 3), st.integers(0, 2), st.sampled_from("ab"))
labels = st.tuples(st.just("label"), st.integers(0, 3), st.integers(0, 2), st.sampled_from("ab"))
swaps = st.tuples(st.just("swap"), st.just(0), st.just(0), st.just("a"))


@given(st.lists(st.one_of(answers, labels, swaps), max_size=60))
def test_any_story_is_counted_as_a_list_of_all_frames_says(story):
    """The list keeps every frame; the newest two that differ in their number are remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelled, "MAX_ANSWERS", 2)
        remembered, served, right, wrong = LabelledFrames(), [], 0, 0
        for kind, seq, label, version in [*story, *(("label", seq, 0, "a") for seq in range(4))]:
            if kind == "answer":
                remembered.answered(seq, label, version)
                served = [frame for frame in served if frame[0] != seq] + [[seq, label, version, False]]
            elif kind == "swap":
                remembered.start_over()
                right = wrong = 0
            else:
                known = next((frame for frame in served[-2:] if frame[0] == seq), None)
                expected = expected_result(known, label, version)
                right, wrong = right + (expected == "right"), wrong + (expected == "wrong")
                assert remembered.count([(seq, label)], version) == NONE | {expected: 1}
            assert (remembered.right, remembered.wrong) == (right, wrong)


def expected_result(known: list | None, label: int, serving: str) -> str:
    if known is None:
        return "unknown"
    _, answer, version, counted = known
    known[3] = True
    if counted:
        return "repeated"
    return "outdated" if version != serving else "right" if answer == label else "wrong"
