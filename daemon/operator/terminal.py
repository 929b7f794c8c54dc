"""How commands print tables: nothing is cut off, and no text from elsewhere is obeyed by rich or by the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

COLUMN_GAP = "  "
NOTE_INDENT = "    "
MIN_NOTE_WIDTH = 20  # on a terminal that is hardly wider than the indent


class Row(NamedTuple):
    """A row of a table. cells: short texts, aligned. notes: texts of any length, below or behind the cells."""

    cells: Sequence[str]
    notes: Sequence[str] = ()


def print_table(header: Sequence[str], rows: Sequence[Row], styles: Mapping[str, str] | None = None) -> None:
    """Print aligned rows. styles: colours of first cells, for a terminal that shows colours.

    On a terminal, notes that do not fit behind their row are wrapped below it. Elsewhere each row is one line, however
    long, so that other programs can search in it.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    for line, first in table_lines(header, rows, terminal_width()):
        text = Text(line)
        text.stylize((styles or {}).get(first, ""), 0, len(first))
        console.print(text, soft_wrap=True)


def terminal_width() -> int | None:
    """Return the columns of the terminal on standard output; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_lines(header: Sequence[str], rows: Sequence[Row], width: int | None) -> Iterator[tuple[str, str]]:
    """Yield the lines of a table, each with its row's first cell if it begins the row, else with ""."""
    table = [Row(header), *(Row([*map(printable, row.cells)], [*map(printable, row.notes)]) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*(row.cells for row in table), strict=True)]
    for row in table:
        cells = COLUMN_GAP.join(cell.ljust(wide) for cell, wide in zip(row.cells, widths, strict=True))
        whole = COLUMN_GAP.join([cells, *filter(None, row.notes)])
        if width is None or len(whole) <= width:
            yield whole.rstrip(), row.cells[0]
            continue
        yield cells.rstrip(), row.cells[0]
        yield from ((line, "") for note in row.notes for line in _wrap(note, width))


def _wrap(text: str, width: int) -> list[str]:
    """Wrap at spaces alone: a version or a path stays whole, so that it can be copied."""
    room = max(MIN_NOTE_WIDTH, width - len(NOTE_INDENT))
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return [f"{NOTE_INDENT}{line}" for line in lines]


def printable(text: str) -> str:
    """Replace what a terminal would obey: line ends by spaces, other control characters by question marks."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
