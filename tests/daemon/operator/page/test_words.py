"""What the page says: every state has words, the most urgent comes first, and nobody's name is told."""

from __future__ import annotations

from typing import Any

import pytest
from statuses import sensor_status

from daemon.operator.page.words import MAX_NAMED, STATE_SENTENCES, TONES, Standing, decision, headline, standing
from daemon.states import State
from deploy.audit.chain import AuditRecord, canonical_json


def record(event: str, sensor: str = "front", **details: Any) -> AuditRecord:
    return AuditRecord(7, "2026-01-02T03:04:05.678Z", sensor, event, canonical_json(details), "", "")


def test_every_state_has_a_sentence():
    assert set(STATE_SENTENCES) == set(State)
    assert all(sentence.endswith(".") for sentence in STATE_SENTENCES.values())


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("alarm", [True, False, None])
def test_every_state_has_a_standing(state, alarm):
    found = standing(sensor_status(state=state.value, drift_alarm=alarm), broken=False)
    assert found.tone in TONES and found.text


@pytest.mark.parametrize(
    ("changes", "tone", "text"),
    [
        ({}, "good", "well"),
        ({"drift_score": None}, "idle", "no drift check yet"),
        ({"drift_alarm": True}, "warn", "drifts"),
        ({"drift_alarm": True, "state": "fitting"}, "busy", "drifts, recalibrates"),
        ({"state": "fitting"}, "busy", "recalibrates"),
        ({"state": "probation"}, "busy", "on probation"),
        ({"state": "awaiting_approval", "drift_alarm": True}, "wait", "waits for approval"),
        ({"state": "rolled_back"}, "warn", "rolled back"),
        ({"state": "invalid", "drift_alarm": True}, "bad", "not repairable"),
        ({"drift_checks": "stopped", "drift_score": None}, "bad", "no frames"),
        ({"drift_checks": "failing", "drift_score": None, "drift_alarm": None}, "bad", "not watched"),
    ],
)
def test_a_standing_is_what_matters_most(changes, tone, text):
    assert standing(sensor_status(**changes), broken=False) == Standing(tone, text)
    assert standing(sensor_status(**changes), broken=True) == Standing("bad", "the model fails")


def test_the_first_line_is_the_most_urgent():
    well, drifts, silent = Standing("good", "well"), Standing("warn", "drifts"), Standing("bad", "no frames")
    assert headline({"front": well}, "", "") == ("good", "The camera is well")
    assert headline({"front": well, "rear": well}, "", "") == ("good", "All 2 cameras are well")
    assert headline({"front": well, "rear": drifts}, "", "") == ("warn", "rear: drifts")
    assert headline({"front": silent, "rear": drifts, "top": silent}, "", "").text == "front: no frames; top: no frames"
    assert headline({"front": silent, "rear": silent}, "", "") == ("bad", "All 2 cameras: no frames")
    assert headline({"front": silent}, "the disk is full", "").text == "the disk is full"
    assert headline({"front": silent}, "the disk is full", "no beat").text == "recald hangs: no beat"


def test_the_first_line_names_few_cameras():
    many = {f"line-{number}": Standing("bad", "no frames") for number in range(10)} | {"top": Standing("good", "well")}
    text = headline(many, "", "").text
    assert text.count("no frames") == MAX_NAMED and text.endswith(f"; and {10 - MAX_NAMED} more")


FACTORY, VERSION = "factory", "ab12" * 16


@pytest.mark.parametrize(
    ("given", "title", "tone", "text"),
    [
        (
            record("drift alarm", score=8.03, homogenizer=FACTORY),
            "drift alarm",
            "bad",
            "score 8.03 without a homogenizer",
        ),
        (
            record("swap", **{"from": FACTORY, "to": VERSION, "pause": 2e-6}),
            "new homogenizer",
            "good",
            "ab12ab12ab12 serves instead of none; the exchange took 2 µs",
        ),
        (
            record("fit", result="rejected", reason="not better", dossier=VERSION),
            "recalibration ended",
            "warn",
            "rejected: not better",
        ),
        (record("fit", result="accepted", reason="better"), "recalibration ended", "good", "accepted: better"),
        (record("rollback", **{"from": VERSION, "to": FACTORY, "reason": "regress"}), "rolled back", "warn", None),
        (record("log begun", "", damaged={}, format=1), "audit log begun", "idle", ""),
        (record("log begun", "", damaged={"a": "b"}), "audit log begun", "idle", "a damaged one was set aside"),
        (
            record("start", "", recald="0.1.0", mode="locked", served_by="onnx", homogenizers={}),
            "recald started",
            "idle",
            "version 0.1.0, mode locked, served by onnx",
        ),
        (record("stop", "", front=7), "recald stopped", "idle", ""),
        (record("something new", number=7), "something new", "idle", "number 7"),
    ],
    ids=lambda given: given.event if isinstance(given, AuditRecord) else "",
)
def test_a_decision_is_told_in_words(given, title, tone, text):
    told = decision(given)
    assert (told["title"], told["tone"], told["at"]) == (title, tone, given.at)
    assert text is None or told["text"] == text


@pytest.mark.parametrize("event", ["order", "labels", "purge", "something new"])
def test_nobody_is_named(event):
    details = {"order": "approve", "candidate": VERSION, "right": 3, "wrong": 1, "result": "x"}
    told = decision(record(event, **details, by="anna", claimed="bert", pid=4711))
    assert not [name for name in ("anna", "bert", "4711") if name in str(told)]
    assert told["text"]


def test_details_that_somebody_changed_break_nothing():
    for details in ("[1, 2]", "no json", '{"pause": "soon", "to": 7}', "null"):
        assert decision(AuditRecord(7, "x", "front", "swap", details, "", ""))["title"] == "new homogenizer"
