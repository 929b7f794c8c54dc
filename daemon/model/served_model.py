"""What has to hold before the first frame: a state directory of its own, the right model, proven homogenizers."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from calibrate.features.taps import tap
from daemon.config import Config
from daemon.model.preprocess import Preprocessor
from daemon.systemd_notify import Notifier, asking_for_patience
from deploy.backends.engine_cache import ModelCache
from deploy.backends.protocol import Backend, ParityError, Runner, check_parity, open_backend
from deploy.model.commissioned import load_commissioned
from deploy.model.frozen import FrozenModel, ModelError, load_frozen
from deploy.model.precision import PRECISIONS

NOISE_FRAMES = 2  # of noise: at a start there are no frames yet to prove a homogenizer on

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


def open_model(config: Config, notifier: Notifier) -> ServedModel:
    """Load Φ, refuse any other than the pinned one, compile it or take it from the cache, and prove it.

    Where compiling it takes minutes, its backend's stand-in serves it until a EngineBuild has what was asked for.
    """
    backend = open_backend(config.model.backend)
    notifier.status("loading the frozen model")
    frozen = load_frozen(config.model.path)
    _refuse_other_model(frozen, config.model.sha256)
    load_commissioned(frozen, tap(frozen.module))  # what cannot be used is told now, not at the first drift
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
    return np.random.default_rng(0).standard_normal((NOISE_FRAMES, *shape), np.float32)


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


def _refuse_other_model(frozen: FrozenModel, pinned: str | None) -> None:
    if pinned is not None and frozen.digest != pinned:
        raise ModelError(
            f"{frozen.path}: its SHA-256 is {frozen.digest}, model.sha256 in the configuration pins {pinned}: "
            "deploy the certified model, or change the pin on purpose"
        )
