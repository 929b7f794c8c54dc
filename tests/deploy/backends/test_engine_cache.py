"""The compiled form of Φ is taken from the cache only where it is exactly what would be built."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from calibrate.homogenizer import Homogenizer
from calibrate.split import SplitHomogenizer
from deploy.backends.engine_cache import ModelCache, compile_homogenizer, prune_cache
from deploy.model.card import InputCard, ModelCard
from deploy.model.frozen import FrozenModel


class Counting:
    """A backend whose product names how many it has built."""

    name = "counting"

    def __init__(self, version: str = "1") -> None:
        self.built = 0
        self._version = version

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        self.built += 1
        return b"product %d" % self.built

    def load(self, compiled: bytes, threads: int) -> object:
        raise AssertionError("not of use here")

    def version(self) -> str:
        return self._version


@pytest.fixture
def frozen() -> FrozenModel:
    return FrozenModel(nn.Identity(), "a" * 64, card(8), Path("unused.pt2"), "none")


def card(width: int) -> ModelCard:
    return ModelCard.model_construct(input=InputCard(channels=3, height=8, width=width))


def compile_cached(backend: Counting, frozen: FrozenModel, state: Path, precision: str = "float32") -> bytes:
    return ModelCache(backend, frozen, precision, state).get()


def test_it_is_built_once(frozen, tmp_path):
    backend = Counting()
    first = compile_cached(backend, frozen, tmp_path / "state")
    assert compile_cached(backend, frozen, tmp_path / "state") == first == b"product 1"


def test_another_model_shape_backend_version_or_precision_is_built_anew(frozen, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.backends.engine_cache.to_precision", lambda module, precision: module)
    compile_cached(Counting(), frozen, tmp_path)
    renamed = Counting()
    renamed.name = "renamed"
    for backend, model, precision in [
        (Counting(), dataclasses.replace(frozen, digest="b" * 64), "float32"),
        (Counting(), dataclasses.replace(frozen, card=card(9)), "float32"),
        (Counting("2"), frozen, "float32"),
        (renamed, frozen, "float32"),
        (Counting(), frozen, "float16"),
    ]:
        assert not ModelCache(backend, model, precision, tmp_path).is_cached()
        compile_cached(backend, model, tmp_path, precision)
        assert backend.built == 1 and ModelCache(backend, model, precision, tmp_path).is_cached()
    assert len(list((tmp_path / "compiled").iterdir())) == 6


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-1], lambda data: data[:-1] + b"?", lambda data: b"?" + data[1:]],
)
def test_a_damaged_file_is_built_again_and_repaired(frozen, tmp_path, caplog, damage):
    backend = Counting()
    compile_cached(backend, frozen, tmp_path)
    (path,) = (tmp_path / "compiled").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert compile_cached(backend, frozen, tmp_path) == b"product 2"
    assert f"{path}: damaged, building again" in caplog.text
    assert compile_cached(backend, frozen, tmp_path) == b"product 2"


def test_a_folder_that_cannot_be_written_costs_only_a_warning(frozen, tmp_path, caplog):
    (tmp_path / "state").write_text("a file where the folder should be")
    assert compile_cached(Counting(), frozen, tmp_path / "state") == b"product 1"
    assert "the compiled network cannot be kept" in caplog.text


class Choosing(Counting):
    """A builder that takes other kernels each time."""

    def with_weights_of(self, homogenizer: nn.Module, compiled: bytes) -> bytes:
        return compiled + b" reweighed"


def test_a_homogenizer_has_the_kernels_of_the_earlier_ones(tmp_path):
    homogenizer, example, backend = nn.Identity(), torch.zeros(8, 3, 8, 8), Choosing()
    made = [compile_homogenizer(backend, homogenizer, example[:n], tmp_path) for n in (1, 8, 1)]
    assert made == [b"product 1", *2 * [b"product 1 reweighed"]]
    assert compile_homogenizer(Choosing(), homogenizer, example, tmp_path) == b"product 1 reweighed"
    assert compile_homogenizer(Choosing("2"), homogenizer, example, tmp_path) == b"product 1"
    assert compile_homogenizer(backend, homogenizer, torch.zeros(1, 3, 8, 9), tmp_path) == b"product 2"
    (tmp_path / "compiled").rename(tmp_path / "gone")
    assert compile_homogenizer(backend, homogenizer, example, tmp_path) == b"product 3"


def test_homogenizers_of_other_parts_have_kernels_of_their_own(tmp_path):
    plain, example, backend = Homogenizer(3, 8, 8), torch.zeros(1, 3, 8, 8), Choosing()
    split = SplitHomogenizer(3, 8, 8), SplitHomogenizer(3, 8, 8, shading=True)
    kinds = [plain, plain.with_parts(defects=True), plain.with_parts(shading=True), *split]
    made = [compile_homogenizer(backend, homogenizer, example, tmp_path) for homogenizer in kinds]
    assert made == [b"product %d" % number for number in range(1, 6)]
    again = [compile_homogenizer(backend, homogenizer, example, tmp_path) for homogenizer in kinds]
    assert again == [product + b" reweighed" for product in made]


def test_without_shared_kernels_a_homogenizer_is_compiled_each_time(tmp_path):
    backend = Counting()
    made = [compile_homogenizer(backend, nn.Identity(), torch.zeros(1, 3, 8, 8), tmp_path) for _ in range(2)]
    assert made == [b"product 1", b"product 2"] and not list(tmp_path.iterdir())


def test_the_forms_that_were_used_last_are_kept(frozen, tmp_path):
    for number in range(5):
        compile_cached(Counting(str(number)), frozen, tmp_path)
    for age, path in enumerate(sorted((tmp_path / "compiled").iterdir())):
        os.utime(path, ns=(age, age))
    compile_cached(Counting("2"), frozen, tmp_path)  # used again
    assert prune_cache(tmp_path, keep=2) == 3
    assert ModelCache(Counting("2"), frozen, "float32", tmp_path).is_cached()
    assert len(list((tmp_path / "compiled").iterdir())) == 2
    assert prune_cache(tmp_path / "empty") == 0


class Sharing(Counting):
    def with_weights_of(self, homogenizer: nn.Module, compiled: bytes) -> bytes:
        return compiled


def test_an_engine_of_homogenizers_that_is_of_no_use_is_replaced(tmp_path):
    backend, example = Sharing(), torch.zeros(1, 3, 4, 4)
    first = compile_homogenizer(backend, nn.Identity(), example, tmp_path)
    assert compile_homogenizer(backend, nn.Identity(), example, tmp_path) == first == b"product 1"
    assert compile_homogenizer(backend, nn.Identity(), example, tmp_path, anew=True) == b"product 2"
    assert compile_homogenizer(backend, nn.Identity(), example, tmp_path) == b"product 2"
