"""What outputs say about accuracy lies between guessing and certainty, and nothing is said about other outputs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.proxy import accuracy_proxy


def test_equal_logits_are_a_guess():
    proxy = accuracy_proxy(torch.zeros(6, 4))
    assert proxy.confidence == pytest.approx(0.25)
    assert proxy.certainty == pytest.approx(0, abs=1e-6)
    assert proxy.confidence_error == 0


def test_large_logits_are_certain():
    proxy = accuracy_proxy(1000 * torch.eye(4))
    assert (proxy.confidence, proxy.certainty, proxy.top_share) == (1, pytest.approx(1), 0.25)


def test_the_commonest_class_is_counted():
    labels = torch.tensor([2, 2, 0, 2, 1])
    assert accuracy_proxy(5 * torch.eye(4)[labels]).top_share == pytest.approx(3 / 5)


def test_the_error_is_that_of_the_mean():
    logits = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    largest = logits.softmax(1).max(1).values
    assert accuracy_proxy(logits).confidence_error == pytest.approx(float(largest.std()) / 20)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 4), (0, 4), (8, 4, 2), (8, 3, 4, 4)])
def test_no_classifier_no_proxy(shape):
    assert accuracy_proxy(torch.zeros(shape)) is None


def test_half_precision_is_computed_in_full():
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
