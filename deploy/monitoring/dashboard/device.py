"""The row of one device: what all its cameras share."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboard.parts import (
    DEVICE,
    GREEN,
    RED,
    YELLOW,
    About,
    coloured,
    lines,
    listing,
    newest,
    number,
    query,
    rows,
    series,
)

DAY_S = 86_400


def device() -> list[Any]:
    """Return the panels of the row."""
    return [_disk(), _memory(), _audit(), _clock(), _overruns(), _faults(), _certificate(), _in_force(), _starts()]


def _disk() -> Any:
    text = "Free share of the disk with the state directory. On a full disk no new homogenizer serves."
    free, size = (series(f"recald_state_directory_{what}_bytes", *DEVICE) for what in ("free", "size"))
    panel = number(About("Free disk", text, "percentunit", width=4, height=6), newest(f"{free} / {size}", "free"))
    return coloured(panel, (None, RED), (0.05, YELLOW), (0.15, GREEN))


def _memory() -> Any:
    text = "Memory of the daemon, of the frames that it keeps, and of its worker processes for checks and fits."
    whole = query(series("process_resident_memory_bytes", *DEVICE), "daemon")
    frames = query(f"sum({series('recald_reservoir_bytes', *DEVICE)})", "kept frames")
    workers = query(series("recald_worker_resident_bytes", *DEVICE), "{{worker}}")
    return lines(About("Memory", text, "bytes", width=5, height=6), whole, frames, workers).min(0)


def _audit() -> Any:
    text = "1 while the audit log can be written. At 0 no new homogenizer serves."
    panel = number(
        About("Audit log", text, "none", width=3, height=6),
        newest(series("recald_audit_writable", *DEVICE), "writable"),
    )
    return coloured(panel, (None, RED), (1, GREEN))


def _clock() -> Any:
    text = "The device's clock less that of Prometheus. A value of less than the scrape interval means nothing."
    ahead = newest(f"{series('recald_clock_timestamp_seconds', *DEVICE)} - time()", "ahead")
    panel = number(About("Clock", text, "s", width=3, height=6), ahead)
    return coloured(panel, (None, RED), (-120, GREEN), (120, RED))


def _overruns() -> Any:
    text = "How often a reader of results fell so far behind within one hour that it lost some."
    behind = newest(f"increase({series('recald_result_overruns_total', *DEVICE)}[1h])", "overruns")
    panel = number(About("Slow readers", text, "none", width=3, height=6), behind)
    return coloured(panel, (None, GREEN), (1, YELLOW))


def _faults() -> Any:
    text = "Unexpected exceptions in threads of recald within one day. Any: keep the log."
    faults = newest(f"sum(increase({series('recald_thread_faults_total', *DEVICE)}[1d])) or vector(0)", "faults")
    panel = number(About("Faults", text, "none", width=3, height=6), faults)
    return coloured(panel, (None, GREEN), (1, RED))


def _certificate() -> Any:
    text = "Time until the certificate of the metrics port ends; nothing where it speaks plain HTTP."
    left = f"{series('recald_certificate_expiry_timestamp_seconds', *DEVICE)} - time()"
    panel = number(About("Certificate", text, "s", width=3, height=6), newest(f"{left} > -Inf", "ends in"))
    return coloured(panel, (None, RED), (2 * DAY_S, YELLOW), (14 * DAY_S, GREEN))


def _starts() -> Any:
    text = "How often the process of drift checks was started within one day. It ends with recald alone: keep the log."
    selector = series("recald_worker_starts_total", *DEVICE, 'worker="checks"')
    panel = number(
        About("Check processes", text, "none", width=3, height=4), newest(f"increase({selector}[1d])", "starts")
    )
    return coloured(panel, (None, GREEN), (3, YELLOW))


def _in_force() -> Any:
    text = "Versions, model and configuration in force. Two devices with the same digest are configured alike."
    columns = {
        "version": "recald",
        "torch": "PyTorch",
        "backend": "backend",
        "digest": "configuration",
        "mode": "mode",
        "Value #C": "commissioned",
    }
    infos = ("recald_build_info", "recald_config_info", "recald_model_commissioned")
    queries = (rows(series(info, *DEVICE)) for info in infos)
    return listing(About("In force", text, "none", width=21, height=4), *queries, columns=columns)
