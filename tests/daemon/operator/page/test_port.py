"""The port as the loop drives it, over real sockets: paths, data, frames, and what the configuration switches off."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from http.client import HTTPMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from certificates import Authority
from prometheus_client import CollectorRegistry
from running import write_config
from statuses import daemon_status, sensor_status

from daemon.config import load_config
from daemon.frames.stall_detector import StallDetector
from daemon.metrics import Metrics
from daemon.operator.page.health import MAX_BEAT_AGE_S
from daemon.operator.page.port import MAX_WATCHED_S, STATIC_FILES, MetricsPort
from daemon.recalibration.page_frame import PageFrame
from daemon.recalibration.state_machine import ON_PROBATION
from deploy.audit.chain import AuditRecord, canonical_json

SWAP = AuditRecord(
    9, "2026-01-02T03:04:05.678Z", "front", "swap", canonical_json({"from": "factory", "to": "ab" * 32}), "", ""
)
FRAME = PageFrame("7", b"\x89PNG received", b"\x89PNG restored")


class Answer(NamedTuple):
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Scene:
    """A port with a clock of its own, told by the test what the loop tells it once a second."""

    def __init__(self, folder: Path, **metrics: Any) -> None:
        self.config = load_config(write_config(folder, folder / "model.pt2", metrics=metrics))
        self.registry, self.now = CollectorRegistry(), 1000.0
        self.port = MetricsPort(self.config, self.registry, Metrics(self.registry), lambda: self.now)
        self.sensors: dict[str, Any] = {
            name: SimpleNamespace(shown=None, stall_detector=StallDetector()) for name in ("front", "rear")
        }
        self.context: ssl.SSLContext | None = None
        self.tell()
        self.port.open()

    def tell(self, decisions: tuple[AuditRecord, ...] = (), **front: Any) -> None:
        self.now += 1
        status = daemon_status({"front": sensor_status(**front), "rear": sensor_status()})
        self.port.update(status, decisions, self.sensors, self.now)

    def ask(self, path: str, **headers: str) -> Answer:
        scheme = "http" if self.context is None else "https"
        request = urllib.request.Request(f"{scheme}://127.0.0.1:{self.port.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5, context=self.context) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())


@pytest.fixture
def open_scene(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    opened: list[Scene] = []

    def open_scene(**metrics: Any) -> Scene:
        opened.append(Scene(tmp_path, **metrics))
        return opened[-1]

    yield open_scene
    for scene in opened:
        scene.port.close()


@pytest.fixture
def scene(open_scene) -> Scene:
    return open_scene()


def test_the_page_and_its_files_are_served_with_their_kinds(scene):
    for path, (name, kind) in STATIC_FILES.items():
        answer = scene.ask(path)
        assert answer.status == 200 and answer.headers["Content-Type"] == kind, name
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]


def test_the_page_loads_nothing_from_elsewhere_and_has_no_script_or_style_inline(scene):
    page, *scripts = (scene.ask(path).body.decode() for path in ("/", "/page.js", "/chart.js", "/link.js"))
    assert re.findall(r"<script.*", page) == ['<script src="page.js" type="module"></script>']
    assert not re.findall(r"\son\w+=|style=|<style|https?:|(?:src|href)=\"/", page)
    script = "".join(scripts).replace("http://www.w3.org/2000/svg", "")  # looks like an address, and is a name
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|https?:", script)


def test_metrics_health_and_readiness_are_there(scene):
    assert b"recald_audit_writable" in scene.ask("/metrics").body
    assert scene.ask("/healthz")[::2] == (200, b"ok: the loop beats\n")
    assert scene.ask("/readyz").status == 200
    scene.tell(drift_checks="failing", reason="no drift check for 40 s: they do not end")
    assert scene.ask("/readyz")[::2] == (503, b"front: no drift check for 40 s: they do not end\n")
    scene.now += MAX_BEAT_AGE_S + 1
    assert scene.ask("/healthz").status == 503


def test_the_data_is_what_the_loop_told(scene):
    scene.tell((SWAP,), drift_score=3.2, drift_alarm=True, state="collecting", progress=0.5, reason="5 of 10 frames")
    told = scene.ask("/status.json").json
    front, rear = told["sensors"]
    assert told["headline"] == {"tone": "busy", "text": "front: drifts, recalibrates"}
    assert (front["state"], front["reason"], front["alarm"]) == ("collecting 50%", "5 of 10 frames", True)
    assert front["drift"] == {"value": 3.2, "line": 2.0, "quantity": "drift score"}
    assert front["points"] == [[200, 1.0, 0.4, 1]]  # the mean of its 5 s
    assert rear["tone"] == "good" and rear["frame"] is None
    assert [one["title"] for one in told["decisions"]] == ["new homogenizer"]


def test_the_age_of_the_newest_frame_is_told_of_each_sensor(scene):
    scene.sensors["front"].stall_detector.arrived(scene.now - 6.5)
    scene.tell(drift_checks="stopped")
    scene.now += 0.25
    front, rear = scene.ask("/status.json").json["sensors"]
    assert (front["frame_age_s"], front["silent"]) == (pytest.approx(7.75, abs=0.1), True)
    assert (rear["frame_age_s"], rear["silent"]) == (None, False)


def test_a_frame_that_arrives_is_news_though_nothing_else_changes(scene):
    etag = scene.ask("/status.json").headers["ETag"]
    scene.sensors["rear"].stall_detector.arrived(scene.now)
    scene.tell()
    assert scene.ask("/status.json", **{"If-None-Match": etag}).status == 200


def test_it_says_since_when_the_drift_is_known_by_the_clock_of_now(scene, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)  # set right since the start
    for _ in range(60):
        scene.tell()
    told = scene.ask("/status.json").json
    assert datetime.fromisoformat(told["began"]).timestamp() == 1_800_000_000 - 60
    assert told["began_point"] * told["point_s"] == pytest.approx(1001, abs=told["point_s"])


def test_the_reason_leaves_out_what_is_listed(scene):
    scene.tell(drifted=["blur 0.7 pixels", "haze 10 %"], reason="held; the camera: blur 0.7 pixels; haze 10 %")
    front = scene.ask("/status.json").json["sensors"][0]
    assert (front["reason"], front["drifted"]) == ("held", ["blur 0.7 pixels", "haze 10 %"])
    assert not [note for note in front["notes"] if "blur" in note]


def test_what_has_not_changed_is_not_sent_again(scene):
    first = scene.ask("/status.json")
    etag = first.headers["ETag"]
    assert scene.ask("/status.json", **{"If-None-Match": etag})[::2] == (304, b"")
    scene.tell()
    assert scene.ask("/status.json", **{"If-None-Match": etag}).status == 304
    scene.tell(frames=101)
    assert scene.ask("/status.json", **{"If-None-Match": etag}).status == 200
    scene.tell((SWAP,), frames=101)
    assert scene.ask("/status.json").headers["ETag"] != etag


def test_a_loop_that_hangs_is_told_though_nothing_changes(scene):
    etag = scene.ask("/status.json").headers["ETag"]
    scene.now += MAX_BEAT_AGE_S + 1
    answer = scene.ask("/status.json", **{"If-None-Match": etag})
    assert answer.status == 200 and answer.json["headline"]["tone"] == "bad"
    assert answer.json["headline"]["text"] == "recald hangs: the loop has not reported for 11 s"
    scene.now += 1
    again = scene.ask("/status.json", **{"If-None-Match": answer.headers["ETag"]})
    assert again.status == 200 and "for 12 s" in again.json["headline"]["text"]


def test_a_restart_is_told_from_what_was_before(open_scene):
    first, second = open_scene().ask("/status.json"), open_scene().ask("/status.json")
    assert first.json["start"] != second.json["start"] and first.headers["ETag"] != second.headers["ETag"]


def test_only_newer_points_are_sent(scene):
    for _ in range(20):
        scene.tell()
    points = scene.ask("/status.json").json["sensors"][0]["points"]
    assert len(points) >= 4
    newer = scene.ask(f"/status.json?after={points[1][0]}").json["sensors"][0]["points"]
    assert newer == points[2:]


def test_probation_is_said_once(scene):
    scene.tell(state="probation", reason=ON_PROBATION)
    front = scene.ask("/status.json").json["sensors"][0]
    assert front["reason"] == "" and "on probation" in front["sentence"] and ON_PROBATION not in front["notes"]


@pytest.mark.parametrize(
    "query", ["after=-7", "after=x", "after=", "after=" + 400 * "9", "after=%00", "x=1", "after=1&after=2"]
)
def test_any_other_query_is_no_fault(scene, query):
    assert scene.ask(f"/status.json?{query}").status == 200


def test_no_page_leaves_metrics_and_health(open_scene):
    scene = open_scene(page=False)
    for path in (*STATIC_FILES, "/status.json", "/frames/front/received.png"):
        assert scene.ask(path)[::2] == (404, b"no such path\n")
    for path in ("/metrics", "/healthz", "/readyz"):
        assert scene.ask(path).status == 200


# ---- frames


def test_frames_are_not_shown_by_default(scene):
    scene.sensors["front"].shown = FRAME
    scene.tell()
    assert scene.ask("/status.json").json["sensors"][0]["frame"] is None
    assert scene.ask("/frames/front/received.png").status == 404
    assert not scene.port.wants_frames()


def test_frames_are_shown_where_the_configuration_says_so(open_scene):
    scene = open_scene(show_frames=True)
    scene.sensors["front"].shown = FRAME
    scene.sensors["rear"].shown = FRAME._replace(restored=None)
    scene.tell()
    front, rear = scene.ask("/status.json").json["sensors"]
    assert front["frame"] == {"mark": "7", "restored": True} and rear["frame"] == {"mark": "7", "restored": False}
    received, restored = (scene.ask(f"/frames/front/{which}.png") for which in ("received", "restored"))
    assert (received.body, restored.body) == (FRAME.received, FRAME.restored)
    assert received.headers["Content-Type"] == "image/png" and received.headers["Cache-Control"] == "no-store"
    for path in ("/frames/rear/restored.png", "/frames/front/other.png", "/frames/front", "/frames/other/received.png"):
        assert scene.ask(path).status == 404, path
    scene.sensors["front"].shown = None
    scene.tell()
    assert scene.ask("/frames/front/received.png").status == 404


def test_frames_are_prepared_only_while_somebody_looks(open_scene):
    scene = open_scene(show_frames=True)
    assert not scene.port.wants_frames()
    scene.ask("/metrics")
    scene.ask("/healthz")
    assert not scene.port.wants_frames()
    scene.ask("/status.json")
    assert scene.port.wants_frames()
    scene.now += MAX_WATCHED_S + 1
    assert not scene.port.wants_frames()


# ---- TLS, a taken port


def test_the_certificate_is_used_and_its_end_exported(open_scene, tmp_path):
    authority = Authority(tmp_path)
    issued = authority.issue("device")
    scene = open_scene(certificate=issued.certificate.name, certificate_key=issued.key.name)  # beside the configuration
    scene.context = ssl.create_default_context(cafile=authority.file)
    assert scene.ask("/readyz").status == 200
    exported = scene.registry.get_sample_value("recald_certificate_expiry_timestamp_seconds")
    assert exported == issued.ends.timestamp()


def test_without_a_certificate_its_end_is_nan(scene):
    assert str(scene.registry.get_sample_value("recald_certificate_expiry_timestamp_seconds")) == "nan"


def test_a_taken_port_is_served_once_it_is_free(open_scene):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        scene = open_scene(port=taken.getsockname()[1])
        assert scene.port.port is None
    scene.tell()
    assert scene.ask("/healthz").status == 200


def test_snapshots_change_while_many_read_them(scene):
    """Each answer is of one moment: what is read is never half of one snapshot and half of another."""
    wrong: list[Any] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            front = scene.ask("/status.json").json["sensors"][0]
            if front["frames"] != front["dropped"]:
                wrong.append(front)

    threads = [threading.Thread(target=read) for _ in range(3)]
    scene.tell(frames=0, dropped=0)
    for thread in threads:
        thread.start()
    for number in range(300):
        scene.tell(frames=number, dropped=number)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
