"""metrics.md: every metric, from the registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry

from daemon.metrics import Metrics
from docs.labels import LABEL_VALUES
from docs.markdown import table


def metrics() -> str:
    """Describe every metric: type, labels, unit, meaning, and the values of its labels."""
    registry = CollectorRegistry()
    families = [metric for metric in vars(Metrics(registry)).values() if hasattr(metric, "_labelnames")]
    parts = [
        "# Metrics",
        "`http://127.0.0.1:9748/metrics`, for Prometheus ([`metrics`](configuration.md#metrics) in the configuration). "
        "A counter only rises until a restart. A histogram has the series `_bucket`, `_sum` and `_count`. The label "
        "`sensor` is the id of the camera; frames that name no configured sensor count under `unknown`. Counters and "
        "histograms begin at 0 with all values of their labels that are known. [Watch recald](monitoring.md) has alert "
        "rules and a dashboard. Beside these the endpoint has the metrics of the daemon's own process, `process_` "
        "(`process_cpu_seconds_total`, `process_resident_memory_bytes` ...) and `python_`.",
        "`recald_gpu_` comes from NVIDIA's driver where the extra `gpu` is installed (`pip install '.[gpu]'`), and on "
        "a Jetson from `/sys`. A thread of its own asks every 5 s; after 20 s without an answer the series are gone "
        "until the driver answers again. `gpu` is the driver's number of the card, at most 8 of them.",
        "The histograms are classic ones: the client library for Python has no native histograms to offer.",
        table(("metric", "type", "labels", "unit", "meaning"), map(_metric_row, families)),
        "## Values of the labels",
        *_label_tables(),
        "The labels `sensor`, `version`, `torch`, `backend`, `digest`, `layer`, `label` and `gpu` are open: ids, "
        "versions, names. At most 64 layers are exported. `label` is the name of a class on the model's card, else its "
        "number; two classes of one name have the number behind it. Of more than 64 classes the first 63 have a series "
        "each.",
        "## Buckets",
        table(
            ("histogram", "upper bounds, s"),
            ((f"`{m._name}`", _buckets(m)) for m in families if m._type == "histogram"),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _metric_row(metric: Any) -> list[str]:
    kind = "enum (gauge)" if metric._type == "stateset" else metric._type
    labels = [*metric._labelnames, *([metric._name] if metric._type == "stateset" else [])]
    return [
        f"`{_full_name(metric)}`",
        kind,
        " ".join(f"`{label}`" for label in labels),
        _unit(_full_name(metric)),
        metric._documentation,
    ]


def _full_name(metric: Any) -> str:
    return metric._name + ("_total" if metric._type == "counter" else "")


def _unit(name: str) -> str:
    units = {
        "_timestamp_seconds": "s since 1970",
        "_cpu_seconds_total": "s",
        "_celsius": "°C",
        "_seconds": "s",
        "_bytes": "bytes",
        "_ratio": "0 to 1",
        "_total": "count",
        "_info": "1",
        "drift_score": "standard errors",
        "_deviations": "standard deviations",
        "camera_read_out": "of its kind",
        "content_shift_score": "none",
        "drift_threshold": "standard errors",
        "budget_left": "count",
    }
    return next((unit for suffix, unit in units.items() if name.endswith(suffix)), "0 or 1")


def _label_tables() -> Iterator[str]:
    for (metric, label), values in LABEL_VALUES.items():
        yield f"### {metric}\n\nLabel `{label}`; these are all values."
        yield table(("value", "meaning"), ((f"`{value}`", meaning) for value, meaning in values.items()))


def _buckets(metric: Any) -> str:
    return " ".join(f"{bound:g}" for bound in metric._kwargs["buckets"])
