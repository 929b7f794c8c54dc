"""`recald purge`: no kept frame is left, the audit log tells who ordered it, and a running daemon is not in the way."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import yaml
from dossiers import dossier
from running import write_config

from daemon.cli import main
from daemon.exit_codes import EX_TEMPFAIL
from deploy.audit.log import AuditLog, audit_path
from deploy.store.dossier_archive import DossierArchive


class Place:
    """A state directory with three kept frames, of two sensors."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.config = write_config(folder, model)
        self.archive, self.audit = DossierArchive(folder / "state"), audit_path(folder / "state")
        self.archive.put(dossier(), [b"one", b"two"], 1 << 20)
        self.archive.put(dossier(sensor="rear"), [b"three"], 1 << 20)

    def purge(self, *arguments: str) -> int:
        return main(["purge", "--config", str(self.config), *arguments])

    def frames(self) -> int:
        return len(list(self.archive.folder.rglob("*.png")))


@pytest.fixture
def place(folder: Path, tiny_model: Path) -> Place:
    return Place(folder, tiny_model)


def test_frames_are_deleted_and_the_log_names_the_user(place, monkeypatch, capsys):
    monkeypatch.setattr("daemon.operator.peer.user_name", lambda uid: "ada")
    with closing(AuditLog(place.audit)) as audit:
        assert place.purge("--sensor", "rear") == place.purge() == 0
        told = [(record.sensor, record.event, record.content()) for record in audit.records()][1:]
        assert told == [
            ("rear", "frames purged", {"count": 1, "by": "ada"}),
            ("", "frames purged", {"count": 2, "by": "ada"}),
        ]
    assert place.frames() == 0 and len(place.archive.read_all()) == 2
    assert capsys.readouterr().out.startswith("rear: 1 kept frame(s) deleted")


def test_a_daemon_that_writes_meanwhile_goes_on_in_the_same_log(place):
    with closing(AuditLog(place.audit)) as daemons:
        daemons.append("front", "swap", {})
        assert place.purge() == 0
        daemons.append("front", "swap", {})
        assert daemons.verify() == []
        assert [record.event for record in daemons.records()][1:] == ["swap", "frames purged", "swap"]


def test_no_log_is_begun_where_there_is_none(place):
    assert place.purge() == 0
    assert place.frames() == 0 and not list(place.audit.parent.glob("audit*"))


def test_a_damaged_log_is_left_to_the_daemon_and_the_frames_are_gone(place, capsys):
    place.audit.write_bytes(b"no database, and long enough to be looked at as one" * 20)
    assert place.purge() == EX_TEMPFAIL
    assert place.frames() == 0 and not list(place.audit.parent.glob("*.damaged*"))
    assert "audit.sqlite" in capsys.readouterr().err


def test_a_setting_that_keeps_frames_is_reported(place, capsys):
    settings = yaml.safe_load(place.config.read_text())
    settings["recalibrate"]["keep_frames"] = 4
    place.config.write_text(yaml.safe_dump(settings))
    assert place.purge() == 0
    assert "recalibrate.keep_frames is 4: set it to 0" in capsys.readouterr().out
