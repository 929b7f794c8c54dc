"""Which class a label means, and which requests are refused as a whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.errors import RecaldError
from daemon.model.labels import MAX_LABELS, ClassNames, LabelError, LabelReader

NAMES = ["cat", "crane", "dog", "crane", "1"]
READER = LabelReader(ClassNames(len(NAMES), NAMES))


def test_a_label_is_a_name_or_a_number_and_a_name_goes_first():
    assert READER.read([[7, "cat"], [8, 2], [9, "3"], [10, "1"]]) == [(7, 0), (8, 2), (9, 3), (10, 4)]


def test_without_names_on_the_card_a_label_is_a_number():
    assert LabelReader(ClassNames(3, None)).read([[7, "2"], [8, 0]]) == [(7, 2), (8, 0)]
    with pytest.raises(LabelError, match="^'cat' is no class of the model: give a number from 0 to 2$"):
        LabelReader(ClassNames(3, None)).read([[7, "cat"]])


@pytest.mark.parametrize(
    "label", ["bird", "Cat", "", 5, -1, "5", "-1", "9" * 5000, 10**30, True, 1.0, None, ["cat"], {}]
)
def test_what_is_no_class_is_refused_in_one_short_line_with_its_place(label):
    with pytest.raises(LabelError) as refused:
        READER.read([[7, "cat"], [8, label]])
    assert "is no class of the model: give a name of its card, such as 'cat', or a number" in str(refused.value)
    assert refused.value.entry == 1 and "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_a_name_of_two_classes_is_refused_with_their_numbers():
    with pytest.raises(LabelError, match="2 classes are named 'crane': give the number 1 or 3"):
        READER.read([[7, "crane"]])


@pytest.mark.parametrize(
    "entry", [[7], [7, "cat", 1], "7,cat", None, {"seq": 7}, [True, "cat"], [-1, "cat"], [7.0, "cat"]]
)
def test_what_is_no_entry_is_refused_with_its_place(entry):
    with pytest.raises(LabelError, match="^(an entry must be|seq must be)") as refused:
        READER.read([[7, "cat"], entry])
    assert refused.value.entry == 1


@pytest.mark.parametrize("labels", [None, [], {}, "cat", 7, [[1, "cat"]] * (MAX_LABELS + 1)])
def test_what_is_no_list_of_labels_is_refused(labels):
    with pytest.raises(RecaldError, match=r"^labels must be a list of 1 to 2000 entries \[seq, label\]"):
        READER.read(labels)


def test_a_network_that_is_no_classifier_has_no_labels():
    with pytest.raises(RecaldError, match="^the network is no classifier"):
        LabelReader(ClassNames(None, None)).read([[7, 0]])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(NAMES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
)


@given(plain | st.lists(plain | st.tuples(plain, plain).map(list)))
def test_whatever_json_can_hold_is_read_or_refused(labels):
    try:
        read = READER.read(labels)
    except RecaldError:
        return
    assert len(read) == len(labels)
    assert all(type(seq) is int and seq >= 0 and 0 <= number < len(NAMES) for seq, number in read)
