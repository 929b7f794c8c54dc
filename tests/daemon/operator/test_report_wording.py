"""Every criterion of the judge, and of the judge before it, has words and numbers that a person can read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from calibrate.judge import Evidence, judge_evidence
from daemon.operator.report.page import EVIDENCE_STYLES
from daemon.operator.report.wording import CriterionRow, criterion_row
from deploy.store.dossier import CriterionRecord

ANSWERS = torch.arange(8) % 2


def row(name: str, against: str, value: float | None, limit: float | None) -> CriterionRow:
    record: dict[str, Any] = {"name": name, "against": against, "value": value, "limit": limit}
    return criterion_row(CriterionRecord(**record, met=True, objection=""))


def test_all_that_the_judge_measures_and_asks_for_has_words():
    champions = {"factory": Evidence(9.0, None, ANSWERS), "active": Evidence(8.0, None, ANSWERS)}
    verdict = judge_evidence(Evidence(1.0, None, ANSWERS), champions, 1.6, Evidence(1.0, None, ANSWERS))
    assert set(verdict.evidence) == set(EVIDENCE_STYLES)
    told = [criterion_row(CriterionRecord(**criterion.as_dict())) for criterion in verdict.criteria]
    assert len({row.text for row in told}) == len(told) == 6
    for row, criterion in zip(told, verdict.criteria, strict=True):
        assert " " in row.text and row.text != criterion.name and "{" not in row.text
        sides = {"band": "at most", "score": "at most", "agreement": "more than"}
        assert row.limit.startswith(sides.get(criterion.name, "at least"))


@pytest.mark.parametrize(
    ("criterion", "value", "limit"),
    [
        (("repeatability", "replicate", 0.934, 0.75), "0.934", "at least 0.75"),
        (("repeatability", "replicate", None, 0.75), "not finite", "at least 0.75"),
        (("agreement", "factory", 2.5, 1.0), "+2.50 standard errors", "more than +1.00 standard errors"),
        (("agreement", "active", 2.5, None), "+2.50 standard errors", "more than not finite"),
        (("score", "factory", 1.25, 7.2), "1.25", "at most 7.2"),
        (("band", "band", 1.25, 1.6), "1.25", "at most 1.6"),
        (("view", "branches", 0.63, 0.4), "63.0%", "at most 40.0%"),
        (("confidence", "factory", 0.9, 0.8), "90.0%", "at least 80.0%"),  # of dossiers of before
        (("concentration", "factory", 0.3, 0.4), "30.0%", "at most 40.0%"),
        (("sureness", "factory", 2.5, -1.75), "+2.50 standard errors", "at least -1.75 standard errors"),
        (("gain", "factory", 0.4, 0.05), "+0.40 nats", "at least +0.05 nats"),
    ],
)
def test_each_criterion_has_its_numbers(criterion, value, limit):
    told = row(*criterion)
    assert (told.value, told.limit) == (value, limit) and told.text != criterion[0]


def test_every_criterion_begins_like_a_sentence():
    assert row("repeatability", "replicate", 0.9, 0.75).text[0].isupper()
