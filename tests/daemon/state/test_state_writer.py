"""The newest of what a restart must know is written as soon as the disk allows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from calibrate.homogenizer import Homogenizer
from daemon.state.state_writer import StateWriter
from deploy.store.artefacts import ArtefactStore, StoreError

MODEL = "a" * 64


class Disk(ArtefactStore):
    """One that can be full."""

    full = False

    def point(self, *given) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().point(*given)


@pytest.fixture
def store(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


@pytest.fixture
def background():
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def faults() -> list[str]:
    return []


@pytest.fixture
def state_writer(store, background, faults) -> StateWriter:
    return StateWriter(store, MODEL, background, faults.append)


def put(store: ArtefactStore, number: int) -> str:
    homogenizer = Homogenizer(1, 4, 4)
    with torch.no_grad():
        homogenizer.bias.fill_(number)
    return store.put(homogenizer, {"model": MODEL}, b"compiled", "onnx")


def written(background: ThreadPoolExecutor) -> None:
    background.submit(lambda: None).result()


def test_active_and_withdrawn_versions_are_there_after_a_restart(state_writer, store, background):
    version = put(store, 1)
    state_writer.save_active("front", version)
    state_writer.save_withdrawn("front", {"b", "a"})
    written(background)
    again = ArtefactStore(store.root)
    assert again.current("front").homogenizer == version
    assert again.withdrawn("front") == {"a", "b"} and again.withdrawn("rear") == set()


def test_a_full_disk_delays_it_and_the_newest_is_written(state_writer, store, background, caplog, faults):
    first, second = put(store, 1), put(store, 2)
    store.full = True
    state_writer.save_active("front", first)
    state_writer.save_active("front", second)
    written(background)
    assert store.current("front") is None and "a restart will not know" in caplog.text
    for _ in range(3):
        state_writer.retry()
        written(background)
    assert caplog.text.count("a restart will not know") == 1, "once for each cause, not each second"
    assert len(faults) >= 4 and set(faults) == {"state"}, "each try is counted"
    store.full = False
    state_writer.retry()
    written(background)
    assert store.current("front").homogenizer == second


def test_only_what_could_not_be_written_is_written_again(state_writer, store, background):
    version = put(store, 1)
    state_writer.save_active("front", version)
    written(background)
    before = store.current("front").since
    store.full = True
    state_writer.save_active("rear", version)
    written(background)
    store.full = False
    store.point("front", "factory", MODEL, before + 1)  # by somebody else: writing again would undo it
    state_writer.retry()
    written(background)
    assert store.current("rear").homogenizer == version
    assert store.current("front").homogenizer == "factory"


def test_a_damaged_list_of_withdrawn_versions_raises(store):
    store.withdraw("front", ["a"])
    (path,) = store.root.glob("sensors/front/withdrawn.json")
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    with pytest.raises(StoreError, match="damaged"):
        store.withdrawn("front")
