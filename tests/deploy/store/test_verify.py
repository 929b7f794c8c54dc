"""Any changed byte of what is stored is found, and nothing else is called damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from compiled import compile_once

from calibrate.homogenizer import Homogenizer
from deploy.backends.eager import EagerBackend
from deploy.store.artefacts import ArtefactStore
from deploy.store.verify import CompiledCheck, store_problems

MODEL = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    store, homogenizer = ArtefactStore(tmp_path), Homogenizer(3, 8, 8)
    for gain in (1.0, 1.1):
        with torch.no_grad():
            homogenizer.kernel.mul_(gain)
        version = store.put(homogenizer, {"model": MODEL}, b"compiled %f" % gain, "onnx")
        store.point("front", version, MODEL, 0.0)
    return store


def files(store: ArtefactStore) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if path.is_file())


def test_what_was_written_has_no_problem(store):
    assert list(store_problems(store)) == []
    assert list(store_problems(ArtefactStore(store.root / "empty"))) == []


def test_a_bit_that_flips_in_any_file_is_found(store):
    assert len(files(store)) == 7
    for path in files(store):
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 50)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert any(path.name.partition(".")[0][:20] in p or "sensor front" in p for p in store_problems(store)), (
                path,
                place,
            )
        path.write_bytes(whole)
    assert list(store_problems(store)) == []


def test_a_file_that_is_cut_short_is_found(store):
    for path in files(store):
        whole = path.read_bytes()
        for length in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert list(store_problems(store))
        path.write_bytes(whole)


def test_withdrawn_versions_are_checked_whatever_the_pointer_is(store):
    (store.root / "sensors" / "front" / "current.json").write_bytes(b"")
    for sensor in ("front", "rear"):  # the second has never had a pointer
        store.withdraw(sensor, ["x"])
        (store.root / "sensors" / sensor / "withdrawn.json").write_bytes(b"{}")
    found = list(store_problems(store))
    told = [next(name for name in ("current.json", "withdrawn.json") if name in problem) for problem in found]
    assert told == ["current.json", "withdrawn.json", "withdrawn.json"]
    assert [problem.split(":")[0] for problem in found] == ["sensor front", "sensor front", "sensor rear"]


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".compiled"])
def test_a_lost_file_is_found_unless_it_can_be_built_again(store, suffix):
    current = store.current("front")
    for path in store.root.glob(f"objects/sha256/*/*{suffix}"):
        path.unlink()
    found = list(store_problems(store))
    assert bool(found) is (suffix != ".compiled")
    assert current is not None


def test_a_changed_byte_of_the_compiled_model_is_found(store):
    folder = store.root / "compiled"
    folder.mkdir()
    cached = folder / f"{'c' * 64}.compiled"
    cached.write_bytes(hashlib.sha256(b"engine").digest() + b"engine")
    assert list(store_problems(store)) == []
    cached.write_bytes(hashlib.sha256(b"engine").digest() + b"engina")
    assert list(store_problems(store)) == [f"{cached}: damaged; the frozen model is compiled again at the next start"]


def test_an_unknown_file_is_reported(store):
    (stranger,) = [(store.root / "objects" / "sha256" / "ab" / "x.exe")]
    stranger.parent.mkdir(exist_ok=True)
    stranger.touch()
    assert list(store_problems(store)) == [f"{stranger}: not written by recald"]


def test_a_compiled_form_of_other_weights_is_found_and_what_cannot_be_compared_is_named(store):
    assert list(store_problems(store, check := CompiledCheck())) == []
    assert len(check.skipped) == 2  # of another version of the backend
    backend, homogenizer = EagerBackend(), Homogenizer(3, 8, 8)
    homogenizer.requires_grad_(False).kernel *= 0.9
    honest = compile_once(backend, homogenizer, torch.zeros(1, 3, 8, 8))
    for bias, problems in ((0.0, 0), (0.5, 1)):
        homogenizer.bias.fill_(bias)
        manifest = {"model": MODEL, "versions": {"backend": backend.version()}}
        version = store.put(homogenizer, manifest, honest, "eager")
        found = list(store_problems(store, check := CompiledCheck()))
        assert len(found) == problems and len(check.skipped) == 2
    assert f"homogenizer {version[:12]}: its compiled form does not compute what its weights say" in found[0]
