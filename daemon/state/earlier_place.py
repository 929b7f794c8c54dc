"""Refuses to begin an empty state where the first releases have kept one in another place, with the same file."""

from __future__ import annotations

import os

from daemon.config import ConfigError, StateConfig
from deploy.audit.log import audit_path


def check_earlier_place(state: StateConfig) -> None:
    """Raises ConfigError where a daemon would forget what it has learned: its state lies where it no longer looks."""
    earlier, now = state.earlier_directory, state.directory
    if earlier is None or not os.access(audit_path(earlier), os.W_OK):  # what others keep there is not of this daemon
        return
    if not now.is_dir() or not any(now.iterdir()):
        choice = f"set state.directory to that folder, or to {now} to begin anew"
        raise ConfigError([f"state.directory: {now} is empty, and the state lies in {earlier.absolute()}: {choice}"])
