"""Keep finished rows in a file of JSON lines, so that a run that was stopped can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path | None) -> list[Any]:
    """Return the value of each line; a line that a crash has cut short is left out, so that it is measured again."""
    if path is None or not path.exists():
        return []
    text = path.read_text()
    whole, newline, rest = text.rpartition("\n")
    if rest:
        path.write_text(whole + newline)
    return [value for line in whole.splitlines() if (value := _parse(line)) is not None]


def append_line(path: Path | None, value: Any) -> None:
    """Add a finished value to the file; without a file do nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
