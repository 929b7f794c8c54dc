"""A GPU's numbers come from NVML or from a Jetson's /sys; a driver that fails or hangs costs its own series alone."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from daemon.metrics import Metrics
from daemon.monitoring import gpu as gpu_module
from daemon.monitoring.gpu import STALE_S, GpuWatch
from daemon.monitoring.gpu_jetson import open_jetson
from daemon.monitoring.gpu_nvml import open_nvml
from daemon.monitoring.gpu_state import GpuState

PATIENCE_S = 10.0
STATE = GpuState(0.25, 1e9, 8e9, 61.0, frozenset({"heat"}))


class FakeNvml(ModuleType):
    """As much of nvidia-ml-py as recald uses. `fails`: what every question about a GPU raises.

    `closed`: what a GPU raises, by its number, when it is to be opened.
    """

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    class NVMLError_NoPermission(NVMLError):
        pass

    class NVMLError_FunctionNotFound(NVMLError):
        pass

    def __init__(
        self,
        gpus: int = 1,
        bits: int = 0,
        fails: type[Exception] | None = None,
        starts: bool = True,
        closed: Mapping[int, type[Exception]] = MappingProxyType({}),
    ):
        super().__init__("pynvml")
        self.gpus, self.bits, self.fails, self.starts, self.open = gpus, bits, fails, starts, 0
        self.closed = closed

    def nvmlInit(self) -> None:
        if not self.starts:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        if number in self.closed:
            raise self.closed[number]("no handle")
        return number

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._told(SimpleNamespace(gpu=37, memory=5))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self._told(SimpleNamespace(used=2 << 30, total=16 << 30, free=14 << 30))

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> Any:
        return self._told(64 + handle)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> Any:
        return self._told(self.bits)

    def _told(self, value: Any) -> Any:
        if self.fails is not None:
            raise self.fails("no")
        return value


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeNvml]:
    def install(**given: Any) -> FakeNvml:
        nvml = FakeNvml(**given)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return install


# ---- NVML


def test_nvml_tells_share_of_time_bytes_and_degrees(install):
    install(gpus=2)
    source = open_nvml()
    assert source is not None and source.read() == {
        "0": GpuState(0.37, 2 << 30, 16 << 30, 64, frozenset()),
        "1": GpuState(0.37, 2 << 30, 16 << 30, 65, frozenset()),
    }


def test_no_more_gpus_are_asked_than_the_limit(install):
    install(gpus=16)
    source = open_nvml()
    assert source is not None and len(source.read()) == 8


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0x1, set()),  # idle
        (0x2 | 0x10 | 0x100, set()),  # what a person has set
        (0x20, {"heat"}),
        (0x8 | 0x40, {"heat"}),
        (0x4, {"power"}),
        (0x8 | 0x80, {"power"}),
        (0x4 | 0x20, {"heat", "power"}),
        (0x8, {"unknown"}),
    ],
)
def test_the_bits_of_nvml_are_reasons(install, bits, reasons):
    install(bits=bits)
    source = open_nvml()
    assert source is not None and source.read()["0"].throttled == reasons


def test_the_newer_name_of_the_reasons_is_asked_first(install):
    nvml = install(bits=0x40)
    nvml.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0x4
    source = open_nvml()
    assert source is not None and source.read()["0"].throttled == {"power"}


def test_without_package_driver_or_gpu_there_is_no_source(install, monkeypatch):
    install(starts=False)
    assert open_nvml() is None
    nvml = install(gpus=0)
    assert open_nvml() is None and nvml.open == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ImportError):
        importlib.import_module("pynvml")
    assert open_nvml() is None


def test_a_driver_that_knows_the_gpu_and_tells_nothing_is_let_go(install):
    nvml = install(fails=FakeNvml.NVMLError_NotSupported)
    assert open_nvml() is None and nvml.open == 0


def test_a_gpu_that_is_lost_is_a_fault(install):
    nvml = install(fails=FakeNvml.NVMLError)
    with pytest.raises(FakeNvml.NVMLError):
        open_nvml()
    assert nvml.open == 0


@pytest.mark.parametrize("error", [FakeNvml.NVMLError_NoPermission, FakeNvml.NVMLError])
def test_a_gpu_that_may_not_be_asked_or_is_lost_does_not_hide_the_others(install, error):
    install(gpus=2, closed={0: error})
    source = open_nvml()
    assert source is not None and [*source.read()] == ["1"]


def test_gpus_of_which_none_tells_anything_are_a_fault_if_one_is_lost(install):
    nvml = install(gpus=2, closed={0: FakeNvml.NVMLError, 1: FakeNvml.NVMLError_NoPermission})
    with pytest.raises(FakeNvml.NVMLError):
        open_nvml()
    nvml.closed = dict.fromkeys((0, 1), FakeNvml.NVMLError_NoPermission)
    assert open_nvml() is None and nvml.open == 0


# ---- a Jetson


@pytest.fixture
def sysfs(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    def sysfs(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return sysfs


ZONES = {
    "class/thermal/thermal_zone0/type": "cpu-thermal",
    "class/thermal/thermal_zone0/temp": "50000",
    "class/thermal/thermal_zone1/type": "gpu-thermal",
    "class/thermal/thermal_zone1/temp": "48593",
}
ALERT = {
    "class/thermal/cooling_device0/type": "cpu-throttle-alert",
    "class/thermal/cooling_device0/cur_state": "1",
    "class/thermal/cooling_device1/type": "gpu-throttle-alert",
    "class/thermal/cooling_device1/cur_state": "0",
}


@pytest.mark.parametrize(
    "load",
    [
        "devices/gpu.0/load",
        "devices/platform/gpu.0/load",
        "class/devfreq/17000000.ga10b/device/load",
        "class/devfreq/17000000.gv11b/device/load",
        "class/devfreq/57000000.gpu/device/load",
    ],
)
def test_a_jetson_tells_load_in_per_mille_and_heat_in_thousandths(sysfs, load):
    source = open_jetson(sysfs({load: "734"} | ZONES))
    assert source is not None and source.read() == {"0": GpuState(utilization=0.734, temperature=48.593)}


def test_zones_of_older_releases_are_found(sysfs):
    root = sysfs({"devices/gpu.0/load": "0", "class/thermal/thermal_zone7/type": "GPU-therm"})
    sysfs({"class/thermal/thermal_zone7/temp": "41000"})
    source = open_jetson(root)
    assert source is not None and source.read()["0"].temperature == 41.0


def test_heat_and_too_much_current_slow_a_jetson_down(sysfs):
    counts = {"class/hwmon/hwmon3/oc1_event_cnt": "4", "class/hwmon/hwmon3/oc2_event_cnt": "0"}
    source = open_jetson(sysfs({"devices/gpu.0/load": "10"} | ALERT | counts))
    assert source is not None
    assert source.read()["0"].throttled == frozenset()  # what was before the start is over
    sysfs({"class/thermal/cooling_device1/cur_state": "2"})
    assert source.read()["0"].throttled == {"heat"}
    sysfs({"class/hwmon/hwmon3/oc2_event_cnt": "1", "class/thermal/cooling_device1/cur_state": "0"})
    assert source.read()["0"].throttled == {"power"}


def test_too_much_current_is_told_until_two_scrapes_have_come(sysfs):
    now, counter = [100.0], "class/hwmon/hwmon3/oc1_event_cnt"
    source = open_jetson(sysfs({"devices/gpu.0/load": "10", counter: "4"}), lambda: now[0])
    assert source is not None and source.read()["0"].throttled == frozenset()
    sysfs({counter: "5"})
    for at, throttled in ((100.0, {"power"}), (129.9, {"power"}), (130.0, set())):
        now[0] = at
        assert source.read()["0"].throttled == throttled
    sysfs({counter: "6"})
    assert source.read()["0"].throttled == {"power"}


def test_a_file_that_refuses_to_be_read_leaves_its_value_unknown(sysfs):
    root = sysfs({"devices/gpu.0/load": "", **ZONES})
    source = open_jetson(root)
    assert source is not None and source.read() == {"0": GpuState(temperature=48.593)}
    (root / "class/thermal/thermal_zone1/temp").unlink()
    assert source.read() == {}


def test_another_machine_is_no_jetson(sysfs):
    assert open_jetson(sysfs(ZONES | ALERT)) is None


# ---- the thread and the metrics


class ToldGpu:
    """A source that gives `answers` in turn, and the last of them again; an exception is raised."""

    def __init__(self, *answers: Any):
        self.answers, self.asked, self.closed = list(answers), 0, 0

    def read(self) -> dict[str, GpuState]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return answer()
        return answer

    def close(self) -> None:
        self.closed += 1


class Watching:
    def __init__(self, *sources: Callable[[], Any]) -> None:
        self.registry, self.now = CollectorRegistry(), 100.0
        self.watch = GpuWatch(Metrics(self.registry), sources, lambda: self.now, ask_s=0.01)

    def series(self) -> dict[tuple[str, ...], float]:
        """Every series of a GPU: name without prefix and label values, and its value."""
        families = [family for family in self.registry.collect() if family.name.startswith("recald_gpu_")]
        assert len(families) == 5
        samples = [sample for family in families for sample in family.samples]
        return {(s.name.removeprefix("recald_gpu_"), *s.labels.values()): s.value for s in samples}

    def faults(self) -> float | None:
        return self.registry.get_sample_value("recald_handled_faults_total", {"part": "gpu"})


@pytest.fixture
def watching() -> Iterator[Callable[..., Watching]]:
    opened: list[Watching] = []

    def watching(*sources: Callable[[], Any]) -> Watching:
        opened.append(Watching(*sources))
        opened[-1].watch.start()
        return opened[-1]

    yield watching
    for one in opened:
        one.watch.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "not within time"
        time.sleep(0.005)


def exported(scene: Watching) -> dict[tuple[str, ...], float]:
    scene.watch.export()
    return scene.series()


def test_what_the_gpu_tells_is_exported(watching):
    scene = watching(lambda: None, lambda: ToldGpu({"0": STATE}))
    wait_for(lambda: bool(exported(scene)))
    assert scene.series() == {
        ("utilization_ratio", "0"): 0.25,
        ("memory_used_bytes", "0"): 1e9,
        ("memory_total_bytes", "0"): 8e9,
        ("temperature_celsius", "0"): 61.0,
        ("throttled", "0", "heat"): 1,
        ("throttled", "0", "power"): 0,
        ("throttled", "0", "unknown"): 0,
    }


def test_without_a_gpu_there_is_no_series_and_no_fault(watching):
    asked = threading.Event()
    scene = watching(lambda: asked.set())
    assert asked.wait(PATIENCE_S) and exported(scene) == {} and scene.faults() is None


def test_what_a_gpu_no_longer_tells_leaves_no_series(watching):
    go_on, less = threading.Event(), {"0": STATE._replace(memory_used=None, throttled=None)}
    source = ToldGpu({"0": STATE, "1": STATE}, lambda: go_on.wait(PATIENCE_S) and less)
    scene = watching(lambda: source)
    wait_for(lambda: source.asked == 2)
    assert {("memory_used_bytes", "0"), ("throttled", "0", "heat"), ("temperature_celsius", "1")} <= {*exported(scene)}
    go_on.set()
    left = {(name, "0") for name in ("utilization_ratio", "memory_total_bytes", "temperature_celsius")}
    wait_for(lambda: exported(scene).keys() == left)


def test_a_driver_that_hangs_delays_nothing_and_its_last_answer_grows_old(watching):
    hang = threading.Event()
    source = ToldGpu({"0": STATE}, lambda: hang.wait(PATIENCE_S) and {})
    scene = watching(lambda: source)
    wait_for(lambda: source.asked == 2)
    began = time.monotonic()
    assert exported(scene)["temperature_celsius", "0"] == 61.0
    scene.now += STALE_S
    assert exported(scene)
    scene.now += 0.1
    assert exported(scene) == {}
    assert time.monotonic() - began < 1.0
    hang.set()


def test_a_driver_that_hangs_does_not_hold_up_the_end(watching, monkeypatch):
    monkeypatch.setattr(gpu_module, "CLOSE_S", 0.05)
    hang = threading.Event()
    source = ToldGpu(lambda: hang.wait(PATIENCE_S) and {})
    scene = watching(lambda: source)
    wait_for(lambda: source.asked == 1)
    began = time.monotonic()
    scene.watch.close()
    assert time.monotonic() - began < 1.0
    hang.set()


def test_a_driver_that_fails_is_counted_and_opened_again(watching, monkeypatch, caplog):
    monkeypatch.setattr(gpu_module, "RETRY_S", 0.01)
    source = ToldGpu({"0": STATE}, RuntimeError("GPU is lost"), RuntimeError("GPU is lost"), {"0": STATE})
    scene = watching(lambda: source)
    wait_for(lambda: source.asked > 4)
    assert scene.faults() == 2 and source.closed == 2
    assert exported(scene)["temperature_celsius", "0"] == 61.0
    assert caplog.text.count("GPU is lost") == 1


def test_a_fault_that_comes_again_after_an_answer_is_logged_again(watching, monkeypatch, caplog):
    monkeypatch.setattr(gpu_module, "RETRY_S", 0.01)
    lost = RuntimeError("GPU is lost")
    source = ToldGpu(lost, lost, {"0": STATE}, lost, lost, {"0": STATE})
    scene = watching(lambda: source)
    wait_for(lambda: source.asked > 6)
    assert scene.faults() == 4 and caplog.text.count("GPU is lost") == 2


def test_one_source_that_breaks_does_not_hide_the_other(watching):
    def broken() -> None:
        raise OSError("no symbol nvmlInit")

    scene = watching(broken, lambda: ToldGpu({"0": STATE}))
    wait_for(lambda: bool(exported(scene)))
    assert scene.faults() == 1
