"""Read a YAML document into a pydantic model, and report all mistakes at once, each with its line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from calibrate.errors import RecaldError
from deploy.files import read_regular
from deploy.model.mistakes import describe_mistake

DocumentT = TypeVar("DocumentT", bound=BaseModel)
Location = tuple[int | str, ...]  # ("input", "bind", 0)

MAX_DOCUMENT_BYTES = 1 << 20  # 30,000 names of classes; to read as much takes 10 s
PLAIN_VALUE_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null")}
TEXT_TAG = "tag:yaml.org,2002:str"


class DocumentError(RecaldError):
    """A document has mistakes. `problems` holds one line for each of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MisplacedValue(ValueError):
    """Raised by a validator of a whole document, about the value at one place in it, such as ("input", "bind", 0)."""

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.location = location


def load_document(path: Path, model: type[DocumentT]) -> DocumentT:
    """Read the YAML file `path` as a `model`.

    Raises DocumentError with all mistakes, each as "file:line: dotted.key: message".
    """
    return parse_document(path, read_document(path), model)


def read_document(path: Path) -> bytes:
    """Read the bytes of the file. Raises DocumentError if it cannot be read."""
    try:
        return read_regular(path, MAX_DOCUMENT_BYTES)
    except OSError as error:
        raise DocumentError([f"{path}: cannot be read: {error.strerror}"]) from error


def parse_document(path: Path, data: bytes, model: type[DocumentT]) -> DocumentT:
    """Like load_document, with the bytes that were read from `path` before. Raises DocumentError."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError([f"{path}: not UTF-8 text at byte {error.start}: save it as UTF-8"]) from error
    reader = _YamlReader(path)
    content = reader.read(text)
    try:
        result = model.model_validate(content)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["loc"] not in reader.unreadable:  # such a value has been reported
                reader.add_problem(_place(detail), _message(detail, model, content))
    if reader.problems:
        raise DocumentError([text for _, text in sorted(reader.problems, key=lambda problem: problem[0])])
    return result


class _YamlReader:
    """Converts YAML nodes to plain data, and keeps the line of each key and item."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        self.unreadable: set[Location] = set()
        self._scalars = yaml.SafeLoader("")  # used for its rules about numbers, booleans and null
        self._lines: dict[Location, int] = {}
        self._seen: set[int] = set()

    def read(self, text: str) -> dict[str, Any]:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            data = None if root is None else self._convert(root, ())
        except (yaml.YAMLError, RecursionError) as error:
            raise DocumentError([_syntax_problem(self.path, error)]) from error
        if not isinstance(data, dict):
            kind = {type(None): "nothing", list: "a list"}.get(type(data), "a single value")
            raise DocumentError([f"{self.path}: expected `key: value` lines, found {kind}"])
        return data

    def add_problem(self, location: Location, message: str, line: int | None = None) -> None:
        dotted = ".".join(map(str, location))
        line = line or self._line(location)
        problem = ": ".join(filter(None, (f"{self.path}:{line}", dotted, message)))
        printable = "".join(c if c.isprintable() else "?" for c in problem)  # a terminal would obey control characters
        self.problems.append((line, printable))

    def _refuse(self, location: Location, message: str) -> None:
        self.unreadable.add(location)
        self.add_problem(location, message)

    def _line(self, location: Location) -> int:
        """Find the line of `location`. If it is missing in the document, that of the mapping that should hold it."""
        return next(self._lines[location[:n]] for n in range(len(location), -1, -1) if location[:n] in self._lines)

    def _convert(self, node: yaml.Node, location: Location) -> Any:
        self._lines.setdefault(location, node.start_mark.line + 1)
        if node.tag not in (self._implied_tag(node), TEXT_TAG):
            return self._refuse(location, f"the tag {node.tag} is not supported: leave it out")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, location)
        if id(node) in self._seen:  # else a document that contains itself would never end
            return self._refuse(location, "an alias of a mapping or list is not supported: write it out")
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        return [self._convert(item, (*location, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.add_problem(location, "a key must be plain text", line)
                continue
            key = key_node.value  # as written: `on:` and `1:` stay "on" and "1" (YAML 1.1: true and 1)
            key_location = (*location, key)
            if key in result:
                self.add_problem(key_location, f"given twice, first on line {self._lines[key_location]}", line)
                continue
            self._lines[key_location] = line
            result[key] = self._convert(value_node, key_location)
        return result

    def _scalar(self, node: yaml.ScalarNode, location: Location) -> Any:
        if node.tag not in PLAIN_VALUE_TAGS:  # dates and the like stay text
            return node.value
        try:
            return self._scalars.construct_object(node)
        except ValueError:
            return self._refuse(location, f"{node.value[:40]!r} is not a number that can be read")

    def _implied_tag(self, node: yaml.Node) -> str:
        """Find the tag that YAML gives the node if the document writes none."""
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return str(self._scalars.resolve(type(node), node.value, (plain, False)))


def _syntax_problem(path: Path, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"{path}: nested too deeply to be read"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{path}:{error.problem_mark.line + 1}: not valid YAML: {error.problem or error.context}"
    return f"{path}: not valid YAML: {' '.join(str(error).split())}"


def _message(detail: ErrorDetails, model: type[BaseModel], content: dict[str, Any]) -> str:
    unknown = detail["type"] == "extra_forbidden"
    return describe_mistake(detail, content) + (_suggestion(model, detail["loc"]) if unknown else "")


def _place(detail: ErrorDetails) -> Location:
    """Return where the mistake is: a validator of the whole document may name the place in its error."""
    error = detail.get("ctx", {}).get("error")
    return error.location if isinstance(error, MisplacedValue) else detail["loc"]


def _suggestion(model: type[BaseModel], location: Location) -> str:
    owner = model
    for part in location[:-1]:
        field = owner.model_fields.get(str(part))  # None for a key of a mapping or the index of an item
        owner = (_model_in(field.annotation) if field else None) or owner
    known = list(owner.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the pydantic model inside an annotation such as `dict[str, Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
