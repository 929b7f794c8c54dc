"""Open the compiled form of a stored homogenizer, and compare what it computes with the stored weights.

The weights are named by their own hash. The compiled form is named by its hash as well, but only the manifest says that
the two belong together, and a manifest can be written anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from calibrate.split import AnyHomogenizer
from deploy.backends.engine_cache import compile_homogenizer
from deploy.backends.protocol import Backend, ParityError, Runner, check_parity
from deploy.model.program import ModelError
from deploy.store.artefacts import Artefact
from deploy.store.golden import golden_noise, golden_of

log = logging.getLogger(__name__)


def open_compiled(
    backend: Backend, artefact: Artefact, compiled: bytes, before_each: Callable[[], None] = lambda: None
) -> Runner:
    """Load `compiled`, and compare it with the weights of the artefact on golden frames and on noise, one by one.

    before_each: called before each frame, to wait for a moment when this delays hardly any other.
    The noise is not of the manifest: whoever exchanges a compiled form may have written the manifest, too. Raises
    ModelError if it does not load, does not run, or computes something else; StoreError for an unusable manifest. The
    runner is closed after any exception.
    """
    shape = input_shape(artefact)
    golden = golden_of(artefact.manifest, shape)
    with ExitStack() as on_failure:
        runner = backend.load(compiled, threads=1)
        on_failure.callback(runner.close)
        try:
            for frames in (golden_noise(shape), golden):
                if frames is not None:
                    check_parity(runner, artefact.homogenizer, torch.from_numpy(frames), before_each=before_each)
        except (ParityError, RuntimeError) as error:
            reason = f"its compiled form does not compute what its weights say: {error}"
            raise ModelError(f"homogenizer {artefact.version[:12]}: {reason}") from error
        on_failure.pop_all()
    return runner


def compile_proven(backend: Backend, homogenizer: AnyHomogenizer, golden: torch.Tensor, state: Path) -> bytes:
    """Compile a homogenizer and compare the two on golden frames (N, C, H, W).

    Where an engine is kept that does not load any more, or computes something else, another one is built, once. Raises
    ModelError or ParityError.
    """
    try:
        return _compile_proven(backend, homogenizer, golden, state, anew=False)
    except (ModelError, ParityError, RuntimeError) as error:
        log.warning("built again: %s", error)
        return _compile_proven(backend, homogenizer, golden, state, anew=True)


def _compile_proven(
    backend: Backend, homogenizer: AnyHomogenizer, golden: torch.Tensor, state: Path, anew: bool
) -> bytes:
    compiled = compile_homogenizer(backend, homogenizer, golden[:1], state, anew=anew)
    runner = backend.load(compiled, threads=1)
    try:
        check_parity(runner, homogenizer, golden)
    finally:
        runner.close()
    return compiled


def input_shape(artefact: Artefact) -> tuple[int, int, int]:
    """Return (C, H, W) of the frames that the homogenizer takes."""
    architecture = artefact.homogenizer.architecture()
    return architecture["channels"], architecture["height"], architecture["width"]
