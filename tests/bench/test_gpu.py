"""The bench of the GPU on a simulated one: each section has its rows; a failure is noted and stops no other section."""

from __future__ import annotations

import json
import sys
from array import array
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bench.__main__ import main
from bench.gpu.attempt import Budget
from bench.gpu.beside_fit import _compared
from bench.gpu.engines import BACKENDS, EAGER, ENGINES, INDUCTOR, open_pair
from bench.gpu.latency import _run_in_turns
from bench.gpu.measure import SECTIONS
from bench.gpu.swap import SwapRecord, _summary, _within
from bench.gpu.throughput import roofline
from bench.gpu.weights import measure_weights
from bench.gpu.workload import HOMOGENIZER, NETWORK, Workload
from daemon.exit_codes import EX_CONFIG
from deploy.model.precision import PRECISIONS

SIZE = "16x16"
MEMORY_EVERY_SWAPS, SWAPS = 3, 4
TIMES = {"count", "p50_ms", "p99_ms", "max_ms"}
NO_TENSORRT = [engine for engine in BACKENDS if engine != "cuda"]


def network() -> nn.Module:
    """A network with one layer of each kind of ResNet-50."""
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 4)).eval()


SMALL = {
    "bench.gpu.ceilings.MATRIX_SIDE": 16,
    "bench.gpu.ceilings.COPIED_FLOATS": 1024,
    "bench.gpu.ceilings.FRAME_REPEATS": 2,
    "bench.gpu.engines.WARM_UPS": 1,
    "bench.gpu.workload.FRAMES": 2,
    "bench.gpu.swap.REST_S": 0.01,
    "bench.gpu.swap.HOMOGENIZERS": 2,
    "bench.gpu.swap.MEMORY_EVERY_SWAPS": MEMORY_EVERY_SWAPS,
    "bench.gpu.weights.REPEATS": 1,
    "bench.gpu.workload.resnet50": network,
    "bench.__main__.provenance": lambda code: {"commit": None},  # without a process of git
    "bench.gpu.workload.STATISTICS_SHAPE": (2, 3, 16, 16),
}


@pytest.fixture
def simulated(gpu, monkeypatch):
    """Simulate the GPU for the bench, too; sizes are small, and bfloat16 is left out."""
    for name, replacement in (gpu.BENCH_STAND_INS | SMALL).items():
        monkeypatch.setattr(name, replacement)
    monkeypatch.delitem(PRECISIONS, "bfloat16")
    return gpu


@pytest.fixture
def no_tensorrt(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("deploy.backends.gpu.tensorrt_library.RTX_CARRIER", "no_such_wheel")


@pytest.fixture
def run(simulated, no_tensorrt, tmp_path):
    """Run the bench on a machine without TensorRT; return what it wrote."""

    def run(*arguments: str) -> dict:
        path = tmp_path / "gpu.json"
        given = ["--json", str(path), "--sizes", SIZE, "--seconds", "0.05", "--data", str(tmp_path / "absent")]
        assert main(["gpu", *given, *arguments]) == 0
        return json.loads(path.read_text())

    return run


def test_frames_are_compared_with_those_beside_a_fit():
    sent, latency = np.array([0.0, 1.0, 1.9, 4.0]), np.array([0.5, 0.5, 0.2, 0.5])
    found = _compared(sent, latency, [(2.0, 3.0)])
    assert (found["away"]["count"], found["during"]["count"]) == (3, 1)
    assert found["during"]["p99_ratio"] == pytest.approx(0.4) and found["fit_seconds"] == [1.0]


def by(rows: list[dict], *keys: str) -> dict[tuple, dict]:
    found = {tuple(row[key] for key in keys): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_every_section_has_its_rows_and_a_failure_stops_no_other(run, simulated, monkeypatch, capsys):
    def refuse(module: nn.Module, **_: object) -> None:
        raise RuntimeError("no C compiler\nat line 3")

    monkeypatch.setattr(simulated.TORCH, "compile", refuse)
    monkeypatch.setattr("bench.gpu.measure.measure_weights", lambda *_: 1 / 0)
    monkeypatch.setattr("bench.gpu.measure.measure_beside_fit", lambda *_: 1 / 0)  # it starts a process
    found = run("--swaps", str(SWAPS))
    assert found["bench"] == "gpu" and found["settings"]["gpu"].startswith(simulated.NAME)
    assert set(SECTIONS) < set(found)

    teraflops = by(found["ceilings"], "what")
    assert set(teraflops) == {("float32",), ("float16",), ("memory",)}
    assert teraflops["float16",]["teraflops"] > 0 and teraflops["memory",]["gigabytes_per_second"] > 0
    copies = by(found["copies"], "size", "direction", "pinned")
    assert len(copies) == 4 and all(row["ms"] > 0 for row in copies.values())

    assert len(found["fit"]) == 6 and all("absent" in row["not_run"] for row in found["fit"])

    latency = by(found["latency"], "size", "precision", "engine")
    assert set(latency) == {(SIZE, precision, engine) for precision in ("float32", "float16") for engine in ENGINES}
    for (_, precision, engine), row in latency.items():
        if engine in (EAGER, "cuda"):
            assert "not_run" not in row and row["ready_s"] > 0 and row["share"] > 0 and row["added"] > -1
            assert all(set(row[name]) == TIMES for name in (HOMOGENIZER, NETWORK, "chained", "unchained"))
            assert row["error"][HOMOGENIZER] < 1e-6
            lower = 1e-6 < row["error"]["chained"] < 1e-2
            assert lower if precision == "float16" else row["error"]["chained"] < 1e-5
        else:
            why = "RuntimeError: no C compiler" if engine == INDUCTOR else "needs NVIDIA's TensorRT"
            assert why in row["not_run"] and "chained" not in row

    for row in found["throughput"]:
        assert row["roofline"]["limit"] in ("arithmetic", "memory", "host")
        for working in ("one_thread", "two_threads"):
            ratio = row[working]["frames_per_second"] / row["roofline"]["frames_per_second"]
            assert row[working]["share"] == pytest.approx(ratio)
    assert found["weights"] == [{"not_run": "ZeroDivisionError: division by zero"}]

    swap = by(found["swap"], "engine")
    assert all("not_run" in swap[engine,] for engine in NO_TENSORRT)
    of_cuda = swap["cuda",]
    assert "not_run" not in of_cuda and of_cuda["swaps"] == SWAPS
    frames = of_cuda["frames"]
    assert frames["lost"] == 0 and frames["attributed"] == frames["sent"] >= SWAPS
    assert of_cuda["exchange"]["count"] == of_cuda["load_and_proof"]["count"] == SWAPS
    assert [memory["swaps"] for memory in of_cuda["memory"]] == [0, MEMORY_EVERY_SWAPS]
    printed = capsys.readouterr()
    assert "no C compiler" in printed.out and "ZeroDivisionError" in printed.err


def test_nothing_is_started_after_the_budget_is_spent(run):
    found = run("--budget", "0")
    assert all("s were left" in row["not_run"] for name in ("latency", "weights") for row in found[name])
    assert [row["engine"] for row in found["swap"]] == list(BACKENDS)


def test_a_failed_swap_keeps_the_measurements_before_it(run, monkeypatch):
    def lose(*_: object) -> float:
        raise RuntimeError("lost")

    monkeypatch.setattr("deploy.path.InferencePath.commit", lose)
    monkeypatch.setattr("bench.gpu.measure.SECTIONS", {"swap": SECTIONS["swap"]})
    monkeypatch.setattr("bench.gpu.measure.show_tables", lambda results: None)
    (row, *_) = run("--swaps", "3")["swap"]
    assert row["not_run"] == "RuntimeError: lost" and row["swaps"] == 0 and row["frames"]["sent"] > 0


def test_engines_that_take_weights_get_new_ones(simulated, monkeypatch):
    monkeypatch.setattr("deploy.backends.gpu.tensorrt_library.RTX_CARRIER", "no_such_wheel")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    rows = by(list(measure_weights(Workload(network(), 16, 16), Budget(100))), "engine")
    for engine in ("cuda", "tensorrt"):
        assert set(rows[engine,]["exchange"]) == {"weights_s", "load_s"} and rows[engine,]["rebuild"]["compile_s"] > 0
    assert "not_run" in rows["tensorrt-rtx",]


def test_the_roofline_is_the_slowest_of_three_limits():
    workload = Workload(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False)), 16, 16)
    measured = [
        {"what": "float32", "teraflops": 1.0},
        {"what": "float16", "teraflops": 2.0},
        {"what": "memory", "gigabytes_per_second": 1000.0},
        {"size": SIZE, "direction": "to the card", "pinned": False, "gigabytes_per_second": 1.0},
        {"size": SIZE, "direction": "to the card", "pinned": True, "gigabytes_per_second": 2.0},
    ]
    found = roofline(workload, "float16", measured)
    assert found["counted"][NETWORK]["multiplications"] == 14 * 14 * 8 * 3 * 9
    assert found["counted"][NETWORK]["numbers"] == 3 * 16 * 16 + 8 * 3 * 9 + 8 * 14 * 14
    assert found["host_ms"] == pytest.approx(4e3 * 3 * 16 * 16 / 2e9)
    assert found["limit"] == "host" and found["frames_per_second"] == pytest.approx(1e3 / found["host_ms"])
    multiplied = found["counted"][HOMOGENIZER]["multiplications"]
    assert found["arithmetic_ms"] == pytest.approx(2e3 * (multiplied / 1e12 + 14 * 14 * 8 * 3 * 9 / 2e12))
    with pytest.raises(LookupError, match="no teraflops of .*float16.* was measured"):
        roofline(workload, "float16", [row for row in measured if row.get("what") != "float16"])


def test_an_engine_that_fails_does_not_stop_the_others():
    calls: list[str] = []

    def call(frame: np.ndarray) -> np.ndarray:
        calls.append("bad")
        if len(calls) > 1:
            raise RuntimeError("lost")
        return frame

    pairs = {"bad": SimpleNamespace(calls=lambda: {"it": call}), "good": SimpleNamespace(calls=lambda: {"it": len})}
    rows: dict[str, dict] = {engine: {} for engine in pairs}
    times = _run_in_turns(pairs, SimpleNamespace(frames=[np.zeros(3)]), 0.01, rows)
    assert set(times) == {"good"} and len(times["good"]["it"]) > len(calls) == 2
    assert rows == {"bad": {"not_run": "RuntimeError: lost"}, "good": {}}


def test_every_engine_computes_the_same(simulated, no_tensorrt):
    workload = Workload(network(), 16, 16)
    for engine in (EAGER, INDUCTOR, "cuda"):
        with ExitStack() as closing:
            pair = open_pair(closing, engine, workload, "float32")
            for name, call in pair.calls().items():
                found = np.concatenate([call(frame) for frame in workload.frames])
                expected = workload.expected["chained" if name == "unchained" else name]
                np.testing.assert_allclose(found, expected, atol=1e-5)
        with pytest.raises(RuntimeError, match="closed"):
            pair.network.run(workload.frames[0])


def test_an_output_of_another_homogenizer_is_not_attributed():
    record = SwapRecord(
        sent=array("d", [0.0, 1.0, 2.0, 3.0]),
        latency=array("d", [0.1, 0.1, 0.5, 0.1]),
        own=array("d", [0.0, 0.3, 0.0, 0.0]),
        other=array("d", [0.3, 0.0, 0.0, 0.3]),
        loading=[(1.5, 2.5)],
        exchanged=[3.0],
        pauses=[1e-6],
    )
    found = _summary(record)
    assert found["frames"] == {"sent": 4, "lost": 0, "attributed": 2}
    assert (found["loading"]["count"], found["around"]["count"], found["away"]["count"]) == (1, 1, 2)
    assert found["loading"]["p99_ratio"] == pytest.approx(5) and found["worst_own"] == 0.3


def test_moments_are_found_in_their_intervals():
    moments = np.array([0.0, 1.0, 1.5, 2.0, 2.5, 9.0])
    assert _within(moments, [(1.0, 2.0), (2.4, 3.0)]).tolist() == [False, True, True, True, True, False]
    assert not _within(moments, []).any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert main(["gpu"]) == EX_CONFIG
    printed = capsys.readouterr()
    assert printed.err.startswith("bench gpu: ") and "needs an NVIDIA GPU" in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
