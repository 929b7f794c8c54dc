"""`recald doctor`: check this machine, every backend, and what a configuration needs; say what to do."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import torch

from calibrate.errors import RecaldError
from calibrate.homogenizer import Homogenizer
from daemon.config import Config, ConfigError, load_config
from daemon.exit_codes import error_text
from daemon.operator import deployment
from daemon.operator.control import ask
from daemon.operator.machine import describe_machine
from daemon.operator.terminal import Row, print_table
from daemon.operator.versions import short_version
from deploy.backends.protocol import (
    AUTO,
    BACKENDS,
    CPU_BACKEND,
    check_parity,
    choose_backend,
    load_backend,
)

PROBE_SHAPE = (3, 16, 16)  # channels, height, width of the homogenizer that every backend builds
VERDICT_STYLES = {"works": "green", "needed": "red", "absent": "yellow"}


class Finding(NamedTuple):
    """The result of one check. needed: recald does not work without it."""

    name: str
    works: bool
    message: str
    needed: bool

    @property
    def verdict(self) -> str:
        """One word, a key of VERDICT_STYLES."""
        return "works" if self.works else "needed" if self.needed else "absent"

    def as_json(self) -> dict[str, Any]:
        """Return the finding as `--json` prints it; programs read these keys."""
        return {"what": self.name, "works": self.works, "said": self.message, "needed": self.needed}


def examine(args: argparse.Namespace) -> bool:
    """Print all findings; return whether everything needed works. Raises ConfigError, DocumentError or OSError."""
    config = load_config(args.config) if args.config else None
    machine = describe_machine()
    findings = [*_check_backends(config), *(_check_deployment(config) if config else ())]
    if args.json:
        print(json.dumps({"machine": machine, "findings": [finding.as_json() for finding in findings]}))
    else:
        _print_table(machine, findings)
    return all(finding.works or not finding.needed for finding in findings)


def _check_backends(config: Config | None) -> Iterator[Finding]:
    chosen, why = choose_backend()
    configured = config.model.backend if config else CPU_BACKEND
    needed = chosen if configured == AUTO else configured
    for name in BACKENDS:
        yield _check(f"backend {name}", partial(_check_backend, name), needed=name == needed)
    yield Finding(f"backend {AUTO}", True, f"is {chosen}, because {why}", needed=False)


def _check_deployment(config: Config) -> Iterator[Finding]:
    """Check what a daemon with this configuration would find."""
    yield _check("fits", partial(deployment.check_fit_device, config), needed=True)
    yield _check("model", partial(deployment.check_model, config), needed=True)
    yield _check("memory", partial(deployment.check_memory, config), needed=True)
    yield _check("envelope", partial(_check_envelope, config), needed=config.recalibrate.envelope is not None)
    yield _check("state", partial(deployment.check_state, config), needed=True)
    has_certificate = config.metrics.certificate is not None
    yield _check("certificate", partial(deployment.check_certificate, config), needed=has_certificate)
    yield _check("endpoints", partial(deployment.check_endpoints, config), needed=True)
    yield _check("daemon", partial(_check_daemon, config), needed=False)


def _check(name: str, check: Callable[[], str], needed: bool) -> Finding:
    try:
        return Finding(name, True, check(), needed)
    except (ValueError, OSError, RuntimeError) as error:
        text = error_text(error) if isinstance(error, RecaldError | OSError) else str(error)
        return Finding(name, False, " ".join(text.split()), needed)


def _check_backend(name: str) -> str:
    """Build a homogenizer, run it and compare it with the eager one."""
    backend = load_backend(name)
    backend.check_device()
    frames, homogenizer = torch.randn(1, *PROBE_SHAPE), Homogenizer(*PROBE_SHAPE, defects=True, shading=True).eval()
    with torch.no_grad():  # a new homogenizer is the identity, which would prove little
        for part, value in ((homogenizer.defect_step, 1.0), (homogenizer.gain, 1.5), (homogenizer.black, -1.0)):
            assert part is not None
            part.fill_(value)
        homogenizer.offset.normal_()
        homogenizer.kernel.add_(0.1 * torch.randn_like(homogenizer.kernel))
    started = time.perf_counter()
    with closing(backend.load(backend.compile(homogenizer, frames), threads=1)) as runner:
        error = check_parity(runner, homogenizer, frames)
    seconds = time.perf_counter() - started
    return f"built and ran a tiny network in {seconds:.2f} s, {error:.0e} from PyTorch; {backend.version()}"


def _check_envelope(config: Config) -> str:
    if config.recalibrate.envelope is None:
        raise ConfigError(["none: recalibrate.envelope is not set, so only the proofs limit a homogenizer"])
    return deployment.check_envelope(config)


def _check_daemon(config: Config) -> str:
    status = ask(config.control.endpoint, {"command": "status"}, deployment.STATUS_TIMEOUT_S)
    return f"recald {status['version']} serves model {short_version(status['model'])} with {status['backend']}"


def _print_table(machine: dict[str, Any], findings: list[Finding]) -> None:
    rows = [Row(("", name), ["-" if value is None else str(value)]) for name, value in machine.items()]
    rows += [Row((finding.verdict, finding.name), [finding.message]) for finding in findings]
    print_table(("", "what"), rows, VERDICT_STYLES)
