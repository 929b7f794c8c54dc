"""What a worker is sent arrives as it was."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from daemon.worker.ipc import pack, unpack

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
headers = st.dictionaries(st.text(), values, max_size=4)
images = arrays.arrays(np.uint8, st.tuples(*[st.integers(0, 4)] * 4))


@given(headers)
def test_a_header_alone(header):
    assert unpack(pack(header)) == (header, None)


@given(headers, images)
def test_a_header_and_images(header, sent):
    received_header, received = unpack(pack(header, sent))
    assert received_header == header
    assert received.dtype == np.uint8
    np.testing.assert_array_equal(received, sent, strict=True)


def test_images_need_not_be_contiguous():
    whole = np.arange(5 * 4 * 3 * 3, dtype=np.uint8).reshape(5, 4, 3, 3)
    for part in (whole[::2], whole[:, :, ::-1], whole.transpose(0, 2, 1, 3)):
        np.testing.assert_array_equal(unpack(pack({}, part))[1], part)


def test_a_score_that_is_no_number_arrives_as_such():
    assert np.isnan(unpack(pack({"score": float("nan")}))[0]["score"])


def test_the_images_share_the_memory_of_the_message():
    message = pack({"job": "observe"}, np.zeros((2, 3, 4, 1), np.uint8))
    assert np.shares_memory(unpack(message)[1], np.frombuffer(message, np.uint8))


@pytest.mark.parametrize("cut", [1, 5])
def test_a_message_that_was_cut_is_refused(cut):
    with pytest.raises(ValueError):
        unpack(pack({"job": "observe"}, np.zeros((2, 3, 4, 1), np.uint8))[:-cut])


def test_what_is_not_json_cannot_be_sent():
    with pytest.raises(TypeError):
        pack({"path": object()})
    assert json.loads(pack({"ok": 1})[4:])["header"] == {"ok": 1}
