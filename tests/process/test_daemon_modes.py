"""Who decides what serves: modes, approval, hold and probation of a running daemon, and what its audit log holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import Camera, Daemon, eventually, recald, recald_here, serving, write_config
from synthetic import dark, images

from daemon.exit_codes import EX_TEMPFAIL
from daemon.operator.control import request

CLEAN = images(256, 1)


def drift() -> dict[str, np.ndarray]:
    return {"front": dark()}


def order(daemon: Daemon, *command: str) -> str:
    done = recald(*command, "--sensor", "front", "--config", daemon.config)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(daemon: Daemon, *command: str) -> str:
    done = recald(*command, "--sensor", "front", "--config", daemon.config)
    assert done.returncode == 78 and done.stdout == ""
    return done.stderr


def state(daemon: Daemon) -> str:
    return daemon.status()["state"]


def waits_for(daemon: Daemon, what: str) -> Callable[[], bool]:
    """Whether a candidate waits, and for this."""
    return lambda: what in daemon.status()["reason"]


def counted(daemon: Daemon, name: str, **labels: str) -> Callable[[], bool]:
    """Whether this has happened once."""
    return lambda: daemon.metric(name, **labels) == 1


def label(daemon: Daemon, answers: list[dict]) -> dict:
    """Tell the daemon that each of these answers was wrong."""
    labels = [[answer["seq"], (answer["label"] + 1) % 4] for answer in answers]
    return request(daemon.control, {"command": "labels", "sensor": "front", "labels": labels}, 10)


def served(camera: Camera) -> list[str]:
    """The homogenizers that answered, in order of their first answer."""
    return list(dict.fromkeys(header["homogenizer"] for header in camera.answers["front"]))


def audit(config: Path) -> list[dict]:
    history = recald_here("history", "--config", config, "--json")
    assert history.returncode == 0, history.stderr
    return [json.loads(line) for line in history.stdout.splitlines()]


@pytest.fixture
def in_mode(tiny_model: Path, folder: Path):
    def configure(mode: str, **settings: object) -> Path:
        return write_config(folder, tiny_model, recalibrate={"mode": mode, **settings})

    return configure


def test_locked_watches_and_changes_nothing(in_mode):
    with serving(in_mode("locked")) as (daemon, camera):
        camera.stream(drift(), lambda: daemon.status()["drift_alarm"], "the alarm")
        sent = len(camera.sent["front"])
        camera.stream(drift(), lambda: len(camera.sent["front"]) > sent + 100, "two seconds pass")
        assert state(daemon) == "factory" and daemon.metric("recald_fits_total") == 0
        assert "front: recalibrate.mode is locked" in refusal(daemon, "recalibrate")
        assert label(daemon, camera.answers["front"][-4:])["wrong"] == 4


def test_the_shadow_mode_judges_and_lets_nothing_serve(in_mode):
    with serving(in_mode("shadow", every="10m")) as (daemon, camera):
        order(daemon, "recalibrate")  # sooner than a drift alarm
        camera.stream(
            drift(),
            counted(daemon, "recald_swaps_total", result="shadowed"),
            "a candidate has stood the shadow",
        )
        camera.settle()
        assert served(camera) == ["factory"]
        assert daemon.metric("recald_swaps_total", result="committed") == 0
        assert "recalibrate.mode is shadow" in daemon.status()["last_fit"]


def test_a_candidate_serves_once_it_is_approved_and_not_if_it_is_refused(in_mode):
    config = in_mode("supervised")
    with serving(config) as (daemon, camera):
        camera.stream(drift(), lambda: state(daemon) == "awaiting_approval", "a candidate waits")
        status = daemon.status()
        assert "recald approve" in status["reason"]
        assert served(camera) == ["factory"]
        assert f"{status['candidate'][:12]} does" in refusal(daemon, "approve", "--version", "f" * 8)
        answer, version = order(daemon, "approve", "--version", status["candidate"]), status["candidate"][:12]
        assert answer == f"front: candidate {version} serves as soon as nothing holds it, on probation\n"
        camera.stream(drift(), lambda: state(daemon) == "active", "it serves and its probation is over")
        before = [answer for answer in camera.answers["front"] if answer["homogenizer"] == "factory"]
        counted_labels = label(daemon, [*before[-3:], *camera.answers["front"][-2:]])
        assert (counted_labels["outdated"], counted_labels["wrong"]) == (3, 2)
        assert daemon.status()["labelled"]["wrong"] == 2

        camera.stream({"front": CLEAN}, lambda: state(daemon) == "factory", "the way back to none needs no approval")
        assert daemon.status()["labelled"] is None

        camera.stream(drift(), lambda: state(daemon) == "awaiting_approval", "it waits for approval once more")
        assert "goes on serving" in order(daemon, "reject")
        eventually(counted(daemon, "recald_swaps_total", result="refused"), "the candidate is dropped")
        assert daemon.status()["candidate"] is None
        camera.settle()
        assert served(camera) == ["factory", status["candidate"]]
        assert camera.ask(CLEAN[0])[0]["homogenizer"] == "factory"
        assert "front: no candidate waits for approval: " in refusal(daemon, "approve")
    events = [(record["event"], record["details"]) for record in audit(config) if record["sensor"] == "front"]
    led_to_one = [at for at in events if at[0] != "fit" or at[1].get("candidate")]  # a try that fails is repeated
    names = [name for name, _ in led_to_one if name not in ("state", "drift alarm over", "labels", "fit begun")]
    fitted, recalled = ["fit", "order", "swap begun", "swap"], ["fit", "order", "candidate dropped"]
    assert names[:11] == ["drift alarm", *fitted, "drift alarm", "swap", "drift alarm", *recalled], events
    swaps = [(details["from"], details["to"]) for name, details in events if name == "swap"]
    assert swaps == [("factory", status["candidate"]), (status["candidate"], "factory")]
    assert recald_here("verify", "--config", config).returncode == 0


def test_nothing_is_swapped_during_a_hold_of_the_operator_nor_after_a_restart(in_mode):
    config = in_mode("autonomous", probation="1h")
    with Daemon(config) as daemon:
        daemon.wait_until_serving()
        assert "recald hold --release" in order(daemon, "hold")
        eventually(lambda: any(r["event"] == "order" for r in audit(config)), "the order is on the disk")
    with serving(config) as (daemon, camera):
        order(daemon, "recalibrate")
        camera.stream(
            drift(),
            lambda: "the operator holds swaps" in daemon.status()["reason"],
            "a candidate waits for the hold to end",
        )
        assert state(daemon) == "shadow" and served(camera) == ["factory"]
        order(daemon, "hold", "--release")
        camera.stream(drift(), lambda: state(daemon) == "probation", "it serves")
        camera.stream(
            {"front": CLEAN},
            lambda: daemon.status()["homogenizer"] == "factory",
            "the camera is clean again, and it is taken back",
        )
        camera.settle()
        assert camera.ask(CLEAN[0])[0]["homogenizer"] == "factory"
        camera.assert_none_lost()


def test_nothing_is_swapped_while_the_audit_log_cannot_be_written(in_mode, folder: Path):
    config = in_mode("autonomous")
    (folder / "state" / "audit.sqlite").mkdir(parents=True)  # where the log should be
    with serving(config) as (daemon, camera):
        camera.stream(
            drift(),
            lambda: "audit log cannot be written" in daemon.status()["reason"],
            "a candidate waits for the audit log",
        )
        assert served(camera) == ["factory"]
        assert daemon.metric("recald_audit_failures_total") > 0
        (folder / "state" / "audit.sqlite").rmdir()
        camera.stream(drift(), lambda: state(daemon) == "active", "it serves")
        events = [record["event"] for record in audit(config)]
        assert events[:2] == ["log begun", "start"] and "swap" in events, "what had to wait is written"
        _remove_state(daemon, camera)


def _with_other_sockets(config: Path) -> Path:
    """Write the configuration of a second daemon on the same state directory."""
    other = config.with_name("other.yaml")
    other.write_text(config.read_text().replace(f"ipc://{config.parent}/", f"ipc://{config.parent}/other-"))
    return other


def _remove_state(daemon: Daemon, camera: Camera) -> None:
    """Remove the state directory under the daemon: it serves and says what is wrong, and no other daemon starts."""
    records, version = daemon.metric("recald_audit_records_total"), daemon.status()["homogenizer"]
    shutil.rmtree(daemon.state)
    said = eventually(lambda: request(daemon.control, {"command": "status"}, 10)["problem"], "the loss is noticed")
    assert "removed or replaced" in said
    assert said in " ".join(recald_here("status", "--config", daemon.config).stdout.split())
    recald_here("hold", "--sensor", "front", "--config", daemon.config)
    assert camera.ask(dark()[0])[0]["homogenizer"] == version
    assert daemon.metric("recald_audit_records_total") == records
    done = recald_here("run", "--config", _with_other_sockets(daemon.config))
    assert done.returncode == EX_TEMPFAIL and f"another recald uses {daemon.state}" in done.stderr
    assert daemon.log.count("removed or replaced") == 1
