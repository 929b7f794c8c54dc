"""Inject faults at the system calls by which a process changes files: under ptrace the call is killed or refused.

All calls are counted in their order, those of SQLite's C code too. So a write that is new in the code is tested without
being named here. Linux on x86-64 only: a fault is written into the registers of the processor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from power import Unsynced

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"
TRACEME, POKEUSER, CONTINUE, SYSCALL, SETOPTIONS, SYSCALL_INFO = 0, 6, 7, 24, 0x4200, 0x420E  # linux/ptrace.h
OPTIONS = 1 << 7 | 1 << 20  # stop at the calls that the filter selects; kill the child if the tracer ends
INFO = struct.Struct("<BxxxIQQ7Q")  # op, architecture, instruction and stack pointer, call number, its arguments
NO_NEW_PRIVILEGES, SET_FILTER, FILTER = 38, 22, 2  # linux/prctl.h
BPF_LOAD, BPF_IF_EQUAL, BPF_RETURN, STOP, ALLOW = 0x20, 0x15, 0x06, 0x7FF00000, 0x7FFF0000  # linux/bpf.h, seccomp.h
RAX, RDX, ORIG_RAX = (8 * place for place in (10, 12, 15))  # in struct user: return value, third argument, call number
NO_CALL = (1 << 64) - 1
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

WITH_DESCRIPTOR = {1: "write", 18: "pwrite", 20: "writev", 74: "fsync", 75: "fdatasync", 77: "ftruncate"}
WITH_DESCRIPTOR |= {285: "fallocate"}
WITH_PATH = {76: ("truncate", 0), 83: ("mkdir", 0), 84: ("rmdir", 0), 85: ("open", 0), 87: ("unlink", 0)}
WITH_PATH |= {258: ("mkdir", 1), 263: ("unlink", 1)}  # name of the call, and which argument is the path
WITH_TARGET = {
    82: ("rename", 0, 1),
    86: ("link", 0, 1),
    264: ("rename", 1, 3),
    265: ("link", 1, 3),
    316: ("rename", 1, 3),
}
WITH_FLAGS = {
    2: ("open", 0, WRITES),
    257: ("open", 1, WRITES),
}  # which argument is the path, and the flags with which a file may change
WITH_FLAGS |= {21: ("access", 0, os.W_OK), 269: ("access", 1, os.W_OK), 439: ("access", 1, os.W_OK)}
NEEDS_SPACE = ("open", "write", "pwrite", "writev", "mkdir", "rename", "fallocate", "link")

KILLS = ("killed", "torn", "power cut")
FAULTS = (*KILLS, "refused", "full", "read-only")
LASTING = ("full", "read-only")


class Step(NamedTuple):
    """A system call that changes files. `target`: the new path of a rename."""

    call: str
    path: str
    target: str


@dataclass
class Run:
    """The steps of a run up to its fault. ended_well: the process exited with 0. met: the fault was injected."""

    steps: list[Step] = field(default_factory=list)
    ended_well: bool = False
    met: bool = False


def applies(fault: str, step: Step) -> bool:
    """Check that a fault can happen at a step: only a write can be half done, and removing needs no space."""
    if fault == "torn":
        return step.call in ("write", "pwrite")
    return fault != "full" or step.call in NEEDS_SPACE


def run(work: Callable[[], None], folder: Path, fault: str = "", at: int = -1) -> Run:
    """Run `work` in a child process, with a fault at step number `at`. Steps are calls that change files in `folder`.

    "killed": before the step, which is the same as after the previous step. "torn": after half of its bytes.
    "power cut": killed, and what was not synced is undone. "refused": one error of the disk. "full", "read-only": the
    disk stays so from this step on.
    """
    child = os.fork()
    if child == 0:
        _do(work)
    os.waitpid(child, 0)
    _ptrace(SETOPTIONS, child, 0, OPTIONS)
    return _Tracer(child, str(folder), fault, at).watch()


def _do(work: Callable[[], None]) -> None:
    try:
        _ptrace(TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _pick_calls()
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _pick_calls() -> None:
    """Let this process stop at the calls named above. To stop at every call would take long."""
    numbers = [*WITH_DESCRIPTOR, *WITH_PATH, *WITH_TARGET, *WITH_FLAGS]
    program = [(BPF_LOAD, 0, 0, 0)]
    program += [(BPF_IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    program += [(BPF_RETURN, 0, 0, ALLOW), (BPF_RETURN, 0, 0, STOP)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    head = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    if _libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or _libc.prctl(SET_FILTER, FILTER, ctypes.byref(head), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")


class _Tracer:
    def __init__(self, child: int, folder: str, fault: str, at: int) -> None:
        self._child, self._folder, self._fault, self._at = child, folder, fault, at
        self._run, self._unsynced = Run(), Unsynced()

    def watch(self) -> Run:
        while (call := self._next_call()) is not None:
            step = self._step(*call)
            if step is None:
                continue
            self._run.steps.append(step)
            if self._is_due(len(self._run.steps) - 1) and applies(self._fault, step):
                self._run.met = True
                self._strike()
            if self._fault == "power cut" and not self._run.met:
                self._unsynced.note(step.call, Path(step.path), Path(step.target))
        if self._fault == "power cut":
            self._unsynced.take_back()
        return self._run

    def _is_due(self, number: int) -> bool:
        return number == self._at or (number > self._at >= 0 and self._fault in LASTING)

    def _strike(self) -> None:
        if self._fault in ("killed", "power cut"):
            self._set(ORIG_RAX, NO_CALL)  # else the kernel may still execute the call
            self._kill()
        elif self._fault == "torn":
            self._set(RDX, self._third // 2)
            self._resume(SYSCALL)
            self._kill()
        else:
            number = {"refused": errno.EIO, "full": errno.ENOSPC, "read-only": errno.EROFS}[self._fault]
            self._set(ORIG_RAX, NO_CALL)
            self._resume(SYSCALL)
            self._set(RAX, (1 << 64) - number)

    def _kill(self) -> None:
        os.kill(self._child, signal.SIGKILL)

    def _next_call(self) -> tuple[int, list[int]] | None:
        """Wait for the next system call of the child; returns its number and arguments, None after its end."""
        if not self._resume(CONTINUE):
            return None
        data = ctypes.create_string_buffer(128)
        _ptrace(SYSCALL_INFO, self._child, len(data), ctypes.addressof(data))
        *_, number, first, second, third, fourth, _, _ = INFO.unpack_from(data.raw)
        self._third = third
        return number, [first, second, third, fourth]

    def _resume(self, request: int) -> bool:
        """Let the child run to its next stop; returns False if it has ended."""
        with suppress(ProcessLookupError):  # it was killed
            _ptrace(request, self._child, 0, 0)
        _, status = os.waitpid(self._child, 0)
        self._run.ended_well = status == 0
        return os.WIFSTOPPED(status)

    def _set(self, register: int, value: int) -> None:
        _ptrace(POKEUSER, self._child, register, value)

    def _step(self, number: int, arguments: list[int]) -> Step | None:
        target = ""
        if number in WITH_DESCRIPTOR:
            name, path = WITH_DESCRIPTOR[number], os.readlink(f"/proc/{self._child}/fd/{arguments[0]}")
        elif number in WITH_PATH:
            name, place = WITH_PATH[number]
            path = self._text(arguments[place])
        elif number in WITH_TARGET:
            name, *places = WITH_TARGET[number]
            path, target = (self._text(arguments[place]) for place in places)
        else:
            name, place, flags = WITH_FLAGS[number]
            path = self._text(arguments[place]) if arguments[place + 1] & flags else ""
        return Step(name, path, target) if path.startswith(self._folder) else None

    def _text(self, address: int) -> str:
        with open(f"/proc/{self._child}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(512).partition(b"\0")[0].decode()


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, process: int, address: int, data: int) -> None:
    ctypes.set_errno(0)
    if _libc.ptrace(request, process, address, data) < 0 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}: {os.strerror(ctypes.get_errno())}")
