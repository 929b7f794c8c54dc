"""A frozen model is exactly the bytes its card names, and computes what its network computes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

import deploy.model.frozen
from deploy.files import digest_file
from deploy.model.builder import build_module
from deploy.model.card import CommissionCard, ModelCard, card_path
from deploy.model.document import DocumentError, load_document
from deploy.model.export import export_model
from deploy.model.frozen import FrozenModel, load_frozen
from deploy.model.program import ModelError

BUILDERS = """
import torch
from torch import nn

def network(*last):
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(168, 5)
    module = nn.Sequential(*first, *last)
    module(torch.randn(16, 3, 8, 9))
    return module

def make():
    return network()

def random():
    return network(Noise())

def broken():
    module = network()
    nn.init.constant_(module[0].weight, float("nan"))
    return module

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(216, 5))

class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)
"""
SHAPE = (3, 8, 9)
SETTINGS = {"input_shape": SHAPE, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("commissioning")
    (folder / "frozen_networks.py").write_text(BUILDERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    path = folder / "model.pt2"
    export_model("frozen_networks:make", None, path, **SETTINGS, classes=list("abcde"))
    return path


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported model and its card, to be damaged."""
    path = tmp_path / "model.pt2"
    path.write_bytes(exported.read_bytes())
    card_path(path).write_bytes(card_path(exported).read_bytes())
    return path


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes handed to torch.export, which the test expects to stay empty."""
    seen: list[bytes] = []
    monkeypatch.setattr(deploy.model.frozen, "load_program", seen.append)
    return seen


def edit_card(model: Path, old: str, new: str) -> None:
    text = card_path(model).read_text()
    assert old in text
    card_path(model).write_text(text.replace(old, new))


@pytest.mark.parametrize("batch", [1, 4])
def test_the_loaded_model_computes_what_the_network_computes(exported, batch):
    frozen = load_frozen(exported)
    images = torch.randn(batch, *SHAPE)
    with torch.no_grad():
        expected = build_module("frozen_networks:make", None)(images)
    assert torch.equal(frozen.module(images), expected)
    assert not any(parameter.requires_grad for parameter in frozen.module.parameters())


def test_the_digest_is_that_of_the_file_and_of_the_card(exported):
    frozen = load_frozen(exported)
    digest = hashlib.sha256(exported.read_bytes()).hexdigest()
    assert frozen == FrozenModel(frozen.module, digest, frozen.card, exported, "logits", 5)
    assert frozen.card.sha256 == digest_file(exported) == digest


def test_the_card_holds_what_was_given(exported):
    card = load_document(card_path(exported), ModelCard)
    assert (card.name, card.classes) == ("model", list("abcde"))
    assert (card.input.channels, card.input.height, card.input.width) == SHAPE
    assert (card.normalisation.mean, card.normalisation.std) == (SETTINGS["mean"], SETTINGS["std"])
    assert card.exported["factory"] == "frozen_networks:make"


@pytest.mark.parametrize(("change", "kept"), [({}, True), ({"std": [0.2, 0.2, 0.2]}, False), ({"builder": 1}, False)])
def test_an_export_keeps_the_measurement_of_the_same_model_and_says_what_it_drops(folder, caplog, change, kept):
    path, arguments = folder / "measured.pt2", {"builder": "frozen_networks:make", "weights": None, **SETTINGS}
    named = CommissionCard(frames=300, sha256="c" * 64)
    card = export_model(output=path, **arguments).model_copy(update={"commissioned": named})
    if "builder" in change:  # as if another model had been there
        card, change = card.model_copy(update={"sha256": "a" * 64}), {}
    card_path(path).write_text(card.to_yaml())
    again = export_model(output=path, **arguments | change)
    assert again.commissioned == load_document(card_path(path), ModelCard).commissioned == (named if kept else None)
    assert ("measured.pt2: the measurement of 300 clean frames was of the model before (" in caplog.text) is not kept
    differs = "sha256 was aaaaaaaaaaaa… and is" if card.sha256 == "a" * 64 else "normalisation.std was [0."
    assert (differs in caplog.text and "): commission this one" in caplog.text) is not kept


def test_an_export_keeps_what_the_values_of_pictures_mean_and_says_so(folder, caplog):
    path = folder / "detector.pt2"
    card = export_model("frozen_networks:make", None, path, **SETTINGS)
    assert "card before" not in caplog.text
    seen = card.input.model_copy(update={"bits": 12, "inverted": True})
    named = CommissionCard(frames=300, sha256="c" * 64, input=seen, normalisation=card.normalisation)
    card = card.model_copy(update={"input": seen, "commissioned": named})
    card_path(path).write_text(card.to_yaml())
    again = export_model("frozen_networks:make", None, path, **SETTINGS)
    assert again == card == load_document(card_path(path), ModelCard)
    assert "detector.pt2: kept from the card before: bits 12, inverted true" in caplog.text
    card_path(path).write_text("bits: 12")
    assert export_model("frozen_networks:make", None, path, **SETTINGS).input.bits == 16
    assert "the card before cannot be read, so nothing of it is kept: " in caplog.text


def test_the_weights_digest_is_recorded(folder):
    weights = folder / "weights.safetensors"
    safetensors.torch.save_file(build_module("frozen_networks:make", None).state_dict(), weights)
    card = export_model("frozen_networks:make", weights, folder / "again.pt2", **SETTINGS, name="signs")
    assert card == load_document(folder / "again.yaml", ModelCard)
    assert card.exported["weights"] == digest_file(weights)
    assert card.name == "signs" and card.classes is None


def test_the_same_network_exported_twice_has_the_same_digest(exported, folder):
    card = export_model("frozen_networks:make", None, folder / "twice.pt2", **SETTINGS)
    assert card.sha256 == digest_file(exported)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"\0" + data[1:]])
def test_a_damaged_model_is_refused_before_torch_sees_it(model, unread, damage):
    model.write_bytes(damage(model.read_bytes()))
    with pytest.raises(ModelError, match=rf"{re.escape(str(model))}: its SHA-256 is .*card says") as caught:
        load_frozen(model)
    assert "\n" not in str(caught.value)
    assert not unread


def test_another_model_than_the_pinned_one_is_refused_before_torch_sees_it(model, unread):
    """So a file that was crafted together with its card can do nothing."""
    with pytest.raises(ModelError, match=r"model\.sha256 in the configuration pins 0000"):
        load_frozen(model, pinned="0" * 64)
    assert not unread


def test_a_model_beside_the_card_of_another_is_refused(model, unread):
    """The state after a crash of the exporter between the two files."""
    edit_card(model, load_document(card_path(model), ModelCard).sha256, "f" * 64)
    with pytest.raises(ModelError, match="card says ffffffffffff"):
        load_frozen(model)
    assert not unread


def test_a_missing_model_and_a_missing_card_are_named(model, unread):
    card_path(model).unlink()
    with pytest.raises(ModelError, match=r"model\.yaml: the model card is missing: `recald export`"):
        load_frozen(model)
    model.unlink()
    with pytest.raises(ModelError, match=r"model\.pt2: the model cannot be read: No such file"):
        load_frozen(model)
    assert not unread


def test_a_card_with_five_mistakes_is_refused_with_five_lines(model, unread):
    edit_card(model, "v: 1", "v: 9")
    edit_card(model, "channels: 3", "channels: 4")
    edit_card(model, "height: 8", "height: -8")
    edit_card(model, "name: model", "nam: model")
    with pytest.raises(DocumentError) as caught:
        load_frozen(model)
    assert len(caught.value.problems) == 5  # a wrong key is also a missing one
    assert not unread


def test_bytes_that_match_the_card_but_are_no_program_are_refused(model):
    data = model.read_bytes()[:-100]
    edit_card(model, hashlib.sha256(model.read_bytes()).hexdigest(), hashlib.sha256(data).hexdigest())
    model.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.pt2: not a torch.export program .*exported by torch") as caught:
        load_frozen(model)
    assert "\n" not in str(caught.value)


def test_a_card_with_another_input_is_refused(model):
    edit_card(model, "width: 9", "width: 10")
    with pytest.raises(ModelError, match=r"does not run on an input of shape \(1, 3, 8, 10\)"):
        load_frozen(model)


def test_a_network_that_is_no_classifier_tells_no_classes_apart(model):
    edit_card(model, "output: logits", "output: none")
    assert load_frozen(model).class_count is None


def test_a_card_with_too_many_classes_is_refused(model):
    edit_card(model, "- a\n", "- a\n- f\n")
    with pytest.raises(ModelError, match="names 6 classes, but an image gives"):
        load_frozen(model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"builder": "frozen_networks:plain"}, "no BatchNorm layer found"),
        ({"builder": "frozen_networks:broken"}, "values that are not finite"),
        ({"builder": "frozen_networks:random"}, "its forward must depend on nothing but the images"),
        ({"builder": "frozen_networks:absent"}, "has no function 'absent'"),
        ({"input_shape": (3, 8, 10)}, r"does not run on an input of shape \(3, 3, 8, 10\)"),
        ({"input_shape": (2, 8, 9)}, "input.channels: 2 cannot be used: write 1 or 3"),
        ({"std": [1.0, 0.0, 1.0]}, "normalisation.std.1: 0.0 cannot be used: write more than 0"),
        ({"mean": [0.5]}, "normalisation.mean has 1 values, but the input has 3 channels"),
        ({"classes": ["yes", "no"]}, "names 2 classes, but an image gives"),
        ({"output": Path("model.onnx")}, r"a model file is named \*\.pt2"),
        ({"weights": Path("absent.pt")}, "absent.pt: cannot be read"),
    ],
)
def test_what_cannot_be_exported_says_why_and_writes_nothing(folder, change, reason):
    arguments = {"builder": "frozen_networks:make", "weights": None, "output": folder / "refused.pt2"}
    with pytest.raises(ModelError, match=reason) as caught:
        export_model(**{**arguments, **SETTINGS, **change})
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("refused*")) and not list(folder.glob(".*"))
