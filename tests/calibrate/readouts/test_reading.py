"""What a simulated camera did is read from pictures of other scenes, and nothing from those of a clean one."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scenes import scenes

from calibrate.readouts.picture_statistics import PictureStatistics
from calibrate.readouts.read_out import KINDS, ReadOut
from calibrate.readouts.reading import read_outs
from calibrate.readouts.words import NOTHING, describe
from daemon.simulation.drifts import DRIFT_KINDS, parse_drift
from daemon.simulation.random_drifts import film

HEALTHY, RECENT = 800, 320
SEED = 3
TOLERANCE = 0.15


def statistics(images: np.ndarray) -> PictureStatistics:
    return PictureStatistics.of(torch.from_numpy(images))


@functools.cache
def healthy(channels: int = 3) -> PictureStatistics:
    return statistics(scenes(HEALTHY, 0, channels))


def found(text: str, channels: int = 3, seed: int = 1) -> list[ReadOut]:
    """Return the significant read-outs of a drifted camera, the strongest first."""
    recent = statistics(film(parse_drift(text, SEED), scenes(RECENT, seed, channels)))
    return sorted((o for o in read_outs(healthy(channels), recent) if o.significant), key=lambda o: -o.strength)


def difference(kind: str, value: float) -> float:
    return KINDS[kind].difference(value)


SINGLE = {
    "haze=0.3": 0.3,
    "motion-blur=3": 3,
    "blur=0.8": 0.8,
    "vignetting=0.5": 0.5,
    "exposure=-1": -1,
    "exposure=0.6": 0.6,
    "cross-talk=0.3": 0.3,
    "fixed-pattern=12": 12,
    "temporal-noise=10": 10,
    "black-level=16": 16,
    "black-level=-16": -16,
    "gamma=1.5": 1.5,
    "gamma=0.67": 0.67,
}


@pytest.mark.parametrize(("text", "truth"), SINGLE.items(), ids=SINGLE)
def test_a_single_drift_is_named_first_and_its_size_is_right(text, truth):
    kind = text.partition("=")[0]
    first = found(text)[0]
    assert first.kind == kind
    assert difference(kind, first.value) == pytest.approx(difference(kind, truth), rel=TOLERANCE)


@pytest.mark.parametrize("kind", ["row-banding", "column-banding"])
def test_banding_is_told_from_a_pattern(kind):
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    truth = film(parse_drift(f"{kind}=12", SEED), grey).std()
    (first, *rest) = found(f"{kind}=12")
    assert first.kind == kind and first.value == pytest.approx(truth, rel=TOLERANCE)
    assert not {"fixed-pattern", "row-banding", "column-banding"} & {one.kind for one in rest}


def test_dead_pixels_are_counted():
    changed = film(parse_drift("dead-pixels=0.02", SEED), np.full((1, 32, 32, 3), 128, np.uint8)) != 128
    first = found("dead-pixels=0.02")[0]
    assert first.kind == "dead-pixels" and first.value == pytest.approx(changed.all(3).mean(), rel=TOLERANCE)


def test_dead_pixels_do_not_pass_for_another_tone_curve():
    assert {one.kind for one in found("dead-pixels=0.1")} <= {"dead-pixels", "temporal-noise"}


@pytest.mark.parametrize("text", ["exposure=1", "gamma=1.8", "black-level=24"])
def test_a_bent_curve_is_no_noise_where_still_pixels_stay_still(text):
    framed = [scenes(count, seed, 1).copy() for count, seed in ((HEALTHY, 0), (RECENT, 1))]
    for pictures in framed:
        pictures[:, :4], pictures[:, -4:] = 0, 0  # as around a digit or the field of a microscope
        pictures[pictures < 110] = 0
    noises = [noise_in(film(parse_drift(drift), framed[1]), framed[0]) for drift in (text, "temporal-noise=10")]
    assert noises[0] < 1 and noises[1] == pytest.approx(10, rel=TOLERANCE)


def noise_in(recent: np.ndarray, before: np.ndarray) -> float:
    return next(one.value for one in read_outs(statistics(before), statistics(recent)) if one.kind == "temporal-noise")


def test_a_colour_cast_is_read_for_each_colour_by_green():
    cast = {one.colour: one.value for one in found("gain=1.3:1:0.75") if one.kind == "gain"}
    assert cast == {"red": pytest.approx(1.3, rel=0.05), "blue": pytest.approx(0.75, rel=0.05)}


@pytest.mark.parametrize(
    "text", ["exposure=-1,fixed-pattern=12", "blur=1,temporal-noise=10", "haze=0.3,vignetting=0.6"]
)
def test_two_drifts_at_a_time_are_both_read(text):
    strengths = {kind: values[0] for kind, values in parse_drift(text).strengths.items()}
    values = {one.kind: one.value for one in found(text)}
    for kind, truth in strengths.items():
        assert values[kind] == pytest.approx(truth, rel=0.3), values


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(10, 16))
def test_nothing_is_read_from_clean_pictures(channels, seed):
    outs = read_outs(healthy(channels), statistics(scenes(RECENT, seed, channels)))
    assert describe(outs) == [NOTHING]


def test_grey_pictures_have_no_read_outs_of_colour():
    outs = read_outs(healthy(1), statistics(scenes(RECENT, 1, 1)))
    assert not {"cross-talk", "gain"} & {one.kind for one in outs}
    assert found("exposure=-1", 1)[0].value == pytest.approx(-1, rel=TOLERANCE)


def test_a_short_period_has_larger_errors():
    errors = []
    for count in (24, RECENT):
        outs = read_outs(healthy(), statistics(film(parse_drift("exposure=-1"), scenes(RECENT, 1)[:count])))
        errors += [one.error for one in outs if one.kind == "exposure"]
    assert errors[0] > 1.5 * errors[1]


def test_a_healthy_period_of_changing_light_has_larger_errors():
    changing = [film(parse_drift(f"exposure={stops}"), scenes(HEALTHY, 0)[i::8]) for i, stops in enumerate(STOPS)]
    before = statistics(np.concatenate(changing))
    recent = statistics(film(parse_drift("exposure=-0.5"), scenes(RECENT, 1)))
    assert any(one.kind == "exposure" and one.significant for one in read_outs(healthy(), recent))
    assert not any(one.significant for one in read_outs(before, recent) if one.kind == "exposure")


STOPS = (-0.6, 0.3, -0.1, 0.4, -0.5, 0.1, -0.4, 0.2)  # of the eight periods


def test_pictures_of_another_shape_and_too_few_are_refused():
    with pytest.raises(ValueError, match="another size"):
        read_outs(healthy(), healthy(1))
    with pytest.raises(ValueError, match="3 or more pictures"):
        read_outs(healthy(), statistics(scenes(RECENT, 1)[:2]))


def test_kinds_are_those_of_the_simulation():
    assert set(KINDS) == set(DRIFT_KINDS) - {"jpeg"}
    for name, kind in KINDS.items():
        assert kind.unit == DRIFT_KINDS[name].unit
        assert DRIFT_KINDS[name].low <= kind.neutral <= DRIFT_KINDS[name].high


@pytest.mark.parametrize(
    ("kind", "value", "error", "significant"),
    [
        ("exposure", -0.5, 0.1, True),
        ("exposure", -0.5, 0.2, False),  # within three standard errors
        ("exposure", -0.1, 0.001, False),  # too small to matter
        ("gain", 1 / 1.2, 0.01, True),
        ("cross-talk", -0.3, 0.01, False),  # no camera has less than none
    ],
)
def test_a_read_out_is_significant_beyond_its_error_and_where_it_matters(kind, value, error, significant):
    assert ReadOut.of(kind, value, error).significant is significant


def test_gains_of_inverse_factors_are_equally_strong():
    strengths = [ReadOut.of("gain", factor, 0.01).strength for factor in (1.5, 1 / 1.5)]
    assert strengths[0] == pytest.approx(strengths[1]) == pytest.approx(math.log(1.5) / KINDS["gain"].matters)
