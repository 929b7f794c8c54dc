"""A recalibration in the worker: try what served before, else fit, judge, compile, check and store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibrate.fitting import FitResult, fit
from calibrate.homogenizer import Homogenizer
from calibrate.judge import (
    HELD_OUT_EVERY,
    Evidence,
    champions,
    examine,
    judge,
    needs_no_fit,
    needs_no_homogenizer,
    weigh,
)
from calibrate.validation import FitError
from daemon.states import Result
from daemon.worker.context import WorkerContext, clean_band
from daemon.worker.dossier_builder import DossierBuilder, examples
from deploy.backends.engine_cache import compile_homogenizer
from deploy.backends.protocol import ParityError, check_parity, made_by
from deploy.model.program import ModelError
from deploy.store.artefacts import FACTORY, StoreError
from deploy.store.retention import earlier_versions, retain

PARITY_FRAMES = 8  # held-out frames on which the compiled homogenizer must equal the eager one
MAX_RECALLED = 4  # earlier homogenizers of a sensor that are tried, the newest first
KEPT_OF_A_SENSOR = 50  # homogenizers on the disk, each about 1 MB at 224x224
FAULTS = (FitError, ParityError, ModelError, StoreError, ValueError, RuntimeError, OSError)  # what a job may end with
MIB = 1 << 20

log = logging.getLogger(__name__)
Send = Callable[[dict[str, Any]], None]


def failure(job: dict[str, Any], error: Exception) -> dict[str, Any]:
    """The answer of a job that broke."""
    log.exception("%s failed", job["job"], exc_info=error)
    return {"result": Result.FAILED.value, "reason": f"{type(error).__name__}: {error}"}


class FitJob:
    """One recalibration of one sensor. `run` does it; `send` gets what it says on the way.

    images: (N, h, w, C) uint8, oldest first. Every HELD_OUT_EVERY-th judges and is not fitted to; a recall, which
    fits nothing, judges on all.
    """

    def __init__(self, context: WorkerContext, job: dict[str, Any], images: np.ndarray, send: Send):
        self._context, self._job, self._send = context, job, send
        self._judging = images if job["recall"] else images[::HELD_OUT_EVERY]
        self._images = images
        self._dossier = DossierBuilder(job, context.provenance)
        self._dossier.frames(len(self._judging), images.shape[1:])

    def run(self) -> dict[str, Any]:
        """Do it and file a dossier: {"result": ..., "reason": ..., "version": ..., "dossier": digest}."""
        try:
            answer = self._recalibrate()
        except ConnectionError:  # an OSError, but nobody is left to hear of it
            raise
        except FAULTS as error:
            answer = failure(self._job, error)
        if answer["result"] == Result.UNKNOWN:  # nothing came of it: the fit that follows has a dossier of its own
            return answer | {"dossier": None}
        return answer | {"dossier": self._file_dossier(answer)}

    def _recalibrate(self) -> dict[str, Any]:
        context, band = self._context, self._job["band"]
        frames, held_out = context.frames(self._images), context.frames(self._judging)
        active = context.homogenizer(self._job["active"])
        against = champions(context.scorer, active, held_out)
        self._dossier.champions(against)
        if needs_no_fit(against, band) and not self._job["recall"]:
            return _answer(Result.UNNEEDED, "the frames as served are within the clean band")
        if active is not None and needs_no_homogenizer(against, band):
            return _answer(Result.FACTORY, "the frames are clean again without one", version=FACTORY)
        recalled = self._recall(held_out, against)
        if recalled is not None:
            return recalled
        if self._job["recall"]:
            return _answer(Result.UNKNOWN, "nothing that served before is right for these frames")
        return self._fit_and_judge(frames, held_out, against)

    def _recall(self, held_out: Tensor, against: Mapping[str, Evidence]) -> dict[str, Any] | None:
        """An earlier homogenizer of this sensor that is right again, which costs no fit: night comes every day."""
        context = self._context
        ruled_out = (self._job["active"], *self._job["withdrawn"])
        earlier = earlier_versions(context.store, self._job["sensor"], context.frozen.digest, KEPT_OF_A_SENSOR)
        for version in [version for version in earlier if version not in ruled_out][:MAX_RECALLED]:
            try:
                artefact = context.store.get(version, context.frozen.digest)
            except StoreError as error:
                log.warning("an earlier homogenizer is not tried: %s", error)
                continue
            if artefact.compiled is None or not made_by(context.backend, artefact.manifest):
                continue  # a fit is surer than a compiled form that may not run
            evidence = examine(context.scorer, artefact.homogenizer, held_out)
            verdict = weigh(evidence, against, clean_band(evidence, self._job["band"]))
            self._dossier.earlier(version, verdict)
            if verdict.accepted:
                self._dossier.judged(artefact.homogenizer, verdict)
                return _answer(Result.RECALLED, f"an earlier one is {verdict.reason}", version=version)
        return None

    def _fit_and_judge(self, frames: Tensor, held_out: Tensor, against: Mapping[str, Evidence]) -> dict[str, Any]:
        fitted, fit_seconds = self._fit(frames)
        self._dossier.fitted(fitted, len(frames) - len(held_out))
        self._send({"stage": "judging", "ratio": 0.0, "fit_seconds": fit_seconds})
        candidate = fitted.homogenizer.eval()
        verdict = judge(self._context.scorer, candidate, held_out, against, self._job["band"])
        self._dossier.judged(candidate, verdict)
        if not verdict.accepted:
            return _answer(Result.REJECTED, verdict.reason)
        self._send({"stage": "compiling", "ratio": 0.0})
        began = time.perf_counter()
        manifest = self._manifest(len(frames), fitted, fit_seconds) | {"verdict": verdict.as_dict()}
        version = self._store(candidate, held_out[:PARITY_FRAMES], manifest)
        taken = time.perf_counter() - began
        self._dossier.lap("compiling")
        return _answer(Result.ACCEPTED, verdict.reason, version=version, compile_seconds=taken)

    def _fit(self, frames: Tensor) -> tuple[FitResult, float]:
        """Fit to the frames that do not judge; also how long it took (s)."""
        context, began = self._context, time.perf_counter()
        commissioned = context.commissioned
        fitted = fit(
            context.frozen.module,
            frames[torch.arange(len(frames)) % HELD_OUT_EVERY != 0],
            commissioned and commissioned.statistics,
            source=commissioned and commissioned.source,
            limits=context.limits,
            seed=self._job["seed"],
            progress=lambda done, of, _: self._send({"stage": "fitting", "ratio": done / of}),
            clock=time.perf_counter,
        )
        return fitted, time.perf_counter() - began

    def _store(self, candidate: Homogenizer, golden: Tensor, manifest: dict[str, Any]) -> str:
        """Compile, check and store the candidate, and remove the oldest of its sensor; returns its version."""
        store = self._context.store
        compiled = self._compile(candidate, golden)
        version = store.put(candidate, manifest, compiled, self._context.backend.name)
        retain(store, self._job["sensor"], KEPT_OF_A_SENSOR, spare=(self._job["active"], version))
        return version

    def _compile(self, candidate: nn.Module, golden: Tensor) -> bytes:
        """The backend's form of the candidate, proven equal to the eager one on golden frames."""
        backend = self._context.backend
        compiled = compile_homogenizer(backend, candidate, golden[:1], self._context.store.root)
        runner = backend.load(compiled, threads=1)
        try:
            check_parity(runner, candidate, golden)
        finally:
            runner.close()
        return compiled

    def _manifest(self, frames: int, fitted: FitResult, seconds: float) -> dict[str, Any]:
        job = self._job
        return {
            "sensor": job["sensor"],
            "model": self._context.frozen.digest,
            "parent": job["active"],
            "trigger": job["trigger"],
            "seed": job["seed"],
            "frames": {"count": frames, "until": job["until"]},
            "fit": {"start": fitted.start, "steps": fitted.steps, "seconds": seconds},
            "versions": self._context.provenance["versions"],
        }

    def _file_dossier(self, answer: dict[str, Any]) -> str | None:
        """The digest of the dossier; None where the disk refuses it, which must not cost the answer."""
        keep = self._job["keep"]
        try:
            frames = examples(self._judging, keep["frames"])
            return self._context.archive.put(self._dossier.build(answer), frames, keep["mib"] * MIB)
        except (OSError, ValueError) as error:
            log.warning("this recalibration has no dossier: %s", error)
            return None


def _answer(result: Result, reason: str, **more: Any) -> dict[str, Any]:
    return {"result": result.value, "reason": reason, **more}
