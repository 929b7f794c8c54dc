"""A recalibration in words: what was decided, by whom, and what each criterion and each record of the log says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from daemon.operator.report.chronicle import details, of_event
from daemon.states import Result
from deploy.audit.chain import Record
from deploy.store.artefacts import FACTORY
from deploy.store.dossier import Criterion, Dossier

DECIDES = {
    "autonomous": "recald decides by itself",
    "supervised": "a person decides, by approve or reject",
    "shadow": "nothing may serve, candidates are only looked at",
    "locked": "nothing is fitted",
}
TRIGGERS = {
    "drift": "drift: the drift score stayed above its threshold",
    "timer": "timer: it was due by the clock",
    "operator": "operator: somebody ordered it",
}
TAKEN_BACK = {
    "regress": "the one before was better on the same frames",
    "latency": "frames took far longer than expected",
    "error": "it failed on a frame",
    "operator": "an operator ordered it",
}
NAMES = {"factory": "no ρ", "active": "the ρ that served", "candidate": "the candidate", "band": "the clean band"}
ASKED = {  # of a candidate, by the name of the criterion
    "score": "The drift score is a fifth below that of {against}",
    "confidence": "The network is as confident as with {against}, but for chance",
    "concentration": "No class takes far more of the answers than with {against}",
    "sureness": "The network is as sure as with {against} of the frames that both name alike",
    "gain": "The network is surer of the frames than with {against}",
    "band": "The drift score lies within the clean band",
}
UPPER = ("score", "concentration", "band")  # whose limit is the most that is allowed


class Outcome(NamedTuple):
    """tone: good, open, idle or bad. line: the decision in a few words. text: the same with its reasons."""

    tone: str
    line: str
    text: str


class Asked(NamedTuple):
    """A criterion as a row of a table."""

    said: str
    found: str
    limit: str
    met: bool


def outcome(dossier: Dossier, after: Sequence[Record], fit: Record | None) -> Outcome:
    """What was decided and what came of it; after: the records that followed; fit: the one that names the dossier."""
    if fit is not None and (told := details(fit)).get("result") not in (None, dossier.result):
        because = f"{told['result']}, {told.get('reason')}"  # refused or failed at its proof, or too late
        return Outcome("bad", "Not taken by the daemon", f"{_sentence(because)} What served before went on serving.")
    if dossier.result == Result.UNNEEDED:
        return Outcome("idle", "Nothing to repair", f"{_sentence(dossier.reason)} Nothing was fitted.")
    if dossier.result == Result.REJECTED:
        text = f"The judge refused the candidate: {dossier.reason}. What served before went on serving."
        return Outcome("bad", "Candidate refused", text)
    if dossier.candidate is None:
        return Outcome(
            "bad", "Recalibration failed", f"{_sentence(dossier.reason)} What served before went on serving."
        )
    return _of_candidate(dossier, dossier.candidate, after, known=fit is not None)


def _of_candidate(dossier: Dossier, version: str, after: Sequence[Record], known: bool) -> Outcome:
    proposed = "Going back to no ρ" if version == FACTORY else f"ρ {short(version)}"
    swap, dropped = of_event(after, "swap", to=version), of_event(after, "candidate dropped", candidate=version)
    if swap and not (dropped and dropped.number < swap.number):  # else it came back another day
        accepted = f"{proposed} was accepted ({dossier.reason}) and "
        since = f"{moment(swap.at)}{_by(after, 'approve')}"
        end = _end(version, [record for record in after if record.number > swap.number])
        if end is None:
            return Outcome("good", "Accepted and serving", f"{accepted}serves since {since}.")
        return end._replace(text=f"{accepted}served from {since}, {end.text}.")
    if dropped:
        said = details(dropped)
        text = f"{proposed} passed the judge ({dossier.reason}) and was then dropped{_by(after, 'reject')}: "
        return Outcome("bad", "Passed the judge, then dropped", f"{text}{said.get('result')}, {said.get('reason')}.")
    if not known:
        return Outcome(
            "open", "Passed the judge", f"{proposed}: {dossier.reason}. The audit log does not tell the rest."
        )
    return Outcome("open", "Passed the judge, not serving yet", f"{proposed}: {dossier.reason}.")


def _end(version: str, later: Sequence[Record]) -> Outcome | None:
    """How the service of a version ended; None where it goes on."""
    for record in later:
        said = details(record)
        if said.get("from") != version:
            continue
        if record.event == "rollback":
            by = _by([r for r in later if r.number > record.number], "rollback")
            because = by if by and said.get("reason") == "operator" else f": {_reason(said)}"
            return Outcome("bad", "Served, and taken back", f"until it was rolled back at {moment(record.at)}{because}")
        if record.event == "swap":
            return Outcome(
                "good", "Served, and replaced", f"until {short(said.get('to'))} followed at {moment(record.at)}"
            )
    return None


def _by(records: Sequence[Record], order: str) -> str:
    found = of_event(records, "order", order=order)
    return f", ordered by {details(found).get('by')}" if found else ""


def _reason(rollback: dict[str, Any]) -> str:
    return TAKEN_BACK.get(str(rollback.get("reason")), str(rollback.get("reason")))


def triggered(trigger: str) -> str:
    return TRIGGERS.get(trigger, trigger)


def decided_by(mode: str | None) -> str:
    return f"{mode}: {DECIDES.get(mode, 'not known to this release')}" if mode else "not told by the audit log"


def asked(criterion: Criterion) -> Asked:
    """One criterion of the judge, in words and figures."""
    said = criterion.name  # of another release
    if criterion.name in ASKED:
        said = ASKED[criterion.name].format(against=NAMES.get(criterion.against, criterion.against))
    side = "at most" if criterion.name in UPPER else "at least"
    unit = figure if criterion.name in ("score", "band") else percent
    if criterion.name == "sureness":
        unit = _errors
    elif criterion.name == "gain":
        unit = _nats
    return Asked(said, unit(criterion.value), f"{side} {unit(criterion.limit)}", criterion.met)


def told(record: Record) -> str:
    """What a record of the audit log says."""
    said = details(record)
    match record.event:
        case "swap":
            pause = said.get("pause")
            took = f"; the exchange took {1e6 * pause:.0f} µs" if isinstance(pause, int | float) else ""
            return f"{short(said.get('to'))} serves instead of {short(said.get('from'))}{took}"
        case "rollback":
            return f"{short(said.get('to'))} serves again instead of {short(said.get('from'))}: {_reason(said)}"
        case "order":
            return f"{said.get('order')}, by {said.get('by')}"
        case "fit":
            stored = f"; candidate {short(said['candidate'])}" if said.get("candidate") else ""
            return f"{said.get('result')}: {said.get('reason')}{stored}; dossier {short(said.get('dossier'))}"
        case "state":
            return f"{said.get('state')}{': ' if said.get('reason') else ''}{said.get('reason') or ''}".replace(
                "_", " "
            )
        case "candidate dropped":
            return f"{short(said.get('candidate'))} {said.get('result')}: {said.get('reason')}"
        case "drift alarm" | "drift alarm over":
            return f"score {figure(said.get('score'))} with {short(said.get('homogenizer'))}"
    return ", ".join(f"{name} {short(value)}" for name, value in said.items())


def figure(value: Any) -> str:
    """A number to three digits."""
    if not isinstance(value, int | float):
        return "not finite"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def percent(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1%}"


def _errors(value: float | None) -> str:
    return "not finite" if value is None else f"{value:+.2f} standard errors"


def _nats(value: float | None) -> str:
    return "not finite" if value is None else f"{value:+.2f} nats"


def seconds(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{math.floor(value / 60)} min {value % 60:.0f} s"


def moment(at: str | float) -> str:
    """A time in UTC, to the second: of a record, or s since the epoch."""
    if isinstance(at, str):
        return f"{at[:19].replace('T', ' ')} UTC"
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def short(value: Any) -> str:
    """A version as people compare it, its first twelve digits; anything else as it is."""
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
