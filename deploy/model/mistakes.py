"""Say in plain words what is wrong with a value, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from deploy.files import SHA256_PATTERN

MAX_SHOWN_CHARACTERS = 60  # of a wrong value

EXPECTED = {  # by the beginning of pydantic's name of the mistake
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string_type": "text in quotes",
    "string_too_short": "longer text",
    "string_too_long": "shorter text",
    "list": "a list, such as [a, b]",
    "tuple": "a list, such as [a, b]",
    "dict": "keys with values, such as `key: value`",
    "model": "keys with values, such as `key: value`",
    "path": "a path",
}


def describe_mistake(detail: ErrorDetails, document: Any = None) -> str:
    """Return one sentence about a mistake that pydantic found. document: what was checked, to show values as written.

    An unknown key is only called so: what is known there, the caller knows.
    """
    kind = detail["type"]
    if kind == "missing":
        return "required, but missing"
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "value_error":  # from a validator of ours, which says it in full
        return detail["msg"].removeprefix("Value error, ")
    given = _value_at(document, detail["loc"], detail["input"])
    unit = " s" if isinstance(given, str) and isinstance(detail["input"], int | float) else ""  # it was a duration
    return f"{_shown(given)} cannot be used: write {_expected(kind, detail.get('ctx', {}), unit)}"


def _value_at(document: Any, location: Sequence[int | str], otherwise: Any) -> Any:
    """Return the value at a location in the document; `otherwise` where the document has no such place."""
    for key in location:
        try:
            document = document[key]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return document


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a section with keys"
    if isinstance(value, str):
        return repr(value[:MAX_SHOWN_CHARACTERS])
    return str(value)[:MAX_SHOWN_CHARACTERS] if isinstance(value, int | float) else "a list"


def _expected(kind: str, context: Mapping[str, Any], unit: str) -> str:
    match kind:
        case "literal_error":
            return str(context["expected"]).replace("'", "")
        case "greater_than_equal":
            return f"{_bound(context['ge'])}{unit} or more"
        case "greater_than":
            return f"more than {_bound(context['gt'])}{unit}"
        case "less_than_equal":
            return f"{_bound(context['le'])}{unit} or less"
        case "less_than":
            return f"less than {_bound(context['lt'])}{unit}"
        case "too_short":
            return f"{context['min_length']} or more of them"
        case "too_long":
            return f"{context['max_length']} or fewer of them"
        case "string_pattern_mismatch" if context["pattern"] == SHA256_PATTERN:
            return "a SHA-256: 64 digits, 0 to 9 and a to f"
        case "string_pattern_mismatch":
            return f"text of the form {context['pattern']}"
    return next((text for prefix, text in EXPECTED.items() if kind.startswith(prefix)), "another value")


def _bound(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
