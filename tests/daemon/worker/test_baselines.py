"""A worker learns a baseline from healthy frames in the time it is given, keeps it, and never learns a drift."""

import logging

import pytest
import torch

from calibrate.baseline.baseline import Baseline
from calibrate.baseline.frames import FrameStatistics
from calibrate.baseline.learning import MIN_HEALTHY_FRAMES, learn_baseline
from daemon.worker.baselines import MAX_POOL_FRAMES, Baselines, FramePool
from deploy.store.artefacts import FACTORY
from deploy.store.baselines import BaselineStore

CHANNELS, CLASSES, WINDOW = 12, 3, 64
HOUR = 3600.0
MODEL, VERSION = "m" * 64, "v" * 64


def filmed(count: int, seed: int, camera: float = 0.0) -> FrameStatistics:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    first = torch.eye(CLASSES, CHANNELS)[labels] * 2 + torch.randn(count, CHANNELS, generator=generator) + camera
    return FrameStatistics(first, first.square() + 0.5, labels)


@pytest.fixture(scope="module")
def commissioned() -> Baseline:
    return learn_baseline(filmed(MIN_HEALTHY_FRAMES, seed=1), WINDOW, CLASSES)


def baselines(folder, commissioned: Baseline | None = None, model: str = MODEL, faults: list | None = None):
    on_fault = (faults if faults is not None else []).append
    return Baselines(BaselineStore(folder, model), CHANNELS, CLASSES, commissioned, on_fault)


def watch(known: Baselines, hours: float, version: str = FACTORY, start: float = 0.0, step: float = 60.0) -> None:
    """Healthy windows of new frames, one a minute."""
    for number in range(round(hours * HOUR / step) + 1):
        window = filmed(WINDOW, seed=number)
        known.compare("front", version, window)
        known.learn("front", version, window, WINDOW, HOUR, start + number * step)


def test_after_the_time_there_is_a_baseline_that_sees_a_drift(tmp_path):
    known = baselines(tmp_path)
    watch(known, 0.9)
    assert known.compare("front", FACTORY, filmed(WINDOW, seed=99)) is None
    assert known.progress("front", FACTORY, HOUR, WINDOW) == pytest.approx(0.9)
    watch(known, 0.2, start=HOUR)
    assert known.progress("front", FACTORY, HOUR, WINDOW) == 1
    healthy, drifted = (known.compare("front", FACTORY, filmed(WINDOW, seed=99, camera=c)) for c in (0.0, 1.0))
    assert healthy.drift < 3 < 5 < drifted.drift


def test_a_restart_keeps_it_and_another_model_or_homogenizer_has_none(tmp_path):
    watch(baselines(tmp_path), 1.0)
    window = filmed(WINDOW, seed=99)
    assert baselines(tmp_path).compare("front", FACTORY, window) is not None
    assert baselines(tmp_path).compare("front", VERSION, window) is None
    assert baselines(tmp_path, model="n" * 64).compare("front", FACTORY, window) is None


def test_a_damaged_one_is_told_and_learned_again(tmp_path, caplog):
    watch(baselines(tmp_path), 1.0)
    (path,) = (tmp_path / "sensors" / "front").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    known = baselines(tmp_path)
    assert known.compare("front", FACTORY, filmed(WINDOW, seed=99)) is None
    assert "is learned again" in caplog.text
    watch(known, 1.0)
    assert known.compare("front", FACTORY, filmed(WINDOW, seed=99)) is not None


def test_time_alone_is_not_enough(tmp_path):
    known = baselines(tmp_path)
    few = filmed(WINDOW, seed=1)
    for number in range(200):
        known.learn("front", FACTORY, few, 1, HOUR, 60.0 * number)
    assert known.compare("front", FACTORY, few) is None and known.progress("front", FACTORY, HOUR, WINDOW) < 1


def test_a_night_without_frames_is_no_time_of_healthy_frames(tmp_path):
    known = baselines(tmp_path)
    for day in range(5):
        watch(known, 0.05, start=24 * HOUR * day)
    assert known.compare("front", FACTORY, filmed(WINDOW, seed=99)) is None


def test_the_commissioned_one_serves_without_a_homogenizer_from_the_start(tmp_path, commissioned):
    known = baselines(tmp_path, commissioned)
    window = filmed(WINDOW, seed=99)
    assert known.compare("front", FACTORY, window) == commissioned.compare(window)
    assert known.compare("front", VERSION, window) is None
    watch(known, 1.0)
    assert not (tmp_path / "sensors").exists(), "nothing is learned where it is known"


def test_a_commissioned_one_of_another_window_gives_way_to_the_sensors_own(tmp_path, commissioned):
    assert baselines(tmp_path, commissioned).compare("front", FACTORY, filmed(32, seed=9)) is None
    own = learn_baseline(filmed(MIN_HEALTHY_FRAMES, seed=1), 32, CLASSES)
    BaselineStore(tmp_path, MODEL).save("front", FACTORY, own.tensors())
    assert baselines(tmp_path, commissioned).compare("front", FACTORY, filmed(32, seed=9)) is not None


def test_one_of_another_window_is_told_and_learned_again(tmp_path, commissioned, caplog):
    BaselineStore(tmp_path, MODEL).save("front", FACTORY, commissioned.tensors())
    assert baselines(tmp_path).compare("front", FACTORY, filmed(32, seed=9)) is None
    assert "its baseline is of 64 frames, drift.window has 32" in caplog.text


def test_a_large_window_gets_the_frames_that_it_needs(tmp_path):
    known, size = baselines(tmp_path), 600
    for number in range(8):
        assert known.compare("front", FACTORY, filmed(size, seed=number)) is None
        assert known.progress("front", FACTORY, HOUR, size) < 1
        known.learn("front", FACTORY, filmed(size, seed=number), size // 2, 1.0, 10.0 * number)
    assert known.compare("front", FACTORY, filmed(size, seed=9)) is not None


def test_frames_all_the_same_cost_no_try(tmp_path, caplog):
    known, same = baselines(tmp_path), filmed(1, seed=1)[torch.zeros(WINDOW, dtype=torch.long)]
    for number in range(70):
        known.learn("front", FACTORY, same, WINDOW, HOUR, 60.0 * number)
    assert "all alike" in caplog.text and known.progress("front", FACTORY, HOUR, WINDOW) < 1
    watch(known, 10.0, start=10 * HOUR)
    assert known.progress("front", FACTORY, HOUR, WINDOW) == 1


def test_a_restart_goes_on_with_the_later_learnings(tmp_path, caplog):
    watch(baselines(tmp_path), 1.0)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        watch(baselines(tmp_path), 4.1)
    assert caplog.text.count("learned a baseline") == 1, "after four times the time, and not after one"


def test_only_what_serves_keeps_the_memory_of_its_frames(tmp_path):
    known = baselines(tmp_path)
    watch(known, 0.5)
    watch(known, 0.1, version=VERSION, start=HOUR)
    assert known.progress("front", FACTORY, HOUR, WINDOW) == 0


def test_a_disk_that_refuses_costs_the_file_and_not_the_baseline(tmp_path, caplog, monkeypatch):
    known = baselines(tmp_path, faults=(faults := []))
    (tmp_path / "sensors").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        watch(known, 1.0)
    assert known.compare("front", FACTORY, filmed(WINDOW, seed=99)) is not None and caplog.messages
    assert faults and set(faults) == {"keeping"}


def test_the_pool_is_a_fair_part_of_all_frames():
    pool, total = FramePool(), 5 * MAX_POOL_FRAMES
    for start in range(0, total, WINDOW):
        numbers = torch.arange(start, start + WINDOW).float()[:, None]
        pool.add(FrameStatistics(numbers, numbers, torch.zeros(WINDOW, dtype=torch.long)))
    assert len(pool) == MAX_POOL_FRAMES and pool.added == total
    kept = pool.frames.first.flatten()
    assert torch.equal(kept, pool.frames.second.flatten()) and len(kept.unique()) == len(kept)
    assert abs(float(kept.mean()) / total - 0.5) < 0.03


def test_what_was_learned_of_a_sensor_is_forgotten_also_on_the_disk(tmp_path, commissioned, monkeypatch):
    known = baselines(tmp_path)
    watch(known, hours=1.1)
    watch_other = filmed(WINDOW, seed=3)
    assert known.compare("front", FACTORY, watch_other) is not None
    known.forget("front")
    for again in (known, baselines(tmp_path)):
        assert again.compare("front", FACTORY, watch_other) is None
        assert again.progress("front", FACTORY, HOUR, WINDOW) == 0
    watch(known, hours=1.1, start=10 * HOUR)

    def refuse(_: str) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(known._store, "remove", refuse)
    with pytest.raises(OSError, match="read-only"):
        known.forget("front")
    assert known.compare("front", FACTORY, watch_other) is None, "whatever the disk keeps"
    known = baselines(tmp_path, commissioned)
    known.forget("front")
    assert known.compare("front", FACTORY, watch_other) is not None, "what was commissioned stays"
