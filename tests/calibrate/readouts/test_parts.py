"""The parts of the read-outs: least squares, clipping, standard errors, quantiles, curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import scenes

from calibrate.readouts.clipping import noise_sd, pattern_sd
from calibrate.readouts.colour import mixing
from calibrate.readouts.jackknife import standard_errors
from calibrate.readouts.least_squares import least_squares
from calibrate.readouts.moments import mean_picture, quantiles
from calibrate.readouts.pattern import pattern
from calibrate.readouts.picture_statistics import HISTOGRAM_LEVELS, PictureStatistics
from calibrate.readouts.shading import vignetting
from calibrate.readouts.tone import GAIN, LIMITS_OF, QUANTILES, Before, blurred_quantiles, choose_tone, fit_tone
from daemon.simulation.drifts import parse_drift
from daemon.simulation.random_drifts import film


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- least squares


@given(st.floats(-3, 3), st.floats(0.2, 2))
def test_a_curve_is_fitted(shift, width):
    places = torch.linspace(-5, 5, 50, dtype=torch.float64)

    def curve(parameters: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(((places - parameters[0]) / parameters[1]) ** 2) / 2)

    seen = curve(f64(shift, width))
    fitted = least_squares(lambda p: curve(p) - seen, f64(shift * 0.7, 1), f64(-4, 0.1), f64(4, 3))
    assert fitted.tolist() == pytest.approx([shift, width], abs=1e-2)


def test_a_parameter_stays_within_its_limits():
    found = least_squares(lambda p: p - f64(5, 0.5), f64(0, 0), f64(-1, -1), f64(1, 1))
    assert found.tolist() == pytest.approx([1, 0.5], abs=1e-4)


# ---- clipping


@pytest.mark.parametrize("sd", [4.0, 12.0, 30.0])
@pytest.mark.parametrize("level", [0, 6, 128, 250])
def test_what_black_and_white_take_is_given_back(sd, level):
    counts = torch.zeros(HISTOGRAM_LEVELS, dtype=torch.float64)
    counts[level] = 1
    drawn = (level + sd * torch.randn(100_000, generator=generator(), dtype=torch.float64)).clamp(0, 255)
    seen = float(drawn.std())
    assert noise_sd(seen, counts) == pytest.approx(sd, rel=0.05)
    assert pattern_sd(seen, counts) == pytest.approx(sd, rel=0.05)


def test_pictures_that_only_partly_clip_lose_less():
    counts = torch.zeros(HISTOGRAM_LEVELS, dtype=torch.float64)
    counts[[0, 128]] = 1
    offsets = 20 * torch.randn(100_000, 1, generator=generator(), dtype=torch.float64)
    seen = (torch.tensor([0, 128]) + offsets).clamp(0, 255).mean(1).std()
    assert pattern_sd(float(seen), counts) == pytest.approx(20, rel=0.05)


# ---- mean pictures

ALIVE = torch.zeros(32, 32, dtype=torch.bool)


def measured(images: np.ndarray) -> PictureStatistics:
    return PictureStatistics.of(torch.from_numpy(images))


@pytest.mark.parametrize("text", ["haze=0.4,vignetting=0.5", "vignetting=0.5,black-level=25", "vignetting=0.5"])
def test_an_offset_before_or_behind_the_lens_is_no_vignetting(text):
    recent = measured(film(parse_drift(text), scenes(400, 1)))
    assert vignetting(measured(scenes(400, 0)), recent, ALIVE, 0.0) == pytest.approx(0.5, abs=0.06)


def test_what_few_pictures_have_in_common_by_chance_is_no_pattern():
    found = torch.tensor(
        [pattern(measured(scenes(40, 2 * k)), measured(scenes(40, 2 * k + 1)), ALIVE) for k in range(8)]
    )
    chance = float(mean_picture(measured(scenes(40, 0))).std())
    assert chance > 4
    assert found.square().mean(0).sqrt().max() < 1.5


# ---- standard errors


def pictures(count: int, seed: int, brightness: torch.Tensor) -> PictureStatistics:
    noise = 5 * torch.randn(count, 16, 16, 1, generator=generator(seed))
    return PictureStatistics.of(120 + brightness.view(-1, 1, 1, 1) + noise)


def brighter(healthy: PictureStatistics, recent: PictureStatistics) -> torch.Tensor:
    return mean_picture(recent).mean() - mean_picture(healthy).mean()


def test_the_standard_error_of_a_difference_of_means_is_right():
    found, values = [], []
    for seed in range(40):
        before, after = (10 * torch.randn(64, generator=generator(1000 * k + seed)) for k in (1, 2))
        parts = pictures(64, seed, before), pictures(64, seed + 500, after)
        values.append(brighter(*parts))
        found.append(standard_errors(brighter, *parts))
    true = float(torch.stack(values).std())
    assert true < float(torch.stack(found).mean()) < 2.2 * true  # never less, as a recent period may be of one scene


def test_a_recent_period_of_one_scene_varies_as_periods_of_the_healthy_one():
    steps = torch.repeat_interleave(f64(-40, 10, 30, -20, 40, -10, 20, -30), 8).float()
    narrow = pictures(64, 1, torch.full((64,), 40.0))
    sure, unsure = pictures(64, 0, torch.zeros(64)), pictures(64, 0, steps)
    assert standard_errors(brighter, sure, narrow) < 1
    assert standard_errors(brighter, unsure, narrow) > 20


# ---- quantiles and curves


def test_quantiles_are_those_of_the_values():
    values = torch.from_numpy(scenes(50, 0))[..., 0].flatten()
    counts = torch.bincount(values, minlength=HISTOGRAM_LEVELS).double()
    steps = (torch.arange(64) + 0.5) / 64
    torch.testing.assert_close(quantiles(counts, 64), values.double().quantile(steps.double()), atol=0.6, rtol=0)


def test_cross_talk_leaves_grey_and_takes_colour():
    assert (mixing(0.3) @ f64(70, 70, 70)).tolist() == pytest.approx([70, 70, 70])
    assert (mixing(2 / 3) @ f64(255, 0, 0)).tolist() == pytest.approx([85, 85, 85])
    assert (mixing(0.1) @ f64(100, 0, 0)).tolist() == pytest.approx([90, 5, 5])


def test_quantiles_of_blurred_pictures_come_closer_together():
    statistics = PictureStatistics.of(torch.from_numpy(scenes(100, 0)))
    spreads = [float(blurred_quantiles(statistics, v, QUANTILES).std(1).mean()) for v in (0, 0.2, 1, 3, 100)]
    assert spreads == sorted(spreads, reverse=True)


VALUES = quantiles(PictureStatistics.of(torch.from_numpy(scenes(200, 0))).histograms.sum(0)[0], QUANTILES)[..., None]
TRUE = {"haze": 0.3, "exposure": -0.7, "black-level": 20.0, "gamma": 0.4}


@pytest.mark.parametrize("kind", TRUE)
@pytest.mark.parametrize("noise", [0.0, 15.0])
def test_a_curve_of_one_kind_is_recognised(kind, noise):
    before = Before(VALUES, torch.ones(1), noise)
    after = before.bent((kind,), f64(TRUE[kind]))
    kinds, parameters = choose_tone(before, after, torch.full_like(after, 2.0))
    assert kinds == (kind,) and parameters.tolist() == pytest.approx([TRUE[kind]], rel=0.02)


def test_gains_of_red_and_blue_are_fitted_by_green():
    before = Before(VALUES, torch.ones(1), 0.0)
    after = before.bent((GAIN,), f64(0.2, -0.3))
    torch.testing.assert_close(after[1], before.bent((), f64())[1])
    found, left = fit_tone(before, after, torch.ones_like(after), (GAIN,))
    assert found.tolist() == pytest.approx([0.2, -0.3], abs=1e-3) and left < 1e-3


def test_no_kind_is_needed_where_nothing_is_bent():
    before = Before(VALUES, torch.ones(1), 0.0)
    after = before.bent((), f64()) + 0.5
    assert choose_tone(before, after, torch.full_like(after, 2.0))[0] == ()
    assert set(TRUE) | {GAIN} == set(LIMITS_OF)
