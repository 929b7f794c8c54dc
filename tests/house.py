"""How well a newcomer finds the way: sizes of rooms, files and functions, and what two questions make one open.

`python -m tests.house` prints the figures; tests/test_house.py keeps them within their bounds.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent / "support"))  # pytest does this by its setting `pythonpath`

from places import ROOT
from sources import FILES, PRODUCT, Length, function_lengths, room, shared_names

READING_ORDER = ROOT / "docs" / "reading-order.md"
FRAME, RECALIBRATION = "The way of a frame", "The way of a recalibration"  # headings of its two lists


def reading_list(heading: str) -> list[str]:
    """Return the paths of the numbered list below a heading of docs/reading-order.md, in their order."""
    text = READING_ORDER.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", text, re.MULTILINE)


def files_of_rooms() -> Counter[str]:
    """Return how many files each room of the product has; what lies directly in a package counts for its folder."""
    return Counter(_folder(file) for file in _product())


def file_lengths() -> dict[str, int]:
    return {file: len(FILES[file].read_text().splitlines()) for file in _product()}


def percentile(lengths: list[Length], share: float) -> int:
    return lengths[int(share * (len(lengths) - 1))].lines


def seconds_of(*arguments: str) -> float:
    """Return how long a command takes to its end, the shortest of three."""
    return min(_once(arguments) for _ in range(3))


def _once(arguments: tuple[str, ...]) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "daemon", *arguments], capture_output=True, cwd=ROOT)
    return time.monotonic() - began


def _product() -> list[str]:
    return [file for file in FILES if file.split("/")[0] in PRODUCT]


def _folder(file: str) -> str:
    return room(file) if room(file).endswith("/") else f"{file.split('/')[0]}/"


def main() -> None:
    print("files of each room")
    for name, count in sorted(files_of_rooms().items()):
        print(f"  {count:3}  {name}")
    lengths, files = function_lengths(), file_lengths()
    print(f"{len(files)} files, {sum(files.values())} lines, the longest {max(files, key=files.__getitem__)}", end="")
    print(f" with {max(files.values())}")
    median = statistics.median(length.lines for length in lengths)
    print(f"{len(lengths)} functions: median {median:g} lines, 90 % up to {percentile(lengths, 0.9)}, the longest")
    for length in reversed(lengths[-3:]):
        print(f"  {length.lines:3}  {length.file}: {length.name}")
    for heading in (FRAME, RECALIBRATION):
        print(f"{heading}: {len(reading_list(heading))} files to open")
    print(f"recald --help: {seconds_of('--help'):.2f} s, recald status: {seconds_of('status'):.2f} s")
    shared = shared_names()
    print(f"{len(shared)} classes and constants are defined in several files")
    for shared_name, places in shared.items():
        print(f"  {shared_name}: {', '.join(places)}")


if __name__ == "__main__":
    main()
