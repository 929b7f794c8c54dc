"""`recald status`: what a running daemon does with each sensor, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from daemon.operator.label import accuracy_text
from daemon.operator.terminal import Row, print_table, printable
from daemon.operator.versions import short_version

ALARM_TEXTS = {True: "yes", False: "no", None: "-"}
HEADER = ("sensor", "state", "drift", "alarm", "frames", "dropped", "homogenizer")


def print_status(answer: dict[str, Any]) -> None:
    """Print the answer of a daemon to the command status."""
    backend = answer["backend"] + (f" until {answer['compiling']} has compiled it" if answer["compiling"] else "")
    print(printable(f"recald {answer['version']}, model {short_version(answer['model'])}, {backend}"))
    print_table(HEADER, [_row(name, sensor) for name, sensor in answer["sensors"].items()])
    if answer.get("judged_by") == "outputs":
        print(f"mode {answer['mode']}: the network is no classifier, so homogenizers are judged by its outputs")
    strangers = answer.get("unknown_sensor", {})
    if strangers.get("dropped"):
        print(printable(f"{strangers['dropped']} frames of no sensor: {refusal(strangers)}"))
    if answer.get("problem"):  # an older daemon does not say
        print(printable(answer["problem"]))


def _row(name: str, sensor: dict[str, Any]) -> Row:
    score = sensor["drift_score"]
    cells = (
        name,
        state_text(sensor),
        "-" if score is None else f"{score:.2f}",
        ALARM_TEXTS[sensor["drift_alarm"]],
        str(sensor["frames"]),
        str(sensor.get("dropped", "-")),  # an older daemon does not say
        short_version(sensor["homogenizer"]),
    )
    return Row(cells, list(notes(sensor)))


def state_text(sensor: Mapping[str, Any]) -> str:
    """Return the state, and how much of it is done."""
    return f"{sensor['state']} {sensor['progress']:.0%}" if sensor["progress"] else str(sensor["state"])


def notes(sensor: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not fit into a column, one sentence each."""
    yield from work_notes(sensor)
    if sensor["candidate"] is not None:
        yield f"candidate: {short_version(sensor['candidate'])}"
    if sensor["reason"]:
        yield sensor["reason"]
    if camera := sensor.get("camera", {}).get("homogenized"):  # an older daemon does not say
        yield "camera: {drift:.1f} standard deviations beside healthy frames; content: {content:.2f}".format(**camera)
    elif sensor.get("baseline_ratio") is not None:
        yield f"its baseline of healthy frames is learned to {sensor['baseline_ratio']:.0%}"
    if estimate := sensor.get("estimated_accuracy"):
        yield "estimated accuracy: {value:.1%}, {lower:.0%} to {upper:.0%}".format(**estimate)
    if sensor.get("labelled"):  # an older daemon does not say
        frames = sensor["labelled"]["right"] + sensor["labelled"]["wrong"]
        yield f"labelled frames since the last swap: {frames}, {accuracy_text(sensor['labelled'])}"
    if sensor.get("last_refusal"):
        yield f"refused: {refusal(sensor)}"
    yield f"last fit: {sensor['last_fit']}"


def work_notes(sensor: Mapping[str, Any]) -> Iterator[str]:
    """Yield how long a recalibration has taken, and will take."""
    if sensor.get("elapsed_s") is not None:  # an older daemon does not say
        left = sensor["remaining_s"]
        yield f"at work for {sensor['elapsed_s']:.0f} s"
        if left is not None:
            yield f"{sensor['state']} will take at most about {left:.0f} s more"


def refusal(counts: Mapping[str, Any]) -> str:
    """Return the newest refused frame as one sentence."""
    newest = counts["last_refusal"]
    return f"the newest {newest['seconds_ago']:.0f} s ago, {newest['reason']}: {newest['text']}"
