"""Gaps in sequence numbers count lost frames, whatever the numbers are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.serving.sequence import MAX_FRAMES_PER_S, SequenceCheck

MS = 1_000_000  # ns


def missed(*frames: tuple[int, int]) -> list[int]:
    """What each frame adds, given as (number, ms of acquisition); they arrive as they are taken."""
    check = SequenceCheck()
    return [check.step(seq, at * MS, at / 1000).missed for seq, at in frames]


def test_an_outage_of_an_hour_counts_in_full():
    assert missed((0, 0), (108_000, 3_600_000)) == [0, 107_999]


def test_a_burst_after_a_stall_counts_by_the_times_of_acquisition():
    check = SequenceCheck()
    check.step(4, 100 * MS, 9.0)
    assert check.step(55, 1800 * MS, 9.0).missed == 50


def test_a_coarse_clock_counts_by_the_times_of_arrival():
    check = SequenceCheck()
    check.step(4, 1000 * MS, 9.0)
    assert check.step(14, 1000 * MS, 9.33).missed == 9


def test_a_restart_and_two_senders_are_told_apart_from_loss():
    check = SequenceCheck()
    steps = [check.step(seq, at * MS, at / 1000) for at, seq in enumerate([900, 0, 1, 900, 2])]
    assert [step.missed for step in steps] == [0] * 5
    assert [bool(step.jump) for step in steps] == [False, True, False, True, True]


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10_000)), max_size=30))
def test_no_numbers_count_more_than_a_camera_takes(frames: list[tuple[int, int]]):
    counts = missed(*frames)
    steps = zip(frames, frames[1:], counts[1:], strict=False)
    assert all(0 <= count <= 1 + MAX_FRAMES_PER_S * max(0, b[1] - a[1]) / 1000 for a, b, count in steps)
