"""A warning that comes with every frame leaves a few lines a minute, and no anchor of the audit log is left out."""

from __future__ import annotations

import io
import logging

import pytest

from daemon.log_limit import MAX_ALIKE, MAX_KINDS, WINDOW_S, RepeatLimit


class Journal:
    def __init__(self) -> None:
        self.now, self.output = 0.0, io.StringIO()
        handler = logging.StreamHandler(self.output)
        handler.addFilter(limit := RepeatLimit(lambda: self.now))
        self.limit, self.log = limit, logging.Logger("recald")
        self.log.addHandler(handler)

    @property
    def lines(self) -> list[str]:
        return self.output.getvalue().splitlines()


@pytest.fixture
def journal() -> Journal:
    return Journal()


def test_a_flood_leaves_some_lines_and_then_says_how_many_were_left_out(journal):
    for number in range(1000):
        journal.log.error("%s: inference failed: %s", "front", number)
    assert len(journal.lines) == MAX_ALIKE
    journal.now = WINDOW_S
    journal.log.error("%s: inference failed: %s", "front", "again")
    assert journal.lines[-1] == f"front: inference failed: again ({1000 - MAX_ALIKE} more like it were left out)"


def test_one_sensor_hides_no_other_and_one_warning_no_other(journal):
    for _ in range(100):
        journal.log.error("%s: inference failed", "front")
    journal.log.error("%s: inference failed", "rear")
    journal.log.warning("%s: something else", "front")
    assert journal.lines[-2:] == ["rear: inference failed", "front: something else"]


def test_what_informs_is_never_left_out(journal):
    for number in range(100):
        journal.log.info("audit record %d:%s", number, "front")
    assert len(journal.lines) == 100


def test_kinds_without_number_take_no_memory_without_end(journal):
    for number in range(3 * MAX_KINDS):
        journal.log.warning("%s", number)
    assert len(journal.lines) == 3 * MAX_KINDS and len(journal.limit._seen) <= MAX_KINDS
