"""Every output names the ρ that made it, a bad ρ never serves, and no runner is used closed or left open."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.homogenizer import Homogenizer
from deploy.backends.protocol import Runner, load_backend
from deploy.frame_gaps import FrameGaps
from deploy.path import (
    MAX_REACH_SPANS,
    PROOF_WARM_UP_RUNS,
    InferenceError,
    InferencePath,
    PreparedHomogenizer,
    SwapRejected,
)
from deploy.store.artefacts import FACTORY

SHAPE = (3, 4, 5)
GOLDEN = np.linspace(-2, 2, 2 * 60, dtype=np.float32).reshape(2, *SHAPE)  # spans 4 units around 0
FRAME = np.zeros((1, *SHAPE), np.float32)


class Instrumented:
    """A runner that notes whether it was used after closing, closed while in use, or closed twice."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], delay: Callable[[], float] = float) -> None:
        self.function, self.delay = function, delay
        self.closed = 0
        self.runs = 0
        self.misused: list[str] = []
        self._inside = 0
        self._lock = threading.Lock()

    def run(self, batch: np.ndarray) -> np.ndarray:
        with self._lock:
            self._inside += 1
            self.runs += 1
            if self.closed:
                self.misused.append("run after close")
        try:
            time.sleep(self.delay())
            return self.function(batch)
        finally:
            with self._lock:
                self._inside -= 1

    def close(self) -> None:
        with self._lock:
            self.closed += 1
            if self._inside or self.closed > 1:
                self.misused.append("closed in use or twice")


def adding(value: float) -> Instrumented:
    return Instrumented(lambda batch: batch + np.float32(value))


def mean() -> Instrumented:
    """Φ of these tests: the mean of each image."""
    return Instrumented(lambda batch: batch.mean(axis=(1, 2, 3)))


def swap(path: InferencePath, version: str, runner: Runner | None) -> None:
    path.commit(path.prepare(version, runner, GOLDEN))


def test_the_factory_homogenizer_is_no_call_at_all():
    model = mean()
    path = InferencePath(model)
    served = path.infer(FRAME + 1)
    assert (served.homogenizer, path.version) == (FACTORY, FACTORY)
    assert served.output == pytest.approx(1.0)
    assert model.runs == 1


def test_a_committed_homogenizer_serves_and_is_named():
    path = InferencePath(mean())
    swap(path, "one", adding(0.5))
    served = path.infer(FRAME)
    assert (served.homogenizer, path.version) == ("one", "one")
    assert served.output == pytest.approx(0.5)


def test_the_cost_of_a_homogenizer_is_its_shortest_run_in_the_proof():
    now = iter([0.0, 5.0, 10.0, 13.0])  # two golden frames: 5 s and 3 s
    path = InferencePath(mean(), clock=lambda: next(now, 20.0))
    assert path.cost_s == path.prepare(FACTORY, None, GOLDEN).cost_s == 0.0
    swap(path, "one", adding(0.5))
    assert path.cost_s == 3.0


def test_preparing_changes_nothing_until_the_commit():
    path = InferencePath(mean())
    prepared = path.prepare("one", adding(0.5), GOLDEN)
    assert path.infer(FRAME).homogenizer == FACTORY
    path.commit(prepared)
    assert path.infer(FRAME).homogenizer == "one"


def test_exactly_one_older_runner_is_kept():
    path = InferencePath(mean())
    runners = [adding(value) for value in (0.1, 0.2, 0.3)]
    for index, runner in enumerate(runners):
        swap(path, str(index), runner)
    assert [runner.closed for runner in runners] == [1, 0, 0]


def test_rollback_goes_one_step_back_then_to_the_factory():
    path = InferencePath(mean())
    first, second = adding(0.1), adding(0.2)
    swap(path, "first", first)
    swap(path, "second", second)
    assert path.rollback() == path.infer(FRAME).homogenizer == "first"
    assert (first.closed, second.closed) == (0, 1)
    assert path.rollback() == path.infer(FRAME).homogenizer == FACTORY
    assert first.closed == 1
    assert path.rollback() == FACTORY


def test_the_factory_homogenizer_can_be_committed_and_rolled_back():
    path = InferencePath(mean())
    first = adding(0.1)
    swap(path, "first", first)
    swap(path, FACTORY, None)
    assert path.infer(FRAME).homogenizer == FACTORY
    assert path.rollback() == "first" and path.infer(FRAME).output == pytest.approx(0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_an_error_only_behind_a_homogenizer(value):
    path = InferencePath(Instrumented(lambda batch: batch))
    swap(path, "a", adding(1.0))
    path.infer(FRAME)
    with pytest.raises(InferenceError, match="homogenizer a made the model's output not finite"):
        path.infer(FRAME + np.float32(value))
    path.rollback()
    assert not np.isfinite(path.infer(FRAME + np.float32(value)).output).any(), "as it would be without recald"


def test_the_pause_is_measured_and_includes_closing_the_oldest():
    now = [0.0]

    def close_slowly(runner: Runner) -> None:
        now[0] += 0.25
        runner.close()

    path = InferencePath(mean(), closer=close_slowly, clock=lambda: now[0])
    pauses = [path.commit(path.prepare(str(index), adding(0.1), GOLDEN)) for index in range(3)]
    assert pauses == [0.0, 0.0, 0.25]


def test_a_closer_may_defer_the_closing():
    later: list[Runner] = []
    path = InferencePath(mean(), closer=later.append)
    runners = [adding(value) for value in (0.1, 0.2, 0.3)]
    for index, runner in enumerate(runners):
        swap(path, str(index), runner)
    assert later == [runners[0]] and runners[0].closed == 0


def failing(_: np.ndarray) -> np.ndarray:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (failing, "does not run: out of memory"),
        (lambda batch: batch * np.float32("nan"), "leaves the range of the golden frames: nan"),
        (lambda batch: batch + np.float32("inf"), "leaves the range of the golden frames: inf"),
        (lambda batch: batch + np.float32(41), "leaves the range .*: 41 from their centre, at most 40"),
        (lambda batch: batch - np.float32(41), "leaves the range of the golden frames"),
        (lambda batch: batch[:, :1], r"gives float32 of shape \(1, 4, 5\) for frames of \(3, 4, 5\)"),
        (lambda batch: batch.astype(np.float64), "gives float64 of shape"),
    ],
)
def test_a_bad_homogenizer_is_rejected_closed_and_leaves_the_active_one(function, reason):
    path = InferencePath(mean())
    swap(path, "good", adding(0.5))
    bad = Instrumented(function)
    with pytest.raises(SwapRejected, match=f"homogenizer bad.*{reason}"):
        path.prepare("bad", bad, GOLDEN)
    assert bad.closed == 1
    assert path.infer(FRAME).homogenizer == "good"


def test_a_homogenizer_bad_on_one_golden_frame_only_is_rejected():
    path = InferencePath(mean())
    last = GOLDEN[-1:]
    with pytest.raises(SwapRejected):
        path.prepare("bad", Instrumented(lambda batch: batch + 99 * np.array_equal(batch, last)), GOLDEN)


def test_a_homogenizer_that_makes_the_models_output_not_finite_is_rejected():
    path = InferencePath(Instrumented(lambda batch: np.float32(1) / (batch.max(axis=(1, 2, 3)) < 10)))
    runner = adding(20)
    with (
        np.errstate(divide="ignore"),
        pytest.raises(SwapRejected, match="makes the frozen model's output not"),
    ):
        path.prepare("bad", runner, GOLDEN)
    assert runner.closed == 1


def test_a_homogenizer_that_differs_from_its_eager_module_is_rejected_and_closed():
    path, runner = InferencePath(mean()), adding(0.5)
    shift = Homogenizer(*SHAPE, kernel_size=1).requires_grad_(False)
    shift.bias += 0.5
    path.discard(path.prepare("same", adding(0.5), GOLDEN, shift))
    shift.bias += 0.1
    with pytest.raises(SwapRejected, match="homogenizer other is not what it was compiled from: .* differ by"):
        path.prepare("other", runner, GOLDEN, shift)
    assert runner.closed == 1 and path.version == FACTORY


def test_an_unexpected_error_in_the_proof_closes_the_runner_too():
    def interrupted(_: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    runner = Instrumented(interrupted)
    with pytest.raises(KeyboardInterrupt):
        InferencePath(mean()).prepare("bad", runner, GOLDEN)
    assert runner.closed == 1


def test_three_stops_of_exposure_on_dark_golden_frames_are_a_camera_correction():
    dark = GOLDEN / 16 - 1.75  # a quarter of a unit in span, as near black as normalised frames get
    path = InferencePath(mean())
    path.commit(path.prepare("bright", Instrumented(lambda batch: (batch + 2) * 8 - 2), dark))
    assert path.version == "bright"
    assert MAX_REACH_SPANS > 8


class CountedTurns(FrameGaps):
    """Notes how often Φ ran before each turn."""

    def __init__(self, model: Instrumented) -> None:
        super().__init__()
        self.runs_before: list[int] = []
        self._model = model

    def wait_for_turn(self) -> None:
        self.runs_before.append(self._model.runs)


def test_a_proof_waits_for_a_turn_before_each_run_of_the_model():
    model = mean()
    turns = CountedTurns(model)
    InferencePath(model, gaps=turns).prepare("a" * 64, adding(1), GOLDEN)
    assert turns.runs_before == list(range(model.runs + 1)) and model.runs == PROOF_WARM_UP_RUNS + len(GOLDEN)


def test_a_proof_waits_for_a_turn_before_each_comparison_with_the_eager_form():
    model, alone, compared = mean(), CountedTurns(mean()), CountedTurns(mean())
    InferencePath(model, gaps=alone).prepare("a" * 64, adding(1), GOLDEN)
    InferencePath(model, gaps=compared).prepare("b" * 64, adding(0), GOLDEN, torch.nn.Identity())
    assert len(compared.runs_before) == len(alone.runs_before) + len(GOLDEN)


def test_a_prepared_homogenizer_is_warm():
    runner = adding(0.1)
    InferencePath(mean()).prepare("one", runner, GOLDEN)
    assert runner.runs >= 3


def test_a_discarded_homogenizer_is_closed():
    path = InferencePath(mean())
    runner = adding(0.1)
    path.discard(path.prepare("one", runner, GOLDEN))
    path.discard(PreparedHomogenizer(FACTORY, None))
    assert runner.closed == 1


def test_closing_leaves_only_the_shared_model_open():
    model = mean()
    path = InferencePath(model)
    runners = [adding(0.1), adding(0.2), adding(0.3)]
    swap(path, "0", runners[0])
    swap(path, "1", runners[1])
    prepared = path.prepare("2", runners[2], GOLDEN)
    path.close()
    path.close()
    with pytest.raises(RuntimeError, match="closed"):
        path.commit(prepared)
    assert [runner.closed for runner in runners] == [1, 1, 1]
    assert model.closed == 0


def fail_at(runner: Instrumented, step: int, fault: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let the run number `step` from now on go wrong."""
    sound, first = runner.function, runner.runs
    runner.function = lambda batch: (fault if runner.runs == first + step else sound)(batch)


def not_finite(batch: np.ndarray) -> np.ndarray:
    return batch * np.float32("nan")


WARMING = range(1, PROOF_WARM_UP_RUNS + 1)
PROVING = range(PROOF_WARM_UP_RUNS + 1, PROOF_WARM_UP_RUNS + len(GOLDEN) + 1)


@pytest.mark.parametrize("whose", ["homogenizer", "model"])
@pytest.mark.parametrize(
    ("step", "fault"), [*((s, failing) for s in (*WARMING, *PROVING)), *((s, not_finite) for s in PROVING)]
)
def test_a_failure_at_any_step_of_the_proof_keeps_the_active_and_the_older_one(whose, step, fault):
    model, bad = mean(), adding(0.25)
    path = InferencePath(model)
    swap(path, "older", adding(0.1))
    swap(path, "active", adding(0.5))
    fail_at({"homogenizer": bad, "model": model}[whose], step, fault)
    with pytest.raises(SwapRejected):
        path.prepare("bad", bad, GOLDEN)
    assert bad.closed == 1
    assert path.infer(FRAME).output == pytest.approx(0.5)
    assert path.rollback() == "older" and path.infer(FRAME).output == pytest.approx(0.1)


@pytest.mark.parametrize("where", ["homogenizer", "model"])
def test_an_exchange_in_the_middle_of_a_frame_is_for_the_next_one(where):
    model, first = mean(), adding(0.5)
    path = InferencePath(model)
    swap(path, "first", first)
    prepared = path.prepare("second", adding(0.25), GOLDEN)
    slow = {"homogenizer": first, "model": model}[where]
    slow.delay = lambda: path.commit(prepared)
    during = path.infer(FRAME)
    slow.delay = float
    after = path.infer(FRAME)
    assert (float(during.output[0]), during.homogenizer) == (0.5, "first")
    assert (float(after.output[0]), after.homogenizer) == (0.25, "second")
    assert first.misused == []


class Exchange:
    """A frame thread that serves and exchanges, and two that prepare, all with random delays."""

    FAULTS = (  # one for each step of the proof
        failing,  # warming up
        not_finite,  # the golden frames of ρ alone
        lambda batch: batch - np.float32(99),  # the same, not bounded
        lambda batch: batch + np.float32(30),  # the golden frames of Φ∘ρ: see `upset_by_30`
    )

    def __init__(self, seed: int, closes_later: bool) -> None:
        self.seed = seed
        self.background = ThreadPoolExecutor(1)
        self.model = Instrumented(upset_by_30, self.delays(0))
        self.path = InferencePath(self.model, closer=self.close_later if closes_later else Instrumented.close)
        self.ready: queue.Queue[PreparedHomogenizer] = queue.Queue()
        self.runners: list[Instrumented] = []
        self.served: list[tuple[float, str]] = []  # in the order of the frames 0, 1, 2, ...

    def close_later(self, runner: Runner) -> None:
        self.background.submit(runner.close)

    def delays(self, salt: int) -> Callable[[], float]:
        generator = random.Random(self.seed * 1000 + salt)
        return lambda: generator.choice([0.0, 0.0, 0.0005, 0.001])

    def run(self) -> None:
        workers = [threading.Thread(target=self.prepare, args=(index,)) for index in (1, 2)]
        for worker in workers:
            worker.start()
        self.serve(while_true=lambda: any(worker.is_alive() for worker in workers) or not self.ready.empty())
        for worker in workers:
            worker.join()
        self.path.close()
        self.background.shutdown(wait=True)

    def prepare(self, worker: int) -> None:
        choose = random.Random(self.seed * 100 + worker)
        for index in range(6):
            value = worker + index / 8  # exact in float32
            bad = choose.random() < 0.3
            runner = Instrumented(choose.choice(self.FAULTS)) if bad else adding(value)
            runner.delay = self.delays(10 * worker + index)
            self.runners.append(runner)
            try:
                self.ready.put(self.path.prepare("bad" if bad else str(value), runner, GOLDEN))
            except SwapRejected:
                assert bad

    def serve(self, while_true: Callable[[], bool]) -> None:
        choose = random.Random(self.seed)
        while while_true():
            output, version = self.path.infer(frame(len(self.served)))
            self.served.append((float(output[0]), version))
            if choose.random() < 0.1:
                self.path.rollback()
            if not self.ready.empty():
                prepared = self.ready.get()
                (self.path.discard if choose.random() < 0.2 else self.path.commit)(prepared)


def upset_by_30(batch: np.ndarray) -> np.ndarray:
    """Φ: the mean of each image, but not a number for images that no sound ρ of these tests makes."""
    means = batch.mean(axis=(1, 2, 3))
    return np.where(means > 20, np.float32("nan"), means)


def frame(number: int) -> np.ndarray:
    """Frames in a row differ, so that no output can pass for that of another frame."""
    return FRAME + np.float32(number % 8)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), closes_later=st.booleans())
def test_during_exchanges_every_output_is_of_the_named_homogenizer_and_no_runner_is_lost(seed, closes_later):
    exchange = Exchange(seed, closes_later)
    exchange.run()
    versions = {version for _, version in exchange.served}
    assert len(versions) > 1 and "bad" not in versions
    for number, (output, version) in enumerate(exchange.served):
        assert output == number % 8 + (0.0 if version == FACTORY else float(version))
    assert [runner.misused for runner in (*exchange.runners, exchange.model)] == [[]] * 13
    assert [runner.closed for runner in exchange.runners] == [1] * 12


@pytest.mark.parametrize("name", ["eager", pytest.param("onnx", marks=pytest.mark.slow)])
def test_real_runners_are_exchanged(name):
    backend = load_backend(name)
    example = torch.zeros(1, *SHAPE)
    homogenizer = Homogenizer(*SHAPE, kernel_size=3)
    compiled = backend.compile(homogenizer, example)
    with torch.no_grad():
        homogenizer.bias += 0.25
    brighter = backend.compile(homogenizer, example)
    path = InferencePath(backend.load(compiled, threads=1))  # the identity stands in for Φ
    swap(path, "brighter", backend.load(brighter, threads=1))
    served = path.infer(GOLDEN[:1])
    assert served.output == pytest.approx(GOLDEN[:1] + 0.25, abs=1e-6)
    path.rollback()
    assert np.array_equal(path.infer(GOLDEN[:1]).output, GOLDEN[:1])
