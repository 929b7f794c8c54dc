"""What serves after a restart, and what is a step away."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compiled import compile_once
from envelopes import envelope_of

from calibrate.homogenizer import Homogenizer
from daemon.config import SensorConfig
from daemon.levels import PixelValues
from daemon.recalibration.envelope import Envelope
from daemon.recalibration.restore import (
    load_withdrawn,
    on_probation,
    pixel_values,
    restore,
    serving_since,
    start_details,
)
from deploy.backends.eager import EagerBackend
from deploy.model.card import InputCard
from deploy.path import InferencePath
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.compiled import open_compiled
from deploy.store.golden import describe_golden, golden_of
from deploy.store.verify import store_problems

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
        self.records: list[tuple[str, str, dict[str, Any]]] = []
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
        self.records.clear()
        restore("front", path, self.store, self.model, envelope, lambda *record: self.records.append(record))
        return path


@pytest.mark.parametrize(
    ("sensor", "bits", "inverted"),
    [({}, 12, True), ({"bits": 14}, 14, True), ({"inverted": False}, 12, False), ({"bits": 16}, 16, True)],
)
def test_what_values_mean_is_said_by_the_sensor_or_else_by_the_card(sensor, bits, inverted):
    card = InputCard(channels=1, height=8, width=8, bits=12, inverted=True)
    assert pixel_values(SensorConfig(**sensor), card) == PixelValues(bits, inverted)


def test_the_record_of_a_start_says_how_values_are_read():
    """They decide what the model gets, as the normalisation of the card does."""
    config = SimpleNamespace(model=SimpleNamespace(precision="float32"), recalibrate=SimpleNamespace(mode="locked"))
    model = SimpleNamespace(backend=BACKEND, digest=MODEL, served_by="eager")
    sensor = SimpleNamespace(path=SimpleNamespace(version=FACTORY), pixel_values=PixelValues(12, inverted=True))
    details = start_details(config, model, None, {"front": sensor})
    assert details["pixel_values"] == {"front": {"bits": 12, "inverted": True}}
    json.dumps(details)


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


@pytest.mark.parametrize("envelope", [None, envelope_of(bias=1)])
def test_one_that_was_compiled_of_other_weights_is_built_again_and_recorded(restart, envelope):
    """An exchanged compiled form may not serve under the version of the honest weights."""
    homogenizer = Homogenizer(*SHAPE).requires_grad_(False).eval()
    compiled = compile_once(BACKEND, homogenizer, EXAMPLE)
    homogenizer.bias += 0.75
    manifest = {"model": MODEL, "versions": {"backend": BACKEND.version()}}
    version = restart.store.put(homogenizer, manifest, compiled, "eager")
    restart.store.point("front", version, MODEL, 2.0)
    path = restart.restore(envelope)
    assert path.version == version and path.infer(EXAMPLE.numpy()).output.max() == 0.75
    ((sensor, event, details),) = restart.records
    assert (sensor, event, details["homogenizer"]) == ("front", "compiled again", version)
    assert "does not compute what its weights say" in details["reason"]


def put_bright(restart, manifest: dict[str, Any]) -> str:
    """Store one that suits a dark camera: it leaves the range of noise, and not of that camera's frames."""
    homogenizer = Homogenizer(*SHAPE).requires_grad_(False).eval()
    homogenizer.kernel *= 40
    homogenizer.bias += 78
    manifest = {"model": MODEL, "versions": {"backend": BACKEND.version()}} | manifest
    compiled = compile_once(BACKEND, homogenizer, EXAMPLE)
    version = restart.store.put(homogenizer, manifest, compiled, "eager")
    restart.store.point("front", version, MODEL, 2.0)
    return version


DARK = np.random.default_rng(0).uniform(-2.0, -1.9, (4, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("manifest", [{"golden": describe_golden(DARK)}, {}], ids=["with levels", "of an older recald"])
def test_what_served_a_dark_camera_serves_it_again(restart, manifest):
    version = put_bright(restart, manifest)
    assert restart.restore().version == version and restart.records == []


def test_what_passed_its_acceptance_passes_the_restart_on_the_stored_levels(restart):
    """By the same proof: it is accepted on these frames and on the patterns of the same levels."""
    path = InferencePath(BACKEND.load(compile_once(BACKEND, torch.nn.Identity(), EXAMPLE), threads=1))
    artefact = restart.store.get(put_bright(restart, {"golden": describe_golden(DARK)}), MODEL)
    stored = golden_of(artefact.manifest, SHAPE)
    runner = open_compiled(BACKEND, artefact, artefact.compiled)
    path.discard(path.prepare("accepted", runner, np.concatenate([DARK, stored])))
    assert stored.min() == DARK.min() and stored.max() == DARK.max()


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [({"golden": {"levels": [[]]}}, "not 33 levels a channel"), ({"golden": 1}, "not levels")],
)
def test_each_refusal_is_a_record(restart, manifest, reason):
    version = put_bright(restart, manifest)
    assert restart.restore().version == restart.versions[1]
    assert [(event, details["homogenizer"]) for _, event, details in restart.records] == [
        ("homogenizer refused", version)
    ]
    assert reason in restart.records[0][2]["reason"]


def test_a_damaged_pointer_is_a_record(restart):
    (restart.store.root / "sensors" / "front" / "current.json").write_bytes(b"")
    assert restart.restore().version == FACTORY
    assert [event for _, event, _ in restart.records] == ["homogenizer refused"]


def test_a_fifo_or_a_device_in_the_place_of_any_file_hangs_no_start(restart):
    for path in [path for path in restart.store.root.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for put in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            path.unlink()
            put(path)
            restart.restore()
            assert any("not a regular file" in problem for problem in store_problems(restart.store)), path
            path.unlink()
            path.write_bytes(whole)
    assert restart.restore().version == restart.versions[1]


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
    records = []
    assert load_withdrawn("front", restart.store, lambda *record: records.append(record)) == set()
    assert "forgotten" in caplog.text and records[0][:2] == ("front", "withdrawn forgotten")
