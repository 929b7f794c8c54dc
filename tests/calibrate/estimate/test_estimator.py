"""An estimate is what the accuracy was where the signs were the same, with an interval that holds the truth."""

import math
from dataclasses import replace

import pytest
import torch
from calibrated import CLASSES, outputs
from hypothesis import given
from hypothesis import strategies as st

from calibrate.estimate.estimator import COVERAGE, PREFIX, AccuracyEstimator, Estimate
from calibrate.estimate.learning import MIN_LABELLED, SeenDrift, learn_estimator
from calibrate.estimate.signs import SIGN_WINDOW, SIGNS, signs_of

FRAMES = 2 * MIN_LABELLED
KINDS = ("blur", "haze", "gamma", "noise")


def seen(kind: str | None, strength: float, labels: torch.Tensor, seed: int) -> SeenDrift:
    """Behind a drift of this strength, 0 to 1, the network is right less often, and names class 0 more often."""
    generator = torch.Generator().manual_seed(seed)
    lost = torch.rand(len(labels), generator=generator) < strength
    named = torch.where(lost, 0, labels)
    margins = 5 - strength + torch.rand(len(labels), generator=generator)
    logits = torch.nn.functional.one_hot(named, CLASSES) * margins[:, None]  # nearly as sure as on clean frames
    return SeenDrift(frozenset() if kind is None else frozenset({kind}), logits)


@pytest.fixture(scope="module")
def estimator() -> AccuracyEstimator:
    _, labels = outputs(FRAMES, 3.0, 0.9)
    drifts = [seen(None, 0.05, labels, 0)]
    drifts += [seen(kind, 0.9 * (i / 14) ** 1.5, labels, 10 * i + k) for k, kind in enumerate(KINDS) for i in range(14)]
    return learn_estimator(drifts, labels)


def accuracy_of(drift: SeenDrift, labels: torch.Tensor) -> float:
    return float((drift.logits.argmax(1) == labels).float().mean())


def estimates(estimator: AccuracyEstimator, drift: SeenDrift) -> list[Estimate]:
    windows = drift.logits.split(SIGN_WINDOW)
    return [estimator.estimate(signs_of(logits, estimator.calibration)) for logits in windows]


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.45, 0.7])
def test_the_estimate_follows_the_accuracy_where_the_network_stays_sure_of_itself(estimator, strength):
    _, labels = outputs(FRAMES, 3.0, 0.9, seed=5)
    drift = seen("unknown", strength, labels, seed=99)
    truth = accuracy_of(drift, labels)
    values = [estimate.value for estimate in estimates(estimator, drift)]
    assert sum(values) / len(values) == pytest.approx(truth, abs=0.05)
    assert estimator.calibration.proxies(drift.logits)["calibrated_confidence"] > 0.9


def test_the_interval_holds_the_accuracy_as_often_as_it_says(estimator):
    held = []
    for seed in range(40):
        _, labels = outputs(FRAMES, 3.0, 0.9, seed=seed)
        drift = seen("unknown", (seed % 10) / 12, labels, seed=100 + seed)
        truth = accuracy_of(drift, labels)
        held += [estimate.lower <= truth <= estimate.upper for estimate in estimates(estimator, drift)]
    assert sum(held) / len(held) >= COVERAGE - 0.05


def test_errors_are_those_of_examples_that_share_no_kind_of_drift(estimator):
    """One kind costs accuracy without any sign: only examples of that kind could tell, and none of them may."""
    _, labels = outputs(FRAMES, 3.0, 0.9)
    drifts = [seen(None, 0.05, labels, 0), *(seen("blur", 0.05, labels, seed) for seed in range(8))]
    hidden = seen("haze", 0.05, (labels + 1) % CLASSES, 3)  # names every class wrong, and looks clean
    learnt = learn_estimator([*drifts, *[hidden] * 8], labels)
    assert learnt.errors.max() > 0.8
    assert estimator.typical_error < 0.1


def test_a_drift_of_two_kinds_is_no_example_for_the_errors_of_either():
    """Haze hides what blur costs; the only example that looks like it shares a kind with it."""
    _, labels = outputs(FRAMES, 3.0, 0.9)
    hidden = seen("blur", 0.05, (labels + 1) % CLASSES, 3)  # names every class wrong, and looks clean
    both = SeenDrift(frozenset({"blur", "haze"}), hidden.logits)
    learnt = learn_estimator([seen(None, 0.05, labels, 0), *[hidden] * 4, *[both] * 4], labels)
    of_hidden = learnt.errors[learnt.accuracies < 0.5]
    assert of_hidden.min() > 0.8, "only the clean frames may tell, and they tell nothing"


def test_outputs_are_calibrated_on_the_frames_of_the_other_half():
    """Each half prefers another class, so each is far from the other's probabilities, and near to its own."""
    labels = torch.cat([torch.zeros(MIN_LABELLED // 2), torch.ones(MIN_LABELLED // 2)]).long()
    clean = SeenDrift(frozenset(), torch.nn.functional.one_hot(labels, CLASSES) * 5.0)
    drifted = SeenDrift(frozenset({"blur"}), clean.logits)
    assert learn_estimator([clean, drifted], labels).signs[:, 1].min() > 1


def test_it_is_stored_and_rebuilt_whole(estimator):
    again = AccuracyEstimator.of_tensors(estimator.tensors() | {"mean.bn1": torch.zeros(3)})
    signs = estimator.signs[7]
    assert again is not None and again.estimate(signs) == estimator.estimate(signs)
    assert AccuracyEstimator.of_tensors({"mean.bn1": torch.zeros(3)}) is None


@pytest.mark.parametrize("name", ["signs", "accuracies", "errors", "temperature", "probabilities", "labelled"])
@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_a_damaged_one_is_refused(estimator, name, damage):
    tensors = estimator.tensors()
    whole = tensors.pop(PREFIX + name)
    if damage == "shape":
        tensors[PREFIX + name] = torch.zeros(2, 3)
    if damage == "nan":
        tensors[PREFIX + name] = torch.full_like(whole, math.nan)
    with pytest.raises(ValueError, match="the accuracy estimate"):
        AccuracyEstimator.of_tensors(tensors)


def test_signs_that_nobody_has_seen_have_an_estimate(estimator):
    far = estimator.estimate(torch.full((SIGNS,), 1e3))
    assert 0 <= far.lower <= far.value <= far.upper <= 1


# ---- with labels


def test_without_labels_nothing_changes():
    assert Estimate(0.8, 0.7, 0.9).with_labels(0, 0) == Estimate(0.8, 0.7, 0.9)


@pytest.mark.parametrize("guess", [Estimate.around(0.97, 0.57), Estimate.around(1.0, 0.1), Estimate(1.0, 1.0, 1.0)])
def test_one_label_makes_nothing_certain(guess):
    told = guess.with_labels(1, 0)
    assert told.upper - told.lower > 0.1 and guess.with_labels(0, 1).value < 0.95


def test_a_network_that_was_always_right_has_an_interval_too(estimator):
    sure = replace(
        estimator, accuracies=torch.ones_like(estimator.accuracies), errors=torch.zeros_like(estimator.errors)
    )
    assert 0.98 < sure.estimate(estimator.signs[0]).lower < 1


def test_many_labels_decide_and_few_hardly_count():
    guess = Estimate(0.8, 0.7, 0.9)
    assert guess.with_labels(1, 1).value == pytest.approx(0.79, abs=0.01)
    told = guess.with_labels(500, 500)
    assert told.value == pytest.approx(0.51, abs=0.02) and told.upper - told.lower < 0.06


@given(st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_estimate_with_labels_lies_between_both_and_its_interval_within_0_and_1(value, half, right, wrong):
    guess = Estimate.around(value, half)
    told = guess.with_labels(right, wrong)
    assert 0 <= told.lower <= told.value <= told.upper <= 1
    if right + wrong:
        share = right / (right + wrong)
        assert min(value, share) - 1e-3 <= told.value <= max(value, share) + 1e-3
