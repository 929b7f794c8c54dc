"""The Mermaid diagram of the rooms and their imports, read from the source with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("calibrate", "deploy", "daemon")  # in the order of imports
Edges = dict[str, set[str]]


def diagram() -> str:
    """Return the rooms of each package, and who imports whom inside it.

    A room is a folder, or a file at the top of a package that imports a room of it. Other files at the top (errors,
    configuration, states ...) are left out, as are arrows that follow from others.
    """
    lines = ["```mermaid", "flowchart TD"]
    for package in reversed(PACKAGES):
        edges = _without_shortcuts(imports(package))
        lines += [f"  subgraph {package}", *(f"    {_node(room)}" for room in sorted(edges))]
        lines += [f"    {_id(room)} --> {_id(other)}" for room in sorted(edges) for other in sorted(edges[room])]
        lines.append("  end")
    lines += [f"  {above} ==> {below}" for above, below in zip(PACKAGES[:0:-1], PACKAGES[-2::-1], strict=True)]
    return "\n".join([*lines, "```"])


def imports(package: str) -> Edges:
    """Return for each room of a package the rooms of the same package that it imports."""
    edges: Edges = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        room = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        found = {_room(name) for name in _imported(path) if name.startswith(f"{package}.")}
        if path.parent != ROOT / package or path.stem != "__init__":
            edges.setdefault(room, set()).update(found - {room})
    shown = {room for room in edges if _is_folder(room) or any(map(_is_folder, edges[room]))}
    return {room: edges[room] & shown for room in shown}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(module: str) -> str:
    """Return "daemon/serving" for daemon.serving.intake, and "daemon/loop" for daemon.loop."""
    return "/".join(module.split(".")[:2])


def _is_folder(room: str) -> bool:
    return (ROOT / room).is_dir()


def _without_shortcuts(edges: Edges) -> Edges:
    """Leave out each arrow that a longer way replaces."""
    return {a: {b for b in edges[a] if not any(b in _reached(edges, c) for c in edges[a] - {b})} for a in edges}


def _reached(edges: Edges, start: str) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        for room in edges[ahead.pop()] - found:
            found.add(room)
            ahead.append(room)
    return found


def _id(room: str) -> str:
    return room.replace("/", "_")


def _node(room: str) -> str:
    name = room.partition("/")[2]
    return f'{_id(room)}["{name}"]' if _is_folder(room) else f'{_id(room)}(["{name}.py"])'
