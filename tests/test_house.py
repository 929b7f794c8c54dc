"""A newcomer finds the way: docs/reading-order.md is true, and no file, function or room grows too large."""

from __future__ import annotations

import pytest
from sources import FILES, function_lengths, imported_files, named_files

from tests import house

MAX_FRAME_FILES, MAX_RECALIBRATION_FILES = 9, 15  # that one has to open to follow a frame, or a recalibration
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
MAX_FILES_OF_ROOM = 20

LISTS = {house.FRAME: MAX_FRAME_FILES, house.RECALIBRATION: MAX_RECALIBRATION_FILES}


@pytest.mark.parametrize(("heading", "most"), LISTS.items(), ids=["frame", "recalibration"])
def test_a_reading_list_is_short_and_its_files_exist(heading, most):
    files = house.reading_list(heading)
    assert 4 <= len(files) == len(set(files)) <= most
    assert not [file for file in files if file not in FILES]


@pytest.mark.parametrize("heading", LISTS, ids=["frame", "recalibration"])
def test_each_file_of_a_reading_list_is_used_or_started_by_one_before_it(heading):
    files = house.reading_list(heading)
    for place, file in enumerate(files[1:], 1):
        assert any(file in imported_files(before) | named_files(before) for before in files[:place]), file


def test_the_worker_is_reached_by_starting_its_process():
    assert "daemon/worker/main.py" in named_files("daemon/worker/client.py")
    assert "daemon/worker/main.py" not in imported_files("daemon/worker/client.py")


def test_no_file_is_too_long():
    assert {file: lines for file, lines in house.file_lengths().items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_too_long():
    assert [length for length in function_lengths() if length.lines > MAX_FUNCTION_LINES] == []


def test_no_room_has_too_many_files():
    assert {name: count for name, count in house.files_of_rooms().items() if count > MAX_FILES_OF_ROOM} == {}


def test_the_figures_are_printed(capsys, monkeypatch):
    monkeypatch.setattr(house, "seconds_of", lambda *arguments: 0.25)  # starting processes is not its point
    house.main()
    printed = capsys.readouterr().out
    assert "functions: median" in printed and "recald --help: 0.25 s" in printed
    assert f"{house.FRAME}: {len(house.reading_list(house.FRAME))} files to open" in printed
