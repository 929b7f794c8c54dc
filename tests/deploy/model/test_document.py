"""A document is read whole or refused with every mistake, each on its own line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from deploy.model.document import MAX_DOCUMENT_BYTES, DocumentError, load_document, read_document


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    bind: list[str] = []
    size: int = Field(1, ge=1)

    @field_validator("bind")
    @classmethod
    def _known_scheme(cls, value: list[str]) -> list[str]:
        if any(not item.startswith("tcp://") for item in value):
            raise ValueError("an endpoint starts with tcp://")
        return value


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int
    ratio: float = 1.0
    name: str = ""
    input: Part = Part()
    sensors: dict[str, Part] = {}


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "document.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems(path: Path) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load_document(path, Document)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.removeprefix(str(path)) for problem in caught.value.problems]


def test_a_correct_document_is_read(write):
    path = write("version: 1\nratio: 0.5\nname: 2024-01-01\ninput:\n  bind: [tcp://a, tcp://b]\n")
    document = load_document(path, Document)
    assert document == Document(version=1, ratio=0.5, name="2024-01-01", input=Part(bind=["tcp://a", "tcp://b"]))


@pytest.mark.parametrize("text", ['version: 1\n"a\\nb\\e[31m": 1', "version: !<%0Ax> 1"])
def test_control_characters_are_not_repeated(write, text):
    (problem,) = problems(write(text))
    assert problem.isprintable() and "?" in problem


def test_keys_are_text_as_written(write):
    document = load_document(write("version: 1\nsensors: {on: {}, 1: {}, 01: {}, ~: {}}\n"), Document)
    assert list(document.sensors) == ["on", "1", "01", "~"]


def test_all_mistakes_are_reported_at_once_in_order_of_line(write):
    path = write(
        "ratio: much\n"  # 1
        "input:\n"  # 2
        "  bnd: []\n"  # 3
        "  size: 0\n"  # 4
        "  bind:\n"  # 5
        "    - udp://a\n"  # 6
        "sensors:\n"  # 7
        "  left: {colour: red}\n"  # 8
        "ratio: 2\n"  # 9
    )
    assert problems(path) == [
        ":1: version: required, but missing",
        ":1: ratio: 'much' cannot be used: write a number",
        ":3: input.bnd: unknown key; did you mean 'bind'?",
        ":4: input.size: 0 cannot be used: write 1 or more",
        ":5: input.bind: an endpoint starts with tcp://",
        ":8: sensors.left.colour: unknown key; known here: bind, size",
        ":9: ratio: given twice, first on line 1",
    ]


def test_an_item_of_a_list_has_its_own_line(write):
    path = write("version: 1\ninput:\n  bind:\n    - tcp://a\n    - [b]\n")
    assert problems(path) == [":5: input.bind.1: a list cannot be used: write text in quotes"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": expected `key: value` lines, found nothing"),
        ("[1]", ": expected `key: value` lines, found a list"),
        ("word", ": expected `key: value` lines, found a single value"),
        ("version: 1\n  size: 2", ":2: not valid YAML: mapping values are not allowed here"),
        ("version: [", ":1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("version: 1\n---\nversion: 2", ":2: not valid YAML: but found another document"),
        ("version: " + "[" * 3000, ": nested too deeply to be read"),
        (b"version: \xff", ": not UTF-8 text at byte 9: save it as UTF-8"),
        ("version: 0b_", ":1: version: '0b_' is not a number that can be read"),
        (
            "version: !!bool no way",
            ":1: version: the tag tag:yaml.org,2002:bool is not supported: leave it out",
        ),
        (
            "version: !!python/tuple []",
            ":1: version: the tag tag:yaml.org,2002:python/tuple is not supported: leave it out",
        ),
        ("version: 1\n[a]: 2", ":2: a key must be plain text"),
        (
            "version: 1\ninput: &x\n  bind: *x",
            ":3: input.bind: an alias of a mapping or list is not supported: write it out",
        ),
    ],
)
def test_what_is_not_a_document_is_one_line(write, text, expected):
    assert problems(write(text)) == [expected]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert problems(tmp_path / "absent.yaml") == [": cannot be read: No such file or directory"]
    assert problems(tmp_path) == [": cannot be read: Is a directory"]


YAML_PIECES = st.sampled_from(
    [
        "version",
        "input",
        "bind",
        ": ",
        "\n",
        "  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "!!int ",
        "<<",
        "1",
        "'",
    ]
    + [
        "1_",
        "0x",
        "2024-13-40",
        "1:99",
        ".inf",
        "~",
        "? ",
        "| ",
        "# ",
        "=",
        "!",
        "%",
        "@",
        "\t",
        '"',
        "---\n",
    ]
)


@given(st.one_of(st.lists(YAML_PIECES, max_size=30).map("".join), st.text(max_size=40), st.binary(max_size=40)))
def test_nothing_but_a_document_error_is_raised(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(load_document(path, Document), Document)
    except DocumentError as error:
        assert error.problems
        assert all(problem.startswith(str(path)) and "\n" not in problem for problem in error.problems)


def test_a_document_that_is_too_large_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text("# " + "x" * MAX_DOCUMENT_BYTES)
    with pytest.raises(DocumentError, match=f"card.yaml: cannot be read: larger than {MAX_DOCUMENT_BYTES} bytes"):
        read_document(path)
