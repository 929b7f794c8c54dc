"""The project's source files: what they import, which rooms they are in, how long their functions are."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from places import ROOT

PRODUCT = ("calibrate", "deploy", "daemon")
PACKAGES = (*PRODUCT, "bench")
FILES = {str(path.relative_to(ROOT)): path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))}
FILE_OF = {file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): file for file in FILES}  # by module


@cache
def tree(file: str) -> ast.Module:
    return ast.parse(FILES[file].read_text())


@cache
def imported(file: str) -> frozenset[str]:
    """Return the full names of what a file imports anywhere, `from a import b` as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: imports are absolute"
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return frozenset(names)


@cache
def imported_files(file: str) -> frozenset[str]:
    """Return the files of the project that a file imports; a package only where a name of its own is meant."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found.update(FILE_OF[alias.name] for alias in node.names if alias.name in FILE_OF)
        elif isinstance(node, ast.ImportFrom):
            modules = (name if (name := f"{node.module}.{a.name}") in FILE_OF else node.module for a in node.names)
            found.update(FILE_OF[module] for module in modules if module in FILE_OF)
    return frozenset(found - {file})


@cache
def named_files(file: str) -> frozenset[str]:
    """Return the files whose modules a file names in its texts: started as a process, or imported when needed."""
    texts = (n.value for n in ast.walk(tree(file)) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return frozenset(FILE_OF[module] for text in texts if (module := text.partition(":")[0]) in FILE_OF) - {file}


def libraries(file: str) -> set[str]:
    """Return the top-level names of what a file imports, the standard library included."""
    return {name.partition(".")[0] for name in imported(file)}


def room(file: str) -> str:
    """Return the folder of a file, with "/" at its end; a file directly in a package is a room of its own."""
    folder, _, _ = file.rpartition("/")
    return f"{folder}/" if "/" in folder else file


def room_imports() -> dict[str, set[str]]:
    """Return for each room the other rooms that it imports."""
    graph: dict[str, set[str]] = {room(file): set() for file in FILES}
    for file in FILES:
        graph[room(file)] |= {room(other) for other in imported_files(file)} - {room(file)}
    return graph


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a chain of imports that leads back to where it began, [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


class Length(NamedTuple):
    """A function, and how many lines it has from `def` to its end."""

    lines: int
    file: str
    name: str


def function_lengths(packages: Iterable[str] = PRODUCT) -> list[Length]:
    """Return the lengths of all functions and methods, the shortest first."""
    found = []
    for file in FILES:
        if file.split("/")[0] in packages:
            functions = (n for n in ast.walk(tree(file)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            found += [Length(n.end_lineno - n.lineno + 1, file, n.name) for n in functions if n.end_lineno]
    return sorted(found)


def top_level_names(file: str) -> Iterator[str]:
    """Yield the classes, constants and type aliases that a file defines; a function's name is not one of them."""
    for node in tree(file).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)):
                if not name.startswith("__"):
                    yield name


def shared_names(packages: Iterable[str] = PRODUCT) -> dict[str, list[str]]:
    """Return the names that more than one file defines, with those files."""
    files: dict[str, list[str]] = {}
    for file in FILES:
        if file.split("/")[0] in packages:
            for name in dict.fromkeys(top_level_names(file)):
                files.setdefault(name, []).append(file)
    return {name: places for name, places in sorted(files.items()) if len(places) > 1}
