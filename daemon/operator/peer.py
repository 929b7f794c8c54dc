"""Who is at the other end of the control socket: the kernel says it (unix(7), SO_PEERCRED), not the client."""

from __future__ import annotations

import pwd
from typing import NamedTuple

import zmq

from daemon.operator.terminal import printable

MAX_NAME_CHARS = 64  # of a name that a client gives
NOBODY_KNOWN = "unknown"  # over TCP, as only tests use it, the kernel knows no user


class Peer(NamedTuple):
    """The user of a client, and its process; None where the kernel does not know."""

    user: str = NOBODY_KNOWN
    pid: int | None = None


def peer_of(frame: zmq.Frame) -> Peer:
    """Return who sent a message.

    libzmq asks the kernel when a client connects over ipc://, and notes the answer as the address NAME:UID:GID:PID.
    """
    try:
        _, uid, _, pid = str(frame.get("Peer-Address")).rsplit(":", 3)
        return Peer(user_name(int(uid)), int(pid))
    except (zmq.ZMQError, ValueError):
        return Peer()


def user_name(uid: int) -> str:
    """Return the name of a user."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # in a container a user may have no name
        return f"uid {uid}"


def claimed_name(given: object) -> str:
    """Return the name that a client gives itself, short and printable; "" where it gives none."""
    return printable(given)[:MAX_NAME_CHARS] if isinstance(given, str) else ""
