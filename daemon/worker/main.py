"""The worker process: drift checks and fits, away from the frames.

A process of its own, because exports and compiles hold Python's lock for hundreds of milliseconds, and because
whatever goes wrong in here, a crash, a leak or a hang, must not cost a frame. It reads jobs from a pipe and
answers on it; it ends when the daemon does.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibrate import FitError, FitResult, Limits, fit, tap
from calibrate.features.taps import Taps
from calibrate.homogenizer import Homogenizer
from calibrate.judge import (
    HELD_OUT_EVERY,
    Evidence,
    examine,
    incumbents,
    judge,
    needs_no_fit,
    needs_no_homogenizer,
    objections,
    weigh,
)
from calibrate.scoring.scorer import Measured, Yardstick
from daemon import __version__
from daemon.model.preprocess import Preprocessor
from daemon.niceness import step_back
from daemon.worker.dossier_builder import Account, digest_of, examples
from daemon.worker.ipc import pack, unpack
from deploy.backends.engine_cache import compile_homogenizer
from deploy.backends.protocol import ParityError, check_parity, load_backend, made_by
from deploy.model.commissioned import commissioned
from deploy.model.frozen import FrozenModel, ModelError, load_frozen
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError
from deploy.store.dossier_archive import Archive
from deploy.store.retention import past, retain

GOLDEN_FRAMES = 8
MOST_TRIED = 4  # of a sensor's earlier homogenizers, the newest first
KEPT_OF_A_SENSOR = 50  # homogenizers on the disk, each about 1 MB at 224x224
MOST_LOADED = 64  # homogenizers kept in memory, each some hundred kB
FAULTS = (FitError, ParityError, ModelError, StoreError, ValueError, RuntimeError, OSError)  # what a job may end with
MIB = 1 << 20

log = logging.getLogger(__name__)
Send = Callable[[dict[str, Any]], None]


class Worker:
    """Answers jobs about one frozen model."""

    def __init__(self, frozen: FrozenModel, backend: str, store: ArtefactStore):
        self._frozen = frozen
        self._backend = load_backend(backend)
        self._store = store
        self._archive = Archive(store.root)
        self._normalise = Preprocessor(frozen.card).normalise
        self._limits = Limits.of(frozen.card.normalisation.mean, frozen.card.normalisation.std)
        taps = tap(frozen.module)
        self._clean = commissioned(frozen, taps)
        self._yardstick = Yardstick.of(taps, frozen.card.input.shape, self._limits, self._clean)
        self._loaded: dict[str, nn.Module] = {}  # homogenizers by version
        self._facts = self._told(taps)

    def answer(self, job: dict[str, Any], images: np.ndarray, send: Send) -> None:
        """Do one job; the last message it sends has "done": true."""
        if job["job"] == "observe":
            send({"done": True, **self.observe(job, images)})
        else:
            send({"done": True, **self.recalibrate(job, images, send)})

    def observe(self, job: dict[str, Any], images: np.ndarray) -> dict[str, Any]:
        """Drift scores of frames (n, h, w, C) as they come and as they are served, and accuracy proxies."""
        frames = torch.from_numpy(self._normalise(images))
        homogenizer = self._homogenizer(job["active"])
        raw = self._yardstick.measure(frames)
        served = self._yardstick.measure(frames, homogenizer) if homogenizer else raw
        proxy = served.proxy
        compared = {"rival": self._compare(job, frames, raw, served)} if "rival" in job else {}
        return compared | {
            "raw": raw.drift.score,
            "clean_without": _clean_without(Evidence.of(raw), Evidence.of(served), job["band"]),
            "narrow": served.narrow,
            "homogenized": served.drift.score,
            "layers": dict(zip(self._yardstick.names, served.drift.layers, strict=True)),
            "proxy": {"confidence": proxy.confidence, "certainty": proxy.certainty} if proxy else {},
        }

    def _compare(self, job: dict[str, Any], frames: Tensor, raw: Measured, served: Measured) -> dict[str, Any]:
        """A candidate against all that it has to beat, or the one before against the one that serves."""
        version, factory, active = job["rival"], Evidence.of(raw), Evidence.of(served)
        homogenizer = self._homogenizer(version)
        rival = Evidence.of(self._yardstick.measure(frames, homogenizer)) if homogenizer else factory
        if job["role"] == "previous":
            clean_before = rival.score <= job["band"] < active.score  # then more confident answers are no excuse
            reason = "" if clean_before else "; ".join(objections(rival, active, "active", back=True))
        elif version == FACTORY:
            reason = "" if _clean_without(factory, active, job["band"]) else "the frames look drifted again"
        else:
            against = {"factory": factory} if job["active"] == FACTORY else {"factory": factory, "active": active}
            # Not whether it is clean, which was judged on frames of minutes: a moment's show what is in view.
            reason = "; ".join(said for name, one in against.items() for said in objections(rival, one, name))
        return {"version": version, "role": job["role"], "score": rival.score, "objections": reason}

    def recalibrate(self, job: dict[str, Any], images: np.ndarray, send: Send) -> dict[str, Any]:
        """Do it, and write down on what evidence; {"result": ..., "reason": ..., "version": ..., "dossier": digest}."""
        account = Account(job, self._facts)
        judging = images if job["recall"] else images[::HELD_OUT_EVERY]
        account.frames(len(judging), images.shape[1:])
        try:
            answer = self._recalibrate(job, images, send, account)
        except ConnectionError:  # an OSError, but nobody is left to hear of it
            raise
        except FAULTS as error:
            answer = _failed(job, error)
        if answer["result"] == "unknown":  # nothing came of it: the fit that follows has its own
            return answer | {"dossier": None}
        return answer | {"dossier": self._write_down(account, answer, job["keep"], judging)}

    def _recalibrate(self, job: dict[str, Any], images: np.ndarray, send: Send, account: Account) -> dict[str, Any]:
        """Fit, judge, compile, check and store."""
        frames = torch.from_numpy(self._normalise(images))
        held_out = frames if job["recall"] else frames[::HELD_OUT_EVERY]
        active = self._homogenizer(job["active"])
        against = incumbents(self._yardstick, active, held_out)
        account.incumbents(against)
        if needs_no_fit(against, job["band"]) and not job["recall"]:
            return {"result": "unneeded", "reason": "the frames as served are within the clean band"}
        if active is not None and needs_no_homogenizer(against, job["band"]):
            return {"result": "factory", "version": FACTORY, "reason": "the frames are clean again without one"}
        known = self._known(job, held_out, against, account)
        if known is not None:
            return known
        if job["recall"]:
            return {"result": "unknown", "reason": "nothing that served before is right for these frames"}
        fitted, seconds = self._fit(job, frames, send)
        account.fitted(fitted, len(frames) - len(held_out))
        send({"stage": "judging", "ratio": 0.0, "fit_seconds": seconds})
        candidate = fitted.homogenizer.eval()
        verdict = judge(self._yardstick, candidate, held_out, against, job["band"])
        account.judged(candidate, verdict)
        if not verdict.accepted:
            return {"result": "rejected", "reason": verdict.reason}
        send({"stage": "compiling", "ratio": 0.0})
        began = time.perf_counter()
        manifest = self._manifest(job, len(frames), fitted.start, fitted.steps, seconds)
        version = self._keep(job, candidate, held_out[:GOLDEN_FRAMES], manifest | {"verdict": verdict.as_dict()})
        taken = time.perf_counter() - began
        account.lap("compiling")
        return {"result": "accepted", "reason": verdict.reason, "version": version, "compile_seconds": taken}

    def _fit(self, job: dict[str, Any], frames: Tensor, send: Send) -> tuple[FitResult, float]:
        """Fit to the frames that do not judge; also how long it took (s)."""
        began = time.perf_counter()
        fitted = fit(
            self._frozen.module,
            frames[torch.arange(len(frames)) % HELD_OUT_EVERY != 0],
            self._clean and self._clean.statistics,
            source=self._clean and self._clean.source,
            limits=self._limits,
            seed=job["seed"],
            progress=lambda done, of, _: send({"stage": "fitting", "ratio": done / of}),
        )
        return fitted, time.perf_counter() - began

    def _keep(self, job: dict[str, Any], candidate: Homogenizer, golden: Tensor, manifest: dict[str, Any]) -> str:
        """Compile, prove and store the candidate, and remove the oldest of its sensor; returns its version."""
        compiled = self._compile(candidate, golden)
        version = self._store.put(candidate, manifest, compiled, self._backend.name)
        retain(self._store, job["sensor"], KEPT_OF_A_SENSOR, spare=(job["active"], version))
        return version

    def _known(
        self, job: dict[str, Any], held_out: Tensor, against: Mapping[str, Evidence], account: Account
    ) -> dict[str, Any] | None:
        """A homogenizer of this sensor's past that is right again, which costs no fit: night comes every day."""
        ruled_out = (job["active"], *job["withdrawn"])
        earlier = past(self._store, job["sensor"], self._frozen.digest, KEPT_OF_A_SENSOR)
        for version in [version for version in earlier if version not in ruled_out][:MOST_TRIED]:
            try:
                artefact = self._store.get(version, self._frozen.digest)
            except StoreError as error:
                log.warning("an earlier homogenizer is not tried: %s", error)
                continue
            if artefact.compiled is None or not made_by(self._backend, artefact.manifest):
                continue  # a fit is surer than a compiled form that may not run
            seen = examine(self._yardstick, artefact.homogenizer, held_out)
            verdict = weigh(seen, against, _band(seen, job["band"]))
            account.earlier(version, verdict)
            if verdict.accepted:
                account.judged(artefact.homogenizer, verdict)
                return {"result": "recalled", "reason": f"an earlier one is {verdict.reason}", "version": version}
        return None

    def _compile(self, candidate: nn.Module, golden: Tensor) -> bytes:
        """The backend's form of the candidate, proven equal to the eager one on golden frames."""
        compiled = compile_homogenizer(self._backend, candidate, golden[:1], self._store.root)
        runner = self._backend.load(compiled, threads=1)
        try:
            check_parity(runner, candidate, golden)
        finally:
            runner.close()
        return compiled

    def _manifest(self, job: dict[str, Any], frames: int, start: str, steps: int, seconds: float) -> dict[str, Any]:
        return {
            "sensor": job["sensor"],
            "model": self._frozen.digest,
            "parent": job["active"],
            "trigger": job["trigger"],
            "seed": job["seed"],
            "frames": {"count": frames, "until": job["until"]},
            "fit": {"start": start, "steps": steps, "seconds": seconds},
            "versions": self._facts["versions"],
        }

    def _told(self, taps: Taps) -> dict[str, Any]:
        """What every dossier says of model, reference and software."""
        source, statistics = ("commissioned", self._clean.statistics) if self._clean else ("shipped", taps.reference)
        return {
            "model": self._frozen.digest,
            "reference": {"source": source, "digest": digest_of(statistics)},
            "normalisation": self._frozen.card.normalisation,
            "layers": list(taps.names),
            "versions": {
                "recald": __version__,
                "torch": str(torch.__version__),
                "backend": self._backend.version(),
            },
        }

    def _write_down(
        self, account: Account, answer: dict[str, Any], keep: dict[str, int], held_out: np.ndarray
    ) -> str | None:
        """The digest of the dossier. A disk that refuses it does not cost the answer: then the audit log names none."""
        try:
            frames = examples(held_out, keep["frames"])
            return self._archive.put(account.dossier(answer), frames, keep["mib"] * MIB)
        except (OSError, ValueError) as error:
            log.warning("this recalibration has no dossier: %s", error)
            return None

    def _homogenizer(self, version: str) -> nn.Module | None:
        """The stored one of this version, read from the disk once; None for the factory homogenizer."""
        if version == FACTORY:
            return None
        if version not in self._loaded:
            while len(self._loaded) >= MOST_LOADED:
                del self._loaded[next(iter(self._loaded))]  # the one loaded first
            self._loaded[version] = self._store.get(version, self._frozen.digest).homogenizer
        return self._loaded[version]


def _band(evidence: Evidence, band: float) -> float:
    """The highest score that counts as clean. A narrow view has no such: clean frames of one class score up to 4.

    Such frames cannot prove a fit to them. What was judged on others is compared with what serves on these.
    """
    return math.inf if evidence.narrow else band


def _clean_without(raw: Evidence, served: Evidence, band: float) -> bool:
    """Whether frames are clean as they come: within the band, or in a narrow view better than as they are served."""
    return raw.score <= band or (raw.narrow and not any(objections(raw, served, "active", back=True)))


def serve(worker: Worker, connection: Connection) -> None:
    """Answer jobs until the daemon closes its end; ConnectionError if it goes away in the middle of one."""

    def send(message: dict[str, Any]) -> None:
        connection.send_bytes(pack(message))

    while True:
        try:
            job, images = unpack(connection.recv_bytes())
        except EOFError:
            return
        assert images is not None
        try:
            worker.answer(job, images, send)
        except ConnectionError:  # an OSError, but nobody is left to hear of it
            raise
        except FAULTS as error:
            send({"done": True, **_failed(job, error)})


def _failed(job: dict[str, Any], error: Exception) -> dict[str, Any]:
    log.exception("%s failed", job["job"], exc_info=error)
    return {"result": "failed", "reason": f"{type(error).__name__}: {error}"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="started by recald run")
    parser.add_argument("--connection", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s worker: %(message)s")
    step_back()
    torch.set_num_threads(args.threads)
    with Connection(args.connection) as connection:
        worker = Worker(load_frozen(args.model), args.backend, ArtefactStore(args.state))
        try:
            connection.send_bytes(pack({"ready": True}))
            serve(worker, connection)
        except ConnectionError:
            log.warning("the daemon went away in the middle of a job")
    return 0


if __name__ == "__main__":
    sys.exit(main())
