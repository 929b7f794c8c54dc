"""What a configuration takes of the memory, and how much there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from running import recald_here, write_config
from torch import nn

from daemon.config import load_config
from daemon.exit_codes import EX_CONFIG
from daemon.operator import deployment
from daemon.operator.memory import GIB, MemoryNeed, activation_bytes, describe_need
from deploy.model.frozen import load_frozen

VALUES = 3 * 16 * 16  # of a frame of the tiny model


def need(folder: Path, model: Path, **sections) -> MemoryNeed:
    return MemoryNeed.of(load_config(write_config(folder, model, **sections)), load_frozen(model))


def test_frames_are_counted_for_each_sensor_with_their_depth(folder: Path, tiny_model: Path):
    found = need(folder, tiny_model, recalibrate={"frames": 200}, drift={"window": 20})
    assert found.frames == 2 * 220 * VALUES
    deep = need(folder, tiny_model, sensors={"rear": {"bits": 12}}, recalibrate={"frames": 200}, drift={"window": 20})
    assert deep.frames == 3 * 220 * VALUES
    assert deep.fit > found.fit and deep.check > found.check


def test_what_deeper_frames_take_is_told_beside_the_assumed_depth(folder: Path, tiny_model: Path):
    counts = {"recalibrate": {"frames": 10_000}, "drift": {"window": 20}}
    found = need(folder, tiny_model, **counts)
    deep = need(folder, tiny_model, sensors={"front": {"bits": 12}, "rear": {"bits": 12}}, **counts)
    assert found.in_all + found.more_for_words == deep.in_all and deep.more_for_words == 0
    assert found.more_for_floats == deep.more_for_floats + found.more_for_words == 3 * 3 * 10_020 * VALUES
    said = describe_need(found, 2, 8 * GIB)
    assert "with frames of 8 bits where sensors.ID.bits and the card say no more; " in said and "at most" not in said
    for size, name in ((found.more_for_words, "16 bits"), (found.more_for_floats, "floats")):
        assert f"{(found.in_all + size) / GIB:.1f} GiB with {name}" in said


def test_more_frames_make_a_fit_larger_and_a_larger_window_a_check(folder: Path, tiny_model: Path):
    small = need(folder, tiny_model)
    many = need(folder, tiny_model, recalibrate={"frames": 1280})
    wide = need(folder, tiny_model, drift={"window": 640})
    assert many.fit > 9 * small.fit and many.check == small.check
    assert wide.check > 9 * small.check and wide.fit == small.fit


def test_what_a_network_keeps_for_its_gradient_is_counted_without_its_weights():
    kept_by_conv, kept_by_relu = 2 * 64 * 64 * 4, 500 * 64 * 64 * 4  # its input, its output
    network = nn.Sequential(nn.Conv2d(2, 500, 1), nn.ReLU())
    assert activation_bytes(network, (2, 64, 64)) == kept_by_conv + kept_by_relu
    assert not any(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("share", [0.4, 0.9, 1.1])
def test_what_cannot_fit_is_a_mistake_and_a_large_share_a_warning(
    folder: Path, tiny_model: Path, monkeypatch, share: float
):
    config = write_config(folder, tiny_model)
    total = need(folder, tiny_model).in_all
    monkeypatch.setattr(deployment, "total_memory", lambda: int(total / share))
    done = recald_here("check-config", "--config", config)
    assert done.returncode == (EX_CONFIG if share > 1 else 0)
    assert ("not enough memory: 0.9 GiB of memory" in done.stderr) is (share > 1)
    assert ("memory: WARNING: 0.9 GiB" in done.stdout) is (share == 0.9)
    assert "take fewer recalibrate.frames" in done.stdout + done.stderr or share == 0.4


def test_a_limit_that_would_end_every_fit_is_a_warning(folder: Path, tiny_model: Path, monkeypatch):
    config = write_config(folder, tiny_model, recalibrate={"memory_mib": 256})
    assert "recalibrate.memory_mib" not in deployment.check_memory(load_config(config))
    huge = MemoryNeed(frames=1.0, check=1.0, fit=257.0 * 2**20)
    monkeypatch.setattr(MemoryNeed, "of", lambda *_: huge)
    assert "recalibrate.memory_mib 256 will end fits: raise it" in deployment.check_memory(load_config(config))


def test_all_parts_are_in_the_sum():
    found = MemoryNeed(frames=1.0, check=2.0, fit=4.0)
    assert found.in_all - dataclasses.replace(found, frames=0, check=0, fit=0).in_all == 7
