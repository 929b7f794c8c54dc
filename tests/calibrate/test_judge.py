"""The judge accepts only a candidate that is better than every champion."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import images, normalised, trained_network
from torch import nn

from calibrate import tap
from calibrate.judge import (
    HELD_OUT_BLOCKS,
    HELD_OUT_EVERY,
    MAX_LOG_ODDS_DROP_ERRORS,
    MAX_TOP_SHARE_RISE,
    MIN_LOG_ODDS_GAIN_NATS,
    MIN_SCORE_DROP_SHARE,
    Evidence,
    collect_champions,
    collect_evidence,
    compare,
    held_out_blocks,
    judge,
    needs_no_fit,
    objections_to,
)
from calibrate.scoring.accuracy import AccuracyProxy, Predictions
from calibrate.scoring.scorer import Scorer

BAND = 1.6


class Gain(nn.Module):
    """Scale the light; 1 changes nothing."""

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
    return judge(scorer, candidate, frames, collect_champions(scorer, active, frames), band)


def refused(verdict, *messages):
    assert not verdict.accepted
    objections = verdict.reason.split("; ")
    assert len(objections) == len(messages)
    return all(message in objection for message, objection in zip(messages, objections, strict=True))


def with_proxy(evidence: Evidence, **changes: float) -> Evidence:
    return Evidence(evidence.score, AccuracyProxy(**(vars(evidence.proxy) | changes)))


def met(candidate: Evidence, champion: Evidence) -> dict[str, bool]:
    return {criterion.name: criterion.met for criterion in compare(candidate, champion, "factory")}


def test_an_improvement_is_accepted(scorer, frames):
    verdict = decide(scorer, frames, REPAIR)
    assert verdict.accepted and verdict.reason == "better than every champion"
    assert verdict.evidence["candidate"].score < 1 < verdict.evidence["factory"].score


def test_a_candidate_that_beats_factory_and_active_is_accepted(scorer, frames):
    verdict = decide(scorer, frames, REPAIR, active=HALF_REPAIR)
    assert verdict.accepted
    assert set(verdict.evidence) == {"factory", "active", "candidate"}


def test_a_candidate_that_changes_nothing_is_refused(scorer, frames):
    messages = ("is no better than factory's", "no surer than factory")
    assert refused(decide(scorer, frames, NOTHING, band=1e6), *messages)


def test_a_candidate_that_is_no_better_than_the_active_one_is_refused(scorer, frames):
    messages = ("is no better than active's", "no surer than active")
    assert refused(decide(scorer, frames, REPAIR, active=REPAIR), *messages)


def test_the_score_must_drop_by_the_margin(scorer, frames):
    candidate = collect_evidence(scorer, REPAIR, frames)
    for share, accepted in [(1.01, True), (0.99, False)]:
        against = {"factory": Evidence(share * candidate.score / (1 - MIN_SCORE_DROP_SHARE), candidate.proxy)}
        assert judge(scorer, REPAIR, frames, against, BAND).accepted == accepted


def test_a_candidate_that_stays_outside_the_clean_band_is_refused(scorer, frames):
    assert refused(decide(scorer, frames, HALF_REPAIR), f"outside the clean band of {BAND:.2f}")


def test_a_candidate_that_gives_nan_is_refused(scorer, frames):
    verdict = decide(scorer, frames, BROKEN)
    assert not verdict.accepted
    assert "score nan stays outside the clean band" in verdict.reason


def test_a_candidate_that_gives_nan_for_one_frame_is_refused(scorer, frames):
    class Sometimes(nn.Module):
        def forward(self, frames):
            repaired = REPAIR(frames)
            repaired[5] = torch.nan
            return repaired

    assert not decide(scorer, frames, Sometimes()).accepted


def test_an_active_homogenizer_that_gives_nan_blocks_no_candidate(scorer, frames):
    assert decide(scorer, frames, REPAIR, active=BROKEN).accepted


def test_a_candidate_that_leads_to_one_class_is_refused(scorer, frames):
    against = {"factory": with_proxy(collect_evidence(scorer, None, frames), confidence=0.0)}
    collapsed = judge(scorer, Zero(), frames, against, band=1e6)
    assert collapsed.evidence["candidate"].proxy.top_share == 1
    assert "one class takes 100% of the predictions" in collapsed.reason


def test_the_top_share_may_rise_by_its_limit(scorer, frames):
    candidate = collect_evidence(scorer, REPAIR, frames)
    for share, accepted in [(MAX_TOP_SHARE_RISE - 0.01, True), (MAX_TOP_SHARE_RISE + 0.01, False)]:
        proxy = with_proxy(candidate, top_share=candidate.proxy.top_share - share)
        verdict = judge(scorer, REPAIR, frames, {"factory": Evidence(10.0, proxy.proxy)}, BAND)
        assert verdict.accepted == accepted
        assert accepted or refused(verdict, "one class takes")


def test_a_less_confident_candidate_is_refused(scorer, frames):
    candidate = collect_evidence(scorer, REPAIR, frames)
    error = candidate.proxy.confidence_error
    for errors, accepted in [(3.9, True), (4.1, False)]:  # two of the candidate and two of the champion
        proxy = with_proxy(candidate, confidence=candidate.proxy.confidence + errors * error)
        verdict = judge(scorer, REPAIR, frames, {"active": Evidence(10.0, proxy.proxy)}, BAND)
        assert verdict.accepted == accepted
        assert accepted or refused(verdict, "is below active's")


def test_a_candidate_that_lowers_the_odds_of_the_same_labels_is_refused(scorer, frames):
    candidate = collect_evidence(scorer, REPAIR, frames)
    noise = torch.randn(len(frames), generator=torch.Generator().manual_seed(0))
    labels = candidate.predictions.labels.clone()
    labels[: len(labels) // 4] += 1  # frames with another label do not count, although their odds rise much
    same = labels == candidate.predictions.labels
    noise = (noise - noise[same].mean()) / noise[same].std()
    for errors, accepted in [(0.9 * MAX_LOG_ODDS_DROP_ERRORS, True), (1.1 * MAX_LOG_ODDS_DROP_ERRORS, False)]:
        surer = candidate.predictions.log_odds + noise + errors / int(same.sum()) ** 0.5
        champion = Evidence(10.0, candidate.proxy, Predictions(labels, torch.where(same, surer, -3.0)))
        verdict = judge(scorer, REPAIR, frames, {"factory": champion}, BAND)
        assert verdict.accepted == accepted
        assert accepted or refused(verdict, "standard errors less sure than factory")


def test_a_candidate_that_does_not_raise_the_odds_of_all_frames_is_refused(scorer, frames):
    candidate = collect_evidence(scorer, REPAIR, frames)
    for gain, accepted in [(1.1 * MIN_LOG_ODDS_GAIN_NATS, True), (0.9 * MIN_LOG_ODDS_GAIN_NATS, False)]:
        before = Predictions(candidate.predictions.labels + 1, candidate.predictions.log_odds - gain)  # for any labels
        verdict = judge(scorer, REPAIR, frames, {"factory": Evidence(10.0, candidate.proxy, before)}, BAND)
        assert verdict.accepted == accepted
        assert accepted or refused(verdict, "no surer than factory")


def test_a_step_back_need_not_raise_the_odds_but_must_not_lower_them(scorer, frames):
    before = collect_evidence(scorer, REPAIR, frames)
    for gain, objects in [(0.0, False), (-1.0, True)]:
        serves = Evidence(
            10.0, before.proxy, Predictions(before.predictions.labels, before.predictions.log_odds - gain)
        )
        assert any(objections_to(before, serves, "active", gain_required=False)) is objects
        assert any(objections_to(before, serves, "active"))


def test_outputs_that_are_not_finite_are_refused(scorer, frames):
    found = collect_evidence(scorer, REPAIR, frames)
    broken = Predictions(found.predictions.labels, found.predictions.log_odds.clone())
    broken.log_odds[5] = torch.nan
    assert torch.isnan(torch.tensor(broken.standardised_gain_over(found.predictions)))
    spoilt = Evidence(found.score, found.proxy, broken)
    assert not met(spoilt, found)["sureness"] and not met(spoilt, found)["gain"]
    assert met(found, spoilt)["sureness"]  # a broken champion blocks no candidate


def test_the_reason_names_every_objection(scorer, frames):
    best = Evidence(0.01, AccuracyProxy(1.0, 1.0, top_share=0.0, confidence_error=0.0, classes=10.0, known=10))
    verdict = judge(scorer, HALF_REPAIR, frames, {"factory": best, "active": best}, band=0.01)
    assert refused(
        verdict,
        *("no better than factory's", "below factory's", "one class takes"),
        *("no better than active's", "below active's", "one class takes"),
        "outside the clean band",
    )


def test_the_score_alone_decides_for_a_network_without_classes(frames):
    network = trained_network()[:6]  # its output is a feature map
    scorer = Scorer(tap(network.eval()))
    assert decide(scorer, frames, REPAIR).evidence["candidate"].proxy is None
    assert decide(scorer, frames, REPAIR).accepted
    assert not decide(scorer, frames, NOTHING).accepted


def test_no_fit_is_needed_if_the_frames_as_served_are_within_the_band(scorer, frames):
    clean = normalised(images(96, seed=5))
    assert needs_no_fit(collect_champions(scorer, None, clean), BAND)
    assert needs_no_fit(collect_champions(scorer, REPAIR, frames), BAND)
    assert not needs_no_fit(collect_champions(scorer, None, frames), BAND)
    assert not needs_no_fit(collect_champions(scorer, REPAIR, clean), BAND)  # the drift is over, and the repair harms
    assert not needs_no_fit(collect_champions(scorer, BROKEN, clean), BAND)


def test_the_verdict_is_json(scorer, frames):
    verdict = decide(scorer, frames, REPAIR, active=BROKEN)
    plain = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert plain["evidence"]["active"]["score"] is None
    assert plain["accepted"] is True
    assert plain["evidence"]["factory"]["score"] == verdict.evidence["factory"].score
    names = {"confidence", "certainty", "top_share", "confidence_error", "classes", "known"}
    assert set(plain["evidence"]["candidate"]["proxy"]) == names
    assert plain["evidence"]["candidate"]["layers"] == list(verdict.evidence["candidate"].layers)
    assert len(plain["evidence"]["candidate"]["layers"]) == len(scorer.names)


def test_the_verdict_lists_all_criteria_and_which_are_not_met(scorer, frames):
    verdict = decide(scorer, frames, HALF_REPAIR)
    criteria = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))["criteria"]
    names = [(criterion["name"], criterion["against"]) for criterion in criteria]
    expected = ("score", "confidence", "concentration", "sureness", "gain")
    assert names == [*((name, "factory") for name in expected), ("band", "band")]
    assert "; ".join(c["objection"] for c in criteria if not c["met"]) == verdict.reason
    (band,) = (c for c in criteria if c["name"] == "band")
    assert (band["value"], band["limit"], band["met"]) == (verdict.evidence["candidate"].score, BAND, False)


@given(st.integers(16, 3000))
def test_a_quarter_of_the_frames_is_held_out_in_blocks_of_time(count):
    held = held_out_blocks(count)
    assert int(held.sum()) == math.ceil(count / HELD_OUT_EVERY)
    begins = held & ~torch.cat([torch.tensor([False]), held[:-1]])
    assert int(begins.sum()) == HELD_OUT_BLOCKS and not held[0] and not held[-1]
    for period in range(HELD_OUT_BLOCKS):
        middle = int((period + 0.5) * count / HELD_OUT_BLOCKS)
        assert held[max(0, middle - 1) : middle + 1].any(), "each period is judged"
