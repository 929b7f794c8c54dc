"""Who approves a homogenizer of a network that is no classifier: a person, unless the configuration says otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from calibrate.judge import Evidence, judge_evidence
from daemon.config import Config
from daemon.model.served_model import ServedModel
from daemon.recalibration.mode import NO_CLASSIFIER, with_default_mode


def config(**recalibrate: Any) -> Config:
    return Config.model_validate(
        {
            "version": 1,
            "model": {"path": "model.pt2"},
            "sensors": {"front": None},
            "input": {"bind": ["ipc:///tmp/frames"]},
            "output": {"bind": "ipc:///tmp/results"},
            "recalibrate": recalibrate,
        }
    )


@pytest.mark.parametrize("given", ["autonomous", "shadow", "locked", None])
@pytest.mark.parametrize("classifier", [True, False])
def test_only_the_default_of_a_network_that_is_no_classifier_is_supervised(given, classifier, caplog):
    settings = {} if given is None else {"mode": given}
    mode = with_default_mode(config(frames=128, **settings), classifier).recalibrate.mode
    assert mode == (given or ("autonomous" if classifier else "supervised"))
    assert (NO_CLASSIFIER in caplog.text) is not classifier
    assert ("as configured" in caplog.text) is (given is not None and not classifier)


@pytest.mark.parametrize(("output", "classifier"), [("logits", True), ("probabilities", True), ("none", False)])
def test_what_counts_as_a_classifier(output, classifier):
    unused: Any = None
    frozen: Any = type("Frozen", (), {"output": output})
    assert ServedModel(frozen, unused, unused, unused, "eager").is_classifier is classifier


def test_a_verdict_says_when_nothing_but_the_score_judged():
    answers = torch.arange(16.0)[:, None]  # of a network that is no classifier, one value for each frame
    champions = {"factory": Evidence(9.0, None, -answers)}
    candidate = Evidence(1.0, None, answers)
    alone = "better than every champion, by the drift score alone: no second fit was there to compare with"
    assert judge_evidence(candidate, champions, 1.6).reason == alone
    assert judge_evidence(candidate, champions, 1.6, candidate).reason == "better than every champion"
