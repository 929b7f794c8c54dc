"""State what a result was measured on: commit, machine, versions, and a digest of the code."""

from __future__ import annotations

import ast
import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from daemon.operator.machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("numpy", "onnx", "opencv-python-headless", "pyzmq", "safetensors", "scikit-learn")

# Globs that several benches declare in their CODE.
METHOD_ROOMS = ("estimate", "features", "scoring", "search", "source")  # a fit needs neither read-outs nor baselines
METHOD = ("calibrate/*.py", *(f"calibrate/{room}/*.py" for room in METHOD_ROOMS))
DEPLOYMENT = ("deploy/*.py", "deploy/model/*.py", "deploy/backends/*.py", "deploy/store/*.py")
DAEMON_ROOMS = ("serving", "frames", "model", "recalibration", "state", "worker")
DAEMON = ("daemon/*.py", *(f"daemon/{room}/*.py" for room in DAEMON_ROOMS))
MATERIAL = ("bench/material/*.py", "daemon/demo/networks.py", "daemon/simulation/*.py")

WATCHED = ("calibrate/*.py", "deploy/*.py", "daemon/*.py", "bench/*.py")  # git's `*` also matches slashes


def provenance(code: Sequence[str]) -> dict[str, Any]:
    """Describe this checkout and machine; call it before measuring, since files may change during a long run."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", *WATCHED)),
        "machine": describe_machine(),
        "versions": {name: _installed(name) for name in LIBRARIES},
        "code": code_digest(code),
    }


def code_digest(patterns: Sequence[str], root: Path = ROOT) -> str:
    """Return the SHA-256 of all definitions in the Python files that the globs match below `root`.

    The digest is of the sorted top-level statements, without docstrings, comments, layout and imports. So these
    changes keep it: reworded comments and docstrings, a definition that moves to another file, files that are split,
    merged or renamed. These change it: a renamed identifier, a reworded string (an error or log text), another
    order of the methods of a class, although none of them changes what is computed. A new import of another object
    under an old name is not noticed. Raises ValueError where a glob matches nothing.
    """
    statements: list[str] = []
    for path in source_files(patterns, root):
        statements += normalised_statements(path)
    return hashlib.sha256("\n".join(sorted(statements)).encode()).hexdigest()


def source_files(patterns: Sequence[str], root: Path = ROOT) -> list[Path]:
    """Return the files that the globs match below `root`, each once, in order of their names."""
    found: set[Path] = set()
    for pattern in patterns:
        matched = set(root.glob(pattern))
        if not matched:
            raise ValueError(f"CODE: no file is called {pattern}; adapt the pattern to where the code is now")
        found |= matched
    return sorted(found)


def normalised_statements(file: Path | str) -> list[str]:
    """Return one text for each top-level statement of a module, the same in every version of Python."""
    return [_normalise(statement) for statement in _relevant(ast.parse(Path(file).read_text()).body)]


def _relevant(statements: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Leave out imports, `pass` and docstrings."""
    for statement in statements:
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not (is_text or isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass)):
            yield statement


def _normalise(value: object) -> str:
    # Not ast.dump: which empty fields it shows depends on the version of Python.
    if isinstance(value, list):
        return f"[{','.join(_normalise(part) for part in _relevant(value))}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = ((name, part) for name, part in ast.iter_fields(value) if name not in ("ctx", "kind", "type_comment"))
    shown = (f"{name}={_normalise(part)}" for name, part in fields if part is not None and part != [])
    return f"{type(value).__name__}({','.join(shown)})"


def _git(*arguments: str) -> str | None:
    """Return what git prints, or None without git or outside of a checkout."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
