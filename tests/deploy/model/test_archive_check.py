"""A model file that was crafted to run code is refused before PyTorch reads it; what an export writes passes."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploy.model.archive_check import UnsafeArchive, checked_archive
from deploy.model.program import ModelError, export_program, load_program, save_program

PROGRAM, WEIGHTS = "archive/models/model.json", "archive/data/weights/model_weights_config.json"
EXAMPLE = torch.zeros(1, 3, 8, 8)
Edit = Callable[[dict[str, bytes]], None]


class Network(nn.Module):
    """A small network; `head` chooses the shape arithmetic that its export has to describe."""

    def __init__(self, head: str = "mean"):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.convolution(x))
        count, channels, height, width = y.shape
        if self.head == "fold":
            y = y.reshape(count * 2, channels // 2, height, width).reshape(count, channels, height, width)
        elif self.head == "resize":
            y = F.interpolate(y, scale_factor=2.0, mode="bilinear").view(count, channels, -1)[..., None]
        elif self.head == "join":
            y = torch.cat([y, torch.zeros(x.shape[0], 1, height, width)], 1)[:, :channels]
        elif self.head == "no_grad":
            with torch.no_grad():
                y = y * 2
        return self.linear(y.mean((2, 3)))


@pytest.fixture(scope="module")
def exported() -> bytes:
    return save_program(export_program(Network().eval(), EXAMPLE))


def edited(data: bytes, edit: Edit) -> bytes:
    """The archive after `edit` changed its records by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    edit(records)
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return result.getvalue()


def in_program(change: Callable[[dict[str, Any]], None]) -> Edit:
    def edit(records: dict[str, bytes]) -> None:
        program = json.loads(records[PROGRAM])
        change(program)
        records[PROGRAM] = json.dumps(program).encode()

    return edit


def every(key: str, value: Any) -> Edit:
    """Put `value` wherever the program has this key."""

    def change(part: Any) -> None:
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            change(inner)
        if isinstance(part, dict) and key in part:
            part[key] = value

    return in_program(change)


def rename_input(code: str) -> Edit:
    def edit(records: dict[str, bytes]) -> None:
        records[PROGRAM] = records[PROGRAM].replace(b'"x"', json.dumps(f"x={code}").encode())

    return edit


def call_before_the_network(argument: str) -> Edit:
    node = {"target": "torch.os.mkdir", "outputs": [], "metadata": {}, "is_hop_single_tensor_return": None}
    node |= {"name": "first", "inputs": [{"name": "", "arg": {"as_string": argument}, "kind": 1}]}
    return in_program(lambda program: program["graph_module"]["graph"]["nodes"].insert(0, node))


def put(name: str, record: bytes) -> Edit:
    return lambda records: records.__setitem__(name, record)


def copy_program(records: dict[str, bytes]) -> None:
    records["archive/models/b.json"] = records[PROGRAM]


class Code:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def pickled_weight(path: Path) -> Edit:
    def edit(records: dict[str, bytes]) -> None:
        config = json.loads(records[WEIGHTS])
        payload = next(iter(config["config"].values()))
        payload["use_pickle"] = True
        records[WEIGHTS] = json.dumps(config).encode()
        records[f"archive/data/weights/{payload['path_name']}"] = pickle.dumps(Code(path))

    return edit


def code(path: Path) -> str:
    """A Python expression that makes the folder `path`."""
    return f"__import__('os').mkdir({str(path)!r})"


FOREIGN_STRUCTURE = json.dumps([1, {"type": "os.system", "context": "null", "children_spec": []}])
ATTACKS: dict[str, Callable[[Path], Edit]] = {
    "expression": lambda path: every("expr_str", code(path)),
    "expression without names": lambda path: every("expr_str", "().__class__.__base__.__subclasses__()"),
    "expression in a symbol": lambda path: every("expr_str", f"Symbol({code(path)!r})"),
    "expression that is a text": lambda path: every("expr_str", repr(code(path))),
    "expression that never ends": lambda path: every("expr_str", "9**9**9"),
    "shape guard": lambda path: every("guards_code", [f"{code(path)} or True"]),
    "shape guard on an attribute": lambda path: every("guards_code", ["L['x'].__class__"]),
    "operator outside of torch.ops": lambda path: call_before_the_network(str(path)),
    "operator that loads a library": lambda path: every("target", "torch.ops.load_library"),
    "attribute of an operator": lambda path: every("target", "torch.ops.aten.conv2d.__class__"),
    "operator that does not exist": lambda path: every("target", "torch.ops.aten.conv2d.evil"),
    "operator as an argument": lambda path: every("arg", {"as_operator": "torch.os.system"}),
    "name of the input": lambda path: rename_input(code(path)),
    "name of an argument": lambda path: every("forward_arg_names", [f"x={code(path)}"]),
    "name of a parameter": lambda path: every("parameter_name", f'a"); {code(path)}; ("'),
    "class in the input's structure": lambda path: every("in_spec", FOREIGN_STRUCTURE),
    "pickled weight": pickled_weight,
    "pickled sample inputs": lambda path: put("archive/data/sample_inputs/model.pt", pickle.dumps(Code(path))),
    "pickled weights of torch 2.8": lambda path: put("archive/data/weights/model.pt", pickle.dumps(Code(path))),
    "shared library": lambda path: put("archive/data/aotinductor/model/a.so", b"\x7fELF"),
    "second program": lambda path: copy_program,
    "foreign object": lambda path: put("archive/data/constants/custom_obj_0", b""),
    "second root": lambda path: put("other/models/model.json", b"{}"),
    "way out of the archive": lambda path: put("archive/../../evil", b""),
    "nesting without end": lambda path: put(PROGRAM, b"[" * 100_000),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_crafted_archive_is_refused_and_none_of_it_runs(exported, tmp_path, name):
    proof = tmp_path / "the code ran"
    with pytest.raises(ModelError) as refusal:
        load_program(edited(exported, ATTACKS[name](proof)))
    assert not proof.exists() and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["expression", "pickled weight"])
def test_the_code_of_the_test_above_does_run_without_the_check(exported, tmp_path, name):
    proof = tmp_path / "the code ran"
    with pytest.raises(Exception, match=r".*"):  # whatever torch says after it ran the code
        torch.export.load(io.BytesIO(edited(exported, ATTACKS[name](proof))))
    assert proof.exists()


@pytest.mark.parametrize("head", ["mean", "fold", "resize", "join", "no_grad"])
def test_what_an_export_writes_passes_and_computes_the_same(head):
    network = Network(head).eval()
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loaded = load_program(save_program(export_program(network, EXAMPLE)))
    assert torch.allclose(loaded(images), network(images), atol=1e-6)


def test_a_checked_archive_passes_again(exported):
    checked = checked_archive(exported)
    assert checked_archive(checked) == checked


def test_torch_reads_the_records_that_were_checked_though_the_bytes_hold_two_archives(exported):
    """Readers differ in which archive they find in such bytes; what is handed on holds one alone."""
    crafted = edited(exported, ATTACKS["shared library"](Path()))
    for data in (crafted + exported, exported + crafted):
        try:
            checked = checked_archive(data)
        except (UnsafeArchive, zipfile.BadZipFile):
            continue
        assert b"aotinductor" not in checked and len(checked) < 2 * len(exported)


def texts(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the program has text."""
    if isinstance(part, str):
        return [path]
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return [found for key, value in inner for found in texts(value, (*path, key))]


HISTORY = {"nn_module_stack", "torch_fn", "source_fn_stack", "stack_trace", "from_node"}


@settings(max_examples=60)
@given(st.data())
def test_code_in_place_of_any_text_is_refused(exported, tmp_path_factory, data):
    """The history of operators alone is free text: it may be loaded, and none of it runs."""
    proof = tmp_path_factory.getbasetemp() / "code in place of a text ran"
    with zipfile.ZipFile(io.BytesIO(exported)) as archive:
        places = texts(json.loads(archive.read(PROGRAM)))
    *keys, last = data.draw(st.sampled_from(places))
    crafted_text = data.draw(st.sampled_from([code(proof), f"x={code(proof)}", f'"); {code(proof)}; ("']))

    def change(program: dict[str, Any]) -> None:
        part: Any = program
        for key in keys:
            part = part[key]
        part[last] = crafted_text

    crafted = edited(exported, in_program(change))
    if HISTORY & {str(key) for key in (*keys, last)}:
        with suppress(ModelError):
            load_program(crafted)(EXAMPLE)
    else:
        with pytest.raises(UnsafeArchive):
            checked_archive(crafted)
    assert not proof.exists()


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=200), st.integers(0, 100_000))
def test_damaged_bytes_are_a_model_error_or_another_model(exported, noise, place):
    damaged = bytearray(exported)
    start = place % len(damaged)
    damaged[start : start + len(noise)] = noise
    try:
        load_program(bytes(damaged))
    except ModelError as error:
        assert "\n" not in str(error)
