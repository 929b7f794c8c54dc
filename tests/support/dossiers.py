"""Dossiers for tests: an accepted one, a rejected one and one without a fit, each with changes."""

from __future__ import annotations

from typing import Any

from deploy.store.dossier import Dossier, read_dossier

MODEL, REFERENCE, CANDIDATE, ACTIVE = "a" * 64, "b" * 64, "c" * 64, "d" * 64
AT = 1_795_600_000.25  # 2026-11-25 09:46:40 UTC
LEVELS = [0.0, 128.0, 255.0]


def evidence(score: float | None) -> dict[str, Any]:
    proxy = {"confidence": 0.9, "certainty": 0.8, "top_share": 0.3, "confidence_error": 0.01}
    return {"score": score, "proxy": proxy, "layers": [score, 2.0]}


def verdict(accepted: bool = True, reason: str = "better than every champion") -> dict[str, Any]:
    criteria = [
        {"name": "band", "against": "band", "value": 1.1, "limit": 1.6, "met": True, "objection": "far"},
        {"name": "score", "against": "factory", "value": 1.1, "limit": 7.0, "met": accepted, "objection": "worse"},
    ]
    measured = {"factory": evidence(9.0), "active": evidence(None), "candidate": evidence(1.1)}
    if accepted:  # a second fit is made only where the score refuses nothing
        criteria += [
            {
                "name": "repeatability",
                "against": "replicate",
                "value": 0.93,
                "limit": 0.75,
                "met": True,
                "objection": "",
            },
            {"name": "agreement", "against": "factory", "value": 3.5, "limit": 1.0, "met": True, "objection": ""},
        ]
        measured["replicate"] = evidence(1.3)
    return {"accepted": accepted, "reason": reason, "evidence": measured, "criteria": criteria}


def earlier_verdict() -> dict[str, Any]:
    """As releases wrote it that judged by how sure the network was, and made no second fit."""
    names = {"score": 1.1, "confidence": 0.9, "concentration": 0.3, "sureness": 2.5, "gain": 0.4, "band": 1.1}
    criteria = [
        {"name": name, "against": "factory", "value": value, "limit": value, "met": True, "objection": "worse"}
        for name, value in names.items()
    ]
    measured = {"factory": evidence(9.0), "candidate": evidence(1.1)}
    return {"accepted": True, "reason": "better than every champion", "evidence": measured, "criteria": criteria}


def content(**changes: Any) -> dict[str, Any]:
    """The stored content of an accepted recalibration, with `changes`."""
    unchanged = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    return {
        "v": 1,
        "sensor": "front",
        "at": AT,
        "trigger": "drift",
        "seed": 7,
        "model": MODEL,
        "reference": {"source": "shipped", "digest": REFERENCE},
        "normalisation": {"mean": [0.5] * 3, "std": [0.25] * 3},
        "versions": {"recald": "0.1.0", "torch": "2.9"},
        "active": "factory",
        "frames": {"fitted": 48, "held_out": 16, "until": AT - 5, "shape": [8, 8, 3], "refused": {"blank": 3}},
        "band": 1.6,
        "layers": ["bn1", "bn2"],
        "evidence": {"factory": evidence(9.0)},
        "fit": {"start": "colour", "start_losses": {"colour": 0.2, "identity": None}, "history": [0.2, 0.1]},
        "extents": {
            "knots": [-1.2, -0.4, 0.4, 1.2],
            "curve": [[0.0] * 4] * 3,
            "offset": [1.0, 2.0, 3.0],
            "levels": LEVELS,
            "response": [[level] * 3 for level in LEVELS],
            "colour": unchanged,
            "kernels": [unchanged] * 3,
        },
        "verdict": verdict(),
        "result": "accepted",
        "reason": "better than every champion",
        "candidate": CANDIDATE,
        "seconds": [["incumbents", 0.5], ["fit: source", 1.5]],
    } | changes


def dossier(**changes: Any) -> Dossier:
    return read_dossier(content(**changes))


def refused(reason: str = "score 8.00 is no better than factory's 9.00", **changes: Any) -> Dossier:
    outcome = {"result": "rejected", "reason": reason, "candidate": None, "verdict": verdict(False, reason)}
    return dossier(**outcome | changes)


def unneeded(**changes: Any) -> Dossier:
    nothing = {"fit": None, "extents": None, "verdict": None, "candidate": None}
    return dossier(**nothing | {"result": "unneeded", "reason": "the frames as served are within the band"} | changes)
