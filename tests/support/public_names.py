"""Read the public names of a lazy package: those that type checkers see, by module."""

from __future__ import annotations

import ast

from sources import tree


def names_for_type_checkers(package: str) -> dict[str, tuple[str, ...]]:
    """Return what the TYPE_CHECKING block of a package imports: its modules, relative to the package, and the names."""
    (block,) = (n for n in tree(f"{package}/__init__.py").body if isinstance(n, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING" and not block.orelse
    found = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom) and statement.module not in found
        module = str(statement.module).removeprefix(f"{package}.")
        found[module] = tuple(alias.name for alias in statement.names if alias.asname is None)
    return found
