"""Read the files of bench/results, and say of each when, where and on which code it was measured."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.benches import BENCHES
from bench.provenance import code_digest

PROSE_WIDTH = 120  # characters
SHORT_COMMIT = 7  # digits, as git shows them

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One file of bench/results."""

    name: str  # the file without its ending
    document: Row

    def __getitem__(self, key: str) -> Any:
        return self.document[key]

    @property
    def date(self) -> str:
        return str(self["measured_at"])[:10]

    @property
    def commit(self) -> str:
        return str(self["commit"])[:SHORT_COMMIT]

    @property
    def machine(self) -> str:
        machine = self["machine"]
        cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
        return ", ".join(filter(None, (machine["cpu"], cores, machine["gpu"])))

    @property
    def code_has_changed(self) -> bool:
        """Tell whether today's code differs from the measured code, or may differ since its digest is unknown."""
        return self["code"] is None or self["code"] != _digest_of_today(self["bench"])

    def measured(self) -> str:
        """Return date, commit and state of the code, for a cell of a table."""
        changed = ", code has changed since" if self.code_has_changed else ""
        uncommitted = " with uncommitted changes" if self.document.get("dirty") else ""
        return f"{self.date} at `{self.commit}`{uncommitted}{changed}"

    def provenance(self) -> str:
        """Return the same with machine and versions, as a sentence for below a table."""
        return f"Measured {self.measured()}; {self.machine}, PyTorch {self['machine']['torch']}."


@cache
def _digest_of_today(bench: str) -> str:
    return code_digest(BENCHES[bench].CODE)


def load(folder: Path) -> dict[str, Result]:
    """Read all results below `folder`, by the name of the file without its ending."""
    return {path.stem: Result(path.stem, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def prose(text: str, indent: str = "") -> str:
    """Wrap a paragraph, all lines but the first after `indent`; line breaks of the source do not matter."""
    words = " ".join(text.split())
    return textwrap.fill(words, PROSE_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def blocks(*parts: str) -> str:
    """Join paragraphs and tables; empty ones are left out."""
    return "\n\n".join(part for part in parts if part)


def percent(value: float) -> str:
    return f"{value:.1f} %"


def with_worst(mean: float, worst: float) -> str:
    return f"{percent(mean)} ({percent(worst)})"


def find(rows: Iterable[Mapping[str, Any]], **wanted: object) -> Mapping[str, Any]:
    """Return the first row with these values. Raises LookupError where there is none."""
    for row in rows:
        if wanted.items() <= row.items():
            return row
    raise LookupError(f"no row has {wanted}")


def notes(results: Mapping[str, Result], about: str) -> str:
    """Return the figures about a bench of which no file is kept, each with the commit that noted it."""
    lines = []
    for note in results["notes"]["notes"]:
        if note["about"] == about:
            source = f"(noted {note['measured_at'][:10]} in `{note['commit'][:SHORT_COMMIT]}`)"
            lines.append(prose(f"- {note['text']} {source}", indent="  "))
    return "\n".join(["From runs of which no file is kept:", "", *lines]) if lines else ""
