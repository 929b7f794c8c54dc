"""A frame for people comes with the scores of a drift check, and is forgotten when nobody looks."""

from __future__ import annotations

from base64 import b64encode

from daemon.recalibration.page_frame import PageFrame

RECEIVED, RESTORED = (b64encode(content).decode() for content in (b"received", b"restored"))


def test_it_is_taken_from_the_scores():
    assert PageFrame.of({"shown": [RECEIVED, RESTORED]}, 17) == ("17", b"received", b"restored")
    assert PageFrame.of({"shown": [RECEIVED, None]}, 18) == ("18", b"received", None)


def test_where_nobody_asked_there_is_none():
    assert PageFrame.of({}, 17) is None and PageFrame.of({"shown": None}, 17) is None
