"""`recald report`: choose a recalibration, and write the page about it, its dossier, or a list of them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from daemon.config import load_config
from daemon.operator.report.chronicle import Chronicle
from deploy.audit.log import audit_path
from deploy.files import write_atomically
from deploy.store.artefacts import ArtefactStore
from deploy.store.dossier_archive import DossierArchive, Filed


def report(args: argparse.Namespace) -> None:
    """Read only; a running daemon does not notice."""
    state = load_config(args.config).state.directory
    archive, chronicle = DossierArchive(state), Chronicle.read(audit_path(state))
    filed = archive.filed(args.sensor)
    if not filed:
        of = f" of {args.sensor}" if args.sensor else ""
        raise ValueError(f"{archive.folder}: no recalibration{of} is on record yet; `recald recalibrate` begins one")
    if args.list:
        _list(filed, chronicle, args.json)
        return
    chosen = choose(filed, chronicle, args.number, args.version_prefix)
    if args.json:
        _write(Path("-") if args.output is None else args.output, chosen.path.read_bytes())
    else:
        _write(args.output or Path("report.html"), _page(chosen, chronicle, archive, state).encode(errors="replace"))


def choose(filed: list[Filed], chronicle: Chronicle, number: int | None, version: str | None) -> Filed:
    """The newest, the one that a record of the audit log names, or the newest that proposed a version. ValueError."""
    if number is not None:
        digest = chronicle.digest(number)
        for one in filed:
            if one.digest == digest:
                return one
        raise ValueError(
            f"the dossier that record {number} names is not here: removed as one of the oldest, or damaged"
        )
    if version is not None:
        for one in filed:
            if (one.dossier.candidate or "").startswith(version):
                return one
        raise ValueError(f"no recalibration on record proposed a version that begins with {version[:64]!r}")
    return filed[0]


def _page(filed: Filed, chronicle: Chronicle, archive: DossierArchive, state: Path) -> str:
    from daemon.operator.report.page import render

    return render(filed, chronicle, archive, ArtefactStore(state), time.time())


def _write(path: Path, data: bytes) -> None:
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        return
    write_atomically(path, data)
    print(path)


def _list(filed: list[Filed], chronicle: Chronicle, as_json: bool) -> None:
    rows = [_row(one, chronicle) for one in filed]
    if as_json:
        print("\n".join(json.dumps(row) for row in rows))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from daemon.operator.report.words import moment, short

    table = Table(box=box.SIMPLE)
    for column in ("number", "at", "sensor", "result", "candidate", "reason"):
        table.add_column(column)
    for row in rows:
        cells = (row["number"], moment(row["at"]), row["sensor"], row["result"], short(row["candidate"]), row["reason"])
        table.add_row(*(Text("-" if cell in (None, "None") else str(cell)) for cell in cells))  # brackets are no markup
    Console(highlight=False).print(table)


def _row(one: Filed, chronicle: Chronicle) -> dict[str, Any]:
    fit, dossier = chronicle.fit(one.digest), one.dossier
    told = {name: getattr(dossier, name) for name in ("at", "sensor", "trigger", "result", "reason", "candidate")}
    return {"number": fit and fit.number, "dossier": one.digest} | told
