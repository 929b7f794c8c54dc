"""`recald history`: show the audit log of a state directory. The daemon may run meanwhile."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import Any

from daemon.config import load_config
from deploy.audit.chain import AuditRecord
from deploy.audit.log import AuditLog, audit_path

HIDDEN_EVENTS = ("state",)  # shown with --all only: they are many, and say little


def history(args: argparse.Namespace) -> None:
    """Print the audit log, the newest record last. Raises ValueError when there is none."""
    path = audit_path(load_config(args.config).state.directory)
    if not path.exists():
        raise ValueError(f"{path}: there is no audit log yet; `recald run` begins it")
    with closing(AuditLog(path, read_only=True)) as audit:
        records = audit.records(args.sensor, args.limit, () if args.all else HIDDEN_EVENTS)
    if args.json:
        print("\n".join(record.json_line() for record in records))
    else:
        _print_table(records)


def _print_table(records: list[AuditRecord]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for column in ("number", "at (UTC)", "sensor", "event", "details"):
        table.add_column(column)
    for record in records:
        cells = (record.number, str(record.at)[:19].replace("T", " "), record.sensor, record.event, _details(record))
        table.add_row(*(Text(str(cell)) for cell in cells))  # as Text: brackets in it are no markup
    console = Console(highlight=False)
    console.print(table)
    if records:
        console.print(f"anchor of the last record: {records[-1].number}:{records[-1].digest}", soft_wrap=True)


def _details(record: AuditRecord) -> str:
    content = record.content()
    if not isinstance(content, dict):  # somebody changed it; `recald verify` reports that
        return str(content)
    return ", ".join(f"{name} {_shorten(value)}" for name, value in content.items())


def _shorten(value: Any) -> str:
    """Return the first 12 digits of a digest, and the whole of anything else."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text


def fit_records(records: list[AuditRecord]) -> dict[str, AuditRecord]:
    """Return the records of recalibrations by the digest of the dossier that each names, the newest last."""
    fits = [(record.content(), record) for record in records if record.event == "fit" and record.is_intact()]
    return {
        content["dossier"]: record
        for content, record in fits
        if isinstance(content, dict) and isinstance(content.get("dossier"), str)
    }
