"""One daemon at a time has the state directory, also after it was removed."""

import os
import shutil
import socket

import pytest

import daemon.state.lock
from daemon.state.lock import StateClaim


def test_two_daemons_cannot_have_one_directory_and_the_next_can(tmp_path):
    held = StateClaim(tmp_path / "state")
    (tmp_path / "by another name").symlink_to(tmp_path / "state")
    with pytest.raises(OSError, match="another recald uses"):
        StateClaim(tmp_path / "by another name")
    held.close()
    StateClaim(tmp_path / "state").close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_was_removed_is_missed_and_nobody_else_can_claim_its_path(tmp_path, replaced):
    held = StateClaim(tmp_path / "state")
    held.check()
    shutil.rmtree(tmp_path / "state")
    if replaced:
        (tmp_path / "state").mkdir()
    with pytest.raises(OSError, match="removed or replaced while recald runs"):
        held.check()
    with pytest.raises(OSError, match="another recald uses"):
        StateClaim(tmp_path / "state")
    held.close()
    StateClaim(tmp_path / "state").close()


def test_a_directory_that_was_put_back_is_the_claimed_one(tmp_path):
    held = StateClaim(tmp_path / "state")
    moved = (tmp_path / "state").rename(tmp_path / "moved")
    moved.rename(tmp_path / "state")
    held.check()
    held.close()


def test_another_user_who_took_the_name_keeps_no_daemon_down(tmp_path, monkeypatch, caplog):
    held = StateClaim(tmp_path / "state")
    shutil.rmtree(tmp_path / "state")
    monkeypatch.setattr(daemon.state.lock, "_owner", lambda name: 65534)
    StateClaim(tmp_path / "state").close()
    assert "its path cannot be taken" in caplog.text
    held.close()


def test_the_owner_of_a_name_is_known(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0recald-test-" + str(os.getpid()))
        listener.listen(1)
        assert daemon.state.lock._owner("\0recald-test-" + str(os.getpid())) == os.getuid()
    assert daemon.state.lock._owner("\0recald-test-" + str(os.getpid())) is None
