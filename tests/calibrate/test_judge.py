"""Only a candidate that is better than whatever could serve instead is accepted."""

import json

import pytest
import torch
from synthetic import images, normalised, trained_network
from torch import nn

from calibrate import tap
from calibrate.judge import (
    CONCENTRATION,
    LESS_SURE,
    MARGIN,
    SURER,
    Evidence,
    champions,
    criteria,
    examine,
    judge,
    needs_no_fit,
    objections,
)
from calibrate.scoring.accuracy import AccuracyProxy, Answers
from calibrate.scoring.scorer import Scorer

BAND = 1.6


class Gain(nn.Module):
    """Scales the light: 1 changes nothing."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = gain

    def forward(self, frames):
        return (frames + 2) * self.gain - 2


class Zero(nn.Module):
    def forward(self, frames):
        return 0 * frames


REPAIR, HALF_REPAIR, NOTHING, BROKEN = Gain(2.0), Gain(1.4), Gain(1.0), Gain(torch.nan)


@pytest.fixture(scope="module")
def scorer():
    return Scorer(tap(trained_network()))


@pytest.fixture(scope="module")
def frames():
    """Half of the light is lost."""
    return Gain(0.5)(normalised(images(96, seed=5)))


def decide(scorer, frames, candidate, active=None, band=BAND):
    return judge(scorer, candidate, frames, champions(scorer, active, frames), band)


def refused(verdict, *said):
    assert not verdict.accepted
    objections = verdict.reason.split("; ")
    assert len(objections) == len(said)
    return all(part in objection for part, objection in zip(said, objections, strict=True))


def with_proxy(evidence: Evidence, **changes: float) -> Evidence:
    return Evidence(evidence.score, AccuracyProxy(**(vars(evidence.proxy) | changes)))


def met(candidate: Evidence, champion: Evidence) -> dict[str, bool]:
    return {criterion.name: criterion.met for criterion in criteria(candidate, champion, "factory")}


def test_an_honest_improvement_is_accepted(scorer, frames):
    verdict = decide(scorer, frames, REPAIR)
    assert verdict.accepted and verdict.reason == "better than every champion"
    assert verdict.evidence["candidate"].score < 1 < verdict.evidence["factory"].score


def test_it_must_also_beat_an_active_one_that_is_worse(scorer, frames):
    verdict = decide(scorer, frames, REPAIR, active=HALF_REPAIR)
    assert verdict.accepted
    assert set(verdict.evidence) == {"factory", "active", "candidate"}


def test_one_that_changes_nothing_is_refused(scorer, frames):
    said = ("is no better than factory's", "no surer than factory")
    assert refused(decide(scorer, frames, NOTHING, band=1e6), *said)


def test_one_that_is_no_better_than_the_active_one_is_refused(scorer, frames):
    said = ("is no better than active's", "no surer than active")
    assert refused(decide(scorer, frames, REPAIR, active=REPAIR), *said)


def test_the_margin_decides(scorer, frames):
    candidate = examine(scorer, REPAIR, frames)
    for share, accepted in [(1.01, True), (0.99, False)]:
        against = {"factory": Evidence(share * candidate.score / (1 - MARGIN), candidate.proxy)}
        assert judge(scorer, REPAIR, frames, against, BAND).accepted == accepted


def test_one_that_stays_outside_the_clean_band_is_refused(scorer, frames):
    assert refused(decide(scorer, frames, HALF_REPAIR), f"outside the clean band of {BAND:.2f}")


def test_one_that_makes_nan_is_refused(scorer, frames):
    verdict = decide(scorer, frames, BROKEN)
    assert not verdict.accepted
    assert "score nan stays outside the clean band" in verdict.reason


def test_one_that_makes_nan_of_a_single_frame_is_refused(scorer, frames):
    class Sometimes(nn.Module):
        def forward(self, frames):
            repaired = REPAIR(frames)
            repaired[5] = torch.nan
            return repaired

    assert not decide(scorer, frames, Sometimes()).accepted


def test_an_active_one_that_makes_nan_does_not_stand_in_the_way(scorer, frames):
    assert decide(scorer, frames, REPAIR, active=BROKEN).accepted


def test_one_that_collapses_into_one_class_is_refused(scorer, frames):
    against = {"factory": with_proxy(examine(scorer, None, frames), confidence=0.0)}
    collapsed = judge(scorer, Zero(), frames, against, band=1e6)
    assert collapsed.evidence["candidate"].proxy.top_share == 1
    assert "one class takes 100% of the predictions" in collapsed.reason


def test_the_concentration_decides(scorer, frames):
    candidate = examine(scorer, REPAIR, frames)
    for share, accepted in [(CONCENTRATION - 0.01, True), (CONCENTRATION + 0.01, False)]:
        proxy = with_proxy(candidate, top_share=candidate.proxy.top_share - share)
        verdict = judge(scorer, REPAIR, frames, {"factory": Evidence(10.0, proxy.proxy)}, BAND)
        assert verdict.accepted == accepted
        assert accepted or refused(verdict, "one class takes")


def test_one_that_is_less_confident_is_refused(scorer, frames):
    candidate = examine(scorer, REPAIR, frames)
    error = candidate.proxy.confidence_error
    for errors, accepted in [(3.9, True), (4.1, False)]:  # two of each
        proxy = with_proxy(candidate, confidence=candidate.proxy.confidence + errors * error)
        verdict = judge(scorer, REPAIR, frames, {"active": Evidence(10.0, proxy.proxy)}, BAND)
        assert verdict.accepted == accepted
        assert accepted or refused(verdict, "is below active's")


def test_one_that_is_less_sure_of_the_same_answers_is_refused(scorer, frames):
    candidate = examine(scorer, REPAIR, frames)
    noise = torch.randn(len(frames), generator=torch.Generator().manual_seed(0))
    labels = candidate.answers.labels.clone()
    labels[: len(labels) // 4] += 1  # the others, of which it is much surer, are called something else
    alike = labels == candidate.answers.labels
    noise = (noise - noise[alike].mean()) / noise[alike].std()
    for errors, accepted in [(0.9 * LESS_SURE, True), (1.1 * LESS_SURE, False)]:
        surer = candidate.answers.log_odds + noise + errors / int(alike.sum()) ** 0.5
        champion = Evidence(10.0, candidate.proxy, Answers(labels, torch.where(alike, surer, -3.0)))
        verdict = judge(scorer, REPAIR, frames, {"factory": champion}, BAND)
        assert verdict.accepted == accepted
        assert accepted or refused(verdict, "standard errors less sure than factory")


def test_one_that_is_no_surer_of_all_frames_is_refused(scorer, frames):
    candidate = examine(scorer, REPAIR, frames)
    for gain, accepted in [(1.1 * SURER, True), (0.9 * SURER, False)]:
        before = Answers(candidate.answers.labels + 1, candidate.answers.log_odds - gain)  # whatever the labels
        verdict = judge(scorer, REPAIR, frames, {"factory": Evidence(10.0, candidate.proxy, before)}, BAND)
        assert verdict.accepted == accepted
        assert accepted or refused(verdict, "no surer than factory")


def test_a_step_back_need_not_gain_but_must_not_lose(scorer, frames):
    before = examine(scorer, REPAIR, frames)
    for gain, objects in [(0.0, False), (-1.0, True)]:
        serves = Evidence(10.0, before.proxy, Answers(before.answers.labels, before.answers.log_odds - gain))
        assert any(objections(before, serves, "active", back=True)) is objects
        assert any(objections(before, serves, "active"))


def test_outputs_that_are_not_finite_are_refused(scorer, frames):
    found = examine(scorer, REPAIR, frames)
    broken = Answers(found.answers.labels, found.answers.log_odds.clone())
    broken.log_odds[5] = torch.nan
    assert torch.isnan(torch.tensor(broken.surer_than(found.answers)))
    spoilt = Evidence(found.score, found.proxy, broken)
    assert not met(spoilt, found)["sureness"] and not met(spoilt, found)["gain"]
    assert met(found, spoilt)["sureness"]  # a broken champion does not stand in the way


def test_every_objection_is_named(scorer, frames):
    best = Evidence(0.01, AccuracyProxy(1.0, 1.0, top_share=0.0, confidence_error=0.0, classes=10.0, known=10))
    verdict = judge(scorer, HALF_REPAIR, frames, {"factory": best, "active": best}, band=0.01)
    assert refused(
        verdict,
        *("no better than factory's", "below factory's", "one class takes"),
        *("no better than active's", "below active's", "one class takes"),
        "outside the clean band",
    )


def test_without_classes_the_score_alone_decides(frames):
    network = trained_network()[:6]  # its output is a feature map
    scorer = Scorer(tap(network.eval()))
    assert decide(scorer, frames, REPAIR).evidence["candidate"].proxy is None
    assert decide(scorer, frames, REPAIR).accepted
    assert not decide(scorer, frames, NOTHING).accepted


def test_nothing_needs_repair_when_what_serves_is_within_the_band(scorer, frames):
    clean = normalised(images(96, seed=5))
    assert needs_no_fit(champions(scorer, None, clean), BAND)
    assert needs_no_fit(champions(scorer, REPAIR, frames), BAND)
    assert not needs_no_fit(champions(scorer, None, frames), BAND)
    assert not needs_no_fit(champions(scorer, REPAIR, clean), BAND)  # the camera is back, the repair is not wanted
    assert not needs_no_fit(champions(scorer, BROKEN, clean), BAND)


def test_the_verdict_is_json(scorer, frames):
    verdict = decide(scorer, frames, REPAIR, active=BROKEN)
    told = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert told["evidence"]["active"]["score"] is None
    assert told["accepted"] is True
    assert told["evidence"]["factory"]["score"] == verdict.evidence["factory"].score
    names = {"confidence", "certainty", "top_share", "confidence_error", "classes", "known"}
    assert set(told["evidence"]["candidate"]["proxy"]) == names
    assert told["evidence"]["candidate"]["layers"] == list(verdict.evidence["candidate"].layers)
    assert len(told["evidence"]["candidate"]["layers"]) == len(scorer.names)


def test_the_verdict_tells_all_that_was_asked_and_what_was_not_met(scorer, frames):
    verdict = decide(scorer, frames, HALF_REPAIR)
    told = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))["criteria"]
    names = [(criterion["name"], criterion["against"]) for criterion in told]
    asked = ("score", "confidence", "concentration", "sureness", "gain")
    assert names == [*((name, "factory") for name in asked), ("band", "band")]
    assert "; ".join(c["objection"] for c in told if not c["met"]) == verdict.reason
    (band,) = (c for c in told if c["name"] == "band")
    assert (band["value"], band["limit"], band["met"]) == (verdict.evidence["candidate"].score, BAND, False)
