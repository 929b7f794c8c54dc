import json
import os
import signal
import socket as unix
import stat
import subprocess
import sys
import threading
import time

import pytest
import zmq

from calibrate.errors import RecaldError
from daemon.exit_codes import TemporaryError
from daemon.operator.control import MAX_REQUEST_BYTES, ControlError, ControlServer, NoAnswerError, ask, request
from daemon.operator.peer import user_name

WAIT = 5.0


def answer(message: dict) -> dict:
    match message["command"]:
        case "status":
            return {"sensors": ["front"], "asked": message}
        case "approve":
            raise RecaldError("there is no candidate to approve")
        case "rollback":
            raise TemporaryError("the daemon is busy")
        case "crash":
            raise KeyError("a fault of ours")
        case "unsendable":
            return {"path": os}
    raise ValueError("unknown command")


@pytest.fixture
def endpoint(tmp_path):
    return f"ipc://{tmp_path}/run/control"


@pytest.fixture
def faults():
    return []


@pytest.fixture
def server(context, endpoint, faults):
    server = ControlServer(context, endpoint, answer, faults.append)
    server.start()
    yield server
    server.close()


def test_a_request_is_answered(server, endpoint):
    assert request(endpoint, {"command": "status", "sensor": "front"}, WAIT) == {
        "ok": True,
        "sensors": ["front"],
        "asked": {"command": "status", "sensor": "front", "peer": [user_name(os.getuid()), os.getpid()]},
    }


def test_the_peer_is_who_the_kernel_says_and_not_who_the_client_says(context, folder):
    """Another process, of another user where this one may become one, sends a name and a peer of its own."""
    endpoint = f"ipc://{folder}/control"
    server = ControlServer(context, endpoint, answer)
    server.start()
    folder.chmod(0o755)
    (folder / "control").chmod(0o666)
    code = f"""
import os, zmq
socket = zmq.Context().socket(zmq.REQ)
if os.getuid() == 0:
    os.setuid(65534)
socket.connect({endpoint!r})
socket.send(b'{{"command": "status", "by": "root", "peer": ["root", 1]}}')
print(os.getpid(), os.getuid(), socket.recv().decode(), flush=True)
"""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    finally:
        server.close()
    pid, uid, reply = done.stdout.split(maxsplit=2)
    assert json.loads(reply)["asked"]["peer"] == [user_name(int(uid)), int(pid)]


def test_a_user_without_a_name_has_a_number():
    assert user_name(4_000_000_000) == "uid 4000000000"


def test_where_the_kernel_knows_no_user_none_is_named(context, open_peer):
    server = ControlServer(context, "tcp://127.0.0.1:*", answer)
    server.start()
    try:
        assert request(server.endpoint, {"command": "status"}, WAIT)["asked"]["peer"] == ["unknown", None]
    finally:
        server.close()


def test_a_refusal_says_why(server, endpoint):
    refused = request(endpoint, {"command": "approve"}, WAIT)
    assert refused == {"ok": False, "error": "there is no candidate to approve", "temporary": False}
    with pytest.raises(ControlError, match="no candidate") as raised:
        ask(endpoint, {"command": "approve"}, WAIT)
    assert not isinstance(raised.value, TemporaryError)


def test_a_daemon_that_is_too_busy_says_that_another_try_may_succeed(server, endpoint):
    with pytest.raises(NoAnswerError, match="the daemon is busy"):
        ask(endpoint, {"command": "rollback"}, WAIT)


@pytest.mark.parametrize("command", ["crash", "unsendable"])
def test_a_fault_in_a_command_is_answered_logged_counted_and_survived(server, endpoint, command, caplog, faults):
    refused = request(endpoint, {"command": command}, WAIT)
    assert not refused["ok"] and "internal error" in refused["error"]
    assert caplog.records[0].exc_info and faults == ["control"]
    assert request(endpoint, {"command": "status"}, WAIT)["ok"]


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"status"],
        [b"[]"],
        [b"{}"],
        [b'{"command": 1}'],
        [b"\xff\xfe"],
        [b"[" * 50_000],
        [b'{"command": "status"', b"}"],
    ],
)
def test_malformed_requests_are_answered_and_survived(server, endpoint, open_peer, parts):
    client = open_peer(zmq.REQ, connect=endpoint)
    client.send_multipart(parts)
    refused = json.loads(client.recv())
    assert not refused["ok"] and "command" in refused["error"]
    assert request(endpoint, {"command": "status"}, WAIT)["ok"]


def test_an_oversize_request_is_survived(server, endpoint, open_peer):
    open_peer(zmq.REQ, connect=endpoint).send(b" " * (MAX_REQUEST_BYTES + 1))
    assert request(endpoint, {"command": "status"}, WAIT)["ok"]


def test_a_client_that_leaves_without_its_answer_is_survived(server, endpoint, open_peer):
    client = open_peer(zmq.REQ, connect=endpoint)
    client.send(b'{"command": "status"}')
    client.close()
    assert request(endpoint, {"command": "status"}, WAIT)["ok"]


def test_many_clients_at_once_get_their_own_answers(server, endpoint):
    def ask(number: int) -> None:
        answers[number] = request(endpoint, {"command": "status", "number": number}, WAIT)["asked"]["number"]

    answers: dict[int, int] = {}
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: number for number in range(8)}


def test_only_the_owner_may_use_socket_and_folder(server, tmp_path):
    assert stat.S_IMODE((tmp_path / "run" / "control").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


def test_a_living_daemon_keeps_its_socket(context, server, endpoint):
    with pytest.raises(OSError, match="another recald answers on"):
        ControlServer(context, endpoint, answer)
    assert request(endpoint, {"command": "status"}, WAIT)["ok"]


def test_a_hung_daemon_keeps_its_socket(context, endpoint):
    hung = ControlServer(context, endpoint, answer)  # bound, but nobody reads
    with pytest.raises(OSError, match="another recald answers on"):
        ControlServer(context, endpoint, answer)
    hung.close()


def test_the_socket_of_a_killed_daemon_is_replaced(context, endpoint, tmp_path):
    lines = [
        "import time, zmq",
        "from daemon.operator.control import ControlServer",
        f"server = ControlServer(zmq.Context(), {endpoint!r}, dict)",
        "print('bound', flush=True)",
        "time.sleep(60)",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"bound\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "run" / "control").is_socket()
    server = ControlServer(context, endpoint, answer)
    server.start()
    assert request(endpoint, {"command": "status"}, WAIT)["ok"]
    server.close()


def test_other_bind_errors_stay_os_errors(context, tmp_path):
    (tmp_path / "control").write_text("a file")
    with pytest.raises(OSError, match="not a socket"):
        ControlServer(context, f"ipc://{tmp_path}/control", answer)


def test_a_missing_daemon_is_reported_at_once(endpoint):
    started = time.monotonic()
    with pytest.raises(NoAnswerError, match="is it running"):
        request(endpoint, {"command": "status"}, 60)
    assert time.monotonic() - started < 30


def test_a_hung_daemon_is_given_up_after_the_timeout(context, endpoint):
    hung = ControlServer(context, endpoint, answer)
    with pytest.raises(NoAnswerError, match=r"within 0\.1 s"):
        request(endpoint, {"command": "status"}, 0.1)
    hung.close()


def test_a_socket_that_is_not_zeromq_is_given_up(tmp_path):
    with unix.socket(unix.AF_UNIX) as other:
        other.bind(str(tmp_path / "control"))
        other.listen()
        with pytest.raises(NoAnswerError, match="no answer"):
            request(f"ipc://{tmp_path}/control", {"command": "status"}, 0.1)


@pytest.mark.parametrize("reply", [b"hello", b"[]", b"{}", b"[" * 60_000])
def test_a_stranger_on_the_endpoint_is_recognised(open_peer, tmp_path, reply):
    endpoint = f"ipc://{tmp_path}/control"
    stranger = open_peer(zmq.REP, bind=endpoint)

    def respond() -> None:
        stranger.recv()
        stranger.send(reply)

    thread = threading.Thread(target=respond)
    thread.start()
    with pytest.raises(ControlError, match="is not recald"):
        request(endpoint, {"command": "status"}, WAIT)
    thread.join()


def test_loopback_ports_work_too(context):
    server = ControlServer(context, "tcp://127.0.0.1:*", answer)
    server.start()
    assert request(server.endpoint, {"command": "status"}, WAIT)["ok"]
    server.close()
