"""The compiled form of Φ is taken from the cache only where it is exactly what would be built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from deploy.cache import compile_cached
from deploy.card import ModelCard
from deploy.frozen import FrozenModel

EXAMPLE = torch.zeros(1, 3, 8, 8)


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
    card = ModelCard.model_construct(name="unused")
    return FrozenModel(nn.Identity(), "a" * 64, card, Path("unused.pt2"))


def test_it_is_built_once(frozen, tmp_path):
    backend = Counting()
    first = compile_cached(backend, frozen, EXAMPLE, tmp_path / "state")
    assert compile_cached(backend, frozen, EXAMPLE, tmp_path / "state") == first == b"product 1"


def test_another_model_shape_backend_or_version_is_built_anew(frozen, tmp_path):
    compile_cached(Counting(), frozen, EXAMPLE, tmp_path)
    renamed = Counting()
    renamed.name = "renamed"
    for backend, model, example in [
        (Counting(), dataclasses.replace(frozen, digest="b" * 64), EXAMPLE),
        (Counting(), frozen, torch.zeros(1, 3, 8, 9)),
        (Counting("2"), frozen, EXAMPLE),
        (renamed, frozen, EXAMPLE),
    ]:
        compile_cached(backend, model, example, tmp_path)
        assert backend.built == 1
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-1], lambda data: data[:-1] + b"?", lambda data: b"?" + data[1:]],
)
def test_a_damaged_file_is_built_again_and_repaired(frozen, tmp_path, caplog, damage):
    backend = Counting()
    compile_cached(backend, frozen, EXAMPLE, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert compile_cached(backend, frozen, EXAMPLE, tmp_path) == b"product 2"
    assert f"{path}: damaged, building again" in caplog.text
    assert compile_cached(backend, frozen, EXAMPLE, tmp_path) == b"product 2"


def test_a_folder_that_cannot_be_written_costs_only_a_warning(frozen, tmp_path, caplog):
    (tmp_path / "state").write_text("a file where the folder should be")
    assert compile_cached(Counting(), frozen, EXAMPLE, tmp_path / "state") == b"product 1"
    assert "the compiled model cannot be kept" in caplog.text
