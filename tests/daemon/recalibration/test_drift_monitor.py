"""The thread of drift checks outlives whatever happens to a check, and one sensor's failure costs no other sensor."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from daemon.config import DriftConfig
from daemon.frames.reservoir import Reservoir
from daemon.levels import PixelValues
from daemon.recalibration.check_watch import CHECK_PASS_TIMEOUT_S
from daemon.recalibration.drift_monitor import BUSY_SHARE, QUIET_SHARE, CheckFailure, DriftCheck, DriftMonitor
from daemon.recalibration.sensor import Challenger
from daemon.worker.client import WorkerError, WorkerTimeout
from deploy.store.artefacts import FACTORY

WINDOW = 8
SCORES = {"raw": 1.0, "homogenized": 1.0, "cpu_s": 0.0}


class Watched:
    """Two sensors whose checks a fake worker answers, by a real thread."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], dict[str, Any]]] = {}  # by active version; else scores
        self.posted: queue.Queue[DriftCheck | CheckFailure] = queue.Queue()
        self.starts = self.start_fails = 0
        self.timeouts: list[float] = []  # s, of each check
        self.sensors: dict[str, Any] = {name: self.sensor(name) for name in ("front", "rear")}
        worker: Any = SimpleNamespace(start=self.start, call=self.call, close=lambda: None, finish=lambda: None)
        self.looks = False  # somebody, at the page
        self.asked: list[dict[str, Any]] = []
        config = DriftConfig(window=WINDOW, interval=0.05)
        self.monitor = DriftMonitor(config, self.sensors, worker, self.posted.put, lambda: self.looks)

    def sensor(self, name: str) -> Any:
        path = SimpleNamespace(version=f"of {name}")
        reservoir = Reservoir(WINDOW, window=WINDOW)
        values = PixelValues(bits=12 if name == "rear" else 16)
        known = {"challenger": None, "pixel_values": values, "may_be_healthy": True}
        known |= {"drift_detector": SimpleNamespace(alarm=False), "watched_closely": False, "relearn": False}
        return SimpleNamespace(name=name, path=path, reservoir=reservoir, **known)

    def start(self) -> None:
        if self.start_fails:
            self.start_fails -= 1
            raise WorkerError("the worker process ended with 1: no answer")

    def call(self, job: dict[str, Any], images: np.ndarray, timeout: float) -> dict[str, Any]:
        self.timeouts.append(timeout)
        self.asked.append(job)
        return self.answers.get(job["active"], lambda: SCORES)()

    def frames(self, value: int = WINDOW, dtype: type = np.uint8) -> None:
        for sensor in self.sensors.values():
            for number in range(WINDOW):
                sensor.reservoir.add(np.full((2, 2, 3), value - number, dtype), 0.0)

    def rounds(self, count: int) -> float:
        """Wait for so many rounds of checks, each followed by new frames; return how long they took, s."""
        began = time.monotonic()
        for _ in range(count):
            assert self.results(2) == {"front": "done", "rear": "done"}
            self.frames()
        return time.monotonic() - began

    def results(self, count: int) -> dict[str, str]:
        """What was posted next, by sensor."""
        events = [self.posted.get(timeout=10) for _ in range(count)]
        return {e.sensor: e.result if isinstance(e, CheckFailure) else "done" for e in events}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr("daemon.recalibration.drift_monitor.CHECK_RETRY_S", 0.05)
    watched = Watched()
    watched.frames()
    yield watched
    watched.monitor.close()


def raising(error: Exception) -> Callable[[], dict[str, Any]]:
    def answer() -> dict[str, Any]:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (raising(WorkerError("it died")), "failed"),
        (raising(WorkerTimeout("it hangs")), "timeout"),
        (raising(KeyError("a fault in recald")), "failed"),
        (lambda: {"result": "failed", "reason": "StoreError: damaged"}, "failed"),
    ],
    ids=["died", "hangs", "fault", "damaged"],
)
def test_a_failed_check_is_posted_costs_no_other_sensor_and_is_tried_again(watched: Watched, answer: Any, result: str):
    watched.answers["of front"] = answer
    watched.monitor.start()
    assert watched.results(2) == {"front": result, "rear": "done"}
    watched.frames()
    assert watched.results(2) == {"front": result, "rear": "done"}
    watched.answers.clear()
    watched.frames()
    assert watched.results(2) == {"front": "done", "rear": "done"}


def test_a_worker_that_does_not_start_is_a_failure_of_every_sensor(watched: Watched):
    watched.start_fails = 1
    watched.monitor.start()
    assert watched.results(2) == {"front": "failed", "rear": "failed"}
    assert watched.results(2) == {"front": "done", "rear": "done"}


def test_nothing_is_checked_without_new_frames(watched: Watched):
    watched.monitor.start()
    watched.results(2)
    with pytest.raises(queue.Empty):
        watched.posted.get(timeout=0.3)


def test_a_check_has_time_for_each_homogenizer_that_it_tries(watched: Watched):
    watched.sensors["rear"].path.version = FACTORY
    watched.sensors["front"].challenger = Challenger("previous", "of yesterday")
    watched.monitor.start()
    watched.results(2)
    assert watched.timeouts == [3 * CHECK_PASS_TIMEOUT_S, CHECK_PASS_TIMEOUT_S]


def test_the_first_check_tells_how_long_a_round_of_all_sensors_will_take(watched: Watched):
    watched.answers["of front"] = lambda: SCORES | {"cpu_s": 0.1}
    watched.monitor.start()
    first = watched.posted.get(timeout=10)
    assert isinstance(first, DriftCheck) and first.period == pytest.approx(2 * 0.1 / QUIET_SHARE)


@pytest.mark.parametrize(
    ("raw", "highest", "dtype", "bits"),
    [
        (9.0, 4095, np.uint16, 12),
        (9.0, 4096, np.uint16, 14),
        (9.0, 900, np.uint16, 10),
        (9.0, 16_384, np.uint16, None),
        (1.0, 4095, np.uint16, None),  # then the model is used to it
        (9.0, 255, np.uint8, None),
        (9.0, 255, np.float32, None),
    ],
)
def test_a_drift_that_may_be_a_setting_is_told_once(watched: Watched, caplog, raw, highest, dtype, bits):
    watched.answers = dict.fromkeys(("of front", "of rear"), lambda: SCORES | {"raw": raw, "homogenized": raw})
    watched.frames(highest, dtype)
    watched.monitor.start()
    assert watched.results(2) == {"front": "done", "rear": "done"}
    watched.frames(highest, dtype)
    assert watched.results(2) == {"front": "done", "rear": "done"}
    told = [record.getMessage() for record in caplog.records]
    assert told == ([] if bits is None else [told[0]])
    assert bits is None or told[0].endswith(f"if its detector has {bits} bits, set sensors.front.bits: {bits}")


def test_the_bits_of_an_inverted_detector_are_told_as_it_sends_them(watched: Watched, caplog):
    watched.answers = dict.fromkeys(("of front", "of rear"), lambda: SCORES | {"raw": 9.0, "homogenized": 9.0})
    sent = PixelValues(inverted=True)
    watched.sensors["front"].pixel_values = sent
    for number in range(WINDOW):
        image = sent.to_full_range(np.full((2, 2, 3), 4095 - number, np.uint16))
        watched.sensors["front"].reservoir.add(image, 0.0)
    watched.monitor.start()
    watched.results(2)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "is above 4095: " in told and told.endswith("set sensors.front.bits: 12")


def test_checks_take_their_share_of_a_core(watched: Watched):
    """Time that passes without computing asks for no rest."""
    asked = []  # monotonic, s
    watched.answers["of front"] = lambda: asked.append(time.monotonic()) or time.sleep(0.2) or SCORES | {"cpu_s": 0.05}
    watched.monitor.start()
    watched.rounds(4)
    pauses = np.diff(asked)[1:]  # without that after the first check, which may take long
    assert max(pauses) > 0.05 / QUIET_SHARE - 0.1 and min(pauses) < 0.2 / QUIET_SHARE


@pytest.mark.parametrize("seconds", [[9.0, 0.0, 0.0], [0.01, 9.0, 0.01]], ids=["the first check", "learning"])
def test_what_takes_long_once_is_no_rest_for_the_cameras(watched: Watched, seconds: list[float]):
    left = iter(seconds)
    watched.answers["of front"] = lambda: SCORES | {"cpu_s": next(left)}
    watched.monitor.start()
    assert watched.rounds(3) < 20  # a rest for 9 s of computing would be 45 s at least


def test_a_drift_that_shows_ends_a_long_rest(watched: Watched):
    watched.answers["of front"] = lambda: SCORES | {"cpu_s": 0.2}
    watched.monitor.start()
    watched.rounds(2)
    watched.sensors["rear"].watched_closely = True  # as the frame thread finds out after the check
    assert 0.1 / BUSY_SHARE < watched.rounds(1) < 0.2 / QUIET_SHARE - 1


def test_an_order_to_learn_anew_goes_with_the_next_check(watched: Watched):
    watched.sensors["rear"].relearn = True
    watched.monitor.start()
    watched.results(2)
    assert {job["sensor"]: job["relearn"] for job in watched.asked} == {"front": False, "rear": True}


def test_a_frame_is_asked_for_while_somebody_looks(watched: Watched):
    watched.monitor.start()
    watched.results(2)
    watched.looks = True
    watched.frames()
    watched.results(2)
    assert [job["show"] for job in watched.asked[:4]] == [False, False, True, True]
