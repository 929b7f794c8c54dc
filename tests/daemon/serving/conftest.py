"""An intake with metrics, and senders in front of it."""

from __future__ import annotations

import pytest
import zmq
from prometheus_client import CollectorRegistry
from receiver import Receiver

from daemon.config import InputConfig
from daemon.metrics import Metrics


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def count(registry):
    def count(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"recald_{name}_total", labels) or 0

    return count


@pytest.fixture
def receive(context, registry):
    """Start an intake with these settings; the clock stands at NOW."""
    metrics = Metrics(registry)
    started = []

    def receive(*, start: bool = True, max_pixels: int = 10**6, monotonic=lambda: 12.5, **settings: object) -> Receiver:
        config = InputConfig(**{"pattern": "pull", "bind": ["tcp://127.0.0.1:*"], **settings})
        intake = Receiver(context, config, metrics, monotonic, max_pixels=max_pixels)
        started.append(intake)
        if start:
            intake.start()
        return intake

    yield receive
    for intake in started:
        intake.close()


@pytest.fixture
def push(open_peer):
    return lambda intake: open_peer(zmq.PUSH, connect=intake.endpoints[0])
