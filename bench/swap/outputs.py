"""Prove that outputs belong to the homogenizer they name: compute some again with every homogenizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np

from bench.material.camera import Answer
from bench.material.daemon_run import DaemonRun, bare_runner
from daemon.model.preprocess import Preprocessor
from deploy.backends.protocol import Runner, load_backend
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import FACTORY, ArtefactStore

SAMPLED_OUTPUTS = 1000  # besides those next to a swap
TOLERANCE = 1e-5  # of logits: the same compiled networks may differ by so much


def attribution(answers: Sequence[Answer], run: DaemonRun, versions: Sequence[str]) -> dict[str, Any]:
    """Compute sampled outputs again.

    `attributed` counts outputs within TOLERANCE of those of the named homogenizer and of no other.
    """
    frozen = load_frozen(run.folder.model)
    preprocessor = Preprocessor(frozen.card)
    chosen = _sample(answers)
    own, other = [], []
    with ExitStack() as opened, bare_runner(run.folder.model) as model:
        homogenizers = {version: _open(opened, run, version, frozen.digest) for version in versions}
        for answer in chosen:
            image = preprocessor.to_input_image(run.camera.image(answer.seq))
            distances = _distances(answer.output, preprocessor.normalise(image[np.newaxis]), homogenizers, model)
            own.append(distances.pop(answer.homogenizer))
            other.append(min(distances.values()))
    attributed = (np.array(own) <= TOLERANCE) & (np.array(other) > TOLERANCE)
    return {
        "checked": len(chosen),
        "attributed": int(attributed.sum()),
        "worst_own": max(own),
        "nearest_other": min(other),
    }


def _sample(answers: Sequence[Answer]) -> list[Answer]:
    """Return the last answer before and the first after each swap, and about SAMPLED_OUTPUTS others, in order."""
    chosen = set(range(0, len(answers), max(1, len(answers) // SAMPLED_OUTPUTS)))
    for number, (before, after) in enumerate(pairwise(answers)):
        if before.homogenizer != after.homogenizer:
            chosen |= {number, number + 1}
    return [answers[number] for number in sorted(chosen)]


def _open(opened: ExitStack, run: DaemonRun, version: str, model: str) -> Runner:
    compiled = ArtefactStore(run.folder.state).get(version, model).compiled
    assert compiled is not None
    runner = load_backend("onnx").load(compiled, threads=1)
    opened.callback(runner.close)
    return runner


def _distances(
    output: np.ndarray, batch: np.ndarray, homogenizers: dict[str, Runner], model: Runner
) -> dict[str, float]:
    """Return the largest difference between `output` and the output of each homogenizer, and of none."""
    expected = {version: model.run(runner.run(batch)) for version, runner in homogenizers.items()}
    expected[FACTORY] = model.run(batch)
    return {version: float(np.abs(output - value).max()) for version, value in expected.items()}
