"""What a worker is sent arrives as it was."""

import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from daemon.worker.ipc import receive_message, send_message

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
contents = st.dictionaries(st.text(), values, max_size=4)
images = arrays.arrays(st.sampled_from([np.uint8, np.uint16, np.float32]), st.tuples(*[st.integers(0, 4)] * 4))


@contextmanager
def pipe() -> Iterator[tuple[Connection, Connection]]:
    """The two ends of a connection, which holds what a test sends: it is small."""
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, theirs


def carried(content: dict, sent: np.ndarray | None = None) -> tuple[dict, np.ndarray | None]:
    """What arrives of a message."""
    with pipe() as (ours, theirs):
        send_message(ours, content, sent)
        return receive_message(theirs)


@given(contents)
def test_content_alone(content):
    assert carried(content) == (content, None)


@given(contents, images)
def test_content_and_images(content, sent):
    received_content, received = carried(content, sent)
    assert received_content == content
    np.testing.assert_array_equal(received, sent, strict=True)


def test_images_need_not_be_contiguous():
    whole = np.arange(5 * 4 * 3 * 3, dtype=np.uint8).reshape(5, 4, 3, 3)
    for part in (whole[::2], whole[:, :, ::-1], whole.transpose(0, 2, 1, 3)):
        np.testing.assert_array_equal(carried({}, part)[1], part)


def test_a_score_that_is_no_number_arrives_as_such():
    assert np.isnan(carried({"score": float("nan")})[0]["score"])


def test_messages_follow_each_other():
    with pipe() as (ours, theirs):
        for number in range(3):
            send_message(ours, {"number": number}, np.full((1, 2, 2, 3), number, np.uint8))
            send_message(ours, {"done": number})
        for number in range(3):
            content, received = receive_message(theirs)
            assert content == {"number": number} and (received == number).all()
            assert receive_message(theirs) == ({"done": number}, None)


@pytest.mark.parametrize("cut", [1, 5])
def test_a_message_that_was_cut_is_refused(cut):
    with pipe() as (ours, theirs):
        send_message(ours, {"job": "observe"}, np.zeros((2, 3, 4, 1), np.uint8))
        header, *payload = (theirs.recv_bytes() for _ in range(3))
        for parts in ((header[:-cut], *payload), (header, payload[0][:-cut], payload[1]), (header, header * 9)):
            for part in parts:
                ours.send_bytes(part)
            with pytest.raises(ValueError):
                receive_message(theirs)
            while theirs.poll():
                theirs.recv_bytes()


def test_images_of_a_list_are_sent_one_by_one_without_a_copy_of_all():
    sent = [np.full((300, 300, 3), number, np.uint8) for number in range(60)]
    with pipe() as (ours, theirs), ThreadPoolExecutor(1) as reader:
        received = reader.submit(receive_message, theirs)
        tracemalloc.start()
        send_message(ours, {}, sent)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_array_equal(received.result()[1], sent)
    assert peak < 1.2 * 60 * sent[0].nbytes  # the reader's block alone; it lies in this process, too


def test_a_closed_sender_ends_the_messages():
    with pipe() as (ours, theirs):
        send_message(ours, {"job": "observe"}, np.zeros((1, 2, 2, 3), np.uint8))
        ours.close()
        receive_message(theirs)
        with pytest.raises(EOFError):
            receive_message(theirs)


def test_what_is_not_json_cannot_be_sent():
    with pipe() as (ours, _), pytest.raises(TypeError):
        send_message(ours, {"path": object()})
