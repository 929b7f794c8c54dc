"""Defects and shading are corrected where a camera has them, nowhere else, and before everything else is fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import MEAN, STD, images, normalised, trained_network
from torch import nn

from calibrate import (
    FitConfig,
    FitError,
    Homogenizer,
    Limits,
    collect_statistics,
    fit,
    measured_source,
    tap,
)
from calibrate.search.defects import DEFECT_STEPS, DEFECTS_MAX_LOSS_RATIO, find_defect_step
from calibrate.search.descent import descend
from calibrate.search.objective import Objective
from calibrate.search.shading import LOST_SHARES, SHADING_MAX_LOSS_RATIO, find_gain
from calibrate.shading import lens_gain
from daemon.simulation.drifts import parse_drift

LIMITS = Limits.of(MEAN, STD)
SHORT = FitConfig(stages=((64, 6),))
NEITHER = {"defects": False, "shading": False}


@pytest.fixture(scope="module")
def network():
    return trained_network()


def seen_by(drift: str, impulses: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of a drifted camera, and what it would see without the drift.

    impulses: share of the values that are black or white, others in each frame.
    """
    clean, apply, random = images(192, seed=5), parse_drift(drift, seed=3), np.random.default_rng(0)
    seen = np.stack([apply(image, n) for n, image in enumerate(clean)])
    hit, white = random.random(seen.shape) < impulses, random.random(seen.shape) < 0.5
    return normalised(np.where(hit, 255 * white.astype(np.uint8), seen)), normalised(clean)


@pytest.mark.parametrize(
    ("drift", "impulses", "part"),
    [
        ("", 0.04, "defects"),
        ("exposure=-0.7", 0.04, "defects"),
        ("vignetting=0.7", 0.0, "shading"),
        ("vignetting=0.7,exposure=-0.5", 0.0, "shading"),
    ],
)
def test_what_a_camera_needs_is_found_and_undone(network, drift, impulses, part):
    frames, clean = seen_by(drift, impulses)
    result = fit(network, frames, limits=LIMITS)  # as shipped, where both descents reach their goal
    assert result.homogenizer.optional_parts == NEITHER | {part: True} and result.start.startswith(f"{part}, ")
    with torch.no_grad():
        error = (result.homogenizer(frames) - clean).square().mean()
    assert error < 0.1 * (frames - clean).square().mean()


@pytest.mark.parametrize("corrections", [(), ("defects",), ("shading",)])
def test_only_allowed_corrections_are_tried(network, corrections):
    frames, _ = seen_by("vignetting=0.5", impulses=0.08)
    result = fit(network, frames, limits=LIMITS, corrections=corrections, config=FitConfig(stages=()))
    tried = {name.split(",")[0] for name in result.start_losses if "," in name}
    assert tried <= set(corrections)
    assert {part for part, used in result.homogenizer.optional_parts.items() if used} <= set(corrections)


def test_both_are_found_together(network):
    frames, clean = seen_by("vignetting=0.5", impulses=0.08)
    result = fit(network, frames, limits=LIMITS)
    assert result.start.startswith("defects, shading, ")
    with torch.no_grad():
        assert (result.homogenizer(frames) - clean).square().mean() < 0.1 * (frames - clean).square().mean()


@pytest.mark.parametrize("drift", ["", "exposure=-1,blur=0.5", "fixed-pattern=12", "gamma=1.5"])
def test_a_camera_that_needs_neither_gets_neither(network, drift):
    frames, _ = seen_by(drift)
    result = fit(network, frames, limits=LIMITS, config=SHORT)
    assert result.homogenizer.optional_parts == NEITHER


@pytest.mark.parametrize("impulses", [0.0, 0.04])
def test_without_black_and_white_neither_is_looked_for(network, impulses):
    result = fit(network, seen_by("vignetting=0.7", impulses)[0], config=SHORT)
    assert result.homogenizer.optional_parts == NEITHER
    assert not any("defects" in name or "shading" in name for name in result.start_losses)


@pytest.mark.parametrize(("lost", "left"), [(0.7, "shading"), (0.0, None)])
def test_the_descent_decides_whether_a_correction_stays(network, monkeypatch, lost, left):
    """A start behind a wrong gain may be better than the others, by chance."""
    frames, _ = seen_by(f"vignetting={lost}")
    monkeypatch.setattr("calibrate.search.best_start.find_gain", lambda *_: lens_gain(0.7, 16, 16))
    monkeypatch.setattr("calibrate.search.best_start.CORRECTED_MAX_LOSS_RATIO", 1e6)
    result = fit(network, frames, limits=LIMITS, config=FitConfig(stages=((64, 2),)))
    assert result.homogenizer.optional_parts == NEITHER | ({left: True} if left else {})
    assert any(name.startswith("shading, ") for name in result.start_losses)  # it was tried
    assert len(result.history) <= 3  # of the descent that stays alone


def test_a_correction_that_cannot_be_fitted_leaves_the_other_descent(network, monkeypatch):
    frames, _ = seen_by("vignetting=0.7")
    monkeypatch.setattr("calibrate.fitting.descend", failing_where_a_gain_is_fitted)
    assert fit(network, frames, limits=LIMITS, config=SHORT).homogenizer.optional_parts == NEITHER


def failing_where_a_gain_is_fitted(objective, coordinates, *rest):
    if "gain" in coordinates.parts():
        raise FitError("the loss is not finite")
    descend(objective, coordinates, *rest)


def test_progress_never_falls_and_ends_at_the_end_while_two_descents_run(network):
    told: list[tuple[int, int]] = []
    fit(network, seen_by("vignetting=0.7")[0], limits=LIMITS, config=SHORT, progress=lambda *at: told.append(at[:2]))
    done = [at for at, _ in told]
    assert done == sorted(done) and done[-1] <= told[-1][1] and len({whole for _, whole in told}) == 1


def test_labels_and_a_single_channel_are_no_hindrance():
    frames, clean = (seen[:, :1] for seen in seen_by("vignetting=0.7"))
    first = nn.Conv2d(1, 8, 3, padding=1)
    module = nn.Sequential(first, nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    with torch.no_grad():
        module(clean)
    labels = torch.arange(len(frames)) % 4
    taps = tap(module.eval())
    reference = collect_statistics(taps, clean, labels=labels)
    limits = Limits(LIMITS.black[:1], LIMITS.white[:1])
    result = fit(module, frames, reference, labels=labels, limits=limits, source=measured_source(clean), config=SHORT)
    assert result.homogenizer.optional_parts == NEITHER | {"shading": True}


def test_the_objective_of_a_fit_is_that_of_the_homogenizer_it_returns(network):
    frames, _ = seen_by("vignetting=0.5", impulses=0.08)
    result = fit(network, frames, limits=LIMITS, config=FitConfig(stages=((192, 4),)))
    assert all(result.homogenizer.optional_parts.values())
    taps = tap(network)
    found = Objective(taps, taps.reference, None, 0.0, LIMITS).evaluate(result.homogenizer, frames)
    assert min(result.history) * 0.9 <= found <= max(result.history) * 1.1


# ---- the decisions, apart from networks


def scored_by_error(clean: torch.Tensor):
    return lambda frames: float((frames - clean).square().mean())


def test_a_defect_is_looked_for_only_where_pixels_have_neighbours():
    frames = torch.randn(4, 3, 1, 8)
    assert find_defect_step(lambda _: pytest.fail("nothing to score"), frames, LIMITS) is None


@pytest.mark.parametrize(("share", "found"), [(0.9, True), (1.1, False)])
def test_defects_need_a_far_lower_objective(share, found):
    frames = torch.randn(4, 3, 8, 8)
    losses = iter([DEFECTS_MAX_LOSS_RATIO * share, 1.0, 1.0])  # of the two steps, then without
    step = find_defect_step(lambda _: next(losses), frames, LIMITS)
    assert (step is not None) == found
    if step is not None:
        assert torch.allclose(step, DEFECT_STEPS[0] * (LIMITS.white - LIMITS.black))


@pytest.mark.parametrize("lost", [0.15, 0.3, 0.42, 0.57, 0.7, 0.88])
def test_the_nearest_lens_of_the_grid_is_found(lost):
    clean = torch.rand(16, 3, 12, 12) * 4 - 2
    black = LIMITS.black.view(-1, 1, 1)
    frames = (clean - black) / lens_gain(lost, 12, 12) + black
    gain = find_gain(scored_by_error(clean), frames, LIMITS)
    tried = [round(0.1 * n, 1) for n in range(1, 10)]
    errors = [float((lens_gain(t, 12, 12) / lens_gain(lost, 12, 12) - 1).abs().mean()) for t in tried]
    assert gain is not None
    assert float((gain / lens_gain(lost, 12, 12) - 1).abs().mean()) <= 1.5 * min(errors) + 1e-6


def test_frames_without_shading_get_no_gain_and_only_the_grid_is_tried():
    clean, tried = torch.rand(16, 3, 12, 12), []

    def score(frames: torch.Tensor) -> float:
        tried.append(frames)
        return float((frames - clean).square().mean())

    assert find_gain(score, clean, LIMITS) is None and len(tried) == 1 + len(LOST_SHARES)


@pytest.mark.parametrize(("share", "found"), [(0.9, True), (1.1, False)])
def test_a_gain_needs_a_far_lower_objective(share, found):
    losses = iter([1.0, 0.9, SHADING_MAX_LOSS_RATIO * share, 0.9, 0.9, 0.95, 0.95])
    assert (find_gain(lambda _: next(losses), torch.randn(4, 3, 8, 8), LIMITS) is not None) == found


def test_a_homogenizer_without_these_parts_is_as_before():
    assert set(Homogenizer(3, 8, 8).state_dict()) == {"curve", "offset", "kernel", "bias"}
