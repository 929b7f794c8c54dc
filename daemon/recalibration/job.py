"""One recalibration, from a request to a homogenizer that is ready to serve, on a thread of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from daemon.model.served_model import ServedModel
from daemon.recalibration.envelope import Envelope, OutsideEnvelope
from daemon.recalibration.sensor import Candidate, Sensor
from daemon.states import WITH_VERSION, Result
from daemon.worker.client import WorkerClient, WorkerError, WorkerTimeout
from deploy.model.frozen import ModelError
from deploy.path import InferencePath, Prepared, SwapRejected
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError

PROOF_FRAMES = 4  # of those fitted to, on which a homogenizer is proven where it will run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobProgress:
    """The worker is at `stage`, `ratio` of it done; durations (s) of the stages that ended, by name."""

    sensor: str
    stage: str
    ratio: float
    durations: dict[str, float]


@dataclass(frozen=True)
class JobResult:
    """A recalibration ended; `candidate` is there when another homogenizer shall serve."""

    sensor: str
    result: Result
    reason: str
    candidate: Candidate | None = None
    durations: dict[str, float] | None = None
    unfit: str | None = None  # a version that was stored and cannot serve
    dossier: str | None = None  # the digest of what the worker wrote down; None where it could not


Post = Callable[[JobProgress | JobResult], None]


class JobRunner:
    """Does one recalibration at a time: two would only take the processor from each other."""

    def __init__(
        self,
        worker: WorkerClient,
        store: ArtefactStore,
        model: ServedModel,
        timeout: float,
        band: float,
        post: Post,
        keep: Mapping[str, int],
        envelope: Envelope | None = None,
    ):
        """keep: `frames` of each recalibration on the disk, `mib` of them in all. envelope: nothing outside serves."""
        self._worker = worker
        self._store = store
        self._model = model
        self._timeout = timeout
        self._band = band
        self._post = post
        self._keep = dict(keep)
        self._envelope = envelope
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="recalibration")
        self._busy = False

    @property
    def free(self) -> bool:
        return not self._busy

    def start(self, sensor: Sensor, trigger: str, frames: int, recall: bool = False) -> None:
        """Begin; what comes of it is posted. Only while `free`. recall: try the past on the newest."""
        self._busy = True
        job = {
            "job": "recalibrate",
            "sensor": sensor.name,
            "active": sensor.path.version,
            "withdrawn": sorted(sensor.withdrawn),
            "trigger": trigger,
            "recall": recall,
            "band": self._band,
            "refused": dict(sensor.reservoir.refused),
            "keep": self._keep,
            "until": time.time(),
            "seed": int(time.time()),
        }
        take = sensor.reservoir.latest if recall else sensor.reservoir.sample
        self._executor.submit(self._run, sensor, job, partial(take, frames))

    def close(self) -> None:
        self._worker.close()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(self, sensor: Sensor, job: dict[str, Any], take: Callable[[], np.ndarray]) -> None:
        try:
            self._post(self._recalibrate(sensor, job, take()))
        except Exception as error:  # whatever broke, the sensor's state machine must hear that it ended
            log.exception("recalibration of %s broke", sensor.name)
            self._post(JobResult(sensor.name, Result.FAILED, str(error)))
        finally:
            self._busy = False

    def _recalibrate(self, sensor: Sensor, job: dict[str, Any], images: np.ndarray) -> JobResult:
        version = dossier = None

        def report(message: dict[str, Any]) -> None:
            durations = {k[: -len("_seconds")]: v for k, v in message.items() if k.endswith("_seconds")}
            self._post(JobProgress(sensor.name, message["stage"], message["ratio"], durations))

        try:
            answer = self._worker.call(job, images, self._timeout, report)
            dossier, result = answer["dossier"], Result(answer["result"])
            if result not in WITH_VERSION:
                return JobResult(sensor.name, result, answer["reason"], dossier=dossier)
            version = answer["version"]
            golden = self._model.preprocessor.normalise(images[:: max(1, len(images) // PROOF_FRAMES)][:PROOF_FRAMES])
            prepared = self._prepare(sensor.path, version, golden)
            candidate = Candidate(prepared, job["active"], recalled=result is Result.RECALLED)
        except WorkerTimeout as error:
            return JobResult(sensor.name, Result.TIMEOUT, str(error))
        except OutsideEnvelope as error:
            return JobResult(sensor.name, Result.REFUSED, str(error), unfit=version, dossier=dossier)
        except (WorkerError, StoreError, ModelError, SwapRejected) as error:
            return JobResult(sensor.name, Result.FAILED, str(error), unfit=version, dossier=dossier)
        finally:
            self._worker.finish()  # gives a fit's memory back to the device
        durations = {"compile": answer["compile_seconds"]} if "compile_seconds" in answer else {}
        return JobResult(sensor.name, result, answer["reason"], candidate, durations, dossier=dossier)

    def _prepare(self, path: InferencePath, version: str, golden: np.ndarray) -> Prepared:
        """Load what the worker stored, from the disk and checked, and prove it where it will run.

        OutsideEnvelope for one that may not serve, however good it is: the worker is not asked.
        """
        if version == FACTORY:
            return path.prepare(version, None, golden)
        artefact = self._store.get(version, self._model.digest)
        if artefact.compiled is None:
            raise StoreError(f"the compiled form of homogenizer {version[:12]} is gone")
        measured = None if self._envelope is None else self._envelope.admit(artefact)
        return path.prepare(version, self._model.backend.load(artefact.compiled, threads=1), golden, measured)
