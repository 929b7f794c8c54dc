"""A network is built by its builder with its weights, or refused with a reason that says what to do."""

from __future__ import annotations

import io
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from deploy.model.builder import build_module
from deploy.model.program import ModelError

BUILDERS = r"""
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(6, 4))

def number():
    return 7

def nothing():
    make()

def class_itself():
    return nn.ReLU

def needs(depth):
    return make()

def download():
    raise OSError("the server\nis gone")

def leave():
    raise SystemExit("usage: train.py DATA")

def scripted():
    return torch.jit.script(make())

def part_traced():
    return nn.Sequential(torch.jit.trace(nn.ReLU(), torch.zeros(1)), nn.BatchNorm2d(2))

class Forgetful(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)  # returns nothing

def forgetful():
    return Forgetful(nn.BatchNorm2d(2))

def compiled():
    return torch.compile(make())

def parallel():
    return nn.DataParallel(torch.compile(make()))

def averaged():
    return torch.optim.swa_utils.AveragedModel(make())

LIST = []
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with builders in a module whose name no other test has imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{module_name(tmp_path)}.py").write_text(BUILDERS)
    return tmp_path


def module_name(folder: Path) -> str:
    return re.sub(r"\W", "_", f"networks_{folder}")


@pytest.fixture
def builder(folder: Path) -> str:
    return f"{module_name(folder)}:make"


@pytest.fixture
def trained(builder: str) -> dict[str, torch.Tensor]:
    module = build_module(builder, None)
    return {name: torch.rand_like(tensor.float()).to(tensor.dtype) for name, tensor in module.state_dict().items()}


def test_the_network_is_built_in_evaluation_mode(builder):
    assert not build_module(builder, None).training


@pytest.mark.parametrize("form", ["plain", "state_dict", "data parallel", "compiled", "no counters", "safetensors"])
def test_weights_are_read_in_every_form(builder, trained, folder, form):
    path = folder / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    content = {
        "plain": trained,
        "state_dict": {"state_dict": trained, "accuracy": 91.7},
        "data parallel": {f"module.{name}": tensor for name, tensor in trained.items()},
        "compiled": {f"_orig_mod.{name}": tensor for name, tensor in trained.items()},
        "no counters": {name: t for name, t in trained.items() if not name.endswith("num_batches_tracked")},
        "safetensors": trained,
    }[form]
    (safetensors.torch.save_file if form == "safetensors" else torch.save)(content, path)
    loaded = build_module(builder, path).state_dict()
    assert all(torch.equal(loaded[name], trained[name]) for name in trained if "tracked" not in name)


def test_weights_of_another_network_are_named(builder, trained, folder):
    del trained["0.weight"], trained["1.running_mean"]
    trained["2.bias"] = torch.zeros(5)
    trained |= {f"extra.{index}": torch.zeros(1) for index in range(5)}
    torch.save(trained, folder / "weights.pt")
    with pytest.raises(ModelError) as caught:
        build_module(builder, folder / "weights.pt")
    assert str(caught.value) == (
        f"{folder / 'weights.pt'}: the weights are not those of the builder's network: "
        "2 missing (0.weight, 1.running_mean), 5 unexpected (extra.0, extra.1, extra.2 and 2 more), "
        "1 of another shape (2.bias)"
    )


class Anything:
    pass


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.pt", None, "cannot be read: No such file"),
        ("absent.safetensors", None, "cannot be read: No such file"),
        ("junk.pt", b"junk", "not a weights file"),
        ("empty.pt", b"", "not a weights file"),
        ("junk.safetensors", b"junk" * 9, "not a weights file"),
        ("network.pt", Anything(), "more than tensors: save only the network's state_dict"),
        ("list.pt", [torch.zeros(1)], "expected a state_dict of tensors"),
        ("numbers.pt", {"0.weight": 1.0}, "expected a state_dict of tensors"),
    ],
)
def test_a_file_that_is_no_weights_file_says_why(builder, folder, name, content, reason):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=f"{re.escape(str(path))}: .*({reason})") as caught:
        build_module(builder, path)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=64), position=st.integers(0, 3000), flip=st.integers(0, 255))
def test_damaged_weights_raise_nothing_else(builder, trained, folder, content, position, flip):
    path = folder / "damaged.pt"
    for form in (content, _damaged(trained, position, flip)):
        path.write_bytes(form)
        with suppress(ModelError):
            build_module(builder, path)


def _damaged(state: dict[str, torch.Tensor], position: int, flip: int) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = bytearray(buffer.getvalue())
    data[position % len(data)] ^= flip
    return bytes(data)


TORCH_DEPRECATES = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # also inside torch.compile


@TORCH_DEPRECATES
def test_a_builder_that_cannot_be_called_says_why(folder):
    here = module_name(folder)
    for builder, reason in {
        "nowhere": "write it as package.module:function",
        ":make": "write it as package.module:function",
        "no_such_package.module:make": "No module named 'no_such_package'",
        f"{here}:build": f"{here} has no function 'build'",
        f"{here}:LIST": "has no function 'LIST'",
        f"{here}:number": "returned int: it must return a torch.nn.Module",
        f"{here}:nothing": "returned nothing",
        f"{here}:class_itself": "returned the class ReLU, not a network: call it",
        f"{here}:needs": "raised TypeError: needs() missing 1 required positional argument: 'depth'",
        f"{here}:download": "raised OSError: the server",
        f"{here}:leave": "raised SystemExit: usage: train.py DATA",
        f"{here}:scripted": "scripted or traced (torch.jit)",
        f"{here}:part_traced": "scripted or traced (torch.jit)",
    }.items():
        with pytest.raises(ModelError, match=re.escape(reason)) as caught:
            build_module(builder, None)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def make(:\n", "raised SyntaxError: invalid syntax"),
        ("import no_such_library\n", "No module named 'no_such_library': its module needs it: install it"),
        ("1 / 0\n", "raised ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "raised SystemExit: 3"),
    ],
)
def test_a_builder_whose_module_cannot_be_imported_says_why(folder, text, reason):
    name = f"{module_name(folder)}_{abs(hash(text))}"
    (folder / f"{name}.py").write_text(text)
    with pytest.raises(ModelError, match=re.escape(reason)) as caught:
        build_module(f"{name}:make", None)
    assert "\n" not in str(caught.value)


def test_weights_in_a_pipe_are_refused_at_once(builder, folder):
    os.mkfifo(folder / "weights.pt")
    with pytest.raises(ModelError, match="weights.pt: cannot be read: not a regular file"):
        build_module(builder, folder / "weights.pt")


def test_weights_are_not_downloaded(builder):
    with pytest.raises(ModelError, match="recald downloads nothing, give a file"):
        build_module(builder, Path("https://example.org/resnet.pth"))


@TORCH_DEPRECATES
@pytest.mark.parametrize("wrapped", ["compiled", "parallel", "averaged"])
def test_what_training_wraps_around_a_network_is_removed(folder, wrapped):
    assert type(build_module(f"{module_name(folder)}:{wrapped}", None)) is nn.Sequential


def test_a_network_whose_train_returns_nothing_is_built(folder):
    module = build_module(f"{module_name(folder)}:forgetful", None)
    assert not any(part.training for part in module.modules())
