"""A traced program computes what the network does, for any batch, and cannot bring a pickle with it."""

from __future__ import annotations

import io
import json
import logging
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploy.model.program import (
    ModelError,
    export_program,
    export_static,
    load_program,
    module_on,
    relative_error,
    run_once,
    save_program,
)

EXAMPLE = torch.zeros(1, 3, 8, 8)
OLDER_TORCH_WARNS = pytest.mark.filterwarnings("ignore:This version of file is deprecated")  # before 2.9


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    module(torch.randn(16, 3, 8, 8))
    return module.eval()


@pytest.fixture(scope="module")
def stored() -> bytes:
    return save_program(export_program(network(), EXAMPLE))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages of all loggers, warnings and worse. PyTorch's loggers do not pass theirs to the root logger."""
    messages: list[str] = []

    def handle(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            messages.append(record.getMessage())

    monkeypatch.setattr(logging.Logger, "handle", handle)
    return messages


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_it_computes_what_the_network_does_for_any_batch(stored, batch):
    images = torch.randn(batch, 3, 8, 8)
    assert torch.equal(load_program(stored)(images), network()(images))


def test_it_is_in_evaluation_mode_and_stays_so_inside_another_module(stored):
    program = load_program(stored)
    around = nn.Sequential(program)
    around.train()
    around.eval()
    assert not any(part.training for part in program.modules())
    assert not any(parameter.requires_grad for parameter in program.parameters())


def test_its_gradients_reach_the_input(stored):
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    load_program(stored)(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_a_loaded_program_can_be_exported_again(stored):
    again = load_program(save_program(export_program(load_program(stored), EXAMPLE)))
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(again(images), network()(images))


def test_its_bytes_repeat_and_name_no_path_of_this_machine(stored):
    assert save_program(export_program(network(), EXAMPLE)) == stored
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        assert not any(str(Path(torch.__file__).parent).encode() in archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("export", [export_program, export_static])
def test_a_loaded_program_is_exported_to_the_same_bytes_each_time(stored, export):
    first, second = (save_program(export(load_program(stored), EXAMPLE)) for _ in range(2))
    assert first == second
    assert str(Path(torch.__file__).parent).encode() not in save_program(export(network(), EXAMPLE))


class FixedBatch(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(2, -1)


def test_a_network_for_one_batch_size_is_refused():
    with pytest.raises(ModelError, match=r"cannot trace it for any batch size: .*batch"):
        export_program(FixedBatch(), EXAMPLE)


class Marker:
    """Unpickling this writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def rewrite(data: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """The archive with every record changed; uncompressed, as PyTorch's reader wants it."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(result, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return result.getvalue()


def torch_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def code_in_sample_inputs(code: object) -> Callable[[str, bytes], bytes]:
    return lambda name, record: torch_pickle(code) if name.endswith("sample_inputs/model.pt") else record


def code_in_a_weight(code: object) -> Callable[[str, bytes], bytes]:
    def change(name: str, record: bytes) -> bytes:
        if name.endswith(("/weight_0", "/weights/model.pt")):  # since torch 2.9, and before
            return torch_pickle(code)
        if not name.endswith("weights_config.json"):
            return record
        config = json.loads(record)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()

    return change


def code_in_a_constant(code: object) -> Callable[[str, bytes], bytes]:
    def change(name: str, record: bytes) -> bytes:
        if name.endswith("/constants/model.pt"):  # before torch 2.9
            return torch_pickle(code)
        if not name.endswith("constants_config.json"):
            return record
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        return json.dumps({"config": {"constant": payload}}).encode()

    return change


@pytest.mark.parametrize("hide", [code_in_sample_inputs, code_in_a_weight, code_in_a_constant])
def test_an_archive_that_brings_a_pickle_is_refused_before_it_runs(stored, tmp_path, hide):
    proof = tmp_path / "the code ran"
    crafted = rewrite(stored, hide(Marker(str(proof))))
    with pytest.raises(ModelError, match="could run code"):
        load_program(crafted)
    assert not proof.exists()


def test_the_marker_of_the_test_above_does_run_where_it_is_unpickled(tmp_path):
    proof = tmp_path / "the code ran"
    pickle.loads(pickle.dumps(Marker(str(proof)))).close()
    assert proof.exists()


def test_an_archive_only_rewritten_is_read(stored):
    assert load_program(rewrite(stored, lambda name, record: record))(EXAMPLE).shape == (1, 5)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"junk", lambda data: data[: len(data) // 2]])
def test_what_is_not_a_program_is_one_line_and_no_log(stored, damage, logged):
    with pytest.raises(ModelError, match="not a torch.export program that can be read") as caught:
        load_program(damage(stored))
    assert "\n" not in str(caught.value)
    assert not logged


@OLDER_TORCH_WARNS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_raises_nothing_else(stored, data):
    damaged = bytearray(stored)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ModelError):
        load_program(bytes(damaged[: data.draw(st.sampled_from([len(stored), len(stored) - 7]))]))


class MakesTensors(nn.Module):
    """A network that makes a tensor itself, on the device that its trace names."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.mean((2, 3)) + torch.arange(3.0, device=frames.device)


def test_a_program_that_cannot_be_rewritten_is_not_called_unreadable(monkeypatch):
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 2
            x += self.norm(x)
            return x

    data = save_program(export_program(Overwrites().eval(), torch.randn(2, 3, 8, 8)))
    load_program(data)
    monkeypatch.setattr("deploy.model.program.functional_module", Mock(side_effect=RuntimeError("no rule\nfor it")))
    with pytest.raises(ModelError, match=r"^it overwrites values that it reads later .* export it again: no rule$"):
        load_program(data)


def test_a_traced_network_moves_with_the_device_that_its_operators_name():
    program = load_program(save_program(export_program(MakesTensors(), EXAMPLE)))
    moved = module_on(program, "meta")
    assert moved(EXAMPLE.to("meta")).device.type == "meta"
    torch.testing.assert_close(program(EXAMPLE), torch.arange(3.0)[None])  # the original stays where it is
    assert {p.device.type for p in module_on(network(), "meta").parameters()} == {"meta"}


def test_a_reader_of_torch_that_warns_of_its_own_buffers_is_not_heard(stored, monkeypatch):
    load = torch.export.load

    def load_with_a_warning(file: io.BytesIO) -> object:
        torch.frombuffer(b"1234", dtype=torch.uint8)  # as torch 2.9 to 2.12 do
        return load(file)

    monkeypatch.setattr(torch.export, "load", load_with_a_warning)
    assert isinstance(load_program(stored), nn.Module)


@OLDER_TORCH_WARNS
@pytest.mark.parametrize("missing", ["/models/model.json", "/data/weights/", "/weight_0", "/archive_format"])
def test_an_archive_without_a_part_is_refused(stored, missing, logged):
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist() if missing not in name}
        if len(parts) == len(archive.namelist()):
            pytest.skip("this version of PyTorch stores all weights in one part")
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as target:
        for name, record in parts.items():
            target.writestr(name, record)
    with pytest.raises(ModelError, match="not a torch.export program"):
        load_program(result.getvalue())
    assert not logged


class Returns(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> object:
        return self.value


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(1, 1, 3), r"does not run on an input of shape \(1, 3, 8, 8\)"),
        (Returns((torch.zeros(1), torch.zeros(1))), "must return one tensor, not tuple"),
        (Returns(torch.zeros(2, 5)), r"returned shape \(2, 5\) for 1 images"),
        (Returns(torch.tensor(0.0)), r"returned shape \(\) for 1 images"),
        (Returns(torch.full((1, 5), torch.inf)), "values that are not finite"),
    ],
)
def test_a_forward_pass_without_a_usable_output_says_why(module, reason):
    with pytest.raises(ModelError, match=reason):
        run_once(module, EXAMPLE)


def test_the_error_is_relative_only_for_large_values():
    assert relative_error(torch.tensor([0.1, 0.3]), torch.tensor([0.1, 0.2])) == pytest.approx(0.1)
    assert relative_error(torch.tensor([101.0]), torch.tensor([100.0])) == pytest.approx(0.01)
