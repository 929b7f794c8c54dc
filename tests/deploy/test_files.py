"""A file is whole or absent, whatever happens to its writer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.audit.log import AuditError, AuditLog
from deploy.files import read_regular, seal, sweep, unseal, write_atomically
from deploy.model.card import ModelCard
from deploy.model.document import DocumentError, load_document

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_file_is_written_below_folders_that_did_not_exist(tmp_path):
    path = tmp_path / "a" / "b" / "c"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_and_folders_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    """A test cannot cut the power. It can check the order of the calls that guard against a power cut."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix)
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_atomically(tmp_path / "new" / "file", b"data")
    assert events == ["sync ", "sync .tmp", "rename", "sync "]  # parent of the new folder, file, folder


def test_sweep_removes_what_a_killed_writer_left_and_nothing_else(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".file.0011aabb.tmp").write_bytes(b"half")
    (tmp_path / "sub" / "file.tmp").write_bytes(b"not ours")
    assert sweep(tmp_path) == 1
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["file.tmp"]


def test_what_cannot_be_removed_stops_no_sweep(tmp_path, monkeypatch):
    for name in (".a.0.tmp", ".b.0.tmp"):
        (tmp_path / name).touch()

    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert sweep(tmp_path) == 0


def test_sweep_spares_the_file_of_a_living_writer(tmp_path, monkeypatch):
    replace, swept = os.replace, []

    def sweep_first(source: Path, target: Path) -> None:
        swept.append(sweep(tmp_path))
        replace(source, target)

    monkeypatch.setattr(os, "replace", sweep_first)
    write_atomically(tmp_path / "file", b"whole")
    assert swept == [0]
    assert (tmp_path / "file").read_bytes() == b"whole"


@given(st.dictionaries(st.text().filter(lambda key: key != "seal"), JSON, max_size=4))
def test_a_sealed_document_is_read_back_equal(document):
    assert unseal(seal(document)) == document


@given(data=st.data())
def test_a_changed_document_is_refused_or_equal(data):
    document = {"version": "ab", "since": 1.5, "metrics": {"score": 0.25, "seen": [1, 2, None, True]}}
    sealed = bytearray(seal(document))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    _refused_or_equal(bytes(sealed), document)
    _refused_or_equal(seal(document)[: data.draw(st.integers(0, len(sealed)))], document)


def _refused_or_equal(sealed: bytes, document: dict[str, object]) -> None:
    try:
        found = unseal(sealed)
    except ValueError:
        return
    assert found == document


@pytest.mark.parametrize(
    "junk", [b"", b"[]", b"{}", b"null", b"[" * 100_000, b"\xff", json.dumps({"seal": 1}).encode()]
)
def test_junk_is_refused(junk):
    with pytest.raises(ValueError, match="."):
        unseal(junk)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        seal({"loss": float("nan")})


def test_only_regular_files_are_read(tmp_path):
    """A FIFO would wait for a writer, and a device has no end."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero"):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    os.mkfifo(tmp_path / ".file.1234.tmp")
    assert sweep(tmp_path) == 0


def test_a_card_a_configuration_or_an_audit_log_that_is_a_fifo_is_refused_at_once(tmp_path):
    for suffix in ("", "-wal", "-shm", "-journal"):
        os.mkfifo(fifo := tmp_path / f"audit.sqlite{suffix}")
        for options in ({}, {"read_only": True}, {"shared": True}):
            with pytest.raises(AuditError, match="not a regular file"):
                AuditLog(tmp_path / "audit.sqlite", **options)
        fifo.unlink()
    os.mkfifo(tmp_path / "card.yaml")
    with pytest.raises(DocumentError, match="not a regular file"):
        load_document(tmp_path / "card.yaml", ModelCard)


def test_a_file_with_more_than_the_most_bytes_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == read_regular(path) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(path, 4)
