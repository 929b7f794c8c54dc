"""Baselines are kept for each homogenizer of a sensor; damaged ones and those of other models are not used."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.store.artefacts import FACTORY, StoreError
from deploy.store.baselines import MAX_BASELINES, BaselineStore

MODEL, VERSION = "m" * 64, "v" * 64


@pytest.fixture
def store(tmp_path) -> BaselineStore:
    return BaselineStore(tmp_path, MODEL)


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"baseline.centre": torch.full((3,), value)}


def files(tmp_path) -> list:
    return sorted((tmp_path / "sensors" / "front").iterdir())


def test_each_homogenizer_has_its_own(store, tmp_path):
    store.save("front", FACTORY, tensors(1.0))
    store.save("front", VERSION, tensors(2.0))
    again = BaselineStore(tmp_path, MODEL)
    assert float(again.load("front", FACTORY)["baseline.centre"][0]) == 1.0
    assert float(again.load("front", VERSION)["baseline.centre"][0]) == 2.0
    assert again.load("front", "w" * 64) is None and again.load("rear", FACTORY) is None


def test_a_new_one_replaces_the_one_before(store, tmp_path):
    store.save("front", FACTORY, tensors(1.0))
    store.save("front", FACTORY, tensors(2.0))
    assert float(store.load("front", FACTORY)["baseline.centre"][0]) == 2.0 and len(files(tmp_path)) == 1


def test_another_model_finds_none_and_removes_them(store, tmp_path):
    store.save("front", FACTORY, tensors())
    other = BaselineStore(tmp_path, "n" * 64)
    assert other.load("front", FACTORY) is None
    other.save("front", FACTORY, tensors())
    assert len(files(tmp_path)) == 1 and store.load("front", FACTORY) is None


def test_the_oldest_are_removed(store, tmp_path):
    for number in range(MAX_BASELINES + 3):
        store.save("front", f"{number:064d}"[::-1], tensors())
        os.utime(files(tmp_path)[-1])
    assert len(files(tmp_path)) == MAX_BASELINES
    assert store.load("front", f"{MAX_BASELINES + 2:064d}"[::-1]) is not None


def test_other_files_of_the_sensor_stay(store, tmp_path):
    (tmp_path / "sensors" / "front").mkdir(parents=True)
    (tmp_path / "sensors" / "front" / "current.json").write_text("{}")
    store.save("front", FACTORY, tensors())
    assert "current.json" in [path.name for path in files(tmp_path)]


@given(place=st.integers(0, 200), value=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=50, deadline=None)
def test_damage_is_found(tmp_path_factory, place, value, cut):
    folder = tmp_path_factory.mktemp("state")
    store = BaselineStore(folder, MODEL)
    store.save("front", FACTORY, tensors())
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    place %= len(data)
    damaged = bytes(data[:place]) if cut else bytes(data[:place] + bytes([value]) + data[place + 1 :])
    if damaged == bytes(data):
        return
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match="damaged"):
        store.load("front", FACTORY)


def test_a_file_that_cannot_be_read_is_told(store, tmp_path):
    store.save("front", FACTORY, tensors())
    (path,) = files(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        store.load("front", FACTORY)


def test_what_is_kept_is_never_removed(store, tmp_path):
    store.save("front", FACTORY, tensors(5.0))
    for number in range(MAX_BASELINES + 3):
        store.save("front", f"{number:064d}"[::-1], tensors())
    assert float(store.load("front", FACTORY)["baseline.centre"][0]) == 5.0


def test_what_was_learned_while_frames_were_read_in_another_way_is_not_used(tmp_path):
    BaselineStore(tmp_path, MODEL, "mean 0.5").save("front", FACTORY, tensors())
    assert BaselineStore(tmp_path, MODEL, "mean 0.4").load("front", FACTORY) is None
    assert BaselineStore(tmp_path, MODEL, "mean 0.5").load("front", FACTORY) is not None


@pytest.mark.parametrize("newest", [1.0, 2.0])
def test_the_newest_of_two_is_taken_after_a_kill_between_writing_and_removing(store, tmp_path, newest):
    """Whichever of them comes first by its name."""
    store.save("front", FACTORY, tensors(3.0 - newest))
    (old,) = files(tmp_path)
    data = old.read_bytes()
    store.save("front", FACTORY, tensors(newest))
    old.write_bytes(data)
    os.utime(old, (0, 0))
    assert float(store.load("front", FACTORY)["baseline.centre"][0]) == newest


def test_what_would_be_refused_at_the_next_start_is_not_written(store, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.store.baselines.MAX_BASELINE_BYTES", 10)
    with pytest.raises(OSError, match="larger than 10 bytes"):
        store.save("front", FACTORY, tensors())
    assert not (tmp_path / "sensors").exists()


def test_all_of_one_sensor_are_removed_and_nothing_else(store, tmp_path):
    for sensor in ("front", "rear"):
        store.save(sensor, FACTORY, tensors())
        store.save(sensor, VERSION, tensors())
    (tmp_path / "sensors" / "front" / "active.json").write_text("{}")
    store.remove("front")
    assert [path.name for path in files(tmp_path)] == ["active.json"]
    assert store.load("rear", FACTORY) and store.load("rear", VERSION)
    store.remove("unknown")
