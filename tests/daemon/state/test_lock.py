"""One daemon at a time has the state directory."""

import os

import pytest

from daemon.state.lock import lock_state


def test_two_daemons_cannot_have_one_directory_and_the_next_can(tmp_path):
    held = lock_state(tmp_path / "state")
    (tmp_path / "by another name").symlink_to(tmp_path / "state")
    with pytest.raises(OSError, match="another recald uses"):
        lock_state(tmp_path / "by another name")
    os.close(held)
    os.close(lock_state(tmp_path / "state"))
