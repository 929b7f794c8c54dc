"""Records that each carry the hash of the one before, and what is wrong with a row of them.

A record's digest is the SHA-256 of the JSON array [number, at, sensor, event, details, previous], without
spaces and in ASCII, where details is itself JSON text: sorted keys, no spaces, ASCII.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

START = "0" * 64  # what the first record names as the one before
BEGUN = "log begun"  # the first record, never pruned; its random id makes a chain unlike any other
PRUNED = "log pruned"  # the record that vouches for where the chain goes on after its oldest were removed
Anchor = tuple[int, str]  # number and digest of a record, as seen outside the log


@dataclass(frozen=True)
class Record:
    """One entry as stored: `at` is UTC, `details` canonical JSON. Fields read from a file may be of any type."""

    number: int
    at: str
    sensor: str
    event: str
    details: str
    previous: str
    digest: str

    @property
    def anchor(self) -> Anchor:
        """What to keep elsewhere, so that a log cut short or replaced after this record is found out."""
        return self.number, self.digest

    def content(self) -> Any:
        """The details as they were given, or as they stand where they were changed to what is no JSON."""
        try:
            return json.loads(self.details)
        except (ValueError, TypeError, RecursionError):
            return self.details

    def line(self) -> str:
        """The record as one JSON object, without a line break."""
        return json.dumps({**asdict(self), "details": self.content()}, default=repr)

    def time(self) -> float | None:
        """`at` in s since the epoch, None where it was changed to what is no time."""
        try:
            return datetime.fromisoformat(self.at.replace("Z", "+00:00")).timestamp()
        except (ValueError, TypeError, AttributeError, OverflowError):
            return None

    def holds(self) -> bool:
        """Whether every field is what it was when the digest was made."""
        fields = [self.number, self.at, self.sensor, self.event, self.details, self.previous]
        return all(isinstance(field, int | str) for field in fields) and self.digest == _digest(fields)


def chained(last: Anchor, at: str, sensor: str, event: str, details: str) -> Record:
    """The record that comes after `last`."""
    number, previous = last[0] + 1, last[1]
    digest = _digest([number, at, sensor, event, details, previous])
    return Record(number, at, sensor, event, details, previous, digest)


def canonical(details: dict[str, Any]) -> str:
    """The one text that stands for `details`; ValueError for what JSON cannot hold, such as NaN."""
    try:
        return _text(details)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the details of a record must be JSON: {error}") from error


def problems(records: Iterable[Record], anchor: Anchor | None) -> list[str]:
    """What does not hold in a whole log, oldest record first; empty where all of it does."""
    walk = _Walk(anchor)
    for record in records:
        walk.step(record)
    return walk.found + walk.nothing() + walk.gaps_unexplained() + walk.anchor_missed()


class _Walk:
    """What has to be remembered of a chain while it is read once; it may be larger than the memory."""

    def __init__(self, anchor: Anchor | None) -> None:
        self.found: list[str] = []
        self._last: Anchor = 0, START
        self._gaps: list[tuple[int, Record]] = []  # number before the gap, record after it
        self._pruned: list[Any] = []
        self._anchor = anchor
        self._at_anchor: str | None = None

    def step(self, record: Record) -> None:
        if not record.holds():
            self.found.append(f"record {record.number} is not what was written")
        elif record.event == PRUNED:
            self._pruned.append(record.content())
        self._link(record)
        if self._anchor and record.number == self._anchor[0]:
            self._at_anchor = record.digest
        self._last = record.anchor

    def _link(self, record: Record) -> None:
        number, digest = self._last
        if record.number != number + 1:
            self._gaps.append((number, record))
        elif record.previous != digest:
            self.found.append(f"record {record.number} does not follow record {number}: one of them was replaced")

    def nothing(self) -> list[str]:
        return ["the log is empty: even its first record is gone"] if self._last == (0, START) else []

    def gaps_unexplained(self) -> list[str]:
        return [
            f"record {record.number} comes right after record {number}: what was between them is missing"
            for number, record in self._gaps
            if number != 1 or not self._vouched_for(record)  # the first record is never pruned
        ]

    def _vouched_for(self, record: Record) -> bool:
        removed = record.number - 1, record.previous
        return any(isinstance(p, dict) and (p.get("number"), p.get("digest")) == removed for p in self._pruned)

    def anchor_missed(self) -> list[str]:
        if self._anchor is None or self._at_anchor == self._anchor[1]:
            return []
        number = self._anchor[0]
        if number > self._last[0]:
            return [
                f"the log ends at record {self._last[0]}, and record {number} was seen elsewhere: its end is missing"
            ]
        if self._at_anchor is None:
            return [f"record {number}, seen elsewhere, is no longer here to compare with: use a newer one"]
        return [f"record {number} is not the one seen elsewhere: the log was replaced from there or before"]


def _digest(fields: list[Any]) -> str:
    return hashlib.sha256(_text(fields).encode()).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
