"""`recald history` and `recald verify`: what a state directory tells, with or without a running daemon."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from daemon.config import Config, load_config
from deploy.audit.chain import Record
from deploy.audit.log import AuditError, AuditLog, audit_path

UNIMPORTANT = ("state",)  # events that a person is shown with --all only


def history(args: argparse.Namespace) -> None:
    """Print the audit log, the newest record last."""
    with closing(_audit(load_config(args.config))) as audit:
        records = audit.records(args.sensor, args.limit, () if args.all else UNIMPORTANT)
    if args.json:
        print("\n".join(record.line() for record in records))
    else:
        _show(records)


def verify(args: argparse.Namespace) -> bool:
    """Print what is wrong with model, artefacts, pointers and audit log; whether nothing is."""
    from deploy.store.artefacts import ArtefactStore
    from deploy.store.verify import problems

    config = load_config(args.config)
    found = [*_of_model(config), *problems(ArtefactStore(config.state.directory)), *_of_audit(config, args.anchor)]
    if args.json:
        print(json.dumps({"problems": found}))
    else:
        print("\n".join(found) or f"{config.state.directory}: every byte is as it was written")
    return not found


def _audit(config: Config) -> AuditLog:
    path = audit_path(config.state.directory)
    if not path.exists():
        raise ValueError(f"{path}: there is no audit log yet; `recald run` begins it")
    return AuditLog(path, look_only=True)


def _of_model(config: Config) -> Iterator[str]:
    from calibrate.features.taps import tap
    from deploy.model.commissioned import load_commissioned
    from deploy.model.frozen import ModelError, load_frozen

    try:
        frozen = load_frozen(config.model.path)
        load_commissioned(frozen, tap(frozen.module))
    except ModelError as error:
        yield str(error)
        return
    if config.model.sha256 not in (None, frozen.digest):
        yield f"{frozen.path}: its SHA-256 is {frozen.digest}, the configuration pins {config.model.sha256}"


def _of_audit(config: Config, anchor: str | None) -> Iterator[str]:
    path = audit_path(config.state.directory)
    if not path.exists():
        if anchor or (config.state.directory / "sensors").exists():
            yield f"{path}: missing, though what it tells of is there"
        return
    known = parse_anchor(anchor) if anchor else None
    try:
        with closing(AuditLog(path, look_only=True)) as audit:
            yield from (f"{path}: {problem}" for problem in audit.verify(known))
            yield from _of_dossiers(config, audit.records(without=UNIMPORTANT))
            for name, digest in audit.damaged_before().items():
                yield f"{path.with_name(name)}: a damaged log, set aside as it was (SHA-256 {digest})"
    except AuditError as error:
        yield str(error)


def _of_dossiers(config: Config, records: list[Record]) -> Iterator[str]:
    """What the log names and is gone, though nothing of recald's removed it yet."""
    from deploy.store.dossier_archive import DossierArchive

    archive, named = DossierArchive(config.state.directory), dossiers_named(records)
    for sensor in sorted({record.sensor for record in named.values()}):
        of_sensor = [digest for digest, record in named.items() if record.sensor == sensor]
        for digest in archive.missing(sensor, of_sensor[::-1]):
            yield f"{archive.path(sensor, digest)}: missing, though record {named[digest].number} of the log names it"


def dossiers_named(records: list[Record]) -> dict[str, Record]:
    """The records of recalibrations by the digest of the dossier that each names; the newest last."""
    fits = [(record.content(), record) for record in records if record.event == "fit" and record.holds()]
    return {c["dossier"]: r for c, r in fits if isinstance(c, dict) and isinstance(c.get("dossier"), str)}


def parse_anchor(text: str) -> tuple[int, str]:
    """NUMBER:DIGEST, as `recald history` shows a record. Raises ValueError."""
    number, _, digest = text.partition(":")
    if not number.isascii() or not number.isdigit() or not digest:
        raise ValueError(f"{text[:80]!r} is not NUMBER:DIGEST, such as 17:3fa9...")
    return int(number), digest


def _show(records: list[Record]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for column in ("number", "at (UTC)", "sensor", "event", "details"):
        table.add_column(column)
    for record in records:
        cells = (record.number, str(record.at)[:19].replace("T", " "), record.sensor, record.event, _told(record))
        table.add_row(*(Text(str(cell)) for cell in cells))  # as text: brackets are no markup
    console = Console(highlight=False)
    console.print(table)
    if records:
        console.print(f"anchor of the last record: {records[-1].number}:{records[-1].digest}", soft_wrap=True)


def _told(record: Record) -> str:
    content = record.content()
    if not isinstance(content, dict):  # somebody changed it; `recald verify` says so
        return str(content)
    return ", ".join(f"{name} {_short(value)}" for name, value in content.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text  # a digest by its first digits
