"""`recald purge`: delete the frames that were kept for reports. The daemon may run meanwhile."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from daemon.config import load_config
from daemon.operator.state_directory import used_state_directory
from deploy.audit.log import AuditLog, audit_path
from deploy.store.dossier_archive import DossierArchive


def purge(args: argparse.Namespace, user: str) -> None:
    """Delete the kept frames, and record the user in the audit log."""
    config = load_config(args.config)
    state = used_state_directory(config)
    count = DossierArchive(state).purge(args.sensor)
    _record_purge(audit_path(state), args.sensor or "", count, user)
    print(f"{args.sensor or 'all sensors'}: {count} kept frame(s) deleted; the dossiers of the recalibrations stay")
    if config.recalibrate.keep_frames:
        print(f"recalibrate.keep_frames is {config.recalibrate.keep_frames}: set it to 0, or the next fit keeps others")


def _record_purge(path: Path, sensor: str, count: int, user: str) -> None:
    """Append a record as a second process: a daemon may be writing to the log. A missing log is not begun here."""
    if path.exists():
        with closing(AuditLog(path, shared=True)) as audit:
            audit.append(sensor, "frames purged", {"count": count, "by": user})
