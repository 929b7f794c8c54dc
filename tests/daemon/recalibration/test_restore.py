"""What serves after a restart, and what is a step away."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compiled import compile_once
from envelopes import envelope_of

from calibrate.homogenizer import Homogenizer
from daemon.config import SensorConfig
from daemon.levels import PixelValues
from daemon.recalibration.envelope import Envelope
from daemon.recalibration.restore import load_withdrawn, on_probation, pixel_values, restore, serving_since
from deploy.backends.eager import EagerBackend
from deploy.model.card import InputCard
from deploy.path import InferencePath
from deploy.store.artefacts import FACTORY, ArtefactStore

MODEL, SHAPE = "a" * 64, (3, 8, 8)
BACKEND = EagerBackend()
EXAMPLE = torch.zeros(1, *SHAPE)


class Restart:
    """A state directory in which two homogenizers have served, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.store = ArtefactStore(folder)
        self.versions = [self._put(0.25), self._put(0.5)]
        for at, version in enumerate(self.versions):
            self.store.point("front", version, MODEL, float(at))
        self.model: Any = SimpleNamespace(digest=MODEL, backend=BACKEND, input_shape=SHAPE)

    def _put(self, bias: float) -> str:
        homogenizer = Homogenizer(*SHAPE).eval()
        with torch.no_grad():
            homogenizer.bias += bias
        manifest = {"model": MODEL, "versions": {"backend": BACKEND.version()}}
        return self.store.put(homogenizer, manifest, compile_once(BACKEND, homogenizer, EXAMPLE), "eager")

    def stored(self, version: str, suffix: str) -> Path:
        return self.store.root / "objects" / "sha256" / version[:2] / (version[2:] + suffix)

    def restore(self, envelope: Envelope | None = None) -> InferencePath:
        path = InferencePath(BACKEND.load(compile_once(BACKEND, torch.nn.Identity(), EXAMPLE), threads=1))
        restore("front", path, self.store, self.model, envelope)
        return path


@pytest.mark.parametrize(
    ("sensor", "bits", "inverted"),
    [({}, 12, True), ({"bits": 14}, 14, True), ({"inverted": False}, 12, False), ({"bits": 16}, 16, True)],
)
def test_what_values_mean_is_said_by_the_sensor_or_else_by_the_card(sensor, bits, inverted):
    card = InputCard(channels=1, height=8, width=8, bits=12, inverted=True)
    assert pixel_values(SensorConfig(**sensor), card) == PixelValues(bits, inverted)


@pytest.fixture
def restart(tmp_path: Path) -> Restart:
    return Restart(tmp_path)


def test_the_newest_serves_and_the_one_before_is_a_step_away(restart):
    path = restart.restore()
    assert (path.version, path.fallback) == (restart.versions[1], restart.versions[0])
    assert path.rollback() == restart.versions[0]
    assert path.rollback() == FACTORY


def test_where_the_one_before_is_gone_the_factory_one_is_a_step_away(restart):
    restart.stored(restart.versions[0], ".safetensors").unlink()
    path = restart.restore()
    assert (path.version, path.fallback) == (restart.versions[1], FACTORY)


@pytest.mark.parametrize(("limit", "serves"), [(0.5, [1, 0]), (0.4, [0]), (0.2, [])])
def test_what_is_outside_of_the_envelope_does_not_serve_again(restart, caplog, limit, serves):
    path = restart.restore(envelope_of(bias=limit))
    versions = [*(restart.versions[i] for i in serves), FACTORY, FACTORY]
    assert [path.version, path.fallback] == versions[:2]
    outside = [restart.versions[i] for i in (0, 1) if i not in serves]
    told = [record.getMessage() for record in caplog.records if "outside of envelope.yaml" in record.getMessage()]
    assert [version[:12] in line for version, line in zip(outside, told, strict=True)] == [True] * len(outside)


def test_one_that_was_compiled_of_other_weights_does_not_serve_again_within_an_envelope(restart):
    homogenizer = Homogenizer(*SHAPE).requires_grad_(False).eval()
    compiled = compile_once(BACKEND, homogenizer, EXAMPLE)
    homogenizer.bias += 0.75
    manifest = {"model": MODEL, "versions": {"backend": BACKEND.version()}}
    restart.store.point("front", restart.store.put(homogenizer, manifest, compiled, "eager"), MODEL, 2.0)
    assert restart.restore(envelope_of(bias=1)).version == restart.versions[1]


def test_after_a_rollback_to_the_factory_one_nothing_fitted_serves(restart):
    restart.store.point("front", FACTORY, MODEL, 3.0)
    path = restart.restore()
    assert path.version == path.fallback == FACTORY


def test_where_the_newest_is_damaged_the_one_before_serves(restart):
    restart.stored(restart.versions[1], ".safetensors").write_bytes(b"")
    path = restart.restore()
    assert (path.version, path.fallback) == (restart.versions[0], FACTORY)


def test_a_lost_compiled_form_is_built_again(restart):
    for compiled in restart.store.root.glob("objects/sha256/*/*.compiled"):
        compiled.unlink()
    path = restart.restore()
    assert (path.version, path.fallback) == (restart.versions[1], restart.versions[0])


def test_what_other_versions_compiled_is_compiled_again(restart, monkeypatch):
    compiled = []
    monkeypatch.setattr(EagerBackend, "version", lambda self: "a newer torch")
    compile_ = EagerBackend.compile
    monkeypatch.setattr(EagerBackend, "compile", lambda self, *given: compiled.append(1) or compile_(self, *given))
    assert restart.restore().version == restart.versions[1]
    assert len(compiled) == 3  # the stand-in for the model, and both


def test_since_when_it_serves_is_known_of_what_serves_alone(restart):
    assert serving_since("front", restart.versions[1], restart.store) == 1.0
    assert serving_since("front", restart.versions[0], restart.store) is None
    assert serving_since("rear", FACTORY, restart.store) is None


NOW, YEAR = 1_795_600_000.0, 31_557_600.0  # s since the epoch: 2026-11-25; s


@pytest.mark.parametrize(
    ("since", "now", "expected"),
    [
        (None, NOW, False),
        (NOW - 30, NOW, True),
        (NOW - 90, NOW, False),
        (NOW, NOW - YEAR, True),  # the clock went back: who knows
        (NOW - 90, NOW + 10 * YEAR, False),
        (90.0, NOW, True),  # swapped before the device had learnt the date
    ],
)
def test_a_clock_that_jumps_lets_nothing_pass_its_probation_unseen(since, now, expected):
    assert on_probation(since, now, probation=60.0) is expected


def test_what_was_taken_back_is_known_unless_it_cannot_be_read(restart, caplog):
    restart.store.withdraw("front", ["x"])
    assert load_withdrawn("front", restart.store) == {"x"}
    (path,) = restart.store.root.glob("sensors/front/withdrawn.json")
    path.write_bytes(b"")
    assert load_withdrawn("front", restart.store) == set() and "forgotten" in caplog.text
