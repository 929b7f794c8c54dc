"""`recald label`: tell the daemon the true classes of served frames, and print what share the network had right."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from calibrate.errors import RecaldError
from daemon.model.labels import MAX_LABELS
from daemon.operator.control import MAX_REQUEST_BYTES, ControlError, ask
from daemon.operator.label_lines import LabelFormat, read_label_lines
from daemon.recalibration.labelled import LABEL_RESULTS, MAX_ANSWERS

MAX_FILE_BYTES = 1 << 20  # of labels: some 70,000, which take two seconds to send; the daemon remembers 10,000 frames
MAX_LABELS_BYTES = MAX_REQUEST_BYTES - 4096  # of one request; the rest of it is shorter
MAX_LABEL_CHARS = 1000  # more than any name of a class has; a longer one could fill a request
MAX_SEQ_DIGITS = 19  # of a sequence number; 2**63 - 1 has as many
FRAME_LABELS = LabelFormat(
    "seq", "17", MAX_FILE_BYTES, f"keep the newest lines, recald remembers {MAX_ANSWERS} frames of a sensor"
)

FrameLabel = tuple[int, int | str]  # sequence number of a frame; number or name of its class


class FrameLine(NamedTuple):
    """A line of a file, numbered from 1: the sequence number of a frame, and its class."""

    line: int
    seq: int
    label: str


def label(args: argparse.Namespace, endpoint: str, by: str) -> None:
    """Send the labels of a file and print the answer. Raises RecaldError with the file's line where one is wrong."""
    lines = read_label_file(args.file)
    try:
        answer = send_labels(endpoint, args.sensor, [(line.seq, line.label) for line in lines], by, args.timeout)
    except ControlError as error:
        if error.entry is None:
            raise
        raise RecaldError(f"{args.file}:{lines[error.entry].line}: {error}") from error
    print(json.dumps(answer) if args.json else f"{answer['sensor']}: {answer['said']}")


def read_label_file(path: Path) -> list[FrameLine]:
    """Return the lines `seq,label` of a CSV file. Raises RecaldError with the line of the first mistake."""
    frames = []
    for line, seq, label in read_label_lines(path, FRAME_LABELS):
        if not (seq.isascii() and seq.isdigit() and len(seq) <= MAX_SEQ_DIGITS):
            raise RecaldError(f"{path}:{line}: {seq!r} is no sequence number: write that of the frame, such as 17")
        frames.append(FrameLine(line, int(seq), label))
    return frames


def send_labels(endpoint: str, sensor: str, labels: Sequence[FrameLabel], by: str, timeout: float) -> dict[str, Any]:
    """Send labels in as many requests as they take; return one answer about all of them.

    by: a name, as of an order. timeout: of each request, s. Raises ControlError, whose `entry` is the place in
    `labels` of the one that is refused.
    """
    message = {"command": "labels", "sensor": sensor, "by": by}
    results: Counter[str] = Counter()
    answer: dict[str, Any] = {}
    sent = 0
    for part in list(_parts(labels)):  # all are divided before the first is sent
        try:
            answer = ask(endpoint, message | {"labels": part}, timeout)
        except ControlError as error:
            raise _placed(error, sent) from error
        results.update({result: answer[result] for result in LABEL_RESULTS})
        sent += len(part)
    return {**answer, **results, "said": describe(results, answer["labelled"])}


def _parts(labels: Sequence[FrameLabel]) -> Iterator[list[FrameLabel]]:
    """Divide labels into lists that one request can hold; one empty list where there are none."""
    part: list[FrameLabel] = []
    size = 0
    for place, entry in enumerate(labels):
        if len(str(entry[1])) > MAX_LABEL_CHARS:
            raise ControlError(f"a label has at most {MAX_LABEL_CHARS} characters: this is no class", place)
        length = len(json.dumps(entry)) + len(", ")
        if len(part) == MAX_LABELS or size + length > MAX_LABELS_BYTES:
            yield part
            part, size = [], 0
        part.append(entry)
        size += length
    yield part


def _placed(error: ControlError, sent: int) -> ControlError:
    """Return the error of a request, after so many labels that were sent before it."""
    advice = f"; the {sent} labels before are counted: send all again afterwards, no frame counts twice" if sent else ""
    return type(error)(f"{error}{advice}", None if error.entry is None else sent + error.entry)


def describe(results: Mapping[str, int], labelled: dict[str, Any] | None) -> str:
    """Say in one line what came of labels. labelled: the counts since the last swap, as in `recald status --json`."""
    parts = [
        f"{results['right'] + results['wrong']} labelled frames counted, {results['right']} right",
        f"{results['unknown']} unknown",
        f"{results['outdated']} outdated",
        f"{results['repeated']} counted before" if results["repeated"] else "",
        "none since the last swap" if labelled is None else f"since the last swap {accuracy_text(labelled)}",
    ]
    return "; ".join(filter(None, parts))


def accuracy_text(labelled: dict[str, Any]) -> str:
    """Say the accuracy with its 95 % interval, such as "93.4 % right (90.6 to 95.5)"."""
    value, lower, upper = (100 * labelled[bound] for bound in ("accuracy", "lower", "upper"))
    return f"{value:.1f} % right ({lower:.1f} to {upper:.1f})"
