"""The score measures the distance of frames from the training data; the detector decides when it is an alarm."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from synthetic import images, normalised, trained_network

from calibrate import ImageMoments, tap
from calibrate.scoring.drift import MIN_SCORE_IMAGES, DriftDetector, drift_score
from calibrate.scoring.scorer import Scorer

THRESHOLD, HOLD = 2.0, 10.0
CLEAN, DRIFTED = 1.0, 3.0


@pytest.fixture(scope="module")
def scorer():
    return Scorer(tap(trained_network()))


def exposed(frames: torch.Tensor, stops: float) -> torch.Tensor:
    """Normalised frames under another exposure: it scales the light, not the normalised values."""
    return (frames + 2) * 2.0**stops - 2


def score(scorer, frames):
    return scorer.measure(frames).drift.score


def population(seed: int, count: int, gain: float = 1.0) -> torch.Tensor:
    """Features (N, 6, 8, 8) of images that differ in their means, of known mean 0 and variance 2."""
    generator = torch.Generator().manual_seed(seed)
    between = torch.randn(count, 6, 1, 1, generator=generator)
    return gain * (between + torch.randn(count, 6, 8, 8, generator=generator))


def reference(seed: int):
    return ImageMoments.of([population(seed, 20_000)]).statistics(("layer",))


@pytest.mark.parametrize("count", [8, 32, 64, 256])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_is_about_one_on_other_images_of_the_same_kind(count, seed):
    found = drift_score(ImageMoments.of([population(seed, count)]), reference(0))
    assert 0.2 < found.score < 1.5


@pytest.mark.parametrize("seed", range(1, 6))
def test_clean_windows_of_a_trained_network_stay_low(scorer, seed):
    assert score(scorer, normalised(images(64, seed))) < 1


@pytest.mark.parametrize("direction", [-1, 1])
def test_it_grows_with_the_exposure(scorer, direction):
    clean = normalised(images(64, seed=7))
    scores = [score(scorer, exposed(clean, direction * stops)) for stops in (0, 0.1, 0.25, 0.5, 1.0, 1.5)]
    assert scores == sorted(scores) and len(set(scores)) == len(scores)
    assert scores[-1] > 5 * scores[0]


def test_the_same_drift_scores_higher_on_more_images():
    scores = [drift_score(ImageMoments.of([population(1, n, gain=1.2)]), reference(0)).score for n in (8, 16, 64, 256)]
    assert scores == sorted(scores)


@pytest.mark.parametrize("count", [64, 1024])
def test_clean_images_score_low_against_a_reference_of_few_images(count):
    few = ImageMoments.of([population(5, 64)]).statistics(("layer",))
    moments = ImageMoments.of([population(6, count)])
    assert drift_score(moments, few, 0.03, reference_images=64).score < 1.3
    assert drift_score(moments, few, 0.03, reference_images=64).score < 0.8 * drift_score(moments, few, 0.03).score


def test_each_layer_has_its_own_score():
    clean, far = population(1, 64), population(1, 64) + 10
    moments = ImageMoments.of([clean, far])
    both = ImageMoments.of([population(0, 5000), population(0, 5000)]).statistics(("near", "far"))
    found = drift_score(moments, both)
    assert found.layers[0] < 1.5 < 10 < found.layers[1]
    assert found.score == pytest.approx(math.sqrt((found.layers[0] ** 2 + found.layers[1] ** 2) / 2), rel=1e-5)


def test_too_few_images_are_refused(scorer):
    with pytest.raises(ValueError, match=f"at least {MIN_SCORE_IMAGES} images, got {MIN_SCORE_IMAGES - 1}"):
        score(scorer, normalised(images(MIN_SCORE_IMAGES - 1, seed=0)))


def test_statistics_of_another_network_are_refused():
    with pytest.raises(ValueError):
        drift_score(ImageMoments.of([population(0, 8)] * 2), reference(0))


def test_values_that_are_not_finite_have_no_score(scorer):
    frames = normalised(images(16, seed=0))
    frames[3, 0, 5, 5] = torch.nan
    assert math.isnan(score(scorer, frames))


def test_a_dead_channel_has_a_finite_score():
    features = population(1, 16)
    features[:, 0] = 0
    assert math.isfinite(drift_score(ImageMoments.of([features]), reference(0)).score)


# ---- the detector

scores = st.sampled_from([0.0, CLEAN, THRESHOLD, DRIFTED, math.inf, math.nan])
steps = st.floats(0, 2 * HOLD)


def observe_all(detector, sequence, now=100.0):
    """Observe (step in s, score) in turn; return the alarms and the time of the last."""
    alarms = []
    for step, value in sequence:
        now += step
        alarms.append(detector.observe(value, now))
    return alarms, now


@given(st.lists(st.tuples(steps, scores)))
def test_no_alarm_before_the_score_was_above_the_threshold_for_the_hold(sequence):
    alarms, _ = observe_all(DriftDetector(THRESHOLD, HOLD), sequence)
    above = 0.0
    for (step, value), alarm in zip(sequence, alarms, strict=True):
        above += step if not value <= THRESHOLD else 0.0
        assert not alarm or above >= HOLD - 1e-6
        if alarm:
            break


@given(st.lists(st.tuples(steps, scores)), st.floats(0.1, HOLD / 2), st.sampled_from([DRIFTED, math.nan]))
def test_a_lasting_drift_alarms_within_the_hold(before, step, value):
    detector = DriftDetector(THRESHOLD, HOLD)
    _, now = observe_all(detector, [*before, (0, value)])
    alarms, _ = observe_all(detector, [(step, value)] * math.ceil(HOLD / step + 1e-6), now)
    assert alarms[-1]


@given(st.lists(st.tuples(steps, scores)), st.floats(0.1, HOLD / 2))
def test_an_alarm_ends_when_the_score_was_below_the_threshold_for_the_hold(before, step):
    detector = DriftDetector(THRESHOLD, HOLD)
    _, now = observe_all(detector, [*before, (0, CLEAN)])
    alarms, _ = observe_all(detector, [(step, CLEAN)] * math.ceil(HOLD / step + 1e-6), now)
    assert not alarms[-1]


@given(st.lists(st.tuples(steps, scores)))
def test_an_alarm_neither_starts_on_a_low_score_nor_ends_on_a_high_one(sequence):
    alarms, _ = observe_all(DriftDetector(THRESHOLD, HOLD), sequence)
    for (_, value), before, after in zip(sequence[1:], alarms, alarms[1:], strict=False):
        assert before == after or after == (not value <= THRESHOLD)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.sampled_from([0.0, CLEAN, THRESHOLD]))))
@example([(0, CLEAN), (-100, CLEAN)])
def test_clean_scores_never_alarm_whatever_the_clock_does(sequence):
    alarms, _ = observe_all(DriftDetector(THRESHOLD, HOLD), sequence)
    assert not any(alarms)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_one_extreme_score_never_alarms_whatever_the_clock_does(before, after):
    alarms, _ = observe_all(DriftDetector(THRESHOLD, HOLD), [(0, CLEAN), (before, math.nan), (after, CLEAN)])
    assert not any(alarms)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), scores)))
def test_evidence_stays_within_the_hold(sequence):
    detector = DriftDetector(THRESHOLD, HOLD)
    observe_all(detector, sequence)
    assert 0 <= detector.evidence <= HOLD


@given(st.lists(st.tuples(steps, scores)))
def test_without_hold_the_alarm_is_the_last_score(sequence):
    alarms, _ = observe_all(DriftDetector(THRESHOLD, 0.0), sequence)
    assert alarms == [not value <= THRESHOLD for _, value in sequence]


def test_reset_clears_alarm_evidence_and_clock():
    detector = DriftDetector(THRESHOLD, HOLD)
    alarms, now = observe_all(detector, [(4, DRIFTED)] * 5)
    assert alarms[-1]
    detector.reset()
    assert (detector.alarm, detector.evidence) == (False, 0.0)
    assert not detector.observe(DRIFTED, now + 1000)
    assert detector.evidence == 0
