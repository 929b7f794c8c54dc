"""A compiled homogenizer is proven before it is returned, and closed if it is not."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrate.homogenizer import Homogenizer
from deploy.model.program import ModelError
from deploy.store.artefacts import Artefact, ArtefactStore
from deploy.store.compiled import open_compiled
from deploy.store.golden import GOLDEN_NOISE_FRAMES, describe_golden

MODEL = "a" * 64
SHAPE = (3, 8, 8)
CAMERA = np.random.default_rng(0).uniform(-1, 1, (4, *SHAPE)).astype(np.float32)


class Identity:
    """The runner of a homogenizer that changes nothing; it notes what happens to it, and may fail."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.events: list[str] = []
        self._error = error

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.events.append(f"run {len(batch)}")
        if self._error is not None:
            raise self._error
        return batch

    def close(self) -> None:
        self.events.append("close")


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    store = ArtefactStore(tmp_path)
    return store.get(
        store.put(Homogenizer(*SHAPE), {"model": MODEL, "golden": describe_golden(CAMERA)}, b"", "eager"), MODEL
    )


def backend(runner: Identity) -> Any:
    return SimpleNamespace(load=lambda compiled, threads: runner)


def test_a_runner_that_passes_its_proof_stays_open_and_waits_before_each_frame(artefact):
    runner = Identity()
    assert open_compiled(backend(runner), artefact, b"", lambda: runner.events.append("wait")) is runner
    assert runner.events == ["wait", "run 1"] * (GOLDEN_NOISE_FRAMES + len(CAMERA))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("a kernel"), ModelError),
        (OSError(errno.ENOMEM, "the GPU has no memory left"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_runner_that_fails_in_its_proof_is_closed(artefact, error, raised):
    runner = Identity(error)
    with pytest.raises(raised):
        open_compiled(backend(runner), artefact, b"")
    assert runner.events[-1] == "close" and runner.events.count("close") == 1
