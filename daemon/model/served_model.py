"""The frozen model Φ as the daemon serves it: loaded, checked against its pin, compiled, and proven."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from calibrate.features.taps import tap
from calibrate.source.class_mix import Shares
from daemon.config import Config
from daemon.model.class_mix import resolve_class_mixes
from daemon.model.labels import ClassNames
from daemon.model.preprocess import Preprocessor
from daemon.systemd_notify import Notifier, extending_timeout
from deploy.backends.engine_cache import ModelCache
from deploy.backends.protocol import Backend, ParityError, Runner, check_parity, open_backend
from deploy.model.commissioned import load_clean_data
from deploy.model.frozen import FrozenModel, load_frozen
from deploy.model.precision import PRECISIONS
from deploy.model.program import ModelError
from deploy.store.golden import golden_noise

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """Φ with the runner that serves it.

    `backend` is the requested one. `served_by` names the backend of `runner`: a stand-in, until the requested one has
    built its engine. `class_mixes` are the shares of the classes, for the sensors that state them.
    """

    frozen: FrozenModel
    backend: Backend
    runner: Runner
    preprocessor: Preprocessor
    served_by: str
    class_mixes: Mapping[str, Shares] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return self.frozen.digest

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.frozen.card.input.shape

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes; None where the card names none."""
        return self.frozen.card.classes

    @property
    def is_classifier(self) -> bool:
        """Whether the output is that of a classifier, so that homogenizers are judged by the labels it gives."""
        return self.frozen.output != "none"

    @property
    def has_stand_in(self) -> bool:
        """Whether another backend than the requested one serves."""
        return self.served_by != self.backend.name

    def with_requested_backend(self, runner: Runner) -> ServedModel:
        """Return the same model, served by a runner of the requested backend."""
        return replace(self, runner=runner, served_by=self.backend.name)


def load_class_mixes(config: Config, frozen: FrozenModel) -> dict[str, Shares]:
    """Return the shares of the classes, for the sensors that state them, from what was measured on clean frames.

    Raises ModelError for clean frames that cannot be used, ConfigError for shares of classes that were not measured.
    """
    clean = load_clean_data(frozen, tap(frozen.module))
    return resolve_class_mixes(config.sensors, ClassNames(frozen.class_count, frozen.card.classes), clean)


class CachedEngineError(ModelError):
    """What the cache held is as it was written, and yet does not load or computes something else. It is gone now."""


def open_model(config: Config, notifier: Notifier) -> ServedModel:
    """Load Φ, compare its hash with the pinned one, compile it or take it from the cache, and prove it.

    Where compiling takes minutes, the backend's stand-in serves until an EngineBuild has built the engine. Raises
    ModelError for a model or commissioned statistics that cannot be used, BackendUnavailable for the backend.
    """
    backend = open_backend(config.model.backend)
    notifier.status("loading the frozen model")
    frozen = load_frozen(config.model.path, config.model.sha256)
    load_class_mixes(config, frozen)  # so that errors of the clean frames show at the start, not at the first drift
    try:
        return _open(config, backend, frozen, notifier)
    except CachedEngineError as error:
        log.warning("%s; it is built again", error)
        return _open(config, backend, frozen, notifier)


def _open(config: Config, backend: Backend, frozen: FrozenModel, notifier: Notifier) -> ServedModel:
    served = _open_stand_in(config, backend, frozen, notifier)
    return served or _open_with(config, backend, backend, frozen, notifier)


def _open_stand_in(config: Config, backend: Backend, frozen: FrozenModel, notifier: Notifier) -> ServedModel | None:
    """Open the stand-in that serves while `backend` compiles; None where none is needed, or none can run the model."""
    if backend.stand_in is None or _cache(config, backend, frozen).is_cached():
        return None
    try:
        return _open_with(config, backend, open_backend(backend.stand_in), frozen, notifier)
    except CachedEngineError:
        raise
    except ModelError as error:
        log.warning("nothing serves until the engine of %s is built: %s", backend.name, error)
        return None


def _open_with(
    config: Config, requested: Backend, serving: Backend, frozen: FrozenModel, notifier: Notifier
) -> ServedModel:
    notifier.status(f"compiling the frozen model with {serving.name}")
    cache = _cache(config, serving, frozen)
    was_cached = cache.is_cached()
    with extending_timeout(notifier):
        try:
            runner = open_runner(config, serving, frozen, cache.get())
        except ModelError as error:
            if not was_cached:
                raise
            cache.discard()
            raise CachedEngineError(str(error)) from error
    mixes = load_class_mixes(config, frozen)
    return ServedModel(frozen, requested, runner, Preprocessor(frozen.card), serving.name, mixes)


def _cache(config: Config, backend: Backend, frozen: FrozenModel) -> ModelCache:
    return ModelCache(backend, frozen, config.model.precision, config.state.directory)


def open_runner(config: Config, backend: Backend, frozen: FrozenModel, compiled: bytes) -> Runner:
    """Load the compiled form of Φ and compare it with the eager network on golden frames.

    Raises ModelError where the two differ, or the compiled form does not run.
    """
    golden = torch.from_numpy(golden_noise(frozen.card.input.shape))
    tolerance = PRECISIONS[config.model.precision].tolerance
    with ExitStack() as on_failure:
        runner = backend.load(compiled, config.model.thread_count)
        on_failure.callback(runner.close)
        try:
            error = check_parity(runner, frozen.module, golden, tolerance)
        except (ParityError, RuntimeError) as failure:
            reason = f"{backend.name} does not compute what the model does: {failure}"
            raise ModelError(f"{frozen.path}: {reason}") from failure
        on_failure.pop_all()
    log.info("%s is within %.0e of the eager model, at most %.0e", backend.name, error, tolerance)
    return runner
