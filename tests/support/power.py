"""Undo what a power cut may undo: contents and names that were written and not synced. A disk can do no worse."""

from __future__ import annotations

from pathlib import Path


class Unsynced:
    """Call `note` before each system call that changes files, and `take_back` for the power cut."""

    def __init__(self) -> None:
        self._contents: dict[Path, bytes] = {}  # of files written since their last sync: the content at that sync
        self._names: dict[Path, bytes | None] = {}  # changed since their folder's last sync: the content before, if any

    def note(self, call: str, path: Path, target: Path) -> None:
        """`target`: the new path of a rename."""
        if call in ("fsync", "fdatasync"):
            self._synced(path)
        elif call == "rename":
            self._renamed(path, target)
        elif call == "unlink":  # never undone: a removed file that is there again would only be removed again
            self._contents.pop(path, None)
            self._names.pop(path, None)
        elif call == "open" and not path.exists():
            self._names.setdefault(path, None)
        elif call != "open" and path.is_file():
            self._contents.setdefault(path, path.read_bytes())

    def take_back(self) -> None:
        """Restore the state that the disk may have after the power cut."""
        for path, content in self._contents.items():
            path.write_bytes(content)
        for path, before in self._names.items():
            if before is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(before)

    def _synced(self, path: Path) -> None:
        self._contents.pop(path, None)
        self._names = {name: before for name, before in self._names.items() if name.parent != path}

    def _renamed(self, path: Path, target: Path) -> None:
        self._names.setdefault(target, target.read_bytes() if target.exists() else None)
        self._names.pop(path, None)
        if path in self._contents:
            self._contents[target] = self._contents.pop(path)
