"""Runs one recalibration at a time on a thread of its own: the worker does it, and the result is proven here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from calibrate.search.best_start import CORRECTIONS
from daemon.levels import stack_images
from daemon.model.served_model import ServedModel
from daemon.recalibration.envelope import Envelope, OutsideEnvelope
from daemon.recalibration.sensor import Candidate, Sensor
from daemon.states import WITH_VERSION, Result
from daemon.worker.client import WorkerClient, WorkerError, WorkerTimeout
from daemon.worker.memory import MemoryLimit
from deploy.frame_gaps import MAX_WAIT_S
from deploy.model.program import ModelError
from deploy.path import PROOF_WARM_UP_RUNS, InferencePath, PreparedHomogenizer, SwapRejected
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError
from deploy.store.compiled import input_shape, open_compiled
from deploy.store.golden import GOLDEN_NOISE_FRAMES, PROOF_FRAMES, golden_of, pick_golden

# Opening: noise and stored frames. The proof: its first runs, frames of the camera and stored ones, twice; the end.
MAX_PROOF_TURNS = GOLDEN_NOISE_FRAMES + PROOF_FRAMES + PROOF_WARM_UP_RUNS + 2 * (2 * PROOF_FRAMES) + 1
# For the thread of a job whose worker was killed, which may be at a proof; after it the thread itself hangs.
ABORT_GRACE_S = 60.0 + MAX_PROOF_TURNS * MAX_WAIT_S

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobProgress:
    """The worker is at `stage`, and has done `ratio` of it. durations: of the stages that ended, s by name."""

    sensor: str
    stage: str
    ratio: float
    durations: dict[str, float]


@dataclass(frozen=True)
class JobResult:
    """A recalibration ended. candidate: the homogenizer that may serve, if there is one."""

    sensor: str
    result: Result
    reason: str
    candidate: Candidate | None = None
    durations: dict[str, float] | None = None
    unusable: str | None = None  # a stored version that cannot or may not serve
    recall: bool = False  # only earlier homogenizers were tested
    dossier: str | None = None  # digest of the worker's dossier; None when it could not write one
    job: int = 0  # the number that `JobRunner.start` has returned


Post = Callable[[JobProgress | JobResult], None]


class JobRunner:
    """Starts recalibrations and posts their progress and result. One at a time: two would share one processor."""

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
        memory_mib: int | None = None,
    ):
        """timeout: s for one recalibration. band: the highest drift score of clean frames.

        keep: frames of each recalibration to store on the disk ("frames"), and MiB for all of them ("mib").
        memory_mib: what a worker may take; None is half of what is free.
        """
        self._worker = worker
        self._store = store
        self._model = model
        self._timeout = timeout
        self._band = band
        self._post = post
        self._keep = dict(keep)
        self._envelope = envelope
        self._memory_mib = memory_mib
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="recalibration")
        self._busy = False
        self._number = 0  # of the newest job
        self._sensor = ""  # of the job that runs
        self._aborted_at: float | None = None  # of the job that runs, monotonic

    @property
    def free(self) -> bool:
        """Return whether a recalibration may start."""
        return not self._busy

    @property
    def hangs(self) -> bool:
        """Return whether a job goes on although its worker was killed: its thread waits for something in here."""
        aborted_at = self._aborted_at
        return self._busy and aborted_at is not None and time.monotonic() - aborted_at > ABORT_GRACE_S

    def abort(self, sensor: str) -> None:
        """Kill the worker if it is busy with this sensor; its job then fails."""
        if self._busy and self._sensor == sensor:
            self._aborted_at = time.monotonic()
            self._worker.kill()

    def start(self, sensor: Sensor, trigger: str, frames: int, recall: bool = False, restore: str | None = None) -> int:
        """Start a recalibration, only when `free`; return its number.

        recall: only test earlier homogenizers, on the newest frames. restore: only bring this stored version back.
        """
        self._aborted_at = None  # an abort may have come when the job before had just ended
        self._number, self._busy, self._sensor = self._number + 1, True, sensor.name
        job = {
            "job": "recalibrate" if restore is None else "restore",
            "restore": restore,
            "sensor": sensor.name,
            "active": sensor.path.version,
            "withdrawn": sorted(sensor.withdrawn | sensor.set_aside),
            "trigger": trigger,
            "recall": recall,
            "band": self._band,
            "corrections": self._envelope.document.homogenizer.corrections if self._envelope else CORRECTIONS,
            "refused": dict(sensor.reservoir.refused),
            "keep": self._keep,
            "until": time.time(),
            "seed": int(time.time()),
        }
        read_frames = sensor.reservoir.latest if recall or restore else sensor.reservoir.sample
        self._executor.submit(self._run, sensor, job, partial(read_frames, frames), self._number)
        return self._number

    def close(self) -> None:
        """End the worker at once, and wait for the thread."""
        self._worker.close()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(
        self, sensor: Sensor, job: dict[str, Any], read_frames: Callable[[], list[np.ndarray]], number: int
    ) -> None:
        try:
            result = self._recalibrate(sensor, job, read_frames())
            self._post(replace(result, recall=job["recall"], job=number))
        except Exception as error:  # whatever it is: without a result the sensor would wait for ever
            log.exception("recalibration of %s broke", sensor.name)
            self._post(JobResult(sensor.name, Result.FAILED, str(error), recall=job["recall"], job=number))
        finally:
            self._busy = False

    def _recalibrate(self, sensor: Sensor, job: dict[str, Any], images: list[np.ndarray]) -> JobResult:
        version = dossier = None

        def report(message: dict[str, Any]) -> None:
            durations = {k.removesuffix("_seconds"): v for k, v in message.items() if k.endswith("_seconds")}
            self._post(JobProgress(sensor.name, message["stage"], message["ratio"], durations))

        try:
            memory = MemoryLimit(self._memory_mib)
            log.info("%s: the worker may take %s", sensor.name, memory.told)
            answer = self._worker.call(job, images, self._timeout, report, memory)
            dossier, result = answer.get("dossier"), Result(answer["result"])
            if result not in WITH_VERSION:
                return JobResult(sensor.name, result, answer["reason"], dossier=dossier)
            version = answer["version"]
            golden = self._model.preprocessor.normalise(stack_images(pick_golden(images)))
            prepared = self._prepare(sensor.path, version, golden)
            candidate = Candidate(prepared, job["active"], recalled=result is Result.RECALLED)
        except WorkerTimeout as error:
            return JobResult(sensor.name, Result.TIMEOUT, str(error))
        except OutsideEnvelope as error:
            return JobResult(sensor.name, Result.REFUSED, str(error), unusable=version, dossier=dossier)
        except (WorkerError, StoreError, ModelError, SwapRejected) as error:
            return JobResult(sensor.name, Result.FAILED, str(error), unusable=version, dossier=dossier)
        finally:
            self._worker.finish()  # gives the memory of a fit back to the device
        durations = {"compile": answer["compile_seconds"]} if "compile_seconds" in answer else {}
        return JobResult(sensor.name, result, answer["reason"], candidate, durations, dossier=dossier)

    def _prepare(self, path: InferencePath, version: str, golden: np.ndarray) -> PreparedHomogenizer:
        """Load what the worker stored, check it against the envelope, and prove it with the runner that will serve.

        The worker is not asked about the envelope. Raises OutsideEnvelope, StoreError, ModelError or SwapRejected.
        """
        if version == FACTORY:
            return path.prepare(version, None, golden)
        artefact = self._store.get(version, self._model.digest)
        if artefact.compiled is None:
            raise StoreError(f"the compiled form of homogenizer {version[:12]} is missing")
        if self._envelope is not None:
            self._envelope.admit(artefact)
        runner = open_compiled(self._model.backend, artefact, artefact.compiled, path.wait_for_turn)
        stored = golden_of(artefact.manifest, input_shape(artefact))
        if stored is not None:  # as bright as the frames of its fit; a restart repeats this part of the proof
            golden = np.concatenate([golden, stored])
        return path.prepare(version, runner, golden, artefact.homogenizer)
