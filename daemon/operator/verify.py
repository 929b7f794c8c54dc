"""`recald verify`: check every byte of the model, the state directory and the audit log."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing

from calibrate.errors import RecaldError
from daemon.config import Config, load_config
from daemon.operator.history import fit_records
from daemon.operator.state_directory import used_state_directory
from deploy.audit.chain import HIDDEN_EVENTS, AuditRecord
from deploy.audit.log import AuditError, AuditLog, audit_path


def verify(args: argparse.Namespace) -> bool:
    """Print every problem; return whether there is none. Raises ConfigError where there is no state to check."""
    from deploy.store.artefacts import ArtefactStore
    from deploy.store.verify import CompiledCheck, store_problems

    config = load_config(args.config)
    store = ArtefactStore(used_state_directory(config))
    check = CompiledCheck()
    problems = [*_model_problems(config), *store_problems(store, check), *_audit_problems(config, args.anchor)]
    if args.json:
        print(json.dumps({"problems": problems, "not_compared": check.skipped}))
        return not problems
    print("\n".join(problems) or f"{config.state.directory}: every byte is as it was written")
    if check.skipped:
        versions = ", ".join(version[:12] for version in check.skipped)
        print(f"not compared with its weights: the compiled form of {versions}, of a backend or version not used here")
    return not problems


def parse_anchor(text: str) -> tuple[int, str]:
    """Parse NUMBER:DIGEST, as `recald history` prints it. Raises RecaldError."""
    number, _, digest = text.partition(":")
    if not number.isascii() or not number.isdigit() or not digest:
        raise RecaldError(f"{text[:80]!r} is not NUMBER:DIGEST, such as 17:3fa9...")
    return int(number), digest


def _model_problems(config: Config) -> Iterator[str]:
    from calibrate.features.taps import tap
    from deploy.model.commissioned import load_clean_data
    from deploy.model.frozen import load_frozen
    from deploy.model.program import ModelError

    try:
        frozen = load_frozen(config.model.path, config.model.sha256)
        load_clean_data(frozen, tap(frozen.module))
    except ModelError as error:
        yield str(error)


def _audit_problems(config: Config, anchor: str | None) -> Iterator[str]:
    path = audit_path(config.state.directory)
    if not path.exists():
        if anchor or (config.state.directory / "sensors").exists():
            yield f"{path}: missing, though the state directory shows that recald has run"
        return
    expected = parse_anchor(anchor) if anchor else None
    try:
        with closing(AuditLog(path, read_only=True)) as audit:
            yield from (f"{path}: {problem}" for problem in audit.verify(expected))
            yield from _dossier_problems(config, audit.records(exclude=HIDDEN_EVENTS))
            for name, digest in audit.damaged_before().items():
                yield f"{path.with_name(name)}: a damaged log, set aside as it was (SHA-256 {digest})"
    except AuditError as error:
        yield str(error)


def _dossier_problems(config: Config, records: list[AuditRecord]) -> Iterator[str]:
    """Yield each dossier that the log names and that is missing, though recald has not removed it as an old one."""
    from deploy.store.dossier_archive import DossierArchive

    archive, fits = DossierArchive(config.state.directory), fit_records(records)
    for sensor in sorted({record.sensor for record in fits.values()}):
        newest_first = [digest for digest, record in fits.items() if record.sensor == sensor][::-1]
        for digest in archive.missing(sensor, newest_first):
            yield f"{archive.path(sensor, digest)}: missing, though record {fits[digest].number} of the log names it"
