"""configuration.md: every key of the configuration and of the envelope, from their pydantic models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from daemon import config
from daemon.config import Config, Section
from daemon.recalibration.envelope import EnvelopeDocument
from daemon.settings.section import Duration, GivenPath, Host
from daemon.settings.values import SECONDS_BY_UNIT
from docs.markdown import code, one_line, table

EXAMPLES = Path(__file__).resolve().parents[1] / "systemd"


def configuration() -> str:
    """Describe every key of the configuration and of the envelope, and show both examples."""
    parts = [
        "# Configuration",
        "One YAML file. `recald check-config --config FILE` reads it as `recald run` does and names every mistake with "
        "its line. An unknown key is a mistake. A duration is a number of seconds, or a number with `ms`, `s`, `m` or "
        "`h`. `required` in the column *default* means that there is none.",
        "## Top level",
        *_section_tables(Config, ""),
        "## Example",
        "This is `systemd/recald.yaml`. Every value below `output` is the default.",
        code("yaml", (EXAMPLES / "recald.yaml").read_text()),
        "## Envelope",
        "The file that `recalibrate.envelope` names. It bounds what a homogenizer may be, how much must be seen before "
        "one serves, and what the configuration may allow. A key that is left out bounds nothing, apart "
        "from `shading` and `defect_step`, without which no homogenizer has these parts. What is outside is "
        "refused, never clipped. [How it decides](how-it-decides.md#envelope) says when it is checked; "
        "[Security](security.md#signed-envelope) says how to sign it.",
        table(("key", "value"), _envelope_rows(EnvelopeDocument, "")),
        "This is `systemd/envelope.yaml`, with values that real fits need.",
        code("yaml", (EXAMPLES / "envelope.yaml").read_text()),
    ]
    return "\n\n".join(parts) + "\n"


def _section_tables(section: type[Section], prefix: str) -> Iterator[str]:
    hints = get_type_hints(section, include_extras=True)
    inner = {name: _section_in(hints[name]) for name in section.model_fields}
    rows = [_key_row(section, name, hints[name], prefix) for name, other in inner.items() if other is None]
    if rows:
        yield table(("key", "value", "default", "meaning"), rows)
    for name, other in inner.items():
        if other is not None:
            yield f"## {name}\n\n{one_line(section.model_fields[name].description)}"
            yield from _section_tables(other, f"{name}.ID." if get_origin(hints[name]) is dict else f"{name}.")


def _key_row(section: type[Section], name: str, hint: Any, prefix: str) -> list[str]:
    field = section.model_fields[name]
    bounds = ", ".join(_bounds(field.metadata, hint))
    value = f"{_kind(hint)}; {bounds}" if bounds else _kind(hint)
    default = "required" if field.is_required() else f"`{_shown(field.default, hint)}`"
    if field.default_factory is not None:
        default = "see there"  # depends on the machine
    return [f"`{prefix}{name}`", value, default, one_line(field.description)]


def _envelope_rows(section: type[Section], prefix: str) -> Iterator[list[str]]:
    hints = get_type_hints(section, include_extras=True)
    for name, field in section.model_fields.items():
        inner = _section_in(hints[name])
        if inner is not None:
            yield from _envelope_rows(inner, f"{prefix}{name}.")
            continue
        bounds = ", ".join(_bounds(field.metadata, hints[name]))
        yield [f"`{prefix}{name}`", f"{_kind(hints[name])}; {bounds}" if bounds else _kind(hints[name])]


def _section_in(hint: Any) -> type[Section] | None:
    """Return the section inside a type such as `dict[SensorId, SensorConfig]`, if there is one."""
    if isinstance(hint, type) and issubclass(hint, Section):
        return hint
    return next(filter(None, map(_section_in, get_args(hint))), None)


def _kind(hint: Any) -> str:
    hint = _without_none(hint)
    names = {
        Duration: "duration",
        GivenPath: "path",
        Host: "address or host name",
        config.BindEndpoint: "endpoint",
        config.ConnectEndpoint: "endpoint",
        config.IpcEndpoint: "`ipc://PATH`",
        config.ClassMix: "a share for each class",
        bool: "`true` or `false`",
        int: "whole number",
        float: "number",
    }
    if hint in names:
        return names[hint]
    if get_origin(hint) is Literal:
        return " ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is list:
        return f"list of: {_kind(get_args(hint)[0])}"
    inner = get_args(hint)
    return _kind(inner[0]) if inner and inner[0] is not str else "text"


def _without_none(hint: Any) -> Any:
    others = [part for part in get_args(hint) if part is not type(None)]
    return others[0] if type(None) in get_args(hint) else hint


def _bounds(metadata: Iterable[Any], hint: Any) -> Iterator[str]:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "length at least"}
    metadata = [
        *metadata,
        *(part for arg in get_args(_without_none(hint))[1:] for part in getattr(arg, "metadata", [])),
    ]
    for bound in metadata:
        for attribute, word in words.items():
            if (value := getattr(bound, attribute, None)) is not None:
                yield f"{word} {_shown(value, hint)}"
        if pattern := getattr(bound, "pattern", None):
            yield f"matches `{pattern}`"


def _shown(value: Any, hint: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == []:
        return "none"
    if _without_none(hint) == Duration:
        return _duration(value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    for unit in ("h", "m", "s"):
        if seconds and seconds % SECONDS_BY_UNIT[unit] == 0:
            return f"{seconds / SECONDS_BY_UNIT[unit]:g}{unit}"
    return f"{1000 * seconds:g}ms" if seconds else "0"
