"""Dossiers and kept frames are intact or reported, bounded in number and size, and deleted on request."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dossiers import AT, content, dossier
from hypothesis import example, given, settings
from hypothesis import strategies as st

import deploy.store.dossier_archive
from deploy.files import seal
from deploy.store.artefacts import ArtefactStore, StoreError
from deploy.store.dossier import read_dossier
from deploy.store.dossier_archive import DossierArchive
from deploy.store.verify import store_problems

QUOTA = 1 << 20


@pytest.fixture
def archive(tmp_path: Path) -> DossierArchive:
    return DossierArchive(tmp_path)


def frames(archive: DossierArchive, sensor: str = "*") -> list[str]:
    return sorted(path.name for path in archive.folder.glob(f"{sensor}/*.png"))


def wrong(archive: DossierArchive) -> list[str]:
    return list(store_problems(ArtefactStore(archive.folder.parent)))


def put(archive: DossierArchive, number: int, *kept: bytes, sensor: str = "front", quota: int = QUOTA) -> str:
    return archive.put(dossier(at=AT + number, sensor=sensor), kept, quota)


# ---- what was written


def test_a_dossier_is_read_as_it_was_written_and_is_named_by_its_bytes(archive):
    digest = put(archive, 0, b"first", b"second")
    (filed,) = archive.read_all("front")
    assert filed.digest == digest == hashlib.sha256(filed.path.read_bytes()).hexdigest()
    kept = [hashlib.sha256(frame).hexdigest() for frame in (b"first", b"second")]
    assert filed.dossier == dossier(frames=content()["frames"] | {"kept": kept})
    assert archive.frames(filed) == [b"first", b"second"]
    assert archive.read_all("rear") == [] and archive.read_all() == [filed]


def test_nobody_else_looks_at_what_a_camera_saw(archive):
    put(archive, 0, b"frame")
    assert archive.folder.stat().st_mode & 0o077 == 0


def test_the_newest_comes_first(archive):
    digests = [put(archive, number) for number in (1, 3, 2)]
    assert [one.digest for one in archive.read_all()] == [digests[1], digests[2], digests[0]]


def test_a_bit_that_flips_in_a_dossier_or_a_frame_is_found(archive):
    put(archive, 0, b"a frame", b"another")
    assert wrong(archive) == []
    for path in sorted(archive.folder.glob("*/*")):
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert len(wrong(archive)) == 1 and path.stem in wrong(archive)[0], place
        path.write_bytes(whole)
    assert wrong(archive) == []


def test_missing_frames_are_no_damage_and_unknown_files_are_reported(archive):
    put(archive, 0, b"a frame")
    (frame,) = archive.folder.glob("*/*.png")
    frame.rename(stray := frame.with_name("stray.png"))
    assert wrong(archive) == [f"{stray}: not written by recald, or what it belongs to is gone"]
    assert archive.frames(archive.read_all()[0]) == []


def test_a_damaged_dossier_is_left_out_and_left_alone(archive, caplog):
    put(archive, 0)
    put(archive, 1)
    path = archive.read_all()[1].path
    path.write_bytes(b"{")
    assert len(archive.read_all()) == 1 and path.exists() and str(path) in caplog.text
    with pytest.raises(StoreError, match=f"{path}: damaged"):
        archive.read(path)


def test_what_this_release_does_not_know_is_one_line(archive):
    with pytest.raises(ValueError, match=r"^not a dossier this release knows: v: [^\n]*$"):
        read_dossier(content(v=2))
    data = seal({"v": 2})
    path = archive.path("front", hashlib.sha256(data).hexdigest())
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert wrong(archive) and "not a dossier this release knows" in wrong(archive)[0]


def test_a_sensor_that_is_no_folder_is_refused(archive):
    with pytest.raises(StoreError, match="is not a sensor id"):
        archive.paths("../front")


# ---- a disk that is full


def test_without_its_frames_a_dossier_is_still_one(archive, monkeypatch, caplog):
    write = deploy.store.dossier_archive.write_atomically

    def refuse(path: Path, data: bytes) -> None:
        if path.suffix == ".png":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(deploy.store.dossier_archive, "write_atomically", refuse)
    assert put(archive, 0, b"a frame") == archive.read_all()[0].digest
    assert "not all of its frames are kept" in caplog.text and wrong(archive) == []


# ---- bounds


def test_the_oldest_of_a_sensor_go_and_their_frames_with_them(archive, monkeypatch):
    monkeypatch.setattr(deploy.store.dossier_archive, "MAX_DOSSIERS_PER_SENSOR", 3)
    put(archive, -1, b"rear", sensor="rear")
    digests = [put(archive, number, b"frame %d" % number) for number in range(5)]
    assert [one.digest for one in archive.read_all("front")] == digests[:1:-1]
    assert frames(archive, "front") == sorted(f"{digest}-0.png" for digest in digests[2:])
    assert len(archive.read_all("rear")) == len(frames(archive, "rear")) == 1
    assert wrong(archive) == []


def test_all_kept_frames_together_have_a_quota_and_the_oldest_go_first(archive):
    rear = put(archive, 0, b"x" * 400, sensor="rear", quota=1000)
    first = put(archive, 1, b"y" * 300, b"z" * 300, quota=1000)
    assert len(frames(archive)) == 3
    second = put(archive, 2, b"w" * 500, quota=1000)
    assert rear not in "".join(frames(archive)) and f"{second}-0.png" in frames(archive)
    assert sum(path.stat().st_size for path in archive.folder.glob("*/*.png")) <= 1000
    assert {one.digest for one in archive.read_all()} == {rear, first, second}


def test_a_purge_deletes_frames_alone_and_what_killed_writers_left_of_any(archive):
    put(archive, 0, b"a", b"b")
    put(archive, 1, b"c", sensor="rear")
    (archive.folder / "front" / ".x-0.png.00.tmp").write_bytes(b"half a frame")
    assert archive.purge("rear") == 1
    assert len(frames(archive)) == 2
    assert archive.purge() == 2
    assert re.findall("png", " ".join(path.name for path in archive.folder.rglob("*"))) == []
    assert len(archive.read_all()) == 2 and wrong(archive) == []
    assert archive.purge() == archive.purge("front") == archive.purge("nobody") == 0


# ---- what the audit log names


@given(named=st.lists(st.booleans(), max_size=9), lost=st.integers(0, 3))
@example(named=[True] * 6, lost=0)
@example(named=[True, True, True, False, False], lost=1)
@settings(max_examples=15)
def test_only_what_was_not_removed_as_one_of_the_oldest_is_missing(named: list[bool], lost: int):
    """named: for each dossier whether the log names it, or the daemon was killed before. lost: which is deleted."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy.store.dossier_archive, "MAX_DOSSIERS_PER_SENSOR", 4)
        archive = DossierArchive(Path(folder))
        digests = [put(archive, number) for number in range(len(named))]
        told = [digest for digest, is_named in zip(digests, named, strict=True) if is_named][::-1]
        assert archive.missing("front", told) == []
        here = [one.digest for one in archive.read_all() if one.digest in told]
        for digest in here[lost : lost + 1]:
            archive.path("front", digest).unlink()
            assert archive.missing("front", told) == [digest]
