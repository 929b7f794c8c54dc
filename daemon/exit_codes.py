"""Exit codes of every recald process, from sysexits.h; the systemd unit names the same numbers."""

from __future__ import annotations

EX_SOFTWARE = 70  # a fault in recald that ended one of its threads: systemd restarts the service
EX_TEMPFAIL = 75  # try again: systemd restarts the service
EX_CONFIG = 78  # would fail again: systemd does not restart it (RestartPreventExitStatus=)
