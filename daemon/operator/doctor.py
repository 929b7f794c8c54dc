"""`recald doctor`: what is here, what is missing and what to do about it; every backend proves itself."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from calibrate.homogenizer import Homogenizer
from daemon.config import Config, ConfigError, load_config
from daemon.operator.control import ControlError, request
from daemon.operator.machine import machine
from daemon.recalibration.envelope import open_envelope
from deploy.backends.protocol import (
    AUTO,
    BACKENDS,
    CPU_BACKEND,
    check_parity,
    choose_backend,
    load_backend,
)
from deploy.model.frozen import load_frozen
from deploy.model.program import ModelError

IMAGE_SIZE = (3, 16, 16)  # channels, height, width of the tiny network
ANSWER_TIMEOUT_S = 2.0


class Finding(NamedTuple):
    """One thing that was looked at; `needed`: recald does not work without it."""

    what: str
    works: bool
    said: str
    needed: bool


def run(args: argparse.Namespace) -> bool:
    """Print what was found; whether all that is needed works."""
    config = load_config(args.config) if args.config else None
    here, findings = machine(), [*_backends(config), *(_deployment(config) if config else ())]
    if args.json:
        print(json.dumps({"machine": here, "findings": [f._asdict() for f in findings]}))
    else:
        _show(here, findings)
    return all(found.works or not found.needed for found in findings)


def _backends(config: Config | None) -> Iterator[Finding]:
    chosen, why = choose_backend()
    asked = config.model.backend if config else CPU_BACKEND
    needed = chosen if asked == AUTO else asked
    for name in BACKENDS:
        yield _look(f"backend {name}", partial(_prove, name), needed=name == needed)
    yield Finding(f"backend {AUTO}", True, f"is {chosen}, because {why}", needed=False)


def _deployment(config: Config) -> Iterator[Finding]:
    """What a daemon with this configuration would find."""
    yield _look("model", partial(_model, config), needed=True)
    yield _look("envelope", partial(_envelope, config), needed=config.recalibrate.envelope is not None)
    yield _look("state", partial(_state, config.state.directory), needed=True)
    yield _look("daemon", partial(_daemon, config), needed=False)


def _look(what: str, look: Callable[[], str], needed: bool) -> Finding:
    try:
        return Finding(what, True, look(), needed)
    except (ValueError, OSError, RuntimeError) as error:
        return Finding(what, False, " ".join(str(error).split()), needed)


def _prove(name: str) -> str:
    """Build a homogenizer, run it and compare it with the eager one."""
    backend = load_backend(name)
    backend.check_device()
    frames, homogenizer = torch.randn(1, *IMAGE_SIZE), _homogenizer()
    started = time.perf_counter()
    with closing(backend.load(backend.compile(homogenizer, frames), threads=1)) as runner:
        error = check_parity(runner, homogenizer, frames)
    taken = time.perf_counter() - started
    return f"built and ran a tiny network in {taken:.2f} s, {error:.0e} from PyTorch; {backend.version()}"


def _homogenizer() -> Homogenizer:
    """One that does something, unlike a new one."""
    homogenizer = Homogenizer(*IMAGE_SIZE).eval()
    with torch.no_grad():
        homogenizer.offset.normal_()
        homogenizer.kernel.add_(0.1 * torch.randn_like(homogenizer.kernel))
    return homogenizer


def _model(config: Config) -> str:
    frozen = load_frozen(config.model.path)
    if config.model.sha256 not in (None, frozen.digest):
        raise ModelError(f"{frozen.path} has SHA-256 {frozen.digest}, the configuration pins {config.model.sha256}")
    return f"{frozen.path}, SHA-256 {frozen.digest[:12]}…, as its card says"


def _envelope(config: Config) -> str:
    envelope = open_envelope(config)
    if envelope is None:
        raise ConfigError(["none: recalibrate.envelope is not set, a homogenizer is bound by its proofs alone"])
    return f"{envelope}; the configuration is inside of it"


def _state(directory: Path) -> str:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} cannot be written by this user: check its owner")
    return f"{directory} can be written, {shutil.disk_usage(existing).free / 2**30:.1f} GiB are free"


def _daemon(config: Config) -> str:
    answer = request(config.control.endpoint, {"command": "status"}, ANSWER_TIMEOUT_S)
    if not answer["ok"]:
        raise ControlError(answer["error"])
    return f"recald {answer['version']} serves model {answer['model'][:12]}… with {answer['backend']}"


def _show(here: dict[str, Any], findings: list[Finding]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in here.items():
        table.add_row("", name, "-" if value is None else str(value))
    for found in findings:
        table.add_row(_mark(found), found.what, found.said)
    Console(highlight=False).print(table)


def _mark(found: Finding) -> str:
    if found.works:
        return "[green]works[/]"
    return "[red]needed[/]" if found.needed else "[yellow]absent[/]"
