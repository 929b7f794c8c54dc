"""`recald history` and `recald verify` on logs that somebody changed; the daemon's own file is left as it is."""

from __future__ import annotations

import argparse
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from dossiers import AT, dossier
from running import write_config

import deploy.store.dossier_archive
from daemon.cli import main
from daemon.exit_codes import EX_CONFIG
from daemon.operator.history import history
from daemon.operator.verify import parse_anchor, verify
from deploy.audit.log import AuditLog, audit_path
from deploy.store.dossier_archive import DossierArchive


class Place:
    """A configuration, and a state directory with an audit log of three records."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.config = write_config(folder, model)
        self.path = audit_path(folder / "state")
        self.path.parent.mkdir()
        self.append("start", {"by": "[/b] a [bold] name"})
        self.append("state", {"state": "collecting"})
        self.append("swap", {"to": "a" * 64})

    def append(self, event: str, details: dict) -> None:
        with closing(AuditLog(self.path)) as audit:
            audit.append("front", event, details)

    def tamper(self, statement: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement)

    def history(self, **options) -> None:
        history(
            argparse.Namespace(
                **{"config": self.config, "sensor": None, "limit": 50, "all": False, "json": False} | options
            )
        )

    def verify(self, anchor: str | None = None) -> bool:
        return verify(argparse.Namespace(config=self.config, anchor=anchor, json=False))


@pytest.fixture
def place(folder: Path, tiny_model: Path) -> Place:
    return Place(folder, tiny_model)


def test_people_read_what_was_done_and_brackets_are_no_markup(place, capsys):
    place.history()
    said = " ".join(capsys.readouterr().out.split())
    assert "[/b] a [bold] name" in said and "to aaaaaaaaaaaa" in said and "collecting" not in said
    place.history(all=True)
    assert "collecting" in capsys.readouterr().out


def test_numbers_and_digests_are_short_and_what_is_empty_is_left_out(place, capsys):
    place.append("rollback", {"pause": 9.109999155043624e-07, "why": "", "homogenizers": {"front": "b" * 64}})
    place.history()
    assert "  homogenizers front=bbbbbbbbbbbb, pause 9.11e-07\n" in capsys.readouterr().out


def test_programs_read_lines_of_json_chosen_alike(place, capsys):
    place.history(json=True, limit=2)
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["start", "swap"]
    place.history(json=True, sensor="rear")
    assert capsys.readouterr().out.strip() == ""


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM record WHERE number = 1",
        "UPDATE record SET details = '[]' WHERE number = 1",
        "UPDATE record SET details = '[1]' WHERE number = 2",
        "UPDATE record SET event = x'ff' WHERE number = 2",
    ],
)
def test_a_changed_record_breaks_neither_command_and_is_reported(place, statement, capsys):
    place.tamper(statement)
    place.history(all=True)
    assert not place.verify()
    assert "record" in capsys.readouterr().out


def test_looking_changes_nothing_even_where_the_newest_record_is_damaged(place, capsys):
    place.tamper("UPDATE record SET sensor = 'x' WHERE number = 4")
    before = place.path.read_bytes()
    place.history()
    assert not place.verify()
    assert place.path.read_bytes() == before
    assert not list(place.path.parent.glob("*.damaged*"))
    assert "record 4 is not what was written" in capsys.readouterr().out


def test_a_log_that_was_set_aside_is_reported(place, capsys):
    place.path.write_bytes(b"no database")
    place.append("start", {})
    assert not place.verify()
    assert "audit.sqlite.damaged-1: a damaged log, set aside as it was (SHA-256 " in capsys.readouterr().out


def test_a_missing_log_is_reported_where_something_was_served(place, capsys):
    place.path.unlink()
    assert place.verify()
    (place.path.parent / "sensors").mkdir()
    assert not place.verify()
    assert "missing, though the state directory shows that recald has run" in capsys.readouterr().out


@pytest.mark.parametrize("command", [("verify",), ("history",), ("purge",), ("report", "--list")])
def test_a_state_directory_that_no_daemon_has_used_is_no_intact_one(folder, tiny_model, command, capsys):
    config, state = write_config(folder, tiny_model), folder / "state"
    for _ in range(2):
        assert main([*command, "--config", str(config)]) == EX_CONFIG
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and f"{state}: no state of a recald is here: " in said.err and not said.out
        state.mkdir(exist_ok=True)
    assert not list(state.iterdir())


def test_a_missing_dossier_that_the_log_names_is_reported(place, capsys, monkeypatch):
    monkeypatch.setattr(deploy.store.dossier_archive, "MAX_DOSSIERS_PER_SENSOR", 2)
    archive = DossierArchive(place.path.parent)
    for number in range(3):  # the oldest is removed as such
        place.append("fit", {"dossier": archive.put(dossier(at=AT + number))})
    place.append("fit", {"dossier": None})
    assert place.verify(), capsys.readouterr().out
    newest = archive.read_all()[0].path
    newest.unlink()
    assert not place.verify()
    assert f"{newest}: missing, though record 7 of the log names it" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "17", "x:ab", ":ab", "17:"])
def test_what_is_no_anchor_is_refused(text):
    with pytest.raises(ValueError, match="is not NUMBER:DIGEST"):
        parse_anchor(text)
