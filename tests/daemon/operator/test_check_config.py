"""`recald check-config` finds what `recald run` refuses: the same words and the same exit code, and leaves nothing."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
import yaml
import zmq
from certificates import PASSPHRASE, Authority
from running import recald_here, write_config

from daemon.exit_codes import EX_CONFIG, EX_TEMPFAIL
from daemon.operator.control import ControlServer
from daemon.state.lock import StateClaim
from deploy.model.card import card_path


class Scene:
    """A model in a folder, and the configuration that a fault is put into."""

    def __init__(self, folder: Path, model: Path, stack: ExitStack) -> None:
        self.folder, self.model, self.stack = folder, folder / "model.pt2", stack
        shutil.copy(model, self.model)
        shutil.copy(card_path(model), card_path(self.model))

    def config(self, **sections) -> Path:
        return write_config(self.folder, self.model, **sections)

    def change_card(self, **keys) -> None:
        card = yaml.safe_load(card_path(self.model).read_text())
        card_path(self.model).write_text(yaml.safe_dump(card | keys))


Fault = Callable[[Scene], Path]


def another_model_is_pinned(scene: Scene) -> Path:
    return scene.config(model={"sha256": "0" * 64})


def the_model_was_exchanged(scene: Scene) -> Path:
    scene.model.write_bytes(scene.model.read_bytes() + b"\0")
    return scene.config()


def the_model_is_missing(scene: Scene) -> Path:
    scene.model.unlink()
    return scene.config()


def the_card_is_missing(scene: Scene) -> Path:
    card_path(scene.model).unlink()
    return scene.config()


def the_card_has_a_mistake(scene: Scene) -> Path:
    scene.change_card(v=2, colour="red")
    return scene.config()


def the_card_names_too_few_classes(scene: Scene) -> Path:
    scene.change_card(classes=["a", "b"])
    return scene.config()


def the_measured_clean_frames_are_missing(scene: Scene) -> Path:
    scene.change_card(commissioned={"frames": 256, "sha256": "0" * 64})
    return scene.config()


def the_backend_is_missing(scene: Scene) -> Path:
    if torch.cuda.is_available():
        pytest.skip("there is an NVIDIA GPU")
    return scene.config(model={"backend": "tensorrt-rtx"})


def the_gpu_for_fits_is_missing(scene: Scene) -> Path:
    if torch.cuda.is_available():
        pytest.skip("there is an NVIDIA GPU")
    return scene.config(fit={"device": "cuda"})


def the_envelope_is_narrower(scene: Scene) -> Path:
    (scene.folder / "envelope.yaml").write_text("version: 1\noperation: {modes: [locked]}\n")
    return scene.config(recalibrate={"envelope": "envelope.yaml"})


def the_envelope_forbids_the_mode_of_a_network_that_is_no_classifier(scene: Scene) -> Path:
    scene.change_card(output="none", classes=None)
    (scene.folder / "envelope.yaml").write_text("version: 1\noperation: {modes: [autonomous]}\n")
    return scene.config(recalibrate={"envelope": "envelope.yaml"})


def two_sockets_have_one_place(scene: Scene) -> Path:
    return scene.config(output={"bind": f"ipc://{scene.folder}/frames"})


def a_key_is_unknown(scene: Scene) -> Path:
    return scene.config(drift={"treshold": 2})


def the_certificate_is_missing(scene: Scene) -> Path:
    return scene.config(metrics={"certificate": "gone.pem", "certificate_key": "gone.key"})


def the_key_is_of_another_certificate(scene: Scene) -> Path:
    authority = Authority(scene.folder)
    device, other = authority.issue("device"), authority.issue("other")
    return scene.config(metrics={"certificate": device.certificate.name, "certificate_key": other.key.name})


def the_key_has_a_passphrase(scene: Scene) -> Path:
    device = Authority(scene.folder).issue("device", passphrase=PASSPHRASE)
    return scene.config(metrics={"certificate": device.certificate.name, "certificate_key": device.key.name})


def the_port_for_frames_is_taken(scene: Scene) -> Path:
    port = scene.stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    return scene.config(input={"bind": [f"tcp://127.0.0.1:{port}"]})


def the_port_for_results_is_taken(scene: Scene) -> Path:
    port = scene.stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    return scene.config(output={"bind": f"tcp://127.0.0.1:{port}"})


def the_socket_for_frames_is_taken(scene: Scene) -> Path:
    taken = scene.stack.enter_context(socket.socket(socket.AF_UNIX))
    taken.bind(str(scene.folder / "frames"))
    taken.listen()
    return scene.config()


def a_file_is_where_a_socket_belongs(scene: Scene) -> Path:
    (scene.folder / "results").write_text("in the way")
    return scene.config()


def the_address_is_not_of_this_machine(scene: Scene) -> Path:
    return scene.config(output={"bind": "tcp://192.0.2.7:5551"}) if _allow_remote(scene) else scene.config()


def _allow_remote(scene: Scene) -> bool:
    config = scene.config

    def permitting(**sections) -> Path:
        path = config(**sections)
        path.write_text(path.read_text() + "allow_remote: true\n")
        return path

    scene.config = permitting  # type: ignore[method-assign]
    return True


def the_control_socket_belongs_to_a_daemon_that_hangs(scene: Scene) -> Path:
    context = scene.stack.enter_context(zmq.Context())
    server = ControlServer(context, f"ipc://{scene.folder}/control", dict)  # bound, and nobody answers
    scene.stack.callback(server.close)
    return scene.config()


def the_state_directory_is_a_file(scene: Scene) -> Path:
    (scene.folder / "state").write_text("in the way")
    return scene.config()


def another_daemon_has_the_state_directory(scene: Scene) -> Path:
    scene.stack.callback(StateClaim(scene.folder / "state").close)
    return scene.config()


MISTAKES = [another_model_is_pinned, the_model_was_exchanged, the_model_is_missing, the_card_is_missing]
MISTAKES += [the_card_has_a_mistake, the_card_names_too_few_classes, the_measured_clean_frames_are_missing]
MISTAKES += [the_envelope_forbids_the_mode_of_a_network_that_is_no_classifier]
MISTAKES += [
    the_backend_is_missing,
    the_gpu_for_fits_is_missing,
    the_envelope_is_narrower,
    two_sockets_have_one_place,
    a_key_is_unknown,
]
MISTAKES += [the_certificate_is_missing, the_key_is_of_another_certificate, the_key_has_a_passphrase]
TEMPORARY = [the_port_for_frames_is_taken, the_port_for_results_is_taken, the_socket_for_frames_is_taken]
TEMPORARY += [a_file_is_where_a_socket_belongs, the_address_is_not_of_this_machine]
TEMPORARY += [the_control_socket_belongs_to_a_daemon_that_hangs, the_state_directory_is_a_file]
TEMPORARY += [another_daemon_has_the_state_directory]


@pytest.fixture
def scene(folder: Path, tiny_model: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(folder, tiny_model, stack)


@contextmanager
def nothing_changed(folder: Path) -> Iterator[None]:
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before, "looking must not create or remove anything"


@pytest.mark.parametrize(("fault", "code"), [(f, EX_CONFIG) for f in MISTAKES] + [(f, EX_TEMPFAIL) for f in TEMPORARY])
def test_it_finds_what_run_refuses(scene: Scene, monkeypatch, fault: Fault, code: int):
    monkeypatch.setattr("daemon.operator.deployment.STATUS_TIMEOUT_S", 0.1)
    monkeypatch.setattr("daemon.loop.DriftMonitor.start", None)  # a start that is refused begins no drift checks
    config = fault(scene)
    with nothing_changed(scene.folder):
        checked = recald_here("check-config", "--config", config)
    refused = recald_here("run", "--config", config)
    said = refused.stderr.partition("recald run: ")[2].strip()
    assert (checked.returncode, refused.returncode) == (code, code), (checked.stderr, refused.stderr)
    assert checked.stdout == ""
    if fault is not the_state_directory_is_a_file:  # check-config says more about it
        assert said and said in checked.stderr


def test_all_faults_are_named_at_once_and_a_mistake_decides_the_code(scene: Scene):
    the_port_for_frames_is_taken(scene)
    the_state_directory_is_a_file(scene)
    the_card_names_too_few_classes(scene)
    done = recald_here("check-config", "--config", the_port_for_frames_is_taken(scene))
    assert done.returncode == EX_CONFIG
    first, second, third = done.stderr.removeprefix("recald check-config: ").splitlines()
    assert "names 2 classes" in first and "state is a file" in second and "Address already in use" in third


def test_without_a_fault_each_check_is_one_line_and_nothing_is_left(scene: Scene):
    config = scene.config(model={"backend": "onnx"}, input={"bind": ["tcp://127.0.0.1:*"]})
    with nothing_changed(scene.folder):
        done = recald_here("check-config", "--config", config)
    assert done.returncode == 0
    first, *lines = done.stdout.splitlines()
    assert first == f"{config}: ok, 2 sensor(s)"
    names = ["backend", "fits", "model", "memory", "envelope", "state", "certificate", "endpoints"]
    assert [line.split(": ")[0] for line in lines] == names
    assert lines[1] == "fits: fit.device auto"
    assert "onnx computes what it does" in lines[2] and "all are free" in lines[7]


def test_a_metrics_port_that_is_taken_is_told_and_stops_nothing(scene: Scene):
    port = scene.stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    done = recald_here("check-config", "--config", scene.config(metrics={"port": port}))
    assert done.returncode == 0
    assert f"metrics.port: 127.0.0.1:{port} cannot be bound (Address already in use)" in done.stdout


def test_the_places_of_a_daemon_that_runs_are_its_own(scene: Scene):
    context = scene.stack.enter_context(zmq.Context())
    server = ControlServer(context, f"ipc://{scene.folder}/control", lambda _: {"version": "1"})
    scene.stack.callback(server.close)
    server.start()
    another_daemon_has_the_state_directory(scene)
    done = recald_here("check-config", "--config", scene.config())
    assert done.returncode == 0
    assert "endpoints: not tried: a recald answers on" in done.stdout
