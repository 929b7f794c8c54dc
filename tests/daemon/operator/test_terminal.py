"""Tables for people and for pipes: nothing is cut off, and no foreign text is obeyed."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from hypothesis import example, given
from hypothesis import strategies as st
from places import ROOT
from sources import FILES, PRODUCT

from daemon.operator.stored_version import MIN_VERSION_DIGITS
from daemon.operator.terminal import Row, print_table, table_lines
from daemon.operator.versions import SHOWN_DIGITS, short_version

MARKUP = "[red]a[/] [/b] :smile: pip install 'recald[tensorrt-rtx]' [link=x]"
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
ROWS = st.lists(st.builds(Row, st.tuples(WORDS, WORDS), st.lists(WORDS, max_size=3)), max_size=4)
SHOW = """
from daemon.operator.terminal import Row, print_table
row = Row(("works", "front"), ["`recald approve` " + "x" * 100, "candidate: " + "ab" * 6])
print_table(("one", "two"), [row], {"works": "green"})
"""


@given(ROWS, st.none() | st.integers(1, 200))
@example([Row((MARKUP, "\x1b[31m\n"), [MARKUP, "\t\x07"])], 80)
def test_every_word_is_shown_whole_and_nothing_that_a_terminal_obeys(rows: list[Row], width: int | None):
    lines = [line for line, _ in table_lines(("one", "two"), rows, width)]
    assert all(line.isprintable() for line in lines)
    for row in rows:
        for text in (*row.cells, *row.notes):
            words = "".join(c if c.isprintable() else " " for c in text).split()
            assert all(any(word in line for line in lines) for word in words)
    if width is None:
        assert len(lines) == 1 + len(rows), "a row is a line, so that grep finds all of it"


@given(ROWS, st.integers(24, 200))
def test_no_line_is_longer_than_the_terminal_unless_a_word_is(rows: list[Row], width: int):
    for line, first in table_lines(("one", "two"), rows, width):
        cells_alone = bool(first) or line.startswith(("one", " " * 5))
        assert len(line) <= width or cells_alone or len(line.split()) <= 1 or not line.startswith("    ")


def test_brackets_are_printed_as_they_are(capsys):
    print_table(("a", "b"), [Row((MARKUP, "x"), [MARKUP])])
    assert capsys.readouterr().out.count(MARKUP) == 2


def test_no_console_takes_text_for_markup():
    """Paths, errors and names of sensors and classes may hold brackets, such as recald[tensorrt-rtx]."""
    calls = {name: re.findall(r"\bConsole\(([^)]*)\)", text) for name, text in product_sources().items()}
    assert {name for name, found in calls.items() if found} >= {"daemon/operator/terminal.py", "daemon/demo/run.py"}
    assert not {name for name, found in calls.items() if any("markup=False" not in call for call in found)}


def product_sources() -> dict[str, str]:
    return {name: (ROOT / name).read_text() for name in FILES if name.split("/")[0] in PRODUCT}


def shown(**environment: str) -> str:
    """What a terminal of 80 columns receives."""
    leader, follower = pty.openpty()
    settings = {"COLUMNS": "80", "TERM": "xterm-256color", **environment}
    subprocess.run([sys.executable, "-c", SHOW], stdout=follower, env=os.environ | settings, check=True)
    os.close(follower)
    text = b""
    while True:
        try:
            text += os.read(leader, 65536)
        except OSError:  # the end of a pseudo terminal
            os.close(leader)
            return text.decode()


def test_on_a_terminal_long_notes_stand_below_and_colours_can_be_turned_off():
    coloured, plain = shown(), shown(NO_COLOR="1")
    assert "\x1b[32mworks" in coloured and "\x1b" not in plain
    assert plain.splitlines() == [
        "one    two",
        "works  front",
        "    `recald approve`",
        "    " + "x" * 100,
        "    candidate: abababababab",
    ]


def test_the_digits_that_are_shown_are_enough_for_an_order():
    assert len(short_version("ab" * 32)) == SHOWN_DIGITS >= MIN_VERSION_DIGITS
    assert short_version("factory") == "factory"
