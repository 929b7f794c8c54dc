"""`recald doctor`: a real process on this machine, and what it makes of what is missing or damaged."""

from __future__ import annotations

import functools
import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Daemon, recald, write_config

from daemon.cli import main
from daemon.exit_codes import EX_CONFIG
from daemon.operator import doctor as doctor_module
from deploy.backends.gpu.device import nvidia_driver_version
from deploy.backends.protocol import AUTO, BACKENDS, GPU_BACKENDS, BackendUnavailable
from deploy.files import digest_file
from deploy.model.card import card_path

pytestmark = pytest.mark.process  # to describe the machine, platform.platform() starts `uname -p`
check_backend = functools.cache(doctor_module._check_backend)  # builds a network; once for all of these tests
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")


@pytest.fixture(autouse=True)
def one_check_of_each_backend(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor_module, "_check_backend", check_backend)


def doctor(*arguments: str | Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code and findings by what was looked at; in this process, which has torch already."""
    with redirect_stdout(StringIO()) as said:
        code = main(["doctor", "--json", *map(str, arguments)])
    return code, {found["what"]: found for found in json.loads(said.getvalue())["findings"]}


def needed(found: dict[str, dict[str, Any]]) -> set[str]:
    return {what for what, finding in found.items() if finding["needed"]}


def test_every_backend_is_checked_and_those_of_the_processor_work():
    code, found = doctor()
    assert code == 0
    assert list(found) == [f"backend {name}" for name in (*BACKENDS, AUTO)]
    for name in BACKENDS.keys() - set(GPU_BACKENDS):
        finding = found[f"backend {name}"]
        assert finding["works"] and "built and ran a tiny network" in finding["said"]


def test_people_read_a_table():
    done = recald("doctor")
    said = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert f"torch {torch.__version__}" in said and "works backend onnx" in said


@pytest.mark.parametrize("hint", ["pip install 'recald[tensorrt-rtx]'", "[red]x[/] [/b] :smile: \x1b[31m"])
def test_a_hint_is_printed_as_it_is(monkeypatch, capsys, hint: str):
    def missing(name: str) -> str:
        raise BackendUnavailable(hint)

    monkeypatch.setattr(doctor_module, "_check_backend", missing)
    assert main(["doctor"]) == EX_CONFIG
    assert capsys.readouterr().out.count(hint.replace("\x1b", "?")) == len(BACKENDS)


@NO_GPU
def test_a_missing_backend_is_reported_with_what_to_do():
    _, found = doctor()
    for name in GPU_BACKENDS:
        finding = found[f"backend {name}"]
        assert not finding["works"] and "install" in finding["said"]


@NO_GPU
def test_a_backend_that_is_asked_for_and_does_not_work_is_a_mistake(folder: Path, tiny_model: Path):
    code, found = doctor("--config", write_config(folder, tiny_model, model={"backend": "tensorrt-rtx"}))
    assert code == EX_CONFIG
    assert needed(found) == {"backend tensorrt-rtx", "fits", "model", "memory", "state", "endpoints"}


@NO_GPU
def test_what_auto_picks_is_needed(folder: Path, tiny_model: Path):
    code, found = doctor("--config", write_config(folder, tiny_model, model={"backend": AUTO}))
    assert (code, needed(found)) == (0, {"backend onnx", "fits", "model", "memory", "state", "endpoints"})
    assert "is onnx, because" in found["backend auto"]["said"]


def test_a_daemon_that_does_not_run_is_no_mistake(folder: Path, tiny_model: Path):
    code, found = doctor("--config", write_config(folder, tiny_model))
    assert code == 0
    assert not found["daemon"]["works"] and "is it running?" in found["daemon"]["said"]
    assert digest_file(tiny_model)[:12] in found["model"]["said"]
    assert "GiB are free" in found["state"]["said"]
    assert not found["envelope"]["works"] and "recalibrate.envelope is not set" in found["envelope"]["said"]
    assert not (folder / "state").exists(), "looking must not create anything"


def test_a_daemon_that_runs_is_found(folder: Path, tiny_model: Path):
    (folder / "envelope.yaml").write_text("version: 1\n")
    config = write_config(folder, tiny_model, recalibrate={"envelope": "envelope.yaml"})
    with Daemon(config) as daemon:
        daemon.wait_until_serving()
        code, found = doctor("--config", config)
    assert code == 0 and found["daemon"]["works"] and "with eager" in found["daemon"]["said"]
    assert found["envelope"]["works"] and "not signed; the configuration is inside" in found["envelope"]["said"]


def test_another_model_than_the_pinned_one_is_reported(folder: Path, tiny_model: Path):
    code, found = doctor("--config", write_config(folder, tiny_model, model={"sha256": "0" * 64}))
    assert code == EX_CONFIG
    assert not found["model"]["works"] and "pins 000" in found["model"]["said"]


def test_a_configuration_that_allows_more_than_its_envelope_is_a_mistake(folder: Path, tiny_model: Path):
    (folder / "envelope.yaml").write_text("version: 1\noperation: {modes: [supervised]}\n")
    code, found = doctor("--config", write_config(folder, tiny_model, recalibrate={"envelope": "envelope.yaml"}))
    assert code == EX_CONFIG and found["envelope"]["needed"] and not found["envelope"]["works"]
    assert "operation.modes has supervised, recalibrate.mode is autonomous" in found["envelope"]["said"]


def test_a_damaged_model_and_an_unusable_state_directory_are_both_reported(folder: Path, tiny_model: Path):
    model = folder / "model.pt2"
    shutil.copy(card_path(tiny_model), card_path(model))
    model.write_bytes(tiny_model.read_bytes()[:-1])
    (folder / "file").touch()
    config = write_config(folder, model, state={"directory": str(folder / "file" / "state")})
    code, found = doctor("--config", config)
    assert code == EX_CONFIG
    assert not found["model"]["works"] and "damaged" in found["model"]["said"]
    assert not found["state"]["works"] and f"{folder}/file" in found["state"]["said"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n", "540.4.0"),
        ("", "of unknown version"),
    ],
)
def test_the_driver_is_named_by_its_version(tmp_path: Path, text: str, version: str):
    (tmp_path / "version").write_text(text)
    assert nvidia_driver_version(tmp_path / "version") == version
    assert nvidia_driver_version(tmp_path / "absent") is None
