"""Exit codes of every recald process, from sysexits.h, and the rule by which an error gets its code.

EX_TEMPFAIL: what was written is right, and the same command may succeed later. It is the code of every OSError and
TemporaryError: a port, a socket, a file of the state directory, a disk or a GPU that cannot be used now; no daemon
answers; the daemon is busy. A place that is taken has this code, whichever socket or folder it is.

EX_CONFIG: the command would fail again until somebody changes the configuration, the model, its card, the envelope,
the installation or the arguments. It is the code of every other RecaldError, so also of an order that is refused.

EX_SOFTWARE: any other exception, of any command. recald is wrong, and not what it was given.

The verdicts of `recald check` have codes of their own; a camera that is well has 0.

The systemd unit names the same numbers.
"""

from __future__ import annotations

import errno
import signal

from calibrate.errors import RecaldError

EX_SOFTWARE = 70  # a fault in recald, with its traceback: systemd restarts the service
EX_TEMPFAIL = 75  # try again: systemd restarts the service
EX_CONFIG = 78  # would fail again: systemd does not restart it (RestartPreventExitStatus=)
EX_INTERRUPTED = 128 + signal.SIGINT

# Verdicts of `recald check`: far from the codes of sysexits.h and of shells, and apart from 1 and 2.
EX_CONTENT_SHIFT = 10  # the camera is as it was, what it shows is unusual
EX_DEGRADED = 20  # a recalibration repairs the camera, or is to be tried: nobody knows yet that it does not
EX_BEYOND_REPAIR = 21  # a recalibration was tried and does not help: a person has to look


class TemporaryError(RecaldError):
    """Another try may succeed, with nothing changed. The message says what is in the way."""


ADVICE = {
    errno.EACCES: " (check the owner of the directory)",
    errno.EROFS: " (make the disk writable, or take another one)",
    errno.ENOSPC: " (free some space)",
}


def exit_code(error: RecaldError | OSError) -> int:
    """Return the code of a process that ends with this error."""
    return EX_TEMPFAIL if isinstance(error, TemporaryError | OSError) else EX_CONFIG


def error_text(error: RecaldError | OSError) -> str:
    """Return the text of an error, without what a terminal would obey: file names may be anything."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # str() would lead with "[Errno 17]"
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        text += ADVICE.get(error.errno or 0, "")
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in text.split("\n"))
