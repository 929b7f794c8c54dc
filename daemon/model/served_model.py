"""What has to hold before the first frame: a state directory of its own, the right model, proven homogenizers."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from calibrate.features.taps import tap
from daemon.config import Config
from daemon.model.preprocess import Preprocessor
from daemon.operator.commission import commissioned
from daemon.recalibration.envelope import Envelope, OutsideEnvelope
from daemon.state.restart import CLOCK_SET_S
from daemon.systemd_notify import Notifier
from deploy.backends.engine_cache import ModelCache, compile_homogenizer
from deploy.backends.protocol import Backend, ParityError, Runner, check_parity, made_by, open_backend
from deploy.model.frozen import FrozenModel, ModelError, load_frozen
from deploy.model.precision import PRECISIONS
from deploy.path import InferencePath, SwapRejected
from deploy.store.artefacts import Artefact, ArtefactStore, StoreError

PATIENCE_S = 30.0  # asked of systemd, again and again, while a compile goes on
GOLDEN_FRAMES = 2  # of noise: at a start there are no frames yet to prove a homogenizer on

log = logging.getLogger(__name__)


class Unservable(ModelError):
    """The backend that was asked for refuses the model, found out while another one served it."""


@dataclass(frozen=True)
class ServedModel:
    """Φ as it serves, and what its card says about frames.

    `served_by`: the backend of `runner`, another than `backend` until that one has built its engine.
    """

    frozen: FrozenModel
    backend: Backend
    runner: Runner
    preprocessor: Preprocessor
    served_by: str

    @property
    def digest(self) -> str:
        return self.frozen.digest

    @property
    def stands_in(self) -> bool:
        return self.served_by != self.backend.name

    def served_as_asked(self, runner: Runner) -> ServedModel:
        return replace(self, runner=runner, served_by=self.backend.name)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.frozen.card.input.shape


def claim(directory: Path) -> int:
    """Lock the state directory; returns the descriptor that holds the lock. OSError where another daemon has it.

    The directory itself is locked, so that a full disk does not keep the daemon from starting.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OSError(
            error.errno,
            f"another recald uses {directory}: stop it first, or set another state.directory",
        ) from error
    return descriptor


def open_model(config: Config, notifier: Notifier) -> ServedModel:
    """Load Φ, refuse any other than the pinned one, compile it or take it from the cache, and prove it.

    Where compiling it takes minutes, its backend's stand-in serves it until a ModelBuild has what was asked for.
    """
    backend = open_backend(config.model.backend)
    notifier.status("loading the frozen model")
    frozen = load_frozen(config.model.path)
    _refuse_other_model(frozen, config.model.sha256)
    commissioned(frozen, tap(frozen.module))  # what cannot be used is told now, not at the first drift
    stand_in = _stand_in(config, backend, frozen, notifier)
    if stand_in is not None:
        return stand_in
    return _opened(config, backend, backend, frozen, notifier)


def open_runner(config: Config, backend: Backend, frozen: FrozenModel, compiled: bytes) -> Runner:
    """Load what `backend` compiled, and compare it with the eager network on golden frames. Raises ModelError."""
    runner = backend.load(compiled, config.model.thread_count)
    golden = torch.from_numpy(golden_noise(frozen.card.input.shape))
    tolerance = PRECISIONS[config.model.precision].tolerance
    try:
        error = check_parity(runner, frozen.module, golden, tolerance)
    except (ParityError, RuntimeError) as failure:
        runner.close()
        raise ModelError(f"{frozen.path}: {backend.name} does not compute what the model does: {failure}") from failure
    log.info("%s is within %.0e of the eager model, at most %.0e", backend.name, error, tolerance)
    return runner


def model_cache(config: Config, backend: Backend, frozen: FrozenModel) -> ModelCache:
    return ModelCache(backend, frozen, config.model.precision, config.state.directory)


def golden_noise(shape: tuple[int, int, int]) -> np.ndarray:
    """(n, C, H, W), always the same."""
    return np.random.default_rng(0).standard_normal((GOLDEN_FRAMES, *shape), np.float32)


def _stand_in(config: Config, backend: Backend, frozen: FrozenModel, notifier: Notifier) -> ServedModel | None:
    """What serves while `backend` compiles; None where it need not, or where nothing can."""
    if backend.stand_in is None or model_cache(config, backend, frozen).holds():
        return None
    try:
        return _opened(config, backend, open_backend(backend.stand_in), frozen, notifier)
    except ModelError as error:
        log.warning("nothing serves until the engine of %s is built: %s", backend.name, error)
        return None


def _opened(config: Config, backend: Backend, serving: Backend, frozen: FrozenModel, notifier: Notifier) -> ServedModel:
    notifier.status(f"compiling the frozen model with {serving.name}")
    with asking_for_patience(notifier):
        runner = open_runner(config, serving, frozen, model_cache(config, serving, frozen).get())
    return ServedModel(frozen, backend, runner, Preprocessor(frozen.card), serving.name)


def restore(
    sensor: str, path: InferencePath, store: ArtefactStore, model: ServedModel, envelope: Envelope | None = None
) -> None:
    """Let the last good homogenizer serve again, the one before it a step away; or the factory one if there is none
    that can be believed and is inside of the envelope."""
    version, artefact, problems = store.load_current(sensor, model.digest)
    for problem in problems:
        log.error("%s: %s", sensor, problem)
    if artefact is None:
        return
    before = store.load_before(sensor, version, model.digest)
    if before is not None:
        _serve_again(sensor, before, path, store, model, envelope)
    _serve_again(sensor, artefact, path, store, model, envelope)


def served_since(sensor: str, version: str, store: ArtefactStore) -> float | None:
    """Since when, s since the epoch, the pointer says that `version` serves; None where it says nothing of it."""
    try:
        pointer = store.current(sensor)
    except StoreError:  # restore() has told
        return None
    return pointer.since if pointer is not None and pointer.homogenizer == version else None


def on_probation(since: float | None, now: float, probation: float) -> bool:
    """Whether what serves `since` (s since the epoch) has yet to prove itself; so too where no clock told that time."""
    return since is not None and (since < CLOCK_SET_S or now - since < probation)


def withdrawn(sensor: str, store: ArtefactStore) -> set[str]:
    """The versions that were taken back, none where that cannot be read."""
    try:
        return store.withdrawn(sensor)
    except StoreError as error:
        log.warning("%s: what was taken back before is forgotten: %s", sensor, error)
        return set()


def _serve_again(
    sensor: str,
    artefact: Artefact,
    path: InferencePath,
    store: ArtefactStore,
    model: ServedModel,
    envelope: Envelope | None,
) -> None:
    try:
        measured = None if envelope is None else envelope.admit(artefact)
        compiled = artefact.compiled
        if compiled is None or not made_by(model.backend, artefact.manifest):
            example = torch.zeros(1, *model.input_shape)
            compiled = compile_homogenizer(model.backend, artefact.homogenizer, example, store.root)
        golden = golden_noise(model.input_shape)
        path.commit(path.prepare(artefact.version, model.backend.load(compiled, threads=1), golden, measured))
    except (ModelError, SwapRejected, OutsideEnvelope) as error:
        log.warning("%s: homogenizer %s cannot serve: %s", sensor, artefact.version[:12], error)


@contextmanager
def asking_for_patience(notifier: Notifier) -> Iterator[None]:
    """A compile may take minutes on a small device: systemd hears that it goes on."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(PATIENCE_S / 6):
            notifier.extend_timeout(PATIENCE_S)

    teller = threading.Thread(target=tell, name="patience", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _refuse_other_model(frozen: FrozenModel, pinned: str | None) -> None:
    if pinned is not None and frozen.digest != pinned:
        raise ModelError(
            f"{frozen.path}: its SHA-256 is {frozen.digest}, model.sha256 in the configuration pins {pinned}: "
            "deploy the certified model, or change the pin on purpose"
        )
