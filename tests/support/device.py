"""Write a device's state directory as a daemon does around a swap, and start from it as the next daemon does."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Executor, Future
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from prometheus_client import CollectorRegistry

from calibrate.homogenizer import Homogenizer
from daemon.metrics import Metrics
from daemon.recalibration.restore import restore
from daemon.state.audit_writer import AuditWriter
from daemon.state.lock import StateClaim
from daemon.state.state_writer import StateWriter
from deploy.audit.log import AuditLog, audit_path
from deploy.backends.engine_cache import ModelCache
from deploy.path import InferencePath
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError
from deploy.store.retention import retain
from deploy.store.verify import store_problems

MODEL, SHAPE = "a" * 64, (1, 8, 8)
SENSORS = ("front", "rear")
KEPT_HOMOGENIZERS = 1  # for each sensor, beside those that a pointer names; so few that one is removed
LONG_AGO = 1_600_000_000.0  # s since the epoch, for records that are old enough to be pruned


class BiasBackend:
    """Compiles to the weights, and adds only the bias: the output shows which homogenizer has run."""

    name = "eager"

    def compile(self, module: torch.nn.Module, example: torch.Tensor) -> bytes:
        return safetensors.torch.save(module.state_dict())

    def load(self, compiled: bytes, threads: int) -> Any:
        bias = float(safetensors.torch.load(compiled)["bias"])
        return SimpleNamespace(run=lambda batch: batch + bias, close=lambda: None)

    def version(self) -> str:
        return "1"


class ImmediateExecutor(Executor):
    """Runs each call before `submit` returns. The daemon's one background thread gives the same order."""

    def submit(self, call: Any, /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*given, **named))
        return done


BACKEND: Any = BiasBackend()
SERVED: Any = SimpleNamespace(digest=MODEL, backend=BACKEND, input_shape=SHAPE)


def homogenizer(number: int) -> Homogenizer:
    module = Homogenizer(*SHAPE).eval()
    with torch.no_grad():
        module.bias.fill_(number)
    return module


# ---- writing


class Writer:
    """A context with the daemon's own writers on one state directory, connected as in the daemon."""

    def __init__(self, state: Path) -> None:
        self.state, self.store = state, ArtefactStore(state)

    def __enter__(self) -> Writer:
        self._closing = ExitStack()
        claim = StateClaim(self.state)
        self._closing.callback(claim.close)
        self.store.sweep()
        card = SimpleNamespace(input=SimpleNamespace(shape=SHAPE))
        frozen: Any = SimpleNamespace(digest=MODEL, module=homogenizer(0), card=card)
        ModelCache(BACKEND, frozen, "float32", self.state).get()
        self.state_writer = StateWriter(self.store, MODEL, ImmediateExecutor())
        audit = partial(AuditLog, audit_path(self.state))
        self.audit_writer = AuditWriter(audit, ImmediateExecutor(), Metrics(CollectorRegistry()), claim.check)
        self._closing.callback(self.audit_writer.close)
        self.audit_writer.record("", "start", {})
        return self

    def __exit__(self, *_: object) -> None:
        self.audit_writer.record("", "stop", {})
        self._closing.close()

    def swap(self, sensor: str, number: int) -> None:
        """Write what worker and daemon write, in this order, for a fit that succeeds and serves."""
        active = self.serving(sensor)
        try:
            version = self.put(sensor, number)
            retain(self.store, sensor, KEPT_HOMOGENIZERS, protected=(active, version))
            self.store.get(version, MODEL)
        except (OSError, StoreError) as error:
            self.audit_writer.record(sensor, "fit", {"result": "failed", "reason": str(error)})
            return
        self.audit_writer.record(sensor, "fit", {"result": "accepted", "candidate": version})
        if not self.audit_writer.problem:
            self.audit_writer.record(sensor, "swap", {"from": active, "to": version, "number": number})
            self.state_writer.save_active(sensor, version)

    def roll_back(self, sensor: str) -> None:
        pointer = self.store.current(sensor)
        if pointer is None or pointer.previous is None:
            return
        self.state_writer.save_withdrawn(sensor, {pointer.homogenizer})
        self.audit_writer.record(sensor, "rollback", {"from": pointer.homogenizer, "to": pointer.previous})
        self.state_writer.save_active(sensor, pointer.previous)

    def retry(self) -> None:
        self.audit_writer.check(time.monotonic())
        self.state_writer.retry()

    def serving(self, sensor: str) -> str:
        return self.store.load_current(sensor, MODEL)[0]

    def put(self, sensor: str, number: int) -> str:
        made = homogenizer(number)
        manifest = {"model": MODEL, "sensor": sensor, "versions": {"backend": BACKEND.version()}}
        return self.store.put(made, manifest, BACKEND.compile(made, torch.zeros(1, *SHAPE)), BACKEND.name)


def work(state: Path, number: int) -> None:
    """Run from start to stop: the front camera gets homogenizer `number`, the rear camera is rolled back."""
    with Writer(state) as writer:
        writer.swap("front", number)
        writer.retry()
        writer.roll_back("rear")
        writer.retry()


def used(state: Path) -> Path:
    """Prepare a device that has worked: two homogenizers have served each camera, and a third may be removed."""
    with closing(AuditLog(audit_path(state), lambda: LONG_AGO)) as audit:
        audit.append("front", "swap", {})
        audit.append("front", "swap", {})
    with Writer(state) as writer:
        writer.put("front", 1)
        for number in (2, 3):
            writer.swap("front", number)
        for number in (4, 5):
            writer.swap("rear", number)
    return state


# ---- checking


class LoggedErrors(logging.Handler):
    """Collects the messages that are logged as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def served_after_a_start(state: Path) -> tuple[dict[str, float], list[str]]:
    """Start once; returns by sensor the number of the homogenizer that runs, and the logged errors."""
    errors, store = LoggedErrors(), ArtefactStore(state)
    logging.getLogger().addHandler(errors)
    claim = StateClaim(state)
    try:
        store.sweep()
        answers = {sensor: _answering(sensor, store) for sensor in SENSORS}
    finally:
        claim.close()
        logging.getLogger().removeHandler(errors)
    return answers, errors.messages


def _answering(sensor: str, store: ArtefactStore) -> float:
    """Find the number of the homogenizer that runs, and check that its version names the same weights."""
    path = InferencePath(SimpleNamespace(run=lambda batch: batch, close=lambda: None))
    restore(sensor, path, store, SERVED)
    number = float(path.infer(np.zeros((1, *SHAPE), np.float32)).output[0, 0, 0, 0])
    weights = homogenizer(0) if path.version == FACTORY else store.get(path.version, MODEL).homogenizer
    assert float(weights.bias.detach()) == number, f"{path.version} runs as {number}"
    return number


def damage(state: Path) -> list[str]:
    """List what `recald verify` finds wrong with homogenizers, pointers and dossiers."""
    return list(store_problems(ArtefactStore(state)))


def audited(state: Path) -> tuple[dict[str, Any], list[str]]:
    """Open the audit log like a start; returns by sensor its newest swap, and what is wrong with the log."""
    with closing(AuditLog(audit_path(state))) as audit:
        wrong = audit.verify() + [f"set aside: {name}" for name in audit.damaged_before()]
        return {record.sensor: record.content() for record in audit.records() if record.event == "swap"}, wrong
