"""Endpoints in a configuration: which ones are allowed, and which ones exclude one another."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import combinations
from typing import NamedTuple

MAX_IPC_PATH_BYTES = 107  # sun_path of a UNIX socket holds 108 with the terminating zero
EVERY_ADDRESS = "0.0.0.0"
LOOPBACK_PREFIX = "127."

# allow_remote stands at the top of the file, and the endpoints it permits stand deep inside it. A validator sees only
# its own value, so the root puts the permission here before the endpoints are checked.
_remote_allowed: ContextVar[bool] = ContextVar("remote_allowed", default=False)


@contextmanager
def remote_allowed(allowed: bool) -> Iterator[None]:
    """Let the checks of this thread accept endpoints that other machines can reach, while the block runs."""
    token = _remote_allowed.set(allowed)
    try:
        yield
    finally:
        _remote_allowed.reset(token)


def check_ipc(endpoint: str) -> str:
    """Return the endpoint if it is ipc://PATH. Raises ValueError."""
    path = endpoint.removeprefix("ipc://")
    if path == endpoint or not path or path[0] in "@*":  # neither has a file whose mode protects it
        raise ValueError(f"{endpoint[:60]!r} is not ipc://PATH")
    if len(path.encode()) > MAX_IPC_PATH_BYTES:
        raise ValueError(f"the path has {len(path.encode())} bytes, a UNIX socket takes {MAX_IPC_PATH_BYTES}")
    return endpoint


def check_bind(endpoint: str) -> str:
    """Return the endpoint if recald may open it. Raises ValueError."""
    if not endpoint.startswith("tcp://"):
        return check_ipc(endpoint)
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if port != "*" and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise ValueError(f"{endpoint[:60]!r} is not tcp://HOST:PORT with a port from 1 to 65535, or *")
    check_host("0.0.0.0" if host == "*" else host)
    return endpoint


def check_connect(endpoint: str) -> str:
    """Return the endpoint if recald may connect to it. Raises ValueError."""
    if "*" in endpoint:
        raise ValueError(f"{endpoint[:60]!r} names no place to connect to: * works with bind only")
    return check_bind(endpoint)


def check_name(name: str) -> str:
    """Return the name if it is a host name. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,253}", name, re.ASCII):
        raise ValueError(f"{name[:60]!r} is not an IPv4 address or a host name")
    return name


def check_host(host: str) -> str:
    """Return the host if it is of this machine, or others are allowed. Raises ValueError."""
    check_name(host)
    if not _is_loopback(host) and not _remote_allowed.get():
        raise ValueError(
            f"{host} is open to other machines, and what passes here is neither encrypted nor authenticated: "
            "use ipc:// or 127.0.0.1, or set allow_remote: true"
        )
    return host


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


# ---- endpoints that exclude one another


class Endpoint(NamedTuple):
    """key: where it stands in the configuration. opened: recald opens it; False: it connects to it."""

    key: tuple[str | int, ...]
    address: str
    opened: bool = True


def find_clash(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, str] | None:
    """Return an endpoint that another one excludes, and what to do; None where there is none."""
    for first, second in combinations(endpoints, 2):
        if _is_same_place(first, second):
            other = ".".join(map(str, first.key))
            return second, f"{second.address} is the same place as {other}, {first.address}: give each its own"
    return None


def _is_same_place(first: Endpoint, second: Endpoint) -> bool:
    if first.address.startswith("ipc://") or second.address.startswith("ipc://"):
        return _file(first) == _file(second)
    (host, port), (other_host, other_port) = _parts(first), _parts(second)
    if port != other_port or not port.isdigit():  # "*" takes a free port
        return False
    if first.opened and second.opened:
        return host == other_host or EVERY_ADDRESS in (host, other_host)
    # What recald connects to is a place of this machine only where the address says so.
    return host == other_host or any(
        opened == EVERY_ADDRESS and connected.startswith(LOOPBACK_PREFIX)
        for opened, connected in ((host, other_host), (other_host, host))
    )


def _file(endpoint: Endpoint) -> str:
    return (
        os.path.abspath(endpoint.address.removeprefix("ipc://")) if "ipc://" in endpoint.address else endpoint.address
    )


def _parts(endpoint: Endpoint) -> tuple[str, str]:
    host, _, port = endpoint.address.removeprefix("tcp://").rpartition(":")
    return {"*": EVERY_ADDRESS, "localhost": "127.0.0.1"}.get(host.lower(), host.lower()), port.lstrip("0")
