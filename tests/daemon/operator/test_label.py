"""`recald label`: files as spreadsheets write them, mistakes by line, and more labels than one request holds."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import recald_here, write_config

from calibrate.errors import RecaldError
from daemon.client import label
from daemon.model.labels import MAX_LABELS, ClassNames, LabelReader
from daemon.operator.control import ControlError, ControlServer, NoAnswerError
from daemon.operator.label import MAX_FILE_BYTES, MAX_LABEL_CHARS, describe, read_label_file
from daemon.recalibration.labelled import LABEL_RESULTS, LabelledFrames

NAMES = ["cat", "dog", "tench, Tinca tinca"]
NONE = dict.fromkeys(LABEL_RESULTS, 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def read(file: Path, content: str | bytes) -> list[tuple[int, str]]:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(line.seq, line.label) for line in read_label_file(file)]


# ---- the file


@pytest.mark.parametrize(
    "content",
    [
        "17,cat\n18,dog",
        "seq,label\n17,cat\n18,dog\n",
        "SEQ, Label\r\n17,cat\r\n\r\n18, dog\r\n",
        b"\xef\xbb\xbfseq,label\n17,cat\n18,dog",
        '"17","cat"\n 18 , "dog"\n',
    ],
)
def test_a_file_is_read_as_people_and_spreadsheets_write_it(file, content):
    assert read(file, content) == [(17, "cat"), (18, "dog")]


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("seq,label\n17,cat\n18;dog", 3, r"has 1 column\(s\): write seq,label"),
        ("17,cat\n\n18,tench, Tinca", 3, r"has 3 column\(s\): .* put a name that holds a comma in quotes"),
        ("17,cat\nseq,label", 2, "'seq' is no sequence number"),
        ("label,seq\ncat,17", 1, "'label' is no sequence number"),
        ("17,cat\n-1,cat", 2, "'-1' is no sequence number"),
        ("1.5,cat", 1, "'1.5' is no sequence number"),
        ("9" * 20 + ",cat", 1, "is no sequence number"),
        ("²,cat", 1, "is no sequence number"),
        ('17,"cat\n18,dog', 1, "no line of a CSV file"),
        ('17,"cat" x', 1, "no line of a CSV file"),
    ],
)
def test_a_mistake_is_named_with_its_line(file, content, line, said):
    with pytest.raises(RecaldError, match=f"^{file}:{line}: .*{said}"):
        read(file, content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no labels: write lines such as 17,cat"),
        ("seq,label\n\n", "holds no labels"),
        (b"17,\xff", "not UTF-8 text at byte 3: save it as CSV in UTF-8"),
        (b"1,a\n" * (MAX_FILE_BYTES // 4 + 1), "larger than .* keep the newest lines, recald remembers 10000 frames"),
    ],
)
def test_a_file_that_is_none_is_one_line_with_advice(file, content, said):
    with pytest.raises(RecaldError, match=f"^{file}: .*{said}"):
        read(file, content)


def test_a_missing_file_is_a_mistake_of_the_command():
    done = recald_here("label", "--sensor", "front", "absent.csv")
    assert done.returncode == 78
    assert done.stderr == "recald label: absent.csv: the labels cannot be read: No such file or directory\n"


names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1) | st.sampled_from(NAMES)


@given(
    st.lists(st.tuples(st.integers(0, 2**63 - 1), names), min_size=1), st.booleans(), st.sampled_from(["\n", "\r\n"])
)
def test_what_a_csv_writer_writes_is_read_as_it_was(tmp_path_factory, rows, header, end):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end)
    writer.writerows([*([("seq", "label")] if header else []), *rows])
    assert read(tmp_path_factory.getbasetemp() / "written.csv", text.getvalue()) == rows


@given(st.binary() | st.text().map(str.encode) | st.text("0123456789,;\"' \r\nab").map(str.encode))
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory, content):
    try:
        labels = read(tmp_path_factory.getbasetemp() / "any.csv", content)
    except RecaldError as error:
        assert "\n" not in str(error)
    else:
        assert labels and all(seq >= 0 for seq, _ in labels)


# ---- the requests, over a real control socket


class Recald:
    """Answers like a daemon with one sensor, and keeps what it was asked."""

    def __init__(self, answers: int, names: list[str]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.frames, self.reader = LabelledFrames(), LabelReader(ClassNames(len(names), names))
        for seq in range(answers):
            self.frames.answered(seq, 0, "factory")

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        labels = self.reader.read(request["labels"])
        return self.frames.count(labels, "factory") | {"sensor": "front", "labelled": self.frames.status(), "said": ""}


@pytest.fixture
def serve(context, folder):
    servers = []

    def serve(answers: int, names: list[str] = NAMES) -> tuple[str, Recald]:
        recald = Recald(answers, names)
        servers.append(server := ControlServer(context, f"ipc://{folder}/control", recald.answer))
        server.start()
        return server.endpoint, recald

    yield serve
    for server in servers:
        server.close()


def test_many_labels_are_one_answer_over_several_requests(serve):
    endpoint, recald = serve(5000)
    answer = label(endpoint, "front", [(seq, int(seq >= 4800)) for seq in range(5100)], by="ada")
    assert [len(request["labels"]) for request in recald.asked] == [MAX_LABELS, MAX_LABELS, 1100]
    assert all(request["by"] == "ada" and request["sensor"] == "front" for request in recald.asked)
    assert {result: answer[result] for result in LABEL_RESULTS} == NONE | {"right": 4800, "wrong": 200, "unknown": 100}
    assert answer["labelled"]["right"] == 4800
    assert answer["said"].startswith("5000 labelled frames counted, 4800 right; 100 unknown; 0 outdated; since the")


def test_long_names_make_smaller_requests(serve):
    endpoint, recald = serve(600, ["ü" * MAX_LABEL_CHARS, "other"])
    assert label(endpoint, "front", [(seq, "ü" * MAX_LABEL_CHARS) for seq in range(30)], by="ada")["right"] == 30
    assert len(recald.asked) > 1


def test_a_label_that_fills_a_request_is_refused_before_any_is_sent(serve):
    endpoint, recald = serve(10)
    labels = [(seq, "cat") for seq in range(MAX_LABELS + 5)] + [(7, "x" * 100_000)]
    with pytest.raises(ControlError, match="a label has at most 1000 characters") as refused:
        label(endpoint, "front", labels, by="ada")
    assert refused.value.entry == MAX_LABELS + 5 and recald.asked == []


def test_a_refused_label_is_named_by_its_line_and_what_was_counted_is_told(serve, tmp_path, folder, tiny_model, file):
    endpoint, recald = serve(5000)
    config = write_config(folder, tiny_model, control={"endpoint": endpoint})
    file.write_text("seq,label\n\n" + "".join(f"{seq},cat\n" for seq in range(3000)) + "3000,cow\n")
    done = recald_here("label", "--sensor", "front", file, "--config", config)
    assert (done.returncode, done.stdout) == (78, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"recald label: {file}:3003: 'cow' is no class of the model: give a name of its card, such as"
    )
    assert line.endswith("; the 2000 labels before are counted: send all again afterwards, no frame counts twice")
    file.write_text(file.read_text().replace("cow", "dog"))
    done = recald_here("label", "--sensor", "front", file, "--config", config)
    said = "1001 labelled frames counted, 1000 right; 0 unknown; 0 outdated; 2000 counted before; since the last swap"
    assert (done.returncode, done.stdout) == (0, f"front: {said} 100.0 % right (99.8 to 100.0)\n")
    done = recald_here("label", "--sensor", "front", file, "--config", config, "--json")
    assert json.loads(done.stdout).items() >= (NONE | {"repeated": 3001, "sensor": "front"}).items()


def test_labels_that_are_none_are_errors_of_the_caller(serve):
    endpoint, _ = serve(10)
    with pytest.raises(ControlError, match="labels must be a list of 1 to 2000"):
        label(endpoint, "front", [], by="ada")
    with pytest.raises(TypeError):
        label(endpoint, "front", [(1.5, "cat")], by="ada")  # type: ignore[list-item]
    with pytest.raises(NoAnswerError, match="is it running"):
        label(f"{endpoint}-of-nobody", "front", [(1, "cat")], by="ada")


@pytest.mark.parametrize(
    ("results", "labelled", "said"),
    [
        ({"unknown": 3}, None, "0 labelled frames counted, 0 right; 3 unknown; 0 outdated; none since the last swap"),
        (
            {"right": 385, "wrong": 27, "unknown": 3},
            {"right": 385, "wrong": 27, "accuracy": 0.934466, "lower": 0.9063, "upper": 0.9546},
            "412 labelled frames counted, 385 right; 3 unknown; 0 outdated; "
            "since the last swap 93.4 % right (90.6 to 95.5)",
        ),
    ],
)
def test_the_answer_is_one_line(results, labelled, said):
    assert describe(NONE | results, labelled) == said
