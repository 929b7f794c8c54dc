"""Start a module in a Python process of its own: of lower priority, and from the daemon's installation.

The current folder may hold anything, such as a file torch.py. The priority is lowered before the module is imported,
since PyTorch takes a core for seconds to be imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

# -I: without the current folder, user folders and PYTHON* variables. The path of the daemon comes as an argument.
RUN_MODULE = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from daemon.niceness import lower_priority; lower_priority(); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
INSTALLATION = Path(__file__).resolve().parent.parent  # the folder that the packages of recald lie in


def python_command(module: str) -> list[str]:
    """Return the command that runs a module of recald; arguments follow it."""
    return [sys.executable, "-I", "-c", RUN_MODULE, json.dumps(import_path(sys.path, os.getcwd())), module]


def import_path(path: Iterable[str], folder: str) -> list[str]:
    """Return where a process imports from: as `path`, with the installation of recald, without the current folder.

    `python -m` and scripts put a folder first that is no installation; a file named torch.py there is not PyTorch.
    """
    installation = str(INSTALLATION)
    unwanted = {folder, os.path.dirname(os.path.abspath(sys.argv[0]))}
    kept = [entry for entry in path if entry == installation or entry and os.path.abspath(entry) not in unwanted]
    return kept if installation in kept else [installation, *kept]
