"""The state directory that a command reads: one that a daemon has used, and no other by mistake."""

from __future__ import annotations

from pathlib import Path

from daemon.config import Config, ConfigError


def used_state_directory(config: Config) -> Path:
    """Return the state directory. Raises ConfigError where no daemon has used it: nothing could be said of it."""
    directory = config.state.directory
    if not directory.is_dir() or not any(directory.iterdir()):
        advice = "the default depends on who calls: call as the daemon's user, or set state.directory"
        raise ConfigError([f"{directory}: no state of a recald is here: {advice}"])
    return directory
