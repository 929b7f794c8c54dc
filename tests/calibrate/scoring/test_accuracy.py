"""Accuracy estimates lie between guessing and certainty; there are none for outputs that are no logits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.scoring.accuracy import accuracy_proxy, logits_of


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


def naming(labels: list[int]) -> torch.Tensor:
    """Logits that name these classes, of ten."""
    return 5 * torch.nn.functional.one_hot(torch.tensor(labels), 10).float()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60))
def test_the_effective_number_of_classes_is_between_one_and_the_number_of_labels(labels):
    proxy = accuracy_proxy(naming(labels))
    assert 1 - 1e-4 <= proxy.classes <= len(set(labels)) + 1e-4
    evenly = accuracy_proxy(naming(list(set(labels)) * 3))
    assert evenly.classes == pytest.approx(len(set(labels)))


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 4), (8, 4, 2), (8, 3, 4, 4)])
@pytest.mark.parametrize("kind", ["logits", "probabilities", "none"])
def test_only_outputs_of_a_classifier_have_logits(shape, kind):
    assert logits_of(torch.zeros(shape), kind) is None
    assert (logits_of(torch.zeros(8, 4), kind) is None) == (kind == "none")


def test_the_logits_behind_probabilities_lead_to_them_and_are_finite_for_0():
    probabilities = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])
    logits = logits_of(probabilities, "probabilities")
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits.softmax(1), probabilities)
    assert logits_of(probabilities, "logits") is probabilities
