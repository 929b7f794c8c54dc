"""The unit file, the example configuration and the daemon say the same; systemd finds nothing wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from places import SYSTEMD
from running import recald, recald_here

from daemon.config import Config, ControlConfig, InputConfig, StateConfig, load_config
from daemon.exit_codes import EX_CONFIG, EX_TEMPFAIL
from daemon.loop import TICK_S
from deploy.model.card import card_path

UNIT, EXAMPLE = SYSTEMD / "recald.service", SYSTEMD / "recald.yaml"
EXPOSURE = 25  # tenths: the best of Debian 12's own services is at 23
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def settings() -> dict[str, list[str]]:
    """Every setting of the unit, by name."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found[match[1]].append(match[2])
    return found


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def test_systemd_restarts_what_may_pass_and_nothing_else(settings: dict[str, list[str]]):
    assert settings["RestartForceExitStatus"] == [str(EX_TEMPFAIL)]
    assert settings["RestartPreventExitStatus"] == [str(EX_CONFIG)]
    assert settings["Restart"] == ["on-failure"]


def test_the_watchdog_waits_longer_than_the_loop_may_take(settings: dict[str, list[str]]):
    slowest_tick = TICK_S + InputConfig.model_fields["max_age"].default
    assert settings["Type"] == ["notify"]
    assert seconds(settings["WatchdogSec"][0]) > 2 * slowest_tick


def test_its_folders_are_those_of_the_configuration(settings: dict[str, list[str]], monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert StateConfig().directory == Path("/var/lib") / settings["StateDirectory"][0]
    assert ControlConfig().endpoint.startswith(f"ipc:///run/{settings['RuntimeDirectory'][0]}/")
    assert f"--config /etc/{settings['ConfigurationDirectory'][0]}/recald.yaml" in settings["ExecStart"][0]


def test_it_starts_a_command_that_exists(settings: dict[str, list[str]]):
    (command,) = settings["ExecStart"]
    executable, *arguments = command.split()
    assert executable == "/opt/recald/venv/bin/recald"
    done = recald(*arguments)
    assert done.returncode == EX_CONFIG
    assert "/etc/recald/recald.yaml" in done.stderr


@pytest.fixture
def installable(tmp_path: Path) -> Path:
    """The unit with an executable that is there, as systemd-analyze looks for it."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/recald/venv/bin/recald", sys.executable))
    return unit


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@analyze
def test_systemd_knows_every_setting(installable: Path):
    done = systemd_analyze("verify", "--man=no", installable)
    assert (done.stdout + done.stderr).strip() == ""  # an unknown setting is printed, the exit code stays 0
    assert done.returncode == 0


@analyze
def test_the_service_is_confined(installable: Path):
    done = systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE}", installable)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def deployed(tmp_path: Path, tiny_model: Path) -> Path:
    """The example as it would lie in /etc/recald, with a model beside it."""
    shutil.copy(tiny_model, tmp_path / "model.pt2")
    shutil.copy(card_path(tiny_model), tmp_path / "model.yaml")
    return Path(shutil.copy(EXAMPLE, tmp_path))


def test_the_example_configuration_passes_the_check(deployed: Path):
    done = recald_here("check-config", "--config", deployed)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok, 2 sensor(s)" in done.stdout


def test_the_example_shows_the_defaults(monkeypatch, deployed: Path):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    example = load_config(deployed)
    sections = ["metrics", "control", "state", "drift", "recalibrate", "allow_remote"]
    for name in sections:
        shown, default = getattr(example, name), Config.model_fields[name].get_default(call_default_factory=True)
        if name == "allow_remote":
            assert shown == default
        else:
            assert shown.model_dump() == default.model_dump(), name
            assert shown.model_fields_set | {"mode"} >= set(type(shown).model_fields), f"{name} is not shown in full"
    assert example.input == InputConfig(bind=example.input.bind)
    assert example.model.backend == "onnx"
