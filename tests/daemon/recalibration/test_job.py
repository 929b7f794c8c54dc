"""The active homogenizer keeps serving, whatever fails between a worker's answer and the exchange."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compiled import compile_once
from envelopes import envelope_of

from calibrate.homogenizer import Homogenizer
from daemon.recalibration import job
from daemon.recalibration.envelope import Envelope
from daemon.recalibration.job import JobResult, JobRunner
from daemon.worker.client import WorkerError, WorkerTimeout
from deploy.backends.eager import EagerBackend
from deploy.frame_gaps import MAX_WAIT_S
from deploy.model.program import ModelError
from deploy.path import InferencePath
from deploy.store.artefacts import ArtefactStore
from deploy.store.golden import GOLDEN_NOISE_FRAMES, PROOF_FRAMES, describe_golden, golden_of

SHAPE = (3, 4, 5)
MODEL = "d" * 64
DOSSIER = "e" * 64
FRAMES = 8


class Scene:
    """One sensor that a homogenizer serves, and a recalibration whose worker has stored the next one."""

    def __init__(self, folder: Path) -> None:
        self.backend = EagerBackend()
        self.store = ArtefactStore(folder)
        self.version = self.put(0.25)
        self.worker = SimpleNamespace(call=self.answer, finish=lambda: None, close=lambda: None)
        self.path = InferencePath(self.load(torch.nn.Identity()))
        self.path.commit(self.path.prepare("active", self.load(homogenizer(0.5)), golden()))
        self.posted: queue.Queue[Any] = queue.Queue()
        self.envelope: Envelope | None = None

    def put(self, bias: float) -> str:
        compiled = compile_once(self.backend, homogenizer(bias), torch.zeros(1, *SHAPE))
        return self.store.put(homogenizer(bias), {"model": MODEL}, compiled, self.backend.name)

    def load(self, module: torch.nn.Module) -> Any:
        return self.backend.load(compile_once(self.backend, module, torch.zeros(1, *SHAPE)), threads=1)

    def answer(self, *_: Any) -> dict[str, Any]:
        return {"result": "accepted", "reason": "better", "version": self.version, "dossier": DOSSIER}

    def stored(self, suffix: str) -> Path:
        (path,) = self.store.root.glob(f"objects/sha256/*/*{suffix}")
        return path

    def runner(self) -> JobRunner:
        preprocessor = SimpleNamespace(normalise=lambda images: golden())
        model: Any = SimpleNamespace(digest=MODEL, backend=self.backend, preprocessor=preprocessor)
        worker: Any = self.worker
        keep = {"frames": 0, "mib": 1}
        post = self.posted.put
        return JobRunner(worker, self.store, model, 1.0, 1.2, post, keep, self.envelope)

    def recalibrate(self) -> JobResult:
        recalibration = self.runner()
        recalibration.start(self.sensor(), "operator", FRAMES)
        finished: JobResult = self.posted.get(timeout=10)
        recalibration.close()
        assert recalibration.free and self.posted.empty()
        return finished

    def sensor(self) -> Any:
        reservoir = SimpleNamespace(sample=lambda count: list(np.zeros((count, 4, 5, 3), np.uint8)), refused={})
        return SimpleNamespace(name="front", path=self.path, reservoir=reservoir, withdrawn=set(), set_aside=set())


def homogenizer(bias: float) -> Homogenizer:
    made = Homogenizer(*SHAPE, kernel_size=3).eval()
    with torch.no_grad():
        made.bias += bias
    return made


def golden() -> np.ndarray:
    return np.linspace(-2, 2, 120, dtype=np.float32).reshape(2, *SHAPE)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_the_worker_stored_is_loaded_and_proven_and_does_not_serve_before_the_exchange(scene: Scene):
    finished = scene.recalibrate()
    assert finished.result == "accepted" and finished.candidate is not None
    assert finished.candidate.prepared.version == scene.version
    assert finished.dossier == DOSSIER
    assert scene.path.version == "active"


def unprovable(scene: Scene) -> None:
    scene.version = scene.put(41.0)  # ten times what the golden frames span, and more


FAULTS: dict[str, tuple[Callable[[Scene], Any], str]] = {
    "worker": (lambda s: setattr(s.worker, "call", raising(WorkerError("it died"))), "it died"),
    "missing": (lambda s: s.stored(".json").unlink(), "missing"),
    "damaged": (lambda s: s.stored(".safetensors").write_bytes(b"half"), "damaged"),
    "compiled form": (lambda s: s.stored(".compiled").unlink(), "the compiled form .* is missing"),
    "loading": (lambda s: setattr(s.backend, "load", raising(ModelError("no such kernel"))), "no such kernel"),
    "proof": (unprovable, "leaves the range of the golden frames"),
    "unforeseen": (lambda s: setattr(s.store, "get", raising(KeyError("what"))), "what"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_before_the_exchange_is_reported_and_keeps_the_active_one(scene: Scene, fault: str):
    spoil, reason = FAULTS[fault]
    spoil(scene)
    finished = scene.recalibrate()
    assert (finished.result, finished.candidate) == ("failed", None)
    assert finished.dossier == (None if fault in ("worker", "unforeseen") else DOSSIER)
    assert re.search(reason, finished.reason)
    served = scene.path.infer(golden()[:1])
    assert served.homogenizer == "active" and served.output == pytest.approx(golden()[:1] + 0.5, abs=1e-6)


@pytest.mark.parametrize("limit", [0.24, 0.26])
def test_what_is_outside_of_the_envelope_is_refused_whatever_the_worker_says(scene: Scene, limit: float):
    scene.envelope = envelope_of(bias=limit)
    finished = scene.recalibrate()
    if limit > 0.25:
        assert finished.result == "accepted" and finished.candidate is not None and finished.unusable is None
        return
    assert (finished.result, finished.candidate, finished.unusable) == ("refused", None, scene.version)
    assert finished.reason == (
        f"homogenizer {scene.version[:12]} is outside of envelope.yaml: bias 0.25, at most 0.24 is allowed"
    )


def test_a_compiled_form_of_other_weights_than_those_measured_does_not_serve(scene: Scene):
    """Else a worker that has gone wrong could have an innocent homogenizer measured, and another one serve."""
    compiled = compile_once(scene.backend, homogenizer(0.75), torch.zeros(1, *SHAPE))
    scene.version = scene.store.put(homogenizer(0.125), {"model": MODEL}, compiled, scene.backend.name)
    scene.envelope = envelope_of(bias=0.5)
    finished = scene.recalibrate()
    assert (finished.result, finished.unusable) == ("failed", scene.version)
    assert "its compiled form does not compute what its weights say" in finished.reason


def test_an_abort_that_comes_when_the_job_has_just_ended_is_no_hang(scene: Scene, monkeypatch):
    runner, go_on = scene.runner(), threading.Event()
    scene.worker.kill = lambda: None
    scene.worker.call = lambda *given: go_on.wait(10) and scene.answer(*given)
    assert runner.start(scene.sensor(), "operator", FRAMES) == 1

    def ends_meanwhile() -> float:
        go_on.set()
        wait_until(lambda: runner.free)
        return -1000.0

    with monkeypatch.context() as patch:
        patch.setattr(job, "time", SimpleNamespace(monotonic=ends_meanwhile))
        runner.abort("front")
    assert runner.free and not runner.hangs
    go_on.clear()
    assert runner.start(scene.sensor(), "operator", FRAMES) == 2
    assert not runner.hangs, "it is another job"
    go_on.set()
    assert [scene.posted.get(timeout=10).job for _ in range(2)] == [1, 2]
    runner.close()


def test_a_job_that_goes_on_long_after_its_abort_hangs(scene: Scene, monkeypatch):
    monkeypatch.setattr(job, "ABORT_GRACE_S", 0.0)
    runner, go_on = scene.runner(), threading.Event()
    scene.worker.kill = lambda: None
    scene.worker.call = lambda *given: go_on.wait(10) and scene.answer(*given)
    runner.start(scene.sensor(), "operator", FRAMES)
    runner.abort("rear")
    assert not runner.hangs, "it is the job of another sensor"
    runner.abort("front")
    wait_until(lambda: runner.hangs)
    go_on.set()
    scene.posted.get(timeout=10)
    runner.close()


def test_an_aborted_job_has_the_time_of_a_proof_whose_turns_do_not_come(scene: Scene):
    stored = golden_of({"golden": describe_golden(golden())}, SHAPE)
    assert stored is not None and len(stored) == PROOF_FRAMES
    turns: list[None] = []
    gaps: Any = SimpleNamespace(wait_for_turn=lambda: turns.append(None))
    frames = np.concatenate([stored, stored])
    InferencePath(scene.load(torch.nn.Identity()), gaps=gaps).prepare(
        "a", scene.load(homogenizer(0.5)), frames, homogenizer(0.5)
    )
    opening = GOLDEN_NOISE_FRAMES + PROOF_FRAMES  # of open_compiled, which waits before each frame
    assert opening + len(turns) == job.MAX_PROOF_TURNS
    assert job.MAX_PROOF_TURNS * MAX_WAIT_S < job.ABORT_GRACE_S


def test_a_worker_that_took_too_long_has_a_result_of_its_own(scene: Scene):
    scene.worker.call = raising(WorkerTimeout("killed after 1 s"))
    assert scene.recalibrate().result == "timeout"


@pytest.mark.parametrize(
    ("limits", "corrections"),
    [(None, ["defects", "shading"]), ({}, []), ({"defect_step": 0.5}, ["defects"]), ({"shading": {}}, ["shading"])],
)
def test_a_fit_is_told_what_the_envelope_lets_a_homogenizer_have(
    scene: Scene, limits: dict[str, Any] | None, corrections: list[str]
):
    """Else a candidate would be refused although one without that part might serve."""
    told: list[dict[str, Any]] = []
    scene.worker.call = lambda job, *rest, **more: told.append(job) or scene.answer()
    scene.envelope = None if limits is None else envelope_of(**limits)
    scene.recalibrate()
    assert list(told[0]["corrections"]) == corrections
