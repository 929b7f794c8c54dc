"""The store gives back exactly what was put in, or says which file is at fault."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deploy.store.artefacts
from calibrate.homogenizer import Homogenizer
from calibrate.split import SplitHomogenizer
from deploy.files import seal, unseal
from deploy.store.artefacts import FACTORY, Artefact, ArtefactStore, Pointer, StoreError
from deploy.store.compiled import input_shape

MODEL = "a" * 64
MANIFEST = {"model": MODEL, "sensor": "left", "metrics": {"score": 1.25, "frames": 512}}


def homogenizer(seed: int) -> Homogenizer:
    module = Homogenizer(1, 6, 7, kernel_size=3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    return module


def same(one: Homogenizer, other: Homogenizer) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "state")


def put(store: ArtefactStore, seed: int) -> str:
    return store.put(homogenizer(seed), MANIFEST, b"compiled %d" % seed, "onnx")


def files(store: ArtefactStore, suffix: str = "") -> list[Path]:
    return sorted(path for path in store.root.rglob("*" + suffix) if path.is_file())


def test_an_artefact_is_given_back_as_it_was_put(store):
    version = put(store, 1)
    artefact = store.get(version, MODEL)
    assert same(artefact.homogenizer, homogenizer(1))
    assert artefact.compiled == b"compiled 1"
    assert artefact.manifest.items() >= MANIFEST.items()
    assert artefact.manifest["compiled"]["backend"] == "onnx"
    assert not artefact.homogenizer.training
    images = torch.randn(2, 1, 6, 7)
    with torch.no_grad():
        assert torch.equal(artefact.homogenizer(images), homogenizer(1)(images))


def test_a_split_homogenizer_is_given_back_with_both_branches_and_its_rule(store):
    split = SplitHomogenizer.of(torch.arange(5.0), homogenizer(1), homogenizer(2))
    found = store.get(store.put(split, MANIFEST, b"compiled", "onnx"), MODEL)
    assert isinstance(found.homogenizer, SplitHomogenizer) and same(found.homogenizer, split)
    assert found.manifest["architecture"]["branches"] == 2
    assert input_shape(found) == (1, 6, 7)


def test_the_version_is_the_digest_of_the_weights(store):
    assert put(store, 1) == put(store, 1) != put(store, 2)
    weights = safetensors.torch.save(homogenizer(1).state_dict())
    assert files(store, ".safetensors")[0].parent.name + files(store, ".safetensors")[0].stem in {
        put(store, 1),
        put(store, 2),
    }
    assert weights in [path.read_bytes() for path in files(store, ".safetensors")]


def test_putting_the_same_again_writes_nothing(store):
    put(store, 1)
    before = {path: path.stat().st_mtime_ns for path in files(store)}
    put(store, 1)
    assert {path: path.stat().st_mtime_ns for path in files(store)} == before


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".compiled"])
def test_putting_again_repairs_a_damaged_file(store, suffix):
    version = put(store, 1)
    files(store, suffix)[0].write_bytes(b"damaged")
    put(store, 1)
    assert store.get(version, MODEL).compiled == b"compiled 1"


def test_without_its_compiled_form_an_artefact_is_still_good(store):
    version = put(store, 1)
    files(store, ".compiled")[0].unlink()
    assert store.get(version, MODEL).compiled is None


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_missing_file_is_named(store, suffix):
    version = put(store, 1)
    (path,) = files(store, suffix)
    path.unlink()
    with pytest.raises(StoreError, match=f"{path}: missing"):
        store.get(version, MODEL)


def test_an_artefact_for_another_model_is_refused(store):
    version = put(store, 1)
    with pytest.raises(StoreError, match="of frozen model aaaaaaaaaaaa, not of bbbbbbbbbbbb"):
        store.get(version, "b" * 64)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": 2}, "of format 2, not of 1"),
        ({"version": "c" * 64}, "of version cccccccccccc, not of"),
        (
            {"architecture": {"channels": 1, "height": 6, "width": 8, "kernel_size": 3}},
            "not the weights .* offset",
        ),
        ({"architecture": {"depth": 3}}, "not the weights its manifest describes"),
        ({"compiled": None}, "'compiled' is missing or of the wrong type"),
        ({"model": 7}, "'model' is missing or of the wrong type"),
    ],
)
def test_a_manifest_that_fits_nothing_is_refused(store, change, reason):
    version = put(store, 1)
    (path,) = files(store, ".json")
    path.write_bytes(seal({**unseal(path.read_bytes()), **change}))
    with pytest.raises(StoreError, match=reason) as caught:
        store.get(version, MODEL)
    assert str(store.root) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_neither_put_nor_got(store, monkeypatch):
    broken = homogenizer(1)
    with torch.no_grad():
        broken.bias[0] = torch.nan
    with pytest.raises(StoreError, match="not finite"):
        store.put(broken, MANIFEST, b"", "onnx")
    assert not files(store)
    with monkeypatch.context() as patch:
        patch.setattr(deploy.store.artefacts, "_finite", lambda state: True)
        version = store.put(broken, MANIFEST, b"", "onnx")
    with pytest.raises(StoreError, match=r"\.safetensors: holds weights that are not finite"):
        store.get(version, MODEL)


@pytest.mark.parametrize("manifest", [{}, {**MANIFEST, "loss": float("nan")}, {**MANIFEST, "window": object()}])
def test_a_manifest_that_cannot_be_stored_is_refused(store, manifest):
    with pytest.raises(StoreError, match="manifest"):
        store.put(homogenizer(1), manifest, b"", "onnx")
    assert not files(store)


@pytest.mark.parametrize("version", ["", "abc", "../" * 20 + "etc/passwd", "A" * 64, "a" * 63 + "\n"])
def test_what_is_no_version_is_refused(store, version):
    for use in (lambda: store.get(version, MODEL), lambda: store.point("left", version, MODEL, 0.0)):
        with pytest.raises(StoreError, match="is not a version"):
            use()


@pytest.mark.parametrize("sensor", ["", ".", "..", "a/b", "../left", "left\n", "x" * 65, "/left", "a\0b"])
def test_what_is_no_sensor_is_refused(store, sensor):
    with pytest.raises(StoreError, match="is not a sensor id"):
        store.point(sensor, FACTORY, MODEL, 0.0)
    version, artefact, problems = store.load_current(sensor, MODEL)
    assert (version, artefact, len(problems)) == (FACTORY, None, 1)


def test_a_new_sensor_has_no_pointer_and_the_factory_homogenizer(store):
    assert store.current("left") is None
    assert store.load_current("left", MODEL) == (FACTORY, None, [])


def test_the_pointer_remembers_the_one_before(store):
    first, second = put(store, 1), put(store, 2)
    store.point("left", first, MODEL, 1.5)
    assert store.current("left") == Pointer(first, None, MODEL, 1.5)
    store.point("left", second, MODEL, 2.5)
    assert store.current("left") == Pointer(second, first, MODEL, 2.5)
    store.point("left", second, MODEL, 3.5)
    assert store.current("left") == Pointer(second, first, MODEL, 3.5)
    assert store.current("right") is None


def test_a_version_that_was_rolled_back_is_no_fallback(store):
    first, second = put(store, 1), put(store, 2)
    store.point("left", first, MODEL, 1.0)
    store.point("left", second, MODEL, 2.0)
    store.point("left", first, MODEL, 3.0)
    assert store.current("left") == Pointer(first, None, MODEL, 3.0)


def test_a_version_for_another_model_is_no_fallback(store):
    store.point("left", put(store, 1), "b" * 64, 1.0)
    store.point("left", FACTORY, MODEL, 2.0)
    assert store.current("left") == Pointer(FACTORY, None, MODEL, 2.0)


def test_nothing_can_be_pointed_to_that_is_not_there(store):
    with pytest.raises(StoreError, match="there is no such artefact to point to"):
        store.point("left", "a" * 64, MODEL, 0.0)
    assert store.current("left") is None


def test_the_factory_homogenizer_is_served_when_pointed_to(store):
    store.point("left", put(store, 1), MODEL, 1.0)
    store.point("left", FACTORY, MODEL, 2.0)
    assert store.load_current("left", MODEL) == (FACTORY, None, [])


def test_the_current_one_is_loaded_else_the_one_before_else_the_factory_one(store):
    first, second = put(store, 1), put(store, 2)
    store.point("left", first, MODEL, 1.0)
    store.point("left", second, MODEL, 2.0)
    version, artefact, problems = store.load_current("left", MODEL)
    assert (version, problems) == (second, []) and same(artefact.homogenizer, homogenizer(2))

    for path in files(store, second[2:] + ".safetensors"):
        path.write_bytes(b"damaged")
    version, artefact, problems = store.load_current("left", MODEL)
    assert version == first and same(artefact.homogenizer, homogenizer(1))
    assert len(problems) == 1 and second[2:] + ".safetensors: damaged" in problems[0]

    for path in files(store, first[2:] + ".json"):
        path.unlink()
    version, artefact, problems = store.load_current("left", MODEL)
    assert (version, artefact, len(problems)) == (FACTORY, None, 2)


def test_for_another_model_only_the_factory_homogenizer_is_left(store):
    store.point("left", put(store, 1), MODEL, 1.0)
    version, artefact, problems = store.load_current("left", "b" * 64)
    assert (version, artefact) == (FACTORY, None) and "of frozen model" in problems[0]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", seal({"homogenizer": "a" * 64}), seal({})])
def test_a_pointer_that_cannot_be_read_is_named_and_can_be_replaced(store, content):
    store.point("left", put(store, 1), MODEL, 1.0)
    (path,) = files(store, "current.json")
    path.write_bytes(content)
    with pytest.raises(StoreError, match=str(path)):
        store.current("left")
    version, artefact, problems = store.load_current("left", MODEL)
    assert (version, artefact) == (FACTORY, None) and str(path) in problems[0]
    store.point("left", put(store, 2), MODEL, 2.0)
    assert store.load_current("left", MODEL)[0] == put(store, 2)


def test_a_folder_in_the_place_of_a_file_is_a_problem_not_a_crash(store):
    version = put(store, 1)
    store.point("left", version, MODEL, 1.0)
    for path in files(store):
        path.unlink()
        path.mkdir()
    with pytest.raises(StoreError, match="cannot be read: Is a directory"):
        store.get(version, MODEL)
    assert store.load_current("left", MODEL)[:2] == (FACTORY, None)


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtefactStore, str, str]:
    store = ArtefactStore(tmp_path_factory.mktemp("two"))
    first, second = put(store, 1), put(store, 2)
    store.point("left", first, MODEL, 1.0)
    store.point("left", second, MODEL, 2.0)
    return store, first, second


def is_whole(artefact: Artefact, seed: int) -> bool:
    whole = artefact.manifest.items() >= MANIFEST.items() and artefact.compiled == b"compiled %d" % seed
    return whole and same(artefact.homogenizer, homogenizer(seed))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_found_or_harmless(two_versions, data):
    store, first, second = two_versions
    path = data.draw(st.sampled_from(files(store)))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(data.draw(st.sampled_from([bytes(flipped), content[:position]])))
    try:
        for version, seed in ((first, 1), (second, 2)):
            try:
                assert is_whole(store.get(version, MODEL), seed)
            except StoreError as error:
                assert str(error).startswith(f"{path}: ")
        version, artefact, problems = store.load_current("left", MODEL)
        assert all(str(path) in problem for problem in problems)
        if path.name == "current.json":
            assert problems == [] or (version, artefact) == (FACTORY, None)
        else:
            assert version == (second if problems == [] else first)
            assert is_whole(artefact, 2 if problems == [] else 1)
    finally:
        path.write_bytes(content)


WRITER = """
import json, os, signal, sys
from pathlib import Path
import torch
from calibrate.homogenizer import Homogenizer
from deploy.store.artefacts import ArtefactStore, StoreError

root, model = Path(sys.argv[1]), "a" * 64
store = ArtefactStore(root)

def put(seed):
    module = Homogenizer(1, 6, 7, kernel_size=3)
    torch.nn.init.constant_(module.bias, seed)
    return store.put(module, {"model": model}, b"compiled %d" % seed, "onnx")

def work(seed):
    store.point("left", put(seed), model, float(seed))

def killed_at(line, seed):
    '''Work in a child that is killed before the given executed line of deploy; False if it ended before.'''
    count = 0
    def trace(frame, event, argument):
        nonlocal count
        if "deploy" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        if count == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    child = os.fork()
    if child == 0:
        sys.settrace(trace)
        work(seed)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

torch.set_num_threads(1)  # a child has no threads
work(1)
serving, seed, line, killed = 1, 1, 0, True
found = {"old": 0, "new": 0, "swept": 0}
while killed:
    seed, line = seed + 1, line + 1
    killed = killed_at(line, seed)
    _, artefact, problems = store.load_current("left", model)
    assert problems == [], problems
    before, serving = serving, int(artefact.homogenizer.bias.item())
    assert serving in (before, seed), "neither the old nor the new one"
    assert artefact.compiled == b"compiled %d" % serving
    found["old" if serving == before else "new"] += 1
    found["swept"] += store.sweep()
    assert not list(root.rglob(".*")), "half-written files are left"
print(json.dumps(found))
"""


def test_a_writer_killed_at_any_line_leaves_the_old_or_the_new_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["old"] > 50  # kills before the pointer's rename
    assert found["new"] >= 2  # kills after it, and the one run that was let through
    assert found["swept"] > 3  # kills between creating a temporary file and renaming it


def test_sweep_spares_everything_whole(two_versions):
    store, *_ = two_versions
    before = files(store)
    assert store.sweep() == 0
    assert files(store) == before


def test_an_artefact_survives_being_copied_elsewhere(two_versions, tmp_path):
    store, _, second = two_versions
    shutil.copytree(store.root, tmp_path / "copy")
    assert is_whole(ArtefactStore(tmp_path / "copy").load_current("left", MODEL)[1], 2)
    assert ArtefactStore(tmp_path / "copy").load_current("left", MODEL)[0] == second
