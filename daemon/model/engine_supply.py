"""Supplies the engine of Φ while a stand-in serves: builds it, and builds again where a builder died."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from daemon.config import Config
from daemon.model.engine_build import BuilderDied, EngineBuild
from daemon.model.served_model import ServedModel
from deploy.backends.protocol import Runner

BUILD_RETRY_S = 600.0  # from a builder that died to the next one: it takes the processor for minutes

log = logging.getLogger(__name__)


class EngineSupply:
    """Begins to build at once. Only the frame thread may use it."""

    def __init__(
        self,
        config: Config,
        model: ServedModel,
        record: Callable[[str, str, dict[str, Any]], None],
        build: Callable[[Config, ServedModel], EngineBuild] = EngineBuild,
    ):
        """record: writes an audit record (AuditWriter.record). build: begins one build."""
        self._begin = lambda: build(config, model)
        self._served_by, self._backend, self._record = model.served_by, model.backend.name, record
        self._next_build = -math.inf
        log.info("%s serves until %s has compiled the model", self._served_by, self._backend)
        self._build: EngineBuild | None = self._begin()

    @property
    def progress(self) -> str:
        """Progress text for `systemctl status`; "" while nothing is built."""
        return "" if self._build is None else self._build.progress

    def take(self, now: float) -> Runner | None:
        """Return the engine once it is built; None before. now: monotonic, s.

        Raises EngineBuildError for a model that cannot be built, or that comes out as something else.
        """
        if self._build is None and now >= self._next_build:
            self._begin_again(now)
        if self._build is None or not self._build.done:
            return None
        build, self._build = self._build, None
        try:
            return build.take()
        except BuilderDied as error:
            build.close()
            self._wait(error, now)
            return None

    def _begin_again(self, now: float) -> None:
        try:
            self._build = self._begin()
        except OSError as error:  # no process can be started now, for want of memory or of a process number
            self._wait(error, now)

    def _wait(self, error: OSError, now: float) -> None:
        self._next_build = now + BUILD_RETRY_S
        log.warning("%s goes on serving: %s; next try in %.0f s", self._served_by, error, BUILD_RETRY_S)
        self._record("", "not compiled", {"backend": self._backend, "reason": str(error)})

    def close(self) -> None:
        """End the build."""
        if self._build is not None:
            self._build.close()
