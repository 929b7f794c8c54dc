"""The texts of a report: the outcome in words, each criterion, each record of the audit log, numbers and times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from calibrate.judge import MIN_SCORE_DROP_SHARE
from daemon.operator.report.audit_excerpt import details, find_record
from daemon.operator.versions import short_version
from daemon.states import Result
from deploy.audit.chain import AuditRecord
from deploy.store.artefacts import FACTORY
from deploy.store.dossier import CriterionRecord, Dossier, FramesRecord, HomogenizerRecord

MODE_TEXTS = {  # by recalibrate.mode
    "autonomous": "recald decides by itself",
    "supervised": "a person decides, by approve or reject",
    "shadow": "candidates are judged, and none may serve",
    "locked": "nothing is fitted",
}
TRIGGER_TEXTS = {
    "drift": "drift: the drift alarm was raised",
    "timer": "timer: it was due by the clock",
    "operator": "operator: somebody ordered it",
}
ROLLBACK_TEXTS = {  # by reason
    "regress": "the one before was better on the same frames",
    "latency": "frames took far longer than expected",
    "error": "it failed on a frame",
    "operator": "an operator ordered it",
}
HOMOGENIZER_TEXTS = {
    "factory": "no ρ",
    "active": "the ρ that served",
    "candidate": "the candidate",
    "band": "the clean band",
    "replicate": "a second fit to other frames",
}
CRITERION_TEXTS = {  # by the name of the criterion in the dossier
    "score": f"The drift score is at least {MIN_SCORE_DROP_SHARE:.0%} below that of {{against}}",
    "band": "The drift score is near enough to that of clean frames",
    "repeatability": "The candidate leads to the same answers as {against}",
    "agreement": "A second fit agrees with the candidate on more frames than with {against}",
    "view": "Both kinds of frames show the same classes",
    # of dossiers before 2026-11-28:
    "confidence": "The network is as confident as with {against}, within two standard errors",
    "concentration": "No class takes many more of the answers than with {against}",
    "sureness": "The network is as certain as with {against}, on frames with the same answer",
    "gain": "The network is more certain than with {against}, on all frames",
}
LIMIT_TEXTS = {
    "score": "at most",
    "concentration": "at most",
    "band": "at most",
    "view": "at most",
    "agreement": "more than",
}
CRITERION_UNITS = {"agreement": "standard errors", "sureness": "standard errors", "gain": "nats"}


class Outcome(NamedTuple):
    """tone: good, open, idle or bad, a CSS class. line: the decision. text: the decision with its reasons."""

    tone: str
    line: str
    text: str


class CriterionRow(NamedTuple):
    """A criterion as a row of a table."""

    text: str
    value: str
    limit: str
    met: bool


# ---- the outcome


def outcome(dossier: Dossier, after: Sequence[AuditRecord], fit: AuditRecord | None) -> Outcome:
    """Describe the decision and what became of it. after: the records that followed. fit: the record of the dossier."""
    recorded = details(fit) if fit is not None else {}
    if recorded.get("result") not in (None, dossier.result):  # refused by the daemon, failed at its proof, or too late
        reason = _sentence(f"{recorded['result']}, {recorded.get('reason')}")
        return Outcome("bad", "Not taken by the daemon", f"{reason} What served before went on serving.")
    if dossier.result == Result.UNNEEDED:
        return Outcome(
            "idle", "Nothing to repair", _sentence(dossier.reason) + ("" if dossier.fit else " Nothing was fitted.")
        )
    if dossier.result == Result.REJECTED:
        text = f"The judge refused the candidate: {dossier.reason}. What served before went on serving."
        return Outcome("bad", "Candidate refused", text)
    if dossier.candidate is None:
        text = f"{_sentence(dossier.reason)} What served before went on serving."
        return Outcome("bad", "Recalibration failed", text)
    return _candidate_outcome(dossier, dossier.candidate, after, recorded=fit is not None)


def _candidate_outcome(dossier: Dossier, version: str, after: Sequence[AuditRecord], recorded: bool) -> Outcome:
    proposed = "Going back to no ρ" if version == FACTORY else f"ρ {short_version(version)}"
    swap, dropped = find_record(after, "swap", to=version), find_record(after, "candidate dropped", candidate=version)
    if swap and not (dropped and dropped.number < swap.number):  # else it was dropped, and recalled another day
        accepted = f"{proposed} was accepted ({dossier.reason}) and "
        since = f"{utc_time(swap.at)}{_ordered_by(after, 'approve')}"
        end = _service_end(version, [record for record in after if record.number > swap.number])
        if end is None:
            return Outcome("good", "Accepted and serving", f"{accepted}serves since {since}.")
        return end._replace(text=f"{accepted}served from {since}, {end.text}.")
    if dropped:
        reason = f"{details(dropped).get('result')}, {details(dropped).get('reason')}"
        text = f"{proposed} passed the judge ({dossier.reason}) and was then dropped{_ordered_by(after, 'reject')}: "
        return Outcome("bad", "Passed the judge, then dropped", f"{text}{reason}.")
    passed = f"{proposed}: {dossier.reason}."
    if not recorded:
        return Outcome("open", "Passed the judge", f"{passed} The audit log has no record of it.")
    return Outcome("open", "Passed the judge, not serving yet", passed)


def _service_end(version: str, later: Sequence[AuditRecord]) -> Outcome | None:
    """Describe how a version stopped serving; None when it still serves."""
    for record in later:
        recorded, at = details(record), utc_time(record.at)
        if recorded.get("from") != version:
            continue
        if record.event == "rollback":
            operator = _ordered_by([r for r in later if r.number > record.number], "rollback")
            by_operator = operator and recorded.get("reason") == "operator"
            reason = operator if by_operator else f": {_rollback_text(recorded)}"
            return Outcome("bad", "Served, and taken back", f"until it was rolled back at {at}{reason}")
        if record.event == "swap":
            successor = short_version(recorded.get("to"))
            return Outcome("good", "Served, and replaced", f"until {successor} followed at {at}")
    return None


def _ordered_by(records: Sequence[AuditRecord], order: str) -> str:
    record = find_record(records, "order", order=order)
    return f", ordered by {_who(details(record))}" if record else ""


def _who(recorded: dict[str, Any]) -> str:
    """Name who gave an order: the user that the kernel saw, and the name that the client gave itself."""
    claimed = f" (calls itself {recorded['claimed']})" if recorded.get("claimed") else ""
    return f"{recorded.get('by')}{claimed}"


# ---- single entries of the page


def mode_text(mode: str | None) -> str:
    return f"{mode}: {MODE_TEXTS.get(mode, 'not known to this release')}" if mode else "not recorded in the audit log"


def trigger_text(trigger: str) -> str:
    return TRIGGER_TEXTS.get(trigger, trigger)


def effect_titles(count: int) -> list[str]:
    """Return the titles over what ρ does to a frame: one, or one for each branch of a split homogenizer."""
    plain = "What ρ does to a frame"
    return [plain] if count == 1 else [f"{plain} of camera {number} of {count}" for number in range(1, count + 1)]


def corrections(record: HomogenizerRecord, channels: Sequence[str]) -> list[str]:
    """Say what happens to pixels before the tone curve, where anything does."""
    sentences = []
    if record.defect_step is not None:
        steps = ", ".join(f"{number(step)} ({name})" for step, name in zip(record.defect_step, channels, strict=True))
        sentences.append(f"A pixel that differs from the median around it by more levels than {steps} is replaced.")
    if record.shading is not None:
        factor = number(record.shading[-1])
        sentences.append(f"The light of a lens is evened out, in the corners by a factor of {factor}.")
    return sentences


def criterion_row(criterion: CriterionRecord) -> CriterionRow:
    """Describe a criterion of the judge in words and numbers; one of another release by its name."""
    against = HOMOGENIZER_TEXTS.get(criterion.against, criterion.against)
    text = CRITERION_TEXTS.get(criterion.name, "").format(against=against) or criterion.name
    side = LIMIT_TEXTS.get(criterion.name, "at least")
    value, limit = (_criterion_number(criterion.name, given) for given in (criterion.value, criterion.limit))
    return CriterionRow(text, value, f"{side} {limit}", criterion.met)


def _criterion_number(criterion: str, value: float | None) -> str:
    if value is None:
        return "not finite"
    if criterion in ("score", "band", "repeatability"):
        return number(value)
    if criterion in CRITERION_UNITS:
        return f"{value:+.2f} {CRITERION_UNITS[criterion]}"
    return percent(value)


def record_text(record: AuditRecord) -> str:
    """Describe a record of the audit log."""
    recorded = details(record)
    after, before = short_version(recorded.get("to")), short_version(recorded.get("from"))
    match record.event:
        case "swap":
            pause = recorded.get("pause")
            took = f"; the exchange took {1e6 * pause:.0f} µs" if isinstance(pause, int | float) else ""
            return f"{after} serves instead of {before}{took}"
        case "swap begun":
            return f"{after} is to serve instead of {before}"
        case "rollback":
            return f"{after} serves again instead of {before}: {_rollback_text(recorded)}"
        case "order":
            return f"{recorded.get('order')}, by {_who(recorded)}"
        case "labels":
            results = f"{recorded.get('right')} answers right, {recorded.get('wrong')} wrong"
            return f"{results}, with {short_version(recorded.get('homogenizer'))}; told by {_who(recorded)}"
        case "fit":
            stored = f"; candidate {short_version(recorded['candidate'])}" if recorded.get("candidate") else ""
            dossier = short_version(recorded.get("dossier"))
            return f"{recorded.get('result')}: {recorded.get('reason')}{stored}; dossier {dossier}"
        case "state":
            reason = f": {recorded['reason']}" if recorded.get("reason") else ""
            return f"{recorded.get('state')}{reason}".replace("_", " ")
        case "candidate dropped":
            return f"{short_version(recorded.get('candidate'))} {recorded.get('result')}: {recorded.get('reason')}"
        case "homogenizer refused" | "compiled again":
            return f"{short_version(recorded.get('homogenizer', 'stored'))}: {recorded.get('reason')}"
        case "drift alarm" | "drift alarm over":
            drift = (
                f"{number(recorded['drift'])} standard deviations beside healthy frames, "
                if "drift" in recorded
                else ""
            )
            return f"{drift}score {number(recorded.get('score'))} with {short_version(recorded.get('homogenizer'))}"
        case "read-out":
            return f"the camera: {'; '.join(map(str, recorded.get('camera') or ()))}"
    return ", ".join(f"{name} {short_version(value)}" for name, value in recorded.items())


def _rollback_text(recorded: dict[str, Any]) -> str:
    return ROLLBACK_TEXTS.get(str(recorded.get("reason")), str(recorded.get("reason")))


# ---- numbers, times, versions


def number(value: Any) -> str:
    """Format a number with three significant digits."""
    if not isinstance(value, int | float):
        return "not finite"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def percent(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1%}"


def depth(frames: FramesRecord) -> str:
    """Describe the values of frames: a low peak of 16 bits means that fewer of them are significant."""
    kind = {"uint8": "8 bits", "uint16": "16 bits"}.get(str(frames.depth), "floats")
    return f"{kind} up to {percent(frames.peak)} of white"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{math.floor(seconds / 60)} min {seconds % 60:.0f} s"


def utc_time(at: str | float) -> str:
    """Format a time in UTC, to the second. at: the time of a record, or s since the epoch."""
    if isinstance(at, str):
        return f"{at[:19].replace('T', ' ')} UTC"
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
