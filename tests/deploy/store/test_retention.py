"""What is kept of a sensor's homogenizers, and which of them are tried again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from calibrate.homogenizer import Homogenizer
from deploy.store.artefacts import ArtefactStore, StoreError
from deploy.store.retention import newest_versions, remove_orphans, retain, stored_homogenizers
from deploy.store.verify import store_problems

MODEL = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path)


def put(store: ArtefactStore, number: int, sensor: str = "front", compiled: bytes | None = None) -> str:
    homogenizer = Homogenizer(1, 4, 4)
    with torch.no_grad():
        homogenizer.bias.fill_(number)
    version = store.put(homogenizer, {"model": MODEL, "sensor": sensor}, compiled or b"%d" % number, "onnx")
    (manifest,) = store.root.glob(f"objects/sha256/{version[:2]}/{version[2:]}.json")
    os.utime(manifest, (1000 + number, 1000 + number))
    return version


def test_the_newest_are_kept_and_another_sensors_are_left_alone(store):
    front = [put(store, number) for number in range(5)]
    rear = [put(store, -number, "rear") for number in range(1, 3)]
    assert set(retain(store, "front", keep=2)) == set(front[:3])
    assert {stored.version for stored in stored_homogenizers(store)} == {*front[3:], *rear}
    assert list(store_problems(store)) == []
    assert len(list(store.root.rglob("*.compiled"))) == len(list(store.root.rglob("*.safetensors"))) == 4


def test_the_active_the_previous_and_the_protected_versions_stay(store):
    versions = [put(store, number) for number in range(6)]
    store.point("front", versions[0], MODEL, 1.0)
    store.point("front", versions[1], MODEL, 2.0)
    assert set(retain(store, "front", keep=1, protected=(versions[2],))) == set(versions[3:5])
    assert store.load_current("front", MODEL)[0] == versions[1]
    for version in (*versions[:3], versions[5]):
        assert store.get(version, MODEL).compiled is not None


def test_a_compiled_form_that_another_uses_stays(store):
    old, new = put(store, 0, compiled=b"engine"), put(store, 1, compiled=b"engine")
    assert retain(store, "front", keep=1) == [old]
    assert store.get(new, MODEL).compiled == b"engine"


def test_what_is_removed_can_no_longer_be_loaded(store):
    old, _ = put(store, 0), put(store, 1)
    retain(store, "front", keep=1)
    with pytest.raises(StoreError, match="missing"):
        store.get(old, MODEL)


def test_the_newest_versions_are_of_one_sensor_and_model(store):
    versions = [put(store, number) for number in range(4)]
    put(store, 9, "rear")
    assert newest_versions(store, "front", MODEL, 3) == versions[:0:-1]
    assert newest_versions(store, "front", "b" * 64, 3) == []


def test_a_damaged_manifest_is_left_alone(store):
    version = put(store, 0)
    (manifest,) = store.root.glob("objects/sha256/*/*.json")
    manifest.write_bytes(b"{")
    assert stored_homogenizers(store) == [] and retain(store, "front", keep=0) == [] and manifest.exists()
    assert newest_versions(store, "front", MODEL, 3) == []
    assert version


def test_what_a_killed_writer_left_is_removed_and_nothing_else(store):
    versions = [put(store, number, compiled=b"shared") for number in range(2)]
    whole = sorted(path for path in store.root.rglob("*") if path.is_file())
    killed = put(store, 2)  # before its manifest was written
    (store.root / "objects" / "sha256" / killed[:2] / f"{killed[2:]}.json").unlink()
    assert remove_orphans(store) == 2
    assert sorted(path for path in store.root.rglob("*") if path.is_file()) == whole
    damaged = store.root / "objects" / "sha256" / versions[0][:2] / f"{versions[0][2:]}.json"
    damaged.write_bytes(b"")  # nobody knows which compiled form is of this one
    put(store, 3)
    for path in store.root.rglob("*.compiled"):
        path.rename(path.with_name("f" * 62 + ".compiled"))
    assert remove_orphans(store) == 0
