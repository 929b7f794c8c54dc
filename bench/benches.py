"""The benches by name: `python -m bench NAME`."""

from __future__ import annotations

from types import ModuleType

from bench import (
    cameras,
    corruptions,
    curve,
    demo,
    dense,
    drifts,
    fit,
    handover,
    latency,
    mixes,
    overhead,
    peers,
    precision,
    proxy,
    readouts,
    speed,
    watch,
)
from bench.attack import measure as attack
from bench.drift import measure as drift
from bench.gpu import measure as gpu
from bench.intake import measure as intake
from bench.judge import measure as judge
from bench.paper import measure as paper
from bench.streams import measure as streams
from bench.swap import measure as swap

# Each module has a docstring whose first line is its claim, CODE (globs of the sources that its result depends on),
# `add_arguments(parser)` and `measure(args) -> results`.
BENCHES: dict[str, ModuleType] = {
    "demo": demo,
    "fit": fit,
    "curve": curve,
    "speed": speed,
    "peers": peers,
    "cameras": cameras,
    "mixes": mixes,
    "corruptions": corruptions,
    "drift": drift,
    "drifts": drifts,
    "judge": judge,
    "proxy": proxy,
    "readouts": readouts,
    "dense": dense,
    "streams": streams,
    "paper": paper,
    "latency": latency,
    "handover": handover,
    "watch": watch,
    "attack": attack,
    "swap": swap,
    "intake": intake,
    "overhead": overhead,
    "precision": precision,
    "gpu": gpu,
}


def claim(name: str) -> str:
    """Return the claim that a bench measures: the first line of its docstring."""
    text = BENCHES[name].__doc__
    assert text is not None
    return text.partition("\n")[0]
