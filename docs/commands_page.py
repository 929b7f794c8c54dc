"""commands.md: every command, from the parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from daemon.parser import Command, build_parser
from docs.markdown import code, table


def commands() -> str:
    """Describe every command, its arguments and an example."""
    parser = build_parser()
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = [
        "# Commands",
        f"{parser.description} `recald COMMAND --help` shows the same as this page, `recald --version` the version. "
        "[Operations](operations.md#exit-codes) explains the exit codes.",
        table(("command", "does"), ((f"[`{name}`](#{name})", _does(p)) for name, p in action.choices.items())),
        *(part for name, p in action.choices.items() for part in _command(name, p)),
    ]
    return "\n\n".join(parts) + "\n"


def _does(parser: argparse.ArgumentParser) -> str:
    text = parser.description or ""
    return text[:1].upper() + text[1:] + "."


def _command(name: str, parser: Command) -> Iterator[str]:
    parser.complete()
    yield f"## {name}\n\n{_does(parser)}"
    yield code("", (parser.epilog or "").removeprefix("example: "))
    yield table(("argument", "meaning"), (_argument(a) for a in parser._actions if a.dest != "help"))
    for group in parser._mutually_exclusive_groups:
        names = ", ".join(f"`{a.option_strings[-1]}`" for a in group._group_actions)
        yield f"Give {'exactly' if group.required else 'at most'} one of {names}."


def _argument(action: argparse.Action) -> tuple[str, str]:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    text = (action.help or "").replace("%%", "%")
    text = re.sub(r"%\(default\)[sg]", lambda _: f"default: {action.default}", text)
    choices = f"; one of {', '.join(f'`{choice}`' for choice in action.choices)}" if action.choices else ""
    required = "; required" if action.required else ""
    names = [f"{option}{value}" for option in action.option_strings] or [value.strip()]
    return ", ".join(f"`{name}`" for name in names), f"{text}{choices}{required}"
