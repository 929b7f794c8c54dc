"""An upgrade does not begin an empty state beside the one that an earlier release has kept elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from running import write_config

import daemon.config
from daemon.cli import main
from daemon.config import ConfigError, StateConfig, load_config
from daemon.exit_codes import EX_CONFIG
from daemon.loop import Daemon
from daemon.state.earlier_place import check_earlier_place
from daemon.systemd_notify import Notifier


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `state` in the working directory, with a log."""
    (tmp_path / "work" / "state").mkdir(parents=True)
    (tmp_path / "work" / "state" / "audit.sqlite").touch()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work" / "state"


def state_of(config: Path, **state: str) -> StateConfig:
    """Read the file with another section `state`, or without one."""
    settings = {name: section for name, section in yaml.safe_load(config.read_text()).items() if name != "state"}
    config.write_text(yaml.safe_dump(settings | ({"state": state} if state else {})))
    return load_config(config).state


def test_a_relative_folder_that_started_at_the_working_directory(folder, tiny_model, earlier, capsys):
    config, now = write_config(folder, tiny_model, state={"directory": "state"}), folder / "state"
    with pytest.raises(ConfigError, match=f"{now} is empty, and the state lies in {earlier}: set state.directory to"):
        Daemon(load_config(config), CollectorRegistry(), Notifier()).startup()
    assert main(["check-config", "--config", str(config)]) == EX_CONFIG
    assert f"state.directory: {now} is empty" in capsys.readouterr().err
    assert not now.exists()
    shutil.copytree(earlier, now)
    check_earlier_place(load_config(config).state)
    shutil.rmtree(now)
    for chosen in (earlier, now):
        check_earlier_place(state_of(config, directory=str(chosen)))


def test_the_default_of_a_user_that_was_the_system_folder(folder, tiny_model, earlier, monkeypatch):
    monkeypatch.setattr(daemon.config, "SYSTEM_STATE", earlier)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "home"))
    config = write_config(folder, tiny_model)
    with pytest.raises(ConfigError, match=f"{folder / 'home' / 'recald'} is empty, and the state lies in {earlier}"):
        check_earlier_place(state_of(config))
    with monkeypatch.context() as another_user:
        another_user.setattr("os.access", lambda *_: False)
        check_earlier_place(state_of(config))
    monkeypatch.setenv("STATE_DIRECTORY", str(folder / "systemd"))  # systemd names the place of each service
    check_earlier_place(state_of(config))
