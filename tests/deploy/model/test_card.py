"""The card says what Φ's input is; a card with mistakes is refused with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deploy.model.card import ModelCard, card_path
from deploy.model.document import DocumentError, load_document

GREY = {
    "v": 1,
    "name": "digits",
    "sha256": "0123456789abcdef" * 4,
    "input": {"channels": 1, "height": 28, "width": 30},
    "normalisation": {"mean": [0.1307], "std": [0.3081]},
    "classes": None,
    "exported": {"factory": "digits:make", "weights": "from the factory", "torch": "2.13.0"},
}
NAMES = st.text(min_size=1, max_size=20).filter(str.isprintable).filter(str.strip)


def test_the_card_lies_beside_the_model():
    assert card_path(Path("/models/road.signs.pt2")) == Path("/models/road.signs.yaml")


@given(
    name=NAMES,
    classes=st.none() | st.lists(NAMES, max_size=4),
    mean=st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_card_written_is_read_back_equal(tmp_path_factory, name, classes, mean):
    values = {**GREY, "name": name, "classes": classes, "normalisation": {"mean": [mean], "std": [0.5]}}
    card = ModelCard.model_validate(values)
    path = tmp_path_factory.getbasetemp() / "card.yaml"
    path.write_text(card.to_yaml(), encoding="utf-8")
    assert load_document(path, ModelCard) == card


def test_five_mistakes_are_five_lines(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(
        "v: 2\nname: digits\nsha256: ABC\ninput: {channels: 2, height: 0, width: 28}\n"
        "normalisation: {mean: [.nan], std: [0.3]}\nclasses: null\nexported: {}\n"
    )
    with pytest.raises(DocumentError) as caught:
        load_document(path, ModelCard)
    where = [problem.removeprefix(f"{path}:").split(": ")[:2] for problem in caught.value.problems]
    assert where == [
        ["1", "v"],
        ["3", "sha256"],
        ["4", "input.channels"],
        ["4", "input.height"],
        ["5", "normalisation.mean.0"],
    ]


@pytest.mark.parametrize("std", [0.0, -1.0, float("inf"), float("nan")])
def test_a_deviation_is_positive_and_finite(std):
    with pytest.raises(ValidationError, match=r"normalisation\.std\.0"):
        ModelCard.model_validate({**GREY, "normalisation": {"mean": [0.0], "std": [std]}})


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[31m", "\x85"])
def test_a_name_can_be_printed(name):
    with pytest.raises(ValidationError, match="must be printable text"):
        ModelCard.model_validate({**GREY, "classes": ["0", name]})


def test_a_value_for_each_channel_is_needed():
    with pytest.raises(ValidationError, match=r"normalisation\.std has 3 values, but the input has 1 channels"):
        ModelCard.model_validate({**GREY, "normalisation": {"mean": [0.0], "std": [1.0, 1.0, 1.0]}})


@pytest.mark.parametrize(
    ("given", "bits", "inverted"), [({}, 16, False), ({"bits": 12}, 12, False), ({"inverted": True}, 16, True)]
)
def test_what_values_mean_may_be_left_out_as_in_cards_of_before(given, bits, inverted):
    card = ModelCard.model_validate({**GREY, "input": {**GREY["input"], **given}})
    assert (card.input.bits, card.input.inverted) == (bits, inverted)


@pytest.mark.parametrize("bits", [7, 17, 12.5, None])
def test_a_word_has_8_to_16_significant_bits(bits):
    with pytest.raises(ValidationError, match=r"input\.bits"):
        ModelCard.model_validate({**GREY, "input": {**GREY["input"], "bits": bits}})


def test_a_card_cannot_be_changed():
    card = ModelCard.model_validate(GREY)
    with pytest.raises(ValidationError):
        card.name = "letters"
