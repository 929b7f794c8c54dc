"""`recald history`: show the audit log of a state directory. The daemon may run meanwhile."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import Any

from calibrate.errors import RecaldError
from daemon.config import load_config
from daemon.operator.state_directory import used_state_directory
from daemon.operator.terminal import Row, print_table
from daemon.operator.versions import short_version
from deploy.audit.chain import HIDDEN_EVENTS, AuditRecord
from deploy.audit.log import AuditLog, audit_path


def history(args: argparse.Namespace) -> None:
    """Print the audit log, the newest record last. Raises RecaldError where there is none."""
    path = audit_path(used_state_directory(load_config(args.config)))
    if not path.exists():
        raise RecaldError(f"{path}: there is no audit log yet; `recald run` begins it")
    with closing(AuditLog(path, read_only=True)) as audit:
        records = audit.records(args.sensor, args.limit, () if args.all else HIDDEN_EVENTS)
    if args.json:
        print("\n".join(record.json_line() for record in records))
    else:
        _print_table(records)


def _print_table(records: list[AuditRecord]) -> None:
    print_table(("number", "at (UTC)", "sensor", "event"), [_row(record) for record in records])
    if records:
        print(f"anchor of the last record: {records[-1].number}:{records[-1].digest}")


def _row(record: AuditRecord) -> Row:
    cells = (record.number, str(record.at)[:19].replace("T", " "), record.sensor or "-", record.event)
    return Row([str(cell) for cell in cells], [_details(record)])


def _details(record: AuditRecord) -> str:
    content = record.content()
    if not isinstance(content, dict):  # somebody changed it; `recald verify` reports that
        return str(content)
    return ", ".join(f"{name} {_shorten(value)}" for name, value in content.items() if value not in ("", {}, []))


def _shorten(value: Any) -> str:
    """Convert a value to text, with each digest and each number in it shortened."""
    if isinstance(value, dict):
        return " ".join(f"{name}={_shorten(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return short_version(value) if isinstance(value, str) else json.dumps(value)


def fit_records(records: list[AuditRecord]) -> dict[str, AuditRecord]:
    """Return the records of recalibrations by the digest of the dossier that each names, the newest last."""
    fits = [(record.content(), record) for record in records if record.event == "fit" and record.is_intact()]
    return {
        content["dossier"]: record
        for content, record in fits
        if isinstance(content, dict) and isinstance(content.get("dossier"), str)
    }
