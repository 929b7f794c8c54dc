"""Whether each output is of the one homogenizer that it names: some are computed again with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np

from bench.material.camera import Answer
from bench.material.scene import Scene, bare_runner
from daemon.model.preprocess import Preprocessor
from deploy.backends.protocol import Runner, load_backend
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import FACTORY, ArtefactStore

SAMPLE = 1000  # outputs, besides those next to a swap
TOLERANCE = 1e-5  # of logits: what the same compiled networks may differ by


def attribution(answers: list[Answer], here: Scene, versions: Sequence[str]) -> dict[str, Any]:
    """`attributed`: outputs that are the named homogenizer's and no other's, within TOLERANCE."""
    frozen = load_frozen(here.folder.model)
    preprocessor = Preprocessor(frozen.card)
    chosen = [answers[i] for i in sorted(_next_to_swaps(answers) | _spread(len(answers)))]
    own, other = [], []
    with ExitStack() as opened, bare_runner(here.folder.model) as model:
        homogenizers = {v: _open(opened, here, v, frozen.digest) for v in versions}
        for answer in chosen:
            image = preprocessor.to_input_image(here.camera.image(answer.seq))
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


def _next_to_swaps(answers: list[Answer]) -> set[int]:
    """The last frame before and the first after each swap."""
    changes = [i for i, (a, b) in enumerate(pairwise(answers)) if a.homogenizer != b.homogenizer]
    return {*changes, *(i + 1 for i in changes)}


def _spread(count: int) -> set[int]:
    return set(range(0, count, max(1, count // SAMPLE)))


def _open(opened: ExitStack, here: Scene, version: str, model: str) -> Runner:
    compiled = ArtefactStore(here.folder.state).get(version, model).compiled
    assert compiled is not None
    runner = load_backend("onnx").load(compiled, threads=1)
    opened.callback(runner.close)
    return runner


def _distances(
    output: np.ndarray, batch: np.ndarray, homogenizers: dict[str, Runner], model: Runner
) -> dict[str, float]:
    """The largest difference of `output` from what each homogenizer, and none, makes of the frame."""
    expected = {version: model.run(runner.run(batch)) for version, runner in homogenizers.items()}
    expected[FACTORY] = model.run(batch)
    return {version: float(np.abs(output - value).max()) for version, value in expected.items()}
