"""The command `recald report`: choose a recalibration, and write its page or its dossier, or list all."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from calibrate.errors import RecaldError
from daemon.config import load_config
from daemon.operator.report.audit_excerpt import AuditExcerpt
from daemon.operator.report.wording import utc_time
from daemon.operator.state_directory import used_state_directory
from daemon.operator.terminal import Row, print_table
from daemon.operator.versions import short_version
from deploy.audit.log import audit_path
from deploy.files import read_regular, write_atomically
from deploy.store.artefacts import ArtefactStore
from deploy.store.dossier_archive import DossierArchive, StoredDossier


def report(args: argparse.Namespace) -> None:
    """Write what was asked for. It only reads the state directory, so the daemon may run meanwhile.

    Raises RecaldError where there is no such recalibration.
    """
    state = used_state_directory(load_config(args.config))
    archive, audit = DossierArchive(state), AuditExcerpt.read(audit_path(state))
    dossiers = archive.read_all(args.sensor)
    if not dossiers:
        of = f" of {args.sensor}" if args.sensor else ""
        raise RecaldError(f"{archive.folder}: no recalibration{of} is on record yet; `recald recalibrate` begins one")
    if args.list:
        _print_list(dossiers, audit, args.json)
        return
    chosen = _choose(dossiers, audit, args.number, args.version_prefix)
    if args.json:
        _write(Path("-") if args.output is None else args.output, read_regular(chosen.path))
        return
    from daemon.operator.report.page import render

    page = render(chosen, audit, archive, ArtefactStore(state), time.time())
    _write(args.output or Path("report.html"), page.encode(errors="replace"))


def _choose(
    dossiers: list[StoredDossier], audit: AuditExcerpt, number: int | None, version: str | None
) -> StoredDossier:
    """Return the dossier that a record of the audit log names, the newest that proposed a version, or the newest."""
    if number is not None:
        digest = audit.dossier_digest(number)
        for stored in dossiers:
            if stored.digest == digest:
                return stored
        raise RecaldError(f"the dossier that record {number} names is not here: removed as an old one, or damaged")
    if version is not None:
        for stored in dossiers:
            if (stored.dossier.candidate or "").startswith(version):
                return stored
        raise RecaldError(f"no recalibration on record proposed a version that begins with {version[:64]!r}")
    return dossiers[0]


def _write(path: Path, data: bytes) -> None:
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        return
    write_atomically(path, data)
    print(path)


def _print_list(dossiers: list[StoredDossier], audit: AuditExcerpt, as_json: bool) -> None:
    rows = [_row(stored, audit) for stored in dossiers]
    if as_json:
        print("\n".join(json.dumps(row) for row in rows))
        return
    print_table(("number", "at", "sensor", "result", "candidate"), [_table_row(row) for row in rows])


def _table_row(row: dict[str, Any]) -> Row:
    number, candidate = ("-" if cell is None else short_version(cell) for cell in (row["number"], row["candidate"]))
    return Row((number, utc_time(row["at"]), row["sensor"], row["result"], candidate), [row["reason"]])


def _row(stored: StoredDossier, audit: AuditExcerpt) -> dict[str, Any]:
    """Return a row of the list; programs read these keys."""
    fit, dossier = audit.fit_record(stored.digest), stored.dossier
    columns = ("at", "sensor", "trigger", "result", "reason", "candidate")
    row = {"number": fit and fit.number, "dossier": stored.digest}
    return row | {name: getattr(dossier, name) for name in columns}
