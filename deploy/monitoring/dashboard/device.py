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
    rate,
    rows,
    series,
    timeline,
)

DAY_S = 86_400


def device() -> list[Any]:
    """Return the panels of the row."""
    return [
        _disk(),
        _audit(),
        _clock(),
        _overruns(),
        _certificate(),
        _starts(),
        _memory(),
        _processor(),
        _gpu(),
        _gpu_temperature(),
        _gpu_throttled(),
        _faults(),
        _handled_faults(),
        _in_force(),
    ]


def _disk() -> Any:
    text = "Free share of the disk with the state directory. On a full disk no new homogenizer serves."
    free, size = (series(f"recald_state_directory_{what}_bytes", *DEVICE) for what in ("free", "size"))
    panel = number(About("Free disk", text, "percentunit", width=4, height=5), newest(f"{free} / {size}", "free"))
    return coloured(panel, (None, RED), (0.05, YELLOW), (0.15, GREEN))


def _audit() -> Any:
    text = "1 while the audit log can be written. At 0 no new homogenizer serves."
    panel = number(
        About("Audit log", text, "none", width=4, height=5),
        newest(series("recald_audit_writable", *DEVICE), "writable"),
    )
    return coloured(panel, (None, RED), (1, GREEN))


def _clock() -> Any:
    text = "The device's clock less that of Prometheus. A value of less than the scrape interval means nothing."
    ahead = newest(f"{series('recald_clock_timestamp_seconds', *DEVICE)} - time()", "ahead")
    panel = number(About("Clock", text, "s", width=4, height=5), ahead)
    return coloured(panel, (None, RED), (-120, GREEN), (120, RED))


def _overruns() -> Any:
    text = "How often a reader of results fell so far behind within one hour that it lost some."
    behind = newest(f"increase({series('recald_result_overruns_total', *DEVICE)}[1h])", "overruns")
    panel = number(About("Slow readers", text, "none", width=4, height=5), behind)
    return coloured(panel, (None, GREEN), (1, YELLOW))


def _certificate() -> Any:
    text = "Time until the certificate of the metrics port ends; nothing where it speaks plain HTTP."
    left = f"{series('recald_certificate_expiry_timestamp_seconds', *DEVICE)} - time()"
    panel = number(About("Certificate", text, "s", width=4, height=5), newest(f"{left} > -Inf", "ends in"))
    return coloured(panel, (None, RED), (2 * DAY_S, YELLOW), (14 * DAY_S, GREEN))


def _starts() -> Any:
    text = "How often the process of drift checks was started within one day. It ends with recald alone: keep the log."
    selector = series("recald_worker_starts_total", *DEVICE, 'worker="checks"')
    about = About("Check processes", text, "none", width=4, height=5)
    return coloured(number(about, newest(f"increase({selector}[1d])", "starts")), (None, GREEN), (3, YELLOW))


def _memory() -> Any:
    text = "Memory of the daemon, of the frames that it keeps, and of its worker processes for checks and fits."
    whole = query(series("process_resident_memory_bytes", *DEVICE), "daemon")
    frames = query(f"sum({series('recald_reservoir_bytes', *DEVICE)})", "kept frames")
    workers = query(series("recald_worker_resident_bytes", *DEVICE), "{{worker}}")
    return lines(About("Memory", text, "bytes"), whole, frames, workers).min(0)


def _processor() -> Any:
    text = "Processor cores that the daemon and its worker processes for checks and fits take."
    whole = query(rate("process_cpu_seconds_total", *DEVICE), "daemon")
    workers = query(rate("recald_worker_cpu_seconds_total", *DEVICE), "{{worker}}")
    return lines(About("Processor cores", text, "none"), whole, workers).min(0)


def _gpu() -> Any:
    text = (
        "Share of the time in which the GPU computed, and share of its memory that is taken, for all processes. "
        "Nothing without a GPU; no memory on a Jetson, whose GPU shares that of the device."
    )
    busy = query(series("recald_gpu_utilization_ratio", *DEVICE), "busy {{gpu}}")
    used, total = (series(f"recald_gpu_memory_{what}_bytes", *DEVICE) for what in ("used", "total"))
    memory = query(f"{used} / {total}", "memory {{gpu}}")
    return lines(About("GPU", text, "percentunit", width=9, height=6), busy, memory).min(0).max(1)


def _gpu_temperature() -> Any:
    text = "Temperature of the GPU's chip. What it bears depends on the device: see whether it is throttled."
    heat = query(series("recald_gpu_temperature_celsius", *DEVICE), "GPU {{gpu}}")
    return lines(About("GPU temperature", text, "celsius", width=8, height=6), heat)


def _gpu_throttled() -> Any:
    text = "Times in which the GPU ran slower than it could, by reason. `power` is usual for a card at full load."
    slower = query(f"{series('recald_gpu_throttled', *DEVICE)} == 1", "{{reason}}")
    return coloured(timeline(About("GPU throttled", text, "none", width=7, height=6), slower), (None, YELLOW))


def _faults() -> Any:
    text = "Unexpected exceptions in threads of recald within one day. Any: keep the log."
    faults = newest(f"sum(increase({series('recald_thread_faults_total', *DEVICE)}[1d])) or vector(0)", "faults")
    panel = number(About("Faults", text, "none", width=4), faults)
    return coloured(panel, (None, GREEN), (1, RED))


def _handled_faults() -> Any:
    text = "Faults within one hour that recald handled and went on, by the part that did without. The log names each."
    handled = query(f"increase({series('recald_handled_faults_total', *DEVICE)}[1h])", "{{part}}")
    return lines(About("Handled faults in one hour", text, "none", width=9), handled).min(0)


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
    return listing(About("In force", text, "none", width=11), *queries, columns=columns)
