"""What the page says: the states and decisions in words, and how urgent each is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from daemon.operator.report.audit_excerpt import details
from daemon.operator.report.wording import record_text, trigger_text
from daemon.operator.versions import short_version
from daemon.states import AT_REST, State
from deploy.audit.chain import HIDDEN_EVENTS, AuditRecord
from deploy.store.artefacts import FACTORY

STATE_SENTENCES = {
    State.FACTORY: "Serves without a homogenizer.",
    State.COLLECTING: "Collects frames to fit a homogenizer to.",
    State.FITTING: "Fits a homogenizer, beside serving.",
    State.JUDGING: "Judges the candidate on frames it was not fitted to.",
    State.COMPILING: "Compiles the candidate.",
    State.SHADOW: "Runs the candidate beside what serves, on new frames.",
    State.AWAITING_APPROVAL: "A candidate waits for a person to approve it.",
    State.PROBATION: "A new homogenizer serves, on probation.",
    State.ACTIVE: "Serves with a fitted homogenizer.",
    State.ROLLED_BACK: "A homogenizer was taken back.",
    State.FAILED: "The recalibration failed.",
    State.INVALID: "Do not rely on the results of this camera.",
}
EVENT_TITLES = {  # of the audit log; the others are shown as they are named there
    "start": "recald started",
    "stop": "recald stopped",
    "log begun": "audit log begun",
    "order": "order of an operator",
    "labels": "labelled frames",
    "fit": "recalibration ended",
    "fit begun": "recalibration begun",
    "swap": "new homogenizer",
    "rollback": "rolled back",
    "read-out": "what happened to the camera",
}
STARTED_WITH = {"recald": "version", "mode": "mode", "served_by": "served by"}
EVENT_TONES = {"drift alarm": "bad", "drift alarm over": "good", "swap": "good", "rollback": "warn"}
FIT_TONES = {"accepted": "good", "recalled": "good", "factory": "good", "unneeded": "good"}
TOLD_IN_REPORTS = {"swap", "rollback", "candidate dropped", "homogenizer refused"}
TOLD_IN_REPORTS |= {"drift alarm", "drift alarm over", "read-out"}
HIDDEN_ON_PAGE = (*HIDDEN_EVENTS, "swap begun")  # each is followed by one that says more
PERSON_KEYS = ("by", "claimed", "pid")  # who gave an order is for those who may give orders
MAX_NAMED = 3  # sensors in the first line; more would be a list


class Standing(NamedTuple):
    """How a sensor is. tone: bad, warn, wait, busy, idle or good, the most urgent first. text: a few words."""

    tone: str
    text: str


TONES = ("bad", "warn", "wait", "busy", "idle", "good")


def standing(sensor: Mapping[str, Any], broken: bool) -> Standing:
    """Return how a sensor is. sensor: its status."""
    state, alarm = State(sensor["state"]), sensor["drift_alarm"]
    if broken:
        return Standing("bad", "the model fails")
    if state is State.INVALID:
        return Standing("bad", "not repairable")
    if sensor["drift_checks"] == "failing":
        return Standing("bad", "not watched")
    if sensor["drift_checks"] == "stopped":
        return Standing("bad", "no frames")
    if state is State.AWAITING_APPROVAL:
        return Standing("wait", "waits for approval")
    if state not in AT_REST:
        doing = "on probation" if state is State.PROBATION else "recalibrates"
        return Standing("busy", f"drifts, {doing}" if alarm else doing)
    if alarm:
        return Standing("warn", "drifts")
    if state in (State.ROLLED_BACK, State.FAILED):
        return Standing("warn", str(state).replace("_", " "))
    if sensor["drift_score"] is None:
        return Standing("idle", "no drift check yet")
    return Standing("good", "well")


def headline(standings: Mapping[str, Standing], problem: str, silence: str) -> Standing:
    """Return the page's first line: the most urgent of all."""
    if silence:
        return Standing("bad", f"recald hangs: {silence}")
    if problem:
        return Standing("bad", problem)
    worst = min(standings.values(), key=lambda one: TONES.index(one.tone))
    if worst.tone == "good":
        return Standing(
            "good", "The camera is well" if len(standings) == 1 else f"All {len(standings)} cameras are well"
        )
    if len(standings) > 1 and len(set(standings.values())) == 1:
        return Standing(worst.tone, f"All {len(standings)} cameras: {worst.text}")
    told = [f"{name}: {one.text}" for name, one in standings.items() if one.tone == worst.tone]
    more = f"; and {len(told) - MAX_NAMED} more" if len(told) > MAX_NAMED else ""
    return Standing(worst.tone, "; ".join(told[:MAX_NAMED]) + more)


def decision(record: AuditRecord) -> dict[str, str]:
    """Return a record of the audit log for the page. Who gave an order is left out: any local user may look."""
    recorded, event = details(record), record.event
    tone = FIT_TONES.get(str(recorded.get("result")), "warn") if event == "fit" else EVENT_TONES.get(event, "idle")
    title = EVENT_TITLES.get(event, event)
    return {"at": record.at, "sensor": record.sensor, "title": title, "tone": tone, "text": _text(record, recorded)}


def _text(record: AuditRecord, recorded: dict[str, Any]) -> str:
    match record.event:
        case "start":
            return (
                f"version {recorded.get('recald')}, mode {recorded.get('mode')}, served by {recorded.get('served_by')}"
            )
        case "stop":
            return ""
        case "log begun":
            return "a damaged one was set aside" if recorded.get("damaged") else ""
        case "order":
            version = recorded.get("version") or recorded.get("candidate")
            return f"{recorded.get('order')}{f' {short_version(version)}' if version else ''}"
        case "labels":
            return f"{recorded.get('right')} answers right, {recorded.get('wrong')} wrong"
        case "fit begun":
            return trigger_text(str(recorded.get("trigger")))
        case "fit":
            return f"{recorded.get('result')}: {recorded.get('reason')}"
    if record.event in TOLD_IN_REPORTS:
        return _without_factory(record_text(record))
    return ", ".join(f"{name} {short_version(value)}" for name, value in recorded.items() if name not in PERSON_KEYS)


def _without_factory(text: str) -> str:
    """Return the text with the words of the page, on which "none" serves and not "factory"."""
    return text.replace(f" with {FACTORY}", " without a homogenizer").replace(
        f" instead of {FACTORY}", " instead of none"
    )
