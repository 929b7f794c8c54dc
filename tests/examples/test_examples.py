"""Each example, run as a user runs it: as a process, against a real `recald run`."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import cv2
import numpy as np
import pytest
import yaml
from places import ROOT
from running import PATIENCE, Daemon, eventually, recald, write_config
from synthetic import CLASSES

from daemon.client import FrameResult, Results

EXAMPLES = ROOT / "examples"
PUBLIC = {"calibrate", "daemon.client"}  # what examples may import of recald
FRAMES = 40
FOREIGN_ENDPOINT = "ipc:///tmp/recald-nobody-is-here"


def load(name: str) -> ModuleType:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command: str | Path, folder: Path = EXAMPLES) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=3 * PATIENCE, cwd=folder, check=False
    )


def python(*arguments: str | Path, folder: Path = EXAMPLES) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-B", *arguments, folder=folder)


@contextmanager
def started(*arguments: str | Path, folder: Path = EXAMPLES) -> Iterator[subprocess.Popen[str]]:
    """Run an example in the background; leaving the context ends it in any case."""
    command = [sys.executable, "-B", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Daemon]:
    with TemporaryDirectory(prefix="recald-", dir="/tmp") as folder:
        with Daemon(write_config(Path(folder), tiny_model)) as daemon:
            yield daemon.wait_until_serving()


class Watched:
    """Results and counters of the daemon from the start of the context on."""

    def __init__(self, daemon: Daemon, results: Results):
        self._daemon, self._results = daemon, results
        self._before = self._counters()

    def _counters(self) -> dict[str, float]:
        names = ("received", "missed", "processed", "dropped")
        return {name: self._daemon.metric(f"recald_frames_{name}_total", sensor="front") for name in names}

    def counted(self) -> dict[str, float]:
        now = self._counters()
        return {name: now[name] - before for name, before in self._before.items()}

    def take(self, sent: int) -> list[FrameResult]:
        """Wait until every frame that was sent is accounted for; return the results."""

        def complete() -> bool:
            counted = self.counted()
            is_received = counted["received"] + counted["missed"] == sent
            return is_received and counted["processed"] + counted["dropped"] == counted["received"]

        eventually(complete, f"recald accounts for {sent} frames")
        results = [self._results.receive(PATIENCE) for _ in range(int(self.counted()["processed"]))]
        assert self._results.receive(0.2) is None
        return [result for result in results if result is not None]


@pytest.fixture
def watched(served: Daemon) -> Iterator[Watched]:
    with Results(served.results, sensor="front") as results:
        eventually(lambda: answered(served, results), "results reach their reader")
        while results.receive(0.3):
            pass
        yield Watched(served, results)


def answered(daemon: Daemon, results: Results) -> bool:
    """Send one frame with the example, and say whether its result arrived."""
    python("camera.py", "--endpoint", daemon.frames, "--frames", "1")
    return results.receive(0.2) is not None


def check_results(results: list[FrameResult], sent: int) -> None:
    numbers = [result.seq for result in results]
    assert numbers == sorted(set(numbers)) and set(numbers) <= set(range(sent))
    assert len(results) >= sent // 2  # a busy machine may supersede some
    assert {result.homogenizer for result in results} == {"factory"}
    assert all(result.label in range(len(CLASSES)) and result.output.shape == (1, 4) for result in results)


# ---- camera.py


def test_the_camera_sends_shapes_and_each_is_counted_and_answered(served: Daemon, watched: Watched):
    done = python("camera.py", "--endpoint", served.frames, "--frames", str(FRAMES))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{FRAMES} frames sent, 0 that nobody took\n"
    check_results(watched.take(FRAMES), FRAMES)
    assert watched.counted()["missed"] == 0


def test_the_camera_sends_a_video_file_to_its_end(served: Daemon, watched: Watched, tmp_path: Path):
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (32, 32))
    for level in range(0, 200, 20):
        film.write(np.full((32, 32, 3), level, np.uint8))
    film.release()
    done = python("camera.py", "--endpoint", served.frames, "--source", tmp_path / "film.avi")
    assert (done.returncode, done.stdout) == (0, "10 frames sent, 0 that nobody took\n")
    check_results(watched.take(10), 10)


def test_a_video_file_is_read_as_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 2] = 200  # OpenCV writes blue first
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (32, 32))
    film.write(red)
    film.release()
    monkeypatch.syspath_prepend(EXAMPLES)
    pictures = list(load("camera").pictures(str(tmp_path / "film.avi")))
    assert len(pictures) == 1
    np.testing.assert_allclose(pictures[0].mean((0, 1)), [200, 0, 0], atol=10)


def test_the_camera_ends_with_its_counts_on_ctrl_c(served: Daemon, watched: Watched):
    with started("camera.py", "--endpoint", served.frames, "--fps", "50") as camera:
        eventually(lambda: watched.counted()["processed"] >= 5, "frames are served")
        camera.send_signal(signal.SIGINT)
        out, error = camera.communicate(timeout=PATIENCE)
    assert (camera.returncode, error) == (0, "")
    sent = int(re.fullmatch(r"(\d+) frames sent, 0 that nobody took\n", out)[1])
    check_results(watched.take(sent), sent)


def test_the_camera_says_that_nobody_reads_and_counts_the_frames():
    done = python("camera.py", "--endpoint", FOREIGN_ENDPOINT, "--frames", "3")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"nobody reads front at {FOREIGN_ENDPOINT} yet: is recald running?",
        "0 frames sent, 3 that nobody took",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "no-such-film.mp4", "--endpoint", FOREIGN_ENDPOINT], "no-such-film.mp4 is neither the number of"),
        (["--endpoint", "tcp://nowhere"], "cannot connect tcp://nowhere"),
    ],
)
def test_the_camera_says_in_one_line_what_is_wrong(arguments: list[str], message: str):
    done = python("camera.py", *arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("camera.py: ") and message in done.stderr


# ---- read_results.py


def test_the_reader_prints_a_line_for_each_result(served: Daemon):
    options = ("--endpoint", served.results, "--sensor", "front", "--count", "5")
    with started("camera.py", "--endpoint", served.frames):
        done = python("read_results.py", *options, "--timeout", str(PATIENCE))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    names = "|".join(f"{name} .class {index}." for index, name in enumerate(CLASSES))
    line = rf"front frame \d+: ({names}), confidence [01]\.\d\d, homogenizer factory, drift (-|\d+\.\d\d), "
    assert all(re.fullmatch(line + r"\w+, \d+\.\d ms", text) for text in lines)


def test_the_reader_says_that_no_result_came():
    done = python("read_results.py", "--endpoint", FOREIGN_ENDPOINT, "--timeout", "0.2")
    assert done.returncode == 1
    assert done.stderr == "no result for 0.2 s: is recald running, and does a camera send?\n"


def test_the_reader_says_that_it_reads_frames_instead(served: Daemon):
    """A user confuses the two endpoints: what arrives are frames, and no results."""
    endpoint = f"{served.frames}-confused"
    with started("-c", SEND_TO_ITS_READER, endpoint):
        done = python("read_results.py", "--endpoint", endpoint, "--timeout", str(PATIENCE))
    assert done.returncode == 1
    assert done.stderr.startswith("read_results.py: not a result of version 1") and len(done.stderr.splitlines()) == 1


SEND_TO_ITS_READER = """
import sys, time
import numpy as np
from daemon.client import Camera
with Camera(sys.argv[1], "front", bind=True) as camera:
    while True:
        camera.publish(np.zeros((4, 4, 3), np.uint8))
        time.sleep(0.02)
"""


# ---- camera.cpp


@pytest.fixture(scope="module")
def compiled_camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("g++") or run("g++", "-E", "-include", "zmq.h", "-x", "c++", "/dev/null").returncode:
        pytest.skip("no C++ compiler or no zmq.h: apt-get install g++ libzmq3-dev")
    program = tmp_path_factory.mktemp("cpp") / "camera"
    done = run("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "camera.cpp", "-o", program, "-lzmq")
    assert done.returncode == 0, done.stderr
    return program


def test_the_camera_in_cpp_is_understood_and_each_frame_is_answered(
    served: Daemon, watched: Watched, compiled_camera: Path
):
    done = run(compiled_camera, served.frames, "front", str(FRAMES))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{FRAMES} frames sent\n", "")
    check_results(watched.take(FRAMES), FRAMES)
    assert watched.counted()["missed"] == 0


def test_the_camera_in_cpp_never_waits_and_says_what_is_wrong(compiled_camera: Path):
    done = run(compiled_camera, FOREIGN_ENDPOINT, "front", "3")
    assert done.returncode == 0 and f"nobody reads at {FOREIGN_ENDPOINT} yet" in done.stderr
    done = run(compiled_camera, "tcp://nowhere", "front", "3")
    assert done.returncode == 1 and done.stderr.startswith("camera: cannot connect tcp://nowhere: ")


# ---- custom_network.py


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the examples after the commands of its README up to `recald run`."""
    folder = tmp_path_factory.mktemp("own") / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("model.*", "weights.*", "__pycache__"))
    done = python("custom_network.py", folder=folder)
    assert done.returncode == 0, done.stderr
    assert float(re.fullmatch(r"weights.safetensors: ([\d.]+)% of unseen pictures right, \d+ s\n", done.stdout)[1]) > 95
    export = next(command for command in commands(EXAMPLES / "README.md") if command[:2] == ["recald", "export"])
    done = recald(*export[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_network_of_ones_own_is_trained_exported_and_served_and_the_drift_of_the_camera_harms_it(
    own_model: Path, folder: Path
):
    frame = load("shapes").frame
    with Daemon(write_config(folder, own_model / "model.pt2")) as daemon, Results(daemon.results, timeout=1) as results:
        daemon.wait_until_serving()

        def accuracy(*options: str) -> float:
            done = python("camera.py", "--endpoint", daemon.frames, "--frames", "90", *options, folder=own_model)
            assert done.stdout == "90 frames sent, 0 that nobody took\n"
            right = [result.label == frame(result.seq)[1] for result in results if result.homogenizer == "factory"]
            assert len(right) >= 30
            return float(np.mean(right))

        assert accuracy() > 0.95
        assert accuracy("--drift-after", "0") < 0.8


@pytest.mark.slow
def test_the_configuration_of_the_examples_is_valid_beside_the_exported_model(own_model: Path, folder: Path):
    text = (own_model / "recald.yaml").read_text()  # its ports may be in use on this machine
    config = own_model / "free.yaml"
    config.write_text(re.sub(r":555[01]", ":*", text).replace("/tmp/recald", str(folder)))
    done = recald("check-config", "--config", config, env=os.environ | {"STATE_DIRECTORY": str(folder)})
    assert done.returncode == 0 and f"{config}: ok, 1 sensor(s)" in done.stdout, done.stderr


# ---- what the examples promise


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's code blocks, as words."""
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("example", ["camera.py", "read_results.py"])
def test_every_option_that_the_readme_names_exists(example: str):
    usage = python(example, "--help").stdout
    words = {word for command in commands(EXAMPLES / "README.md") if example in command for word in command}
    options = {word for word in words if word.startswith("--")}
    assert words and all(option in usage for option in options)


def test_every_file_is_explained_in_the_readme():
    text = (EXAMPLES / "README.md").read_text()
    names = {path.name for kind in ("*.py", "*.cpp", "*.yaml") for path in EXAMPLES.glob(kind)} - {"model.yaml"}
    assert len(names) >= 6
    assert all(f"| `{name}` |" in text for name in names)


def test_the_defaults_of_the_examples_are_the_endpoints_of_their_configuration():
    config = yaml.safe_load((EXAMPLES / "recald.yaml").read_text())
    assert config["input"]["bind"][0] in (EXAMPLES / "camera.py").read_text()
    assert config["input"]["bind"][0] in (EXAMPLES / "camera.cpp").read_text()
    assert config["output"]["bind"] in (EXAMPLES / "read_results.py").read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_use_only_what_is_public(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        ours = {name for name in names if name.split(".")[0] in ("calibrate", "deploy", "daemon", "bench")}
        assert ours <= PUBLIC
