"""The process as a whole: frames in and results out, whatever else comes in; how it starts, refuses and ends."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from running import PATIENCE, UNWATCHED, Camera, Daemon, eventually, recald, recald_here, serving, write_config
from synthetic import CLASSES, dark, images, labelled, normalised, trained_network

from daemon.exit_codes import EX_CONFIG, EX_TEMPFAIL
from daemon.operator.control import request
from daemon.serving.message import build_frame
from deploy.backends.protocol import GPU_BACKENDS
from deploy.files import digest_file
from deploy.model.card import card_path

MIB, GIB = 1 << 20, 1 << 30
CLEAN = images(1, 7)[0]
STOP_S = 5.0  # an operator who pressed Ctrl-C begins to wonder


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Daemon]:
    """A daemon that may be sent anything; no test ends it, and each test finds it serving."""
    with TemporaryDirectory(prefix="recald-", dir="/tmp") as folder:
        config = write_config(Path(folder), tiny_model, input={"max_frame_bytes": MIB})
        with Daemon(config) as daemon:
            yield daemon.wait_until_serving()


@pytest.fixture
def camera(served: Daemon) -> Iterator[Camera]:
    with Camera(served) as camera:
        yield camera


# ---- frames and results


def test_each_frame_is_answered_by_the_model_untouched(served: Daemon, camera: Camera, tiny_model: Path):
    network = trained_network()
    for image in images(8, 3):
        header, output = camera.ask(image)
        with torch.no_grad():
            expected = network(normalised(image[None])).numpy()
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
        assert header["label"] == expected.argmax()
        assert header["homogenizer"] == "factory"
        assert header["model"] == digest_file(tiny_model)
        assert header["state"] == "factory"


def test_sensors_are_numbered_and_counted_apart(served: Daemon, camera: Camera):
    def processed() -> float:
        return served.metric("recald_frames_processed_total", sensor="rear")

    before = processed()
    for _ in range(3):
        camera.ask(CLEAN, "rear")
    camera.ask(CLEAN, "front")
    assert [header["seq"] for header in camera.answers["rear"]] == [0, 1, 2]
    eventually(lambda: processed() == before + 3, "the frames of the rear sensor are counted")  # after their results
    assert served.metric("recald_frames_missed_total") == 0


@pytest.mark.parametrize("encoding", ["bgr8", "png", "jpeg"])
def test_another_encoding_of_the_same_picture_has_the_same_answer(camera: Camera, encoding: str):
    smooth = np.repeat(np.repeat(CLEAN[::4, ::4], 16, 0), 16, 1)  # survives JPEG
    expected = camera.ask(smooth)[1]
    np.testing.assert_allclose(camera.ask(smooth, encoding=encoding)[1], expected, atol=0.2)


def test_another_depth_of_the_same_picture_has_the_same_answer(camera: Camera):
    expected = camera.ask(CLEAN)[1]
    for image, encoding in [
        (CLEAN.astype(np.uint16) * 257, "rgb16"),
        (CLEAN.astype(np.float32) / 255, "32FC3"),
        (np.dstack([CLEAN[:, :, ::-1], CLEAN[:, :, 0]]), "bgra8"),
    ]:
        np.testing.assert_allclose(camera.ask(image, encoding=encoding)[1], expected, atol=1e-3)


# ---- bad input


def _frame(image: np.ndarray = CLEAN, encoding: str = "rgb8") -> list[bytes]:
    return build_frame("front", image, seq=0, timestamp=time.time_ns(), encoding=encoding)


def _frame_with(part: int, data: bytes) -> list[bytes]:
    parts = _frame()
    parts[part] = data
    return parts


def _frame_saying(**changes: object) -> list[bytes]:
    return _frame_with(1, json.dumps(json.loads(_frame()[1]) | changes).encode())


def _poisoned() -> list[bytes]:
    image = np.full((16, 16, 3), 0.5, np.float32)
    image[3, 4, 1] = np.nan
    return _frame(image, "32FC3")


def _cut_short() -> list[bytes]:
    topic, header, payload = _frame(encoding="jpeg")
    return [topic, header, payload[: len(payload) // 2]]


def _too_bright() -> list[bytes]:
    image = np.full((16, 16), 4096, np.uint16)
    return build_frame("front", image, seq=0, timestamp=time.time_ns(), encoding="mono16", bits=12)


BAD_INPUT: dict[str, tuple[Callable[[], list[bytes]], str, str]] = {
    "one part": (lambda: [b"front/"], "parts", "unknown"),
    "four parts": (lambda: [*_frame(), b""], "parts", "unknown"),
    "a header that is not JSON": (lambda: _frame_with(1, b"{'v': 1}"), "header", "front"),
    "a header of a later version": (lambda: _frame_saying(v=2), "version", "front"),
    "an unknown encoding": (lambda: _frame_saying(encoding="yuv9"), "encoding", "front"),
    "an order of bytes that is none": (lambda: _frame_saying(is_bigendian="yes"), "header", "front"),
    "more bits than stated": (_too_bright, "bits", "front"),
    "an odd row of shared colours": (lambda: _frame_saying(encoding="uyvy", width=15), "size", "front"),
    "a payload one byte short": (lambda: _frame_with(2, CLEAN.tobytes()[1:]), "size", "front"),
    "a JPEG cut short": (_cut_short, "decode", "front"),
    "NaN in a float frame": (_poisoned, "nonfinite", "front"),
    "an unknown sensor": (lambda: _frame_with(0, b"roof/"), "sensor", "unknown"),
    "a frame of a minute ago": (lambda: _frame_saying(timestamp=time.time_ns() - 60 * 10**9), "stale", "front"),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_counted_and_costs_nothing_else(served: Daemon, camera: Camera, what: str):
    build, reason, sensor = BAD_INPUT[what]

    def dropped() -> float:
        return served.metric("recald_frames_dropped_total", reason=reason, sensor=sensor)

    before, all_before = dropped(), served.metric("recald_frames_dropped_total")
    camera.send_parts(build())
    eventually(lambda: dropped() == before + 1, f"{what} is counted as {reason}")
    assert served.metric("recald_frames_dropped_total") == all_before + 1
    assert camera.ask(CLEAN)[0]["homogenizer"] == "factory"


def _send_oversize(served: Daemon, camera: Camera, size: int) -> None:
    """Send a frame of `size` bytes to the daemon, which takes 1 MiB: it hangs up before it takes it in."""
    process = psutil.Process(served.process.pid)
    disconnects, memory = served.metric("recald_input_disconnects_total"), process.memory_info().rss
    camera.send_parts([*_frame()[:2], bytearray(size)])
    eventually(lambda: served.metric("recald_input_disconnects_total") > disconnects, "the sender is disconnected")
    assert process.memory_info().rss < memory + 40 * MIB
    camera.reach()
    assert camera.ask(CLEAN)[0]["homogenizer"] == "factory"


def test_a_message_far_over_the_limit_costs_its_sender_the_connection(served: Daemon, camera: Camera):
    _send_oversize(served, camera, 80 * MIB)


@pytest.mark.skipif(psutil.virtual_memory().available < 3 * GIB, reason="needs 3 GiB of free memory")
def test_a_message_of_a_gigabyte_is_no_worse(served: Daemon, camera: Camera):
    _send_oversize(served, camera, GIB)


# ---- what a second daemon and an operator may not do


def test_a_second_daemon_may_not_share_the_control_socket(served: Daemon, camera: Camera, tiny_model: Path, folder):
    config = write_config(folder, tiny_model, control={"endpoint": served.control})
    done = recald("run", "--config", config)
    assert done.returncode == EX_TEMPFAIL
    assert f"another recald answers on {served.control}" in done.stderr
    assert served.status()["state"] == "factory"
    assert camera.ask(CLEAN)


def test_a_second_daemon_may_not_share_the_state_directory(served: Daemon, camera: Camera, tiny_model: Path, folder):
    config = write_config(folder, tiny_model, state={"directory": str(served.state)})
    done = recald_here("run", "--config", config)
    assert done.returncode == EX_TEMPFAIL
    assert f"another recald uses {served.state}" in done.stderr
    assert camera.ask(CLEAN)


@pytest.mark.parametrize("command", ["recalibrate", "rollback"])
def test_an_unknown_sensor_is_refused_by_name(served: Daemon, command: str):
    done = recald(command, "--sensor", "roof", "--config", served.config)
    assert done.returncode == EX_CONFIG
    assert done.stderr == f"recald {command}: unknown sensor 'roof': configured are front, rear\n"


def test_there_is_nothing_behind_the_factory_homogenizer(served: Daemon):
    done = recald("rollback", "--sensor", "front", "--config", served.config)
    assert done.returncode == EX_CONFIG
    assert "the factory homogenizer serves" in done.stderr
    assert served.metric("recald_rollbacks_total") == 0


# ---- labelled frames


def test_labelled_frames_tell_the_true_accuracy_also_during_a_hold(served: Daemon, camera: Camera, tmp_path: Path):
    pictures, truth = labelled(12, 5)
    named = [camera.ask(picture, "rear")[0]["label"] for picture in pictures]
    right = sum(int(label) == answer for label, answer in zip(truth, named, strict=True))
    lines = [f"{seq},{CLASSES[label] if seq % 2 else label}" for seq, label in enumerate(truth)]
    (tmp_path / "labels.csv").write_text("\n".join(["seq,label", *lines, "9999,north-west"]))
    assert request(served.control, {"command": "hold", "sensor": "rear"}, 10)["ok"]
    label = ("label", tmp_path / "labels.csv", "--sensor", "rear", "--config", served.config)
    done = recald(*label)
    begin = f"rear: 12 labelled frames counted, {right} right; 1 unknown; 0 outdated; since the last swap "
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(begin), done.stderr
    assert request(served.control, {"command": "release", "sensor": "rear"}, 10)["ok"]
    assert json.loads(recald_here(*label, "--json").stdout)["repeated"] == 12

    shown = {
        labels["bound"]: v
        for labels, v in served.samples("recald_labelled_accuracy_ratio")
        if labels["sensor"] == "rear"
    }
    status = served.status("rear")["labelled"]
    assert (status["right"], status["wrong"]) == (right, 12 - right)
    assert shown == pytest.approx({"value": right / 12, "lower": status["lower"], "upper": status["upper"]}, abs=1e-5)
    assert served.metric("recald_labelled_frames_total", sensor="rear", result="right") == right
    assert "labelled frames since the last swap: 12, " in recald_here("status", "--config", served.config).stdout
    history = recald_here("history", "--json", "--config", served.config, "--sensor", "rear").stdout.splitlines()
    told = [record["details"] for record in map(json.loads, history) if record["event"] == "labels"]
    assert len(told) == 2 and told[0]["right"] == right and told[0]["homogenizer"] == "factory" and told[0]["by"]
    assert not any(name in str(told) for name in CLASSES)


@pytest.mark.parametrize(
    ("labels", "said", "entry"),
    [
        ([[0, 0], [1, "north"]], "'north' is no class of the model", 1),
        ([[0, 0], [1, True]], "True is no class of the model", 1),
        ([[True, 0]], "seq must be an integer", 0),
        ([[0, 0]] * 2001, "labels must be a list of 1 to 2000 entries", None),
        ({"0": 0}, "labels must be a list", None),
        (None, "labels must be a list", None),
    ],
)
def test_labels_that_make_no_sense_are_refused_and_nothing_is_counted(
    served: Daemon, camera: Camera, labels, said, entry
):
    camera.ask(CLEAN)
    answer = request(served.control, {"command": "labels", "sensor": "front", "labels": labels}, 10)
    assert answer["ok"] is False and said in answer["error"] and answer.get("entry") == entry
    assert served.metric("recald_labelled_frames_total", sensor="front") == 0
    assert served.status()["labelled"] is None


# ---- exit codes


def _refusal(config: Path, run: Callable[..., Any] = recald_here) -> tuple[int, str]:
    """Exit code and message of a `recald run` that does not start."""
    done = run("run", "--config", config)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_an_exchanged_model_is_not_served(tiny_model: Path, folder: Path):
    model = folder / "model.pt2"
    model.write_bytes(tiny_model.read_bytes() + b"\0")
    shutil.copy(card_path(tiny_model), card_path(model))
    code, message = _refusal(write_config(folder, model), recald)
    assert code == EX_CONFIG
    assert "SHA-256" in message and str(model) in message


def test_another_model_than_the_pinned_one_is_not_served(tiny_model: Path, folder: Path):
    code, message = _refusal(write_config(folder, tiny_model, model={"sha256": "0" * 64}))
    assert code == EX_CONFIG
    assert "model.sha256 in the configuration pins 000" in message


def test_a_missing_model_is_a_mistake_in_the_configuration(folder: Path):
    code, message = _refusal(write_config(folder, folder / "absent.pt2"))
    assert code == EX_CONFIG
    assert f"{folder}/absent.pt2: the model cannot be read: No such file or directory" in message


def test_an_unknown_backend_is_a_mistake_in_the_configuration(tiny_model: Path, folder: Path):
    code, message = _refusal(write_config(folder, tiny_model, model={"backend": "abacus"}))
    assert code == EX_CONFIG
    assert "model.backend" in message and "onnx" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_a_backend_that_cannot_run_here_is_not_replaced_by_another(tiny_model: Path, folder: Path, backend: str):
    code, message = _refusal(write_config(folder, tiny_model, model={"backend": backend}))
    assert code == EX_CONFIG
    assert f"backend '{backend}' needs NVIDIA" in message or f"backend '{backend}' needs an NVIDIA GPU" in message


def test_five_mistakes_are_five_lines(tiny_model: Path, folder: Path):
    config = write_config(
        folder,
        tiny_model,
        model={"backend": "abacus"},
        input={"max_age": "soon"},
        drift={"window": 3},
        recalibrate={"frames": "many"},
        metrics={"prot": 9748},
    )
    code, message = _refusal(config)
    assert code == EX_CONFIG
    lines = message.removeprefix("recald run: ").splitlines()
    assert len(lines) == 5
    for line, place in zip(
        sorted(lines, key=lambda line: line.split()[1]),
        ["drift.window", "input.max_age", "metrics.prot", "model.backend", "recalibrate.frames"],
        strict=True,
    ):
        assert line.startswith(f"{config}:") and place in line


def test_frames_are_served_while_the_metrics_port_is_taken_and_metrics_once_it_is_free(tiny_model: Path, folder: Path):
    """Whoever takes the port first must not be able to keep the daemon from serving."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = Daemon(write_config(folder, tiny_model, metrics={"port": port}, drift=UNWATCHED))
        with daemon, Camera(daemon.wait_until_serving()) as camera:
            camera.ask(images(1, 1)[0])
            assert f"127.0.0.1:{port} cannot be bound" in daemon.log and " metrics on " not in daemon.log
            taken.close()
            eventually(lambda: " metrics on " in daemon.log, "the port is bound")
            eventually(lambda: daemon.metric("recald_frames_processed_total", sensor="front"), "the frame is counted")


# ---- the end


def _stop(daemon: Daemon, number: int) -> None:
    workers = daemon.workers()
    code, seconds = daemon.stop(number)
    assert code == 0, daemon.log
    assert seconds < STOP_S
    assert not [worker for worker in workers if worker.is_running()]
    assert not list(Path(daemon.control.removeprefix("ipc://")).parent.glob("state/**/.*.tmp"))


def test_systemd_is_notified_of_the_whole_life(tiny_model: Path, folder: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "400000"}
        with Daemon(write_config(folder, tiny_model), **environment) as daemon:
            messages = []
            while messages.count("WATCHDOG=1") < 3:
                messages.append(systemd.recv(4096).decode())
            eventually(daemon.workers, "the drift watch has its worker")
            _stop(daemon, signal.SIGINT)
            systemd.setblocking(False)
            messages += _all_queued(systemd)
    kinds = [message.partition("=")[0] for message in messages]
    assert kinds[0] == "STATUS" and "loading" in messages[0]
    assert kinds.index("READY") < kinds.index("WATCHDOG") < kinds.index("STOPPING") == len(kinds) - 1
    assert kinds.count("READY") == kinds.count("STOPPING") == 1
    assert "STATUS=front: factory, drift nan, ρ factory; rear: factory, drift nan, ρ factory" in messages


def _all_queued(receiver: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_a_closed_terminal_ends_it_as_cleanly_as_an_order_to_stop(tiny_model: Path, folder: Path):
    with serving(write_config(folder, tiny_model, drift=UNWATCHED)) as (daemon, camera):
        camera.ask(images(1, 1)[0])
        _stop(daemon, signal.SIGHUP)
        done = recald("history", "--json", "--config", daemon.config)
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "stop"


STARTED = """
import gc, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from daemon.config import load_config
from daemon.loop import Daemon
from daemon.systemd_notify import Notifier
daemon = Daemon(load_config(Path(sys.argv[1])), CollectorRegistry(), Notifier())
daemon.startup()
print(gc.get_freeze_count(), len(gc.get_objects()))
daemon.shutdown()
"""


def test_no_frame_waits_while_all_that_pytorch_made_is_searched_for_garbage(tiny_model: Path, folder: Path):
    config = write_config(folder, tiny_model)
    done = subprocess.run([sys.executable, "-c", STARTED, config], capture_output=True, text=True, timeout=PATIENCE)
    left_out, searched = map(int, done.stdout.split())
    assert left_out > 10 * searched, done.stderr


def test_a_stop_in_the_middle_of_startup_is_obeyed(tiny_model: Path, folder: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(PATIENCE)
        with Daemon(write_config(folder, tiny_model), NOTIFY_SOCKET=str(folder / "notify")) as daemon:
            while "compiling" not in systemd.recv(4096).decode():
                pass
            _stop(daemon, signal.SIGTERM)


def test_a_stop_in_the_middle_of_a_fit_is_obeyed_at_once(tiny_model: Path, folder: Path):
    with serving(write_config(folder, tiny_model)) as (daemon, camera):
        assert recald("recalibrate", "--sensor", "front", "--config", daemon.config).returncode == 0
        camera.stream({"front": dark()}, lambda: fitting(daemon), "a fit runs")
        eventually(lambda: len(daemon.workers()) == 2, "the fit and the drift watch have their workers")
        _stop(daemon, signal.SIGTERM)
    assert not list((folder / "state" / "sensors").glob("*"))


def fitting(daemon: Daemon) -> bool:
    return daemon.status()["state"] == "fitting"


def test_workers_end_with_a_daemon_that_was_killed(tiny_model: Path, folder: Path):
    with Daemon(write_config(folder, tiny_model)) as daemon:
        eventually(daemon.wait_until_serving().workers, "the drift watch has its worker")
        workers = daemon.workers()
        daemon.process.kill()
        daemon.process.wait()
        eventually(lambda: not any(worker.is_running() for worker in workers), "the worker has ended")
        with Daemon(daemon.config) as restarted:
            restarted.wait_until_serving()
