"""The control socket: JSON requests to a running daemon, and their answers."""

from __future__ import annotations

import errno
import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from calibrate.errors import RecaldError
from daemon.exit_codes import TemporaryError
from daemon.model.labels import LabelError
from daemon.operator.peer import peer_of
from daemon.zmq_sockets import bind, connect, ipc_path, open_socket, probe

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 * 1024
CONTROL_POLL_MS = 100  # the longest time that close() waits for the thread

Handler = Callable[[dict[str, Any]], Mapping[str, Any]]


class ControlError(RecaldError):
    """An order that is refused, or no daemon that answers. The message says what to do.

    entry: the place of the label that is refused, from 0; None where it is not about one label.
    """

    def __init__(self, message: str, entry: int | None = None) -> None:
        super().__init__(message)
        self.entry = entry


class NoAnswerError(ControlError, TemporaryError):
    """No daemon answers, or it is too busy to."""


class ControlServer:
    """Answers requests from `start()` until `close()`, in a thread of its own.

    `handler` gets {"command": ..., "peer": Peer, ...} in that thread and returns what is added to {"ok": true}; its
    RecaldError becomes {"ok": false, "error": ...}. The peer is who the kernel says it is.
    """

    def __init__(
        self,
        context: zmq.Context,
        endpoint: str,
        handler: Handler,
        on_fault: Callable[[str], None] = lambda part: None,
    ):
        """Raises OSError when another daemon uses the endpoint, or when it cannot be bound.

        on_fault: called with a label of recald_handled_faults_total.
        """
        self._handler, self._on_fault = handler, on_fault
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._socket = open_socket(context, zmq.REP)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
        self.endpoint = _bind_private(self._socket, endpoint)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and close the socket."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._socket.poll(CONTROL_POLL_MS):
                self._socket.send(self._answer(self._socket.recv_multipart(copy=False)))

    def _answer(self, frames: list[zmq.Frame]) -> bytes:
        try:
            reply = self._handler(_read_request([frame.bytes for frame in frames]) | {"peer": peer_of(frames[-1])})
            return json.dumps({**reply, "ok": True}).encode()
        except TemporaryError as error:
            return _refusal(str(error), temporary=True)
        except LabelError as error:
            return _refusal(str(error), entry=error.entry)
        except RecaldError as error:
            return _refusal(str(error))
        except Exception as error:  # an error in one command must not disable rollback and status
            log.exception("a control command failed")
            self._on_fault("control")
            return _refusal(f"internal error, see the log: {type(error).__name__}: {error}")


def _bind_private(socket: zmq.Socket, endpoint: str) -> str:
    """Bind so that only this user can connect; returns the endpoint as bound."""
    try:
        bound = bind(socket, endpoint)
    except OSError as error:
        raise explain_taken(endpoint, error) from None
    path = ipc_path(endpoint)
    if path is not None:
        path.chmod(0o600)
    return bound


def explain_taken(endpoint: str, error: OSError) -> OSError:
    """Return the error of a control endpoint that cannot be bound, with what to do where another daemon has it."""
    if error.errno != errno.EADDRINUSE:
        return error
    message = f"another recald answers on {endpoint}: stop it first, or set another control.endpoint"
    return OSError(error.errno, message)


def _read_request(parts: list[bytes]) -> dict[str, Any]:
    try:
        request = json.loads(b"".join(parts)) if len(parts) == 1 else None
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise RecaldError('a request is one JSON object with a command, such as {"command": "status"}')
    return request


def _refusal(message: str, temporary: bool = False, entry: int | None = None) -> bytes:
    place = {} if entry is None else {"entry": entry}
    return json.dumps({"ok": False, "error": message, "temporary": temporary} | place).encode()


def request(endpoint: str, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Send one request and return the answer, a refusal too. Raises ControlError when none comes in `timeout` s."""
    with zmq.Context() as context, open_socket(context, zmq.REQ) as socket:
        _connect(socket, endpoint)
        socket.send(json.dumps(message).encode())
        if not socket.poll(round(timeout * 1000)):
            raise NoAnswerError(f"no answer on {endpoint} within {timeout:g} s: {_advice(message)}")
        return _read_answer(socket.recv(), endpoint)


def _advice(message: Mapping[str, Any]) -> str:
    if message.get("command") == "status":
        return "is recald running?"
    return "the order may still be carried out: look at `recald history` before you give it again"


def ask(endpoint: str, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Send one request and return the answer. Raises ControlError when none comes in time, or for a refusal."""
    answer = request(endpoint, message, timeout)
    if not answer["ok"]:
        error = NoAnswerError if answer.get("temporary") else ControlError
        reason = str(answer.get("error", f"recald refused {message['command']} and gave no reason"))
        raise error(reason, answer.get("entry"))
    return answer


def _connect(socket: zmq.Socket, endpoint: str) -> None:
    path = ipc_path(endpoint)
    try:
        if path is not None:
            probe(path)  # libzmq alone would try until the timeout, and give no reason
        connect(socket, endpoint)
    except OSError as error:
        raise NoAnswerError(f"no recald answers on {endpoint} ({error.strerror or error}): is it running?") from error


def _read_answer(data: bytes, endpoint: str) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise ControlError(f"the program that answers on {endpoint} is not recald")
    return answer
