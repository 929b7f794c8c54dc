"""A person learns why frames are refused: in the status, in one line a minute of the log, in the metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from daemon.metrics import Metrics
from daemon.serving.message import Frame, FrameError
from daemon.serving.refusals import WARNING_INTERVAL_S, Refusals


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(clock: Clock) -> Refusals:
    return Refusals(Metrics(CollectorRegistry()), clock)


def refusal(number: int, sensor: str = "front") -> FrameError:
    frame = Frame(sensor, number, 0, 1, 1, "mono8", 1, False, b"pixels", 0.0)
    return FrameError.of(frame, "future", f"timestamp {number} is 37 s in the future", "timestamp")


def test_the_status_has_the_newest_refusal_and_all_drops(refusals: Refusals, clock: Clock):
    assert refusals.status("front") == {"dropped": 0, "last_refusal": None}
    for number in range(3):
        refusals.add(refusal(number))
    refusals.superseded("front")
    clock.now += 5
    assert refusals.status("front") == {
        "dropped": 4,
        "last_refusal": {
            "reason": "future",
            "field": "timestamp",
            "text": "timestamp 2 is 37 s in the future",
            "seconds_ago": 5.0,
        },
    }
    assert refusals.status("rear")["dropped"] == 0


def test_the_log_has_one_line_a_minute_for_each_sensor(refusals: Refusals, clock: Clock, caplog):
    for number in range(450):
        refusals.add(refusal(number))
    refusals.add(refusal(0, "rear"))
    clock.now += WARNING_INTERVAL_S
    refusals.add(refusal(450))
    assert [record.getMessage() for record in caplog.records] == [
        "front: 1 frame refused, the newest: future: timestamp 0 is 37 s in the future",
        "rear: 1 frame refused, the newest: future: timestamp 0 is 37 s in the future",
        "front: 450 frames refused, the newest: future: timestamp 450 is 37 s in the future",
    ]


def test_a_refused_frame_is_not_kept_in_memory(refusals: Refusals):
    refusals.add(refusal(1))
    newest = refusals._tallies["front"].newest
    assert newest is not None and newest.frame is None and newest.__traceback__ is None
