import errno
import socket as unix
import stat

import pytest
import zmq

from daemon.zmq_sockets import bind, connect, open_socket


@pytest.fixture
def socket(context):
    socket = open_socket(context, zmq.PULL)
    yield socket
    socket.close()


def test_the_real_port_is_returned_for_a_star(socket, open_peer):
    endpoint = bind(socket, "tcp://127.0.0.1:*")
    open_peer(zmq.PUSH, connect=endpoint).send(b"hello")
    assert socket.poll(5000) and socket.recv() == b"hello"


def test_a_taken_port_is_an_os_error_that_names_it(context, socket):
    endpoint = bind(socket, "tcp://127.0.0.1:*")
    second = open_socket(context, zmq.PULL)
    with pytest.raises(OSError, match=endpoint) as caught:
        bind(second, endpoint)
    assert caught.value.errno == errno.EADDRINUSE
    assert second.closed


def test_a_missing_folder_is_made_for_this_user_alone(socket, tmp_path):
    bind(socket, f"ipc://{tmp_path}/absent/frames")
    assert stat.S_IMODE((tmp_path / "absent").stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_an_os_error(socket, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot bind ipc://.*: File exists"):
        bind(socket, f"ipc://{tmp_path}/file/frames")


def test_a_path_that_is_too_long_is_an_os_error(socket):
    with pytest.raises(OSError, match="too long"):
        bind(socket, "ipc:///tmp/" + "x" * 200)


def test_a_connect_to_nowhere_is_an_os_error(socket):
    with pytest.raises(OSError, match="cannot connect tcp://"):
        connect(socket, "tcp://no-port")
    assert socket.closed


def test_the_socket_file_of_a_running_process_is_not_taken_over(context, socket, open_peer, tmp_path):
    endpoint = bind(socket, f"ipc://{tmp_path}/frames")
    with pytest.raises(OSError, match="in use"):
        bind(open_socket(context, zmq.PULL), endpoint)
    open_peer(zmq.PUSH, connect=endpoint).send(b"still here")
    assert socket.poll(5000)


def test_a_dead_socket_file_is_replaced(socket, open_peer, tmp_path):
    with unix.socket(unix.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "frames"))
    open_peer(zmq.PUSH, connect=bind(socket, f"ipc://{tmp_path}/frames")).send(b"hello")
    assert socket.poll(5000)


def test_a_file_that_is_no_socket_is_not_deleted(socket, tmp_path):
    precious = tmp_path / "frames"
    precious.write_text("precious")
    with pytest.raises(OSError, match="not a socket"):
        bind(socket, f"ipc://{precious}")
    assert precious.read_text() == "precious"
