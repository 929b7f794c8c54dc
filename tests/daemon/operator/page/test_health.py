"""The health paths: alive while the loop beats, ready while the model serves and every sensor is watched."""

from __future__ import annotations

from typing import Any

import pytest
from statuses import daemon_status, refused, sensor_status

from daemon.operator.page.health import MAX_BEAT_AGE_S, health, readiness
from daemon.operator.page.snapshot import MAX_REFUSAL_AGE_S, Snapshots

FAILS = refused("inference", "the model failed:\nout of memory")


class Told:
    """Snapshots of statuses, a second apart."""

    def __init__(self) -> None:
        self.now = 0.0
        self.snapshots = Snapshots(["front", "rear"], 1.6)

    def tell(self, front: dict[str, Any], rear: dict[str, Any] | None = None) -> Told:
        self.now += 1.0
        status = daemon_status({"front": front, "rear": rear or sensor_status()})
        self.snapshots.take(status, (), dict.fromkeys(("front", "rear")), self.now, 0.0)
        return self

    def ready(self) -> tuple[int, str]:
        reply = readiness(self.snapshots.newest, self.now)
        return reply.status.value, reply.body.decode()


@pytest.fixture
def told() -> Told:
    return Told()


def test_before_the_first_beat_it_is_neither_alive_nor_ready():
    for reply in (health(None, 0.0), readiness(None, 0.0)):
        assert (reply.status.value, reply.body) == (503, b"recald is starting\n")


def test_it_is_alive_while_the_loop_beats(told):
    newest = told.tell(sensor_status()).snapshots.newest
    assert health(newest, told.now + MAX_BEAT_AGE_S)[::2] == (b"ok: the loop beats\n", 200)
    late = health(newest, told.now + MAX_BEAT_AGE_S + 1)
    assert (late.status.value, late.body) == (503, b"the loop has not reported for 11 s\n")
    assert readiness(newest, told.now + MAX_BEAT_AGE_S + 1).status.value == 503


def test_it_is_ready_while_every_sensor_is_watched(told):
    assert told.tell(sensor_status()).ready() == (
        200,
        "ready: the model serves, and the drift checks of 2 sensor(s) run\n",
    )


def test_a_camera_that_stands_or_drifts_is_no_fault_of_recald(told):
    silent = sensor_status(drift_checks="stopped", reason="no frames for 60 s", drift_score=None)
    assert told.tell(silent, sensor_status(drift_alarm=True, state="invalid")).ready()[0] == 200


def test_each_sensor_without_checks_has_its_line(told):
    dead = sensor_status(drift_checks="failing", reason="no drift check for 40 s: they do not end")
    status, body = told.tell(dead, dead).ready()
    assert status == 503
    assert body == "front: no drift check for 40 s: they do not end\nrear: no drift check for 40 s: they do not end\n"


def test_a_model_that_fails_is_told_until_it_answers_again(told):
    assert told.tell(sensor_status(frames=10)).ready()[0] == 200
    told.tell(sensor_status(frames=10, last_refusal=FAILS))
    assert told.ready() == (503, "front: the model failed: out of memory\n")
    told.tell(sensor_status(frames=10, last_refusal=FAILS | {"seconds_ago": 60.0}))
    assert told.ready()[0] == 503
    assert told.tell(sensor_status(frames=11, last_refusal=FAILS | {"seconds_ago": 61.0})).ready()[0] == 200


@pytest.mark.parametrize(
    "refusal",
    [refused("stale", "too old"), FAILS | {"seconds_ago": MAX_REFUSAL_AGE_S + 1}],
    ids=["another reason", "long ago"],
)
def test_other_refusals_say_nothing_of_the_model(told, refusal):
    told.tell(sensor_status(frames=10))
    assert told.tell(sensor_status(frames=10, last_refusal=refusal)).ready()[0] == 200
