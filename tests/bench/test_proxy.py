"""The bench of the accuracy estimate: it leaves the drift's own kinds out, and its errors are what they say."""

from __future__ import annotations

import pytest
import torch

from bench.proxy import BEFORE, BEHIND, ESTIMATE, Knowledge, confidence_of_transport, summarise
from calibrate.estimate.learning import MIN_LABELLED, SeenDrift
from calibrate.estimate.signs import SIGN_WINDOW


def row(data: str, stage: str, accuracy: float, estimate: float, half: float = 5.0) -> dict:
    found = {"data": data, "stage": stage, "accuracy": accuracy, "estimates": {"confidence": 99.0, ESTIMATE: estimate}}
    return found | {"intervals": {ESTIMATE: [estimate - half, estimate + half]}}


def found(summary: list[dict], data: str, stage: str, method: str) -> dict:
    (one,) = (row for row in summary if (row["data"], row["stage"], row["method"]) == (data, stage, method))
    return one


def test_the_summary_gives_errors_and_the_share_of_intervals_that_hold_the_truth():
    rows = [row("digits", BEFORE, 50.0, 53.0), row("digits", BEFORE, 60.0, 53.0), row("cells", BEHIND, 90.0, 90.0)]
    summary = summarise(rows)
    digits = found(summary, "digits", BEFORE, ESTIMATE)
    assert (digits["mae"], digits["worst"], digits["covered"]) == (5.0, 7.0, 0.5)
    assert digits["rmse"] == pytest.approx((9 / 2 + 49 / 2) ** 0.5)
    together = found(summary, "all", f"{BEFORE} and {BEHIND}", ESTIMATE)
    assert (together["frames"], together["covered"]) == (3, pytest.approx(2 / 3))
    assert found(summary, "cells", BEHIND, "confidence")["covered"] is None


def test_kinds_of_drift_can_be_left_out():
    labels = torch.arange(MIN_LABELLED) % 4
    logits = torch.nn.functional.one_hot(labels, 4) * 5.0
    kinds = [set(), {"blur"}, {"blur", "haze"}, {"gamma"}, {"jpeg"}]
    seen = [SeenDrift(frozenset(kind), logits) for kind in kinds]
    knowledge = Knowledge(None, seen, labels, None, 0)
    per_drift = MIN_LABELLED // SIGN_WINDOW
    assert (
        len(knowledge.estimator().signs) == len(knowledge.estimator("perturbation of the paper").signs) == 5 * per_drift
    )
    assert len(knowledge.estimator("blur=0.8,exposure=-1").signs) == 3 * per_drift
    assert len(knowledge.estimator("haze=0.3").signs) == 4 * per_drift


def test_transport_tells_that_a_sure_network_prefers_a_class():
    sure = torch.tensor([[9.0, -9.0]])
    even = torch.tensor([0.5, 0.5])
    assert confidence_of_transport(torch.cat([sure, -sure]).repeat(10, 1), even) == pytest.approx(1, abs=1e-4)
    assert confidence_of_transport(sure.repeat(20, 1), even) == pytest.approx(0.5, abs=1e-4)
    assert confidence_of_transport(sure.repeat(7, 1), torch.tensor([0.4, 0.6])) == pytest.approx(3 / 7, abs=1e-4)
