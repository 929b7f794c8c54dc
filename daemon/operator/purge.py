"""`recald purge`: delete the frames that were kept for reports, with or without a running daemon."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from daemon.config import load_config
from deploy.audit.log import AuditLog, audit_path
from deploy.store.dossier_archive import DossierArchive


def purge(args: argparse.Namespace, by: str) -> None:
    """Delete them, and have the audit log tell who did."""
    config = load_config(args.config)
    count = DossierArchive(config.state.directory).purge(args.sensor)
    _record(audit_path(config.state.directory), args.sensor or "", count, by)
    print(f"{args.sensor or 'all sensors'}: {count} kept frame(s) deleted; what else is known of recalibrations stays")
    if config.recalibrate.keep_frames:
        print(f"recalibrate.keep_frames is {config.recalibrate.keep_frames}: set it to 0, or the next fit keeps others")


def _record(path: Path, sensor: str, count: int, by: str) -> None:
    """As a guest: the log may be a running daemon's, and one that is not there is not for this command to begin."""
    if path.exists():
        with closing(AuditLog(path, guest=True)) as audit:
            audit.append(sensor, "frames purged", {"count": count, "by": by})
