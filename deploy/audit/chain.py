"""Chain audit records by their hashes, and find out what was changed, removed or replaced in a chain.

The digest of a record is the SHA-256 of the JSON array [number, at, sensor, event, details, previous], in ASCII and
without spaces. `details` is itself JSON text: in ASCII, without spaces, with sorted keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

NO_PREVIOUS_DIGEST = "0" * 64  # the field `previous` of the first record
LOG_BEGUN = "log begun"  # event of the first record, which is never pruned; its random id makes each chain unique
LOG_PRUNED = "log pruned"  # event of the record that vouches for the gap that pruning leaves
HIDDEN_EVENTS = ("state",)  # shown only to who asks for all: they are many, and say little
Anchor = tuple[int, str]  # number and digest of a record, noted outside of the log


@dataclass(frozen=True)
class AuditRecord:
    """One stored record. `at` is a time in UTC, `details` is canonical JSON.

    The fields of a record that was read from a damaged file may have any type.
    """

    number: int
    at: str
    sensor: str
    event: str
    details: str
    previous: str
    digest: str

    @property
    def anchor(self) -> Anchor:
        """Keep this outside of the log: it shows later whether the log was cut short or replaced."""
        return self.number, self.digest

    def content(self) -> Any:
        """Parse the details; returns the unparsed field if somebody changed it to what is not JSON."""
        try:
            return json.loads(self.details)
        except (ValueError, TypeError, RecursionError):
            return self.details

    def json_line(self) -> str:
        """Convert the record to one JSON object, without a line break."""
        return json.dumps({**asdict(self), "details": self.content()}, default=repr)

    def timestamp(self) -> float | None:
        """Convert `at` to s since the epoch; None if somebody changed it to what is not a time."""
        try:
            return datetime.fromisoformat(self.at.replace("Z", "+00:00")).timestamp()
        except (ValueError, TypeError, AttributeError, OverflowError):
            return None

    def is_intact(self) -> bool:
        """Check that no field has changed since the digest was made."""
        fields = [self.number, self.at, self.sensor, self.event, self.details, self.previous]
        return all(isinstance(field, int | str) for field in fields) and self.digest == _digest(fields)


def next_record(last: Anchor, at: str, sensor: str, event: str, details: str) -> AuditRecord:
    """Make the record that follows the record `last` in the chain."""
    number, previous = last[0] + 1, last[1]
    digest = _digest([number, at, sensor, event, details, previous])
    return AuditRecord(number, at, sensor, event, details, previous, digest)


def canonical_json(details: dict[str, Any]) -> str:
    """Convert to the one JSON text that stands for `details`.

    Raises ValueError for what JSON cannot hold, such as NaN.
    """
    try:
        return _compact_json(details)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the details of a record must be JSON: {error}") from error


def chain_problems(records: Iterable[AuditRecord], anchor: Anchor | None) -> list[str]:
    """Check a whole log, oldest record first; returns one line for each problem, none if the log is intact.

    The texts are part of the record that pruning writes.
    """
    check = _ChainCheck(anchor)
    for record in records:
        check.add(record)
    return check.problems()


class _ChainCheck:
    """Checks a chain in one pass. It keeps little of each record, because the log may be larger than the memory."""

    def __init__(self, anchor: Anchor | None) -> None:
        self._anchor = anchor
        self._digest_at_anchor: str | None = None
        self._last: Anchor = 0, NO_PREVIOUS_DIGEST
        self._problems: list[str] = []
        self._gaps: list[tuple[int, AuditRecord]] = []  # number before the gap, record after it
        self._pruned: list[Any] = []  # contents of the records that vouch for gaps

    def add(self, record: AuditRecord) -> None:
        if not record.is_intact():
            self._problems.append(f"record {record.number} is not what was written")
        elif record.event == LOG_PRUNED:
            self._pruned.append(record.content())
        number, digest = self._last
        if record.number != number + 1:
            self._gaps.append((number, record))
        elif record.previous != digest:
            self._problems.append(f"record {record.number} does not follow record {number}: one of them was replaced")
        if self._anchor and record.number == self._anchor[0]:
            self._digest_at_anchor = record.digest
        self._last = record.anchor

    def problems(self) -> list[str]:
        empty = ["the log is empty: even its first record is gone"] if self._last == (0, NO_PREVIOUS_DIGEST) else []
        gaps = [
            f"record {record.number} comes right after record {number}: what was between them is missing"
            for number, record in self._gaps
            if number != 1 or not self._is_pruned_gap(record)  # the first record is never pruned
        ]
        return self._problems + empty + gaps + self._anchor_problems()

    def _is_pruned_gap(self, record: AuditRecord) -> bool:
        removed = record.number - 1, record.previous
        return any(isinstance(p, dict) and (p.get("number"), p.get("digest")) == removed for p in self._pruned)

    def _anchor_problems(self) -> list[str]:
        if self._anchor is None or self._digest_at_anchor == self._anchor[1]:
            return []
        number, last = self._anchor[0], self._last[0]
        if number > last:
            return [f"the log ends at record {last}, and record {number} was seen elsewhere: its end is missing"]
        if self._digest_at_anchor is None:
            return [f"record {number}, seen elsewhere, is no longer here to compare with: use a newer anchor"]
        return [f"record {number} is not the one seen elsewhere: the log was replaced from there or before"]


def _digest(fields: list[Any]) -> str:
    return hashlib.sha256(_compact_json(fields).encode()).hexdigest()


def _compact_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
