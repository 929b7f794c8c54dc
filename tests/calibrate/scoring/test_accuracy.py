"""Accuracy estimates lie between guessing and certainty; there are none for outputs that are no logits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.scoring.accuracy import MIN_PAIRED_FRAMES, Predictions, accuracy_proxy


def test_equal_logits_are_a_guess():
    proxy = accuracy_proxy(torch.zeros(6, 4))
    assert proxy.confidence == pytest.approx(0.25)
    assert proxy.certainty == pytest.approx(0, abs=1e-6)
    assert proxy.confidence_error == 0


def test_large_logits_are_certain():
    proxy = accuracy_proxy(1000 * torch.eye(4))
    assert (proxy.confidence, proxy.certainty, proxy.top_share) == (1, pytest.approx(1), 0.25)


def test_the_most_frequent_class_is_counted():
    labels = torch.tensor([2, 2, 0, 2, 1])
    assert accuracy_proxy(5 * torch.eye(4)[labels]).top_share == pytest.approx(3 / 5)


def test_the_error_is_that_of_the_mean():
    logits = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    largest = logits.softmax(1).max(1).values
    assert accuracy_proxy(logits).confidence_error == pytest.approx(float(largest.std()) / 20)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 4), (0, 4), (8, 4, 2), (8, 3, 4, 4)])
def test_outputs_that_are_no_logits_have_no_proxy(shape):
    assert accuracy_proxy(torch.zeros(shape)) is None


def test_half_precision_is_computed_in_float32():
    proxy = accuracy_proxy(torch.full((4, 1000), 8.0, dtype=torch.float16))
    assert proxy.confidence == pytest.approx(1e-3) and proxy.certainty == pytest.approx(0, abs=1e-5)


@given(st.integers(2, 30), st.integers(2, 12), st.floats(0, 50), st.integers(0, 1000))
def test_every_proxy_is_within_its_range(count, classes, scale, seed):
    logits = scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))
    proxy = accuracy_proxy(logits)
    assert 1 / classes - 1e-6 <= proxy.confidence <= 1 + 1e-6
    assert -1e-5 <= proxy.certainty <= 1 + 1e-5
    assert 1 / classes <= proxy.top_share + 1e-9 and proxy.top_share <= 1
    assert 0 <= proxy.confidence_error <= 1 / math.sqrt(count)


# ---- predictions for the same frames, compared


def test_log_odds_are_those_of_the_label():
    found = Predictions.of(torch.tensor([[3.0, 1.0], [0.0, 4.0]]))
    assert found.labels.tolist() == [0, 1]
    assert found.log_odds.tolist() == pytest.approx([2.0, 4.0], abs=1e-4)


def test_log_odds_have_a_maximum():
    assert Predictions.of(torch.tensor([[1e6, 0.0], [8.0, 0.0], [3.0, 0.0]])).log_odds.tolist() == pytest.approx(
        [math.log(99), math.log(99), 3.0], abs=1e-4
    )


@pytest.mark.parametrize("outputs", [torch.zeros(4, 3, 5, 5), torch.zeros(4, 1), torch.zeros(1, 4)])
def test_outputs_that_are_no_logits_have_no_predictions(outputs):
    assert Predictions.of(outputs) is None


def standardised_gain(gains: torch.Tensor, labels: torch.Tensor | None = None) -> float:
    """The gain of predictions whose log odds rose by `gains`. labels: of the earlier ones, by default the same."""
    same = torch.zeros(len(gains), dtype=torch.int64)
    before = torch.randn(len(gains), generator=torch.Generator().manual_seed(1))
    return Predictions(same, before + gains).standardised_gain_over(
        Predictions(same if labels is None else labels, before)
    )


@given(st.floats(-3, 3), st.integers(20, 200))
def test_it_counts_standard_errors_of_paired_gains(shift, count):
    noise = torch.randn(count, generator=torch.Generator().manual_seed(count))
    noise = (noise - noise.mean()) / noise.std()
    assert standardised_gain(noise + shift) == pytest.approx(
        shift * math.sqrt(count), abs=0.01 + 0.01 * abs(shift) * count**0.5
    )


def test_frames_with_different_labels_do_not_count():
    labels = torch.tensor([0] * 50 + [1] * 50)
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    gains = torch.where(labels == 0, 1.0, -100.0) + 0.1 * noise
    assert standardised_gain(gains, labels) > 10


def test_too_few_frames_with_the_same_label_give_no_gain():
    labels = torch.tensor([0] * (MIN_PAIRED_FRAMES - 1) + [1] * 50)
    assert standardised_gain(-torch.rand(len(labels)), labels) == 0


def logits_of(labels: list[int]) -> torch.Tensor:
    return 5 * torch.nn.functional.one_hot(torch.tensor(labels), 10).float()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60))
def test_the_effective_number_of_classes_is_between_one_and_the_number_of_labels(labels):
    proxy = accuracy_proxy(logits_of(labels))
    assert 1 - 1e-4 <= proxy.classes <= len(set(labels)) + 1e-4
    evenly = accuracy_proxy(logits_of(list(set(labels)) * 3))
    assert evenly.classes == pytest.approx(len(set(labels)))


def test_the_mean_gain_is_over_all_frames_with_any_label():
    before, gains = torch.randn(20, generator=torch.Generator().manual_seed(0)), torch.arange(20.0)
    found = Predictions(torch.zeros(20), before + gains).mean_gain_over(Predictions(torch.ones(20), before))
    assert found == pytest.approx(9.5, abs=1e-5)


def test_the_mean_gain_over_predictions_that_are_not_finite_is_infinite():
    broken, sound = (
        Predictions(torch.zeros(20), torch.full((20,), torch.nan)),
        Predictions(torch.zeros(20), torch.zeros(20)),
    )
    assert sound.mean_gain_over(broken) == math.inf
    assert math.isnan(broken.mean_gain_over(sound))
