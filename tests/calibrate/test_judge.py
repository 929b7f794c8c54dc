"""The judge accepts only a candidate that is better than every champion, and that a second fit agrees with."""

import json
import math

import pytest
import torch
from synthetic import images, normalised, trained_network
from torch import nn

from calibrate import tap
from calibrate.judge import (
    MAX_VIEW_DIFFERENCE,
    MIN_CONCORDANCE,
    MIN_KAPPA,
    MIN_LOOK_DROP_SHARE,
    MIN_NEARER_ERRORS,
    MIN_SCORE_DROP_SHARE,
    UNREPEATED,
    Criterion,
    Evidence,
    Verdict,
    collect_champions,
    collect_evidence,
    judge_evidence,
    needs_no_fit,
    needs_no_homogenizer,
    objection_to,
)
from calibrate.scoring.accuracy import AccuracyProxy
from calibrate.scoring.agreement import NOT_FINITE, agreement
from calibrate.scoring.scorer import Scorer

BAND = 1.6


class Gain(nn.Module):
    """Scale the light; 1 changes nothing."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = gain

    def forward(self, frames):
        return (frames + 2) * self.gain - 2


REPAIR, HALF_REPAIR, NOTHING, BROKEN = Gain(2.0), Gain(1.4), Gain(1.0), Gain(torch.nan)
SIMILAR = Gain(1.95)  # what a second fit finds
NAN = math.nan
LABELS = torch.arange(256) % 2  # of two classes that are equally frequent: chance makes half of the frames agree
VALUES = torch.linspace(-1, 1, 256)[:, None]  # answers of a network that is no classifier
PROXY = AccuracyProxy(0.9, 0.8, 0.5, 0.01, 2.0, 2)


@pytest.fixture(scope="module")
def scorer():
    return Scorer(tap(trained_network()))


@pytest.fixture(scope="module")
def frames():
    """Half of the light is lost."""
    return Gain(0.5)(normalised(images(384, seed=5)))


def decide(scorer, frames, candidate, active=None, second=None, band=BAND) -> Verdict:
    """Judge homogenizers by what they do to the frames. second: of the second fit."""
    replicate = collect_evidence(scorer, second, frames) if second else None
    champions = collect_champions(scorer, active, frames)
    return judge_evidence(collect_evidence(scorer, candidate, frames), champions, band, replicate)


def refused(verdict, *messages):
    assert not verdict.accepted
    objections = verdict.reason.split("; ")
    assert len(objections) == len(messages)
    return all(message in objection for message, objection in zip(messages, objections, strict=True))


def evidence(score: float = 1.0, answers: torch.Tensor = LABELS, layers: tuple[float, ...] = ()) -> Evidence:
    """Of a classifier where the answers are labels. layers: by default a single one, with this score."""
    return Evidence(score, None if answers.is_floating_point() else PROXY, answers, layers or (score,))


def labels(changed: int) -> torch.Tensor:
    """LABELS with the other class for so many frames, an even number: both stay equally frequent."""
    return torch.where(torch.arange(len(LABELS)) < changed, 1 - LABELS, LABELS)


def with_one(answers: torch.Tensor, broken: float) -> torch.Tensor:
    """The answers with a broken one among them."""
    spoilt = answers.clone()
    spoilt[5] = broken
    return spoilt


# ---- by the drift score


def test_an_improvement_is_accepted_and_the_reason_says_that_only_the_score_judged(scorer, frames):
    verdict = decide(scorer, frames, REPAIR)
    assert verdict.accepted and verdict.reason == "better than every champion" + UNREPEATED
    assert "no second fit" in UNREPEATED and "drift score alone" in UNREPEATED
    assert verdict.evidence["candidate"].score < 1 < verdict.evidence["factory"].score
    assert set(verdict.evidence) == {"factory", "candidate"}


def test_a_candidate_that_beats_factory_and_active_is_accepted(scorer, frames):
    verdict = decide(scorer, frames, REPAIR, active=HALF_REPAIR)
    assert verdict.accepted
    assert set(verdict.evidence) == {"factory", "active", "candidate"}


def test_a_candidate_that_changes_nothing_is_refused(scorer, frames):
    assert refused(decide(scorer, frames, NOTHING, band=1e6), "is no better than factory's")


def test_a_candidate_that_is_no_better_than_the_active_one_is_refused(scorer, frames):
    assert refused(decide(scorer, frames, REPAIR, active=REPAIR), "is no better than active's")


@pytest.mark.parametrize(("share", "better"), [(1.01, True), (0.99, False)])
def test_the_score_must_drop_by_the_margin(share, better):
    champion = evidence(score=share / (1 - MIN_SCORE_DROP_SHARE))
    assert judge_evidence(evidence(), {"factory": champion}, BAND).accepted is better
    assert (objection_to(evidence(), champion, "active") == "") is better


def test_a_candidate_that_stays_outside_the_clean_band_is_refused(scorer, frames):
    assert refused(decide(scorer, frames, HALF_REPAIR), f"stays above {BAND:.2f}")


@pytest.mark.parametrize(("score", "accepted"), [(BAND, True), (BAND + 0.01, False)])
def test_the_band_includes_its_end(score, accepted):
    assert judge_evidence(evidence(score), {"factory": evidence(9.0)}, BAND).accepted is accepted


def test_a_candidate_that_gives_nan_is_refused(scorer, frames):
    verdict = decide(scorer, frames, BROKEN)
    assert not verdict.accepted
    assert "score nan stays above" in verdict.reason


def test_a_candidate_that_gives_nan_for_one_frame_is_refused(scorer, frames):
    class Sometimes(nn.Module):
        def forward(self, frames):
            repaired = REPAIR(frames)
            repaired[5] = torch.nan
            return repaired

    assert not decide(scorer, frames, Sometimes()).accepted
    assert not decide(scorer, frames, Sometimes(), second=REPAIR).accepted


def test_an_active_homogenizer_that_gives_nan_blocks_no_candidate(scorer, frames):
    assert decide(scorer, frames, REPAIR, active=BROKEN).accepted
    assert decide(scorer, frames, REPAIR, active=BROKEN, second=SIMILAR).accepted


def test_no_fit_is_needed_if_the_frames_as_served_are_within_the_band(scorer, frames):
    clean = normalised(images(384, seed=5))
    assert needs_no_fit(collect_champions(scorer, None, clean), BAND)
    assert needs_no_fit(collect_champions(scorer, REPAIR, frames), BAND)
    assert not needs_no_fit(collect_champions(scorer, None, frames), BAND)
    assert not needs_no_fit(collect_champions(scorer, REPAIR, clean), BAND)  # the drift is over, and the repair harms
    assert not needs_no_fit(collect_champions(scorer, BROKEN, clean), BAND)


def test_no_homogenizer_is_needed_if_the_frames_are_clean_without_one(scorer, frames):
    clean = normalised(images(384, seed=5))
    assert needs_no_homogenizer(collect_champions(scorer, REPAIR, clean), BAND)
    assert not needs_no_homogenizer(collect_champions(scorer, REPAIR, frames), BAND)


# ---- on a few new frames


def test_an_objection_names_both_scores():
    assert objection_to(evidence(9.0), evidence(4.0), "active") == "score 9.00 is no better than active's 4.00"


@pytest.mark.parametrize(
    ("layers", "better"),
    [((3.0, 1.0, 40.0), True), ((9.0, 1.0, 9.0), False), ((0.1, 7.9, 40.0), True), ((0.1, 8.1, 40.0), False)],
)
def test_on_new_frames_the_median_layers_are_compared_and_not_the_scores(layers, better):
    """The few classes of a moment change the last layers most. The limit is 0.8 * 10, of the champion's median."""
    champion = evidence(0.01, layers=(10.0, 0.1, 50.0))
    assert (objection_to(evidence(99.0, layers=layers), champion, "active") == "") is better


@pytest.mark.parametrize(("score", "better"), [(9.49, True), (9.51, False)])
def test_the_margin_on_new_frames_may_be_another(score, better):
    assert 0 < MIN_LOOK_DROP_SHARE < MIN_SCORE_DROP_SHARE
    assert (objection_to(evidence(score), evidence(10.0), "active", 0.05) == "") is better


@pytest.mark.parametrize("layers", [(NAN, NAN, NAN), (1.0, NAN, 1.0), (NAN, 1.0, 1.0), (1.0, 1.0, NAN)])
def test_a_layer_that_is_nan_makes_no_challenger_better_and_blocks_none(layers):
    sound, broken = evidence(1.0, layers=(1.0, 1.0, 1.0)), evidence(1.0, layers=layers)
    assert objection_to(broken, evidence(9.0), "active")
    assert objection_to(broken, broken, "active")
    assert objection_to(sound, broken, "active") == ""


# ---- by a second fit


def test_a_candidate_that_a_second_fit_repeats_is_accepted(scorer, frames):
    verdict = decide(scorer, frames, REPAIR, second=SIMILAR)
    assert verdict.accepted and verdict.reason == "better than every champion"
    assert set(verdict.evidence) == {"factory", "candidate", "replicate"}
    assert verdict.evidence["replicate"].score == collect_evidence(scorer, SIMILAR, frames).score


def test_a_candidate_is_refused_whose_second_fit_gives_other_answers(scorer, frames):
    """As where a fit met the statistics in a wrong place: its score is right and its answers are not."""
    candidate, champions = collect_evidence(scorer, REPAIR, frames), collect_champions(scorer, None, frames)
    other = Evidence(candidate.score, candidate.proxy, torch.where(torch.arange(384) < 180, 0, candidate.answers))
    verdict = judge_evidence(candidate, champions, BAND, other)
    found = agreement(candidate.answers, other.answers)
    assert 0.4 < found < MIN_KAPPA
    told = f"a second fit, to other frames, gives other answers (agreement {found:.2f}, {MIN_KAPPA} is enough)"
    assert refused(verdict, told)


def repeatability(candidate: Evidence, second: Evidence) -> Criterion:
    """The criterion, beside a champion that answers as by chance."""
    other = labels(128) if candidate.proxy else -VALUES
    verdict = judge_evidence(candidate, {"factory": evidence(9.0, other)}, BAND, second)
    (criterion,) = (criterion for criterion in verdict.criteria if criterion.name == "repeatability")
    assert criterion.against == "replicate"
    assert verdict.accepted is criterion.met is ("gives other answers" not in verdict.reason)
    return criterion


# Frames of 256 that may have the other label: kappa is 1 - 2 * n / 256.
ALLOWED = 2 * math.floor(64 * (1 - MIN_KAPPA))


@pytest.mark.parametrize(("changed", "met"), [(0, True), (ALLOWED, True), (ALLOWED + 2, False), (256, False)])
def test_the_labels_of_the_second_fit_may_differ_by_a_limit(changed, met):
    criterion = repeatability(evidence(), evidence(1.1, labels(changed)))
    assert criterion.value == pytest.approx(1 - changed / 128, abs=1e-6)
    assert (criterion.met, criterion.limit) == (met, MIN_KAPPA)


@pytest.mark.parametrize(("wanted", "met"), [(1.0, True), (0.01, True), (-0.01, False)])
def test_the_values_of_the_second_fit_may_differ_by_another_limit(wanted, met):
    """A shift by d of values with the variance v leaves a concordance of 2v / (2v + d²)."""
    concordance = min(1.0, MIN_CONCORDANCE + wanted)
    shift = (2 * float(VALUES.var(correction=0)) * (1 / concordance - 1)) ** 0.5
    criterion = repeatability(evidence(answers=VALUES), evidence(1.1, VALUES + shift))
    assert criterion.value == pytest.approx(concordance, abs=1e-6)
    assert (criterion.met, criterion.limit) == (met, MIN_CONCORDANCE)


@pytest.mark.parametrize("name", ["factory", "active"])
@pytest.mark.parametrize(
    ("nearer", "farther", "met"),
    [(7, 0, True), (6, 0, False), (14, 3, True), (13, 3, False)],
)
def test_a_second_fit_must_agree_with_the_candidate_on_more_frames_than_with_each_champion(name, nearer, farther, met):
    """By more than 2.5 standard errors: the root of the number of frames that only one of them has like the second."""
    candidate, champion = labels(0), labels(0)
    candidate[10 : 10 + farther] = 1 - candidate[10 : 10 + farther]
    champion[30 : 30 + nearer] = 1 - champion[30 : 30 + nearer]
    champions = {"factory": evidence(9.0, labels(128)), "active": evidence(9.0, labels(128))}
    champions[name] = evidence(9.0, champion)
    verdict = judge_evidence(evidence(answers=candidate), champions, BAND, evidence(1.1))
    errors = (nearer - farther) / (nearer + farther) ** 0.5
    told = f"a second fit agrees with it no more than with {name} ({errors:+.1f} standard errors)"
    assert verdict.accepted if met else refused(verdict, told)
    assert verdict.finds_nothing_to_repair is (not met and name == "active")
    (criterion,) = (c for c in verdict.criteria if c.name == "agreement" and c.against == name)
    assert (criterion.value, criterion.limit) == pytest.approx((errors, MIN_NEARER_ERRORS))


def test_there_is_nothing_to_repair_where_only_the_factory_homogenizer_serves_and_a_second_fit_agrees_with_it():
    verdict = judge_evidence(evidence(), {"factory": evidence(9.0)}, BAND, evidence(1.1))
    assert verdict.finds_nothing_to_repair and not verdict.accepted
    far = judge_evidence(evidence(2.0), {"factory": evidence(9.0)}, BAND, evidence(1.1))
    assert not far.finds_nothing_to_repair  # its score objects, too


def test_a_second_fit_that_sees_one_class_alone_shows_nothing(scorer, frames):
    candidate = collect_evidence(scorer, REPAIR, frames)
    one_class = Evidence(candidate.score, candidate.proxy, torch.zeros(384, dtype=torch.int64))
    verdict = judge_evidence(one_class, collect_champions(scorer, None, frames), BAND, one_class)
    assert refused(verdict, "gives other answers (agreement 0.00")


def test_the_answers_of_a_network_without_classes_are_compared_too(frames):
    scorer = Scorer(tap(trained_network()[:6].eval()))  # its output is a feature map
    verdict = decide(scorer, frames, REPAIR, second=SIMILAR)
    assert verdict.accepted and verdict.reason == "better than every champion"
    assert verdict.evidence["candidate"].proxy is None
    assert "gives other answers" in decide(scorer, frames, REPAIR, second=Gain(1.2)).reason
    assert not decide(scorer, frames, NOTHING, second=SIMILAR).accepted


BROKEN_EVIDENCE = {
    "score": evidence(NAN),
    "no label": evidence(answers=torch.full((256,), NOT_FINITE)),
    "value": evidence(answers=with_one(VALUES, NAN)),
    "infinite value": evidence(answers=with_one(VALUES, math.inf)),
    "values": evidence(answers=torch.full_like(VALUES, NAN)),
}
BROKEN_ANSWERS = [name for name in BROKEN_EVIDENCE if name != "score"]


def sound(broken: Evidence) -> Evidence:
    """What a right homogenizer gives for the same network."""
    return evidence(answers=VALUES if broken.answers.is_floating_point() else LABELS)


@pytest.mark.parametrize("broken", BROKEN_EVIDENCE.values(), ids=BROKEN_EVIDENCE)
@pytest.mark.parametrize("champion", [0.0, 9.0, NAN, math.inf])
@pytest.mark.parametrize("band", [BAND, math.inf, NAN])
def test_what_is_not_finite_refuses_a_candidate_and_raises_nothing(broken, champion, band):
    champions = {"factory": evidence(champion, broken.answers.roll(1)), "active": evidence(champion, broken.answers)}
    for replicate in (sound(broken), broken):
        verdict = judge_evidence(broken, champions, band, replicate)
        assert not verdict.accepted and verdict.reason
        json.dumps(verdict.as_dict(), allow_nan=False)


def test_one_label_that_is_not_finite_refuses_a_candidate():
    champions = {"factory": evidence(9.0, labels(128))}
    assert not judge_evidence(evidence(answers=with_one(LABELS, NOT_FINITE)), champions, BAND, evidence()).accepted


@pytest.mark.parametrize("name", BROKEN_ANSWERS)
def test_a_second_fit_whose_answers_are_not_finite_refuses_the_candidate(name):
    broken = BROKEN_EVIDENCE[name]
    verdict = judge_evidence(sound(broken), {"factory": evidence(9.0, broken.answers)}, BAND, broken)
    assert not verdict.accepted and "gives other answers" in verdict.reason
    json.dumps(verdict.as_dict(), allow_nan=False)


@pytest.mark.parametrize("name", BROKEN_ANSWERS)
def test_a_champion_whose_answers_are_not_finite_blocks_no_candidate(name):
    broken = BROKEN_EVIDENCE[name]
    champions = {"factory": evidence(9.0, broken.answers), "active": evidence(NAN, broken.answers)}
    assert judge_evidence(sound(broken), champions, BAND, sound(broken)).accepted


# ---- the verdict


def test_the_reason_names_every_objection():
    """The champions have a perfect score and the answers of the second fit."""
    best = evidence(0.01, labels(128))
    verdict = judge_evidence(evidence(2.0), {"factory": best, "active": best}, 1.5, best)
    assert refused(
        verdict,
        "stays above",
        *("no better than factory's", "no better than active's"),
        "gives other answers",
        *("no more than with factory (-11.3 standard errors)", "no more than with active (-11.3 standard errors)"),
    )


def test_the_verdict_lists_all_criteria_and_which_are_not_met(scorer, frames):
    verdict = decide(scorer, frames, REPAIR, active=HALF_REPAIR, second=SIMILAR, band=0.01)
    criteria = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))["criteria"]
    by_score = [("band", "band"), ("score", "factory"), ("score", "active")]
    by_answers = [("repeatability", "replicate"), ("agreement", "factory"), ("agreement", "active")]
    assert [(criterion["name"], criterion["against"]) for criterion in criteria] == by_score + by_answers
    assert "; ".join(c["objection"] for c in criteria if not c["met"]) == verdict.reason
    band = criteria[0]
    assert (band["value"], band["limit"], band["met"]) == (verdict.evidence["candidate"].score, 0.01, False)
    alone = decide(scorer, frames, REPAIR, active=HALF_REPAIR)
    assert [(criterion.name, criterion.against) for criterion in alone.criteria] == by_score


def test_the_verdict_is_json(scorer, frames):
    verdict = decide(scorer, frames, REPAIR, active=BROKEN, second=SIMILAR)
    plain = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert plain["evidence"]["active"]["score"] is None
    assert plain["accepted"] is True
    assert plain["evidence"]["factory"]["score"] == verdict.evidence["factory"].score
    names = {"confidence", "certainty", "top_share", "confidence_error", "classes", "known"}
    for name in ("candidate", "replicate"):
        assert set(plain["evidence"][name]) == {"score", "proxy", "layers"}
        assert set(plain["evidence"][name]["proxy"]) == names
        assert plain["evidence"][name]["layers"] == list(verdict.evidence[name].layers)
        assert len(plain["evidence"][name]["layers"]) == len(scorer.names)


def test_confidence_decides_nothing(scorer, frames):
    """Under drift a network is often sure of a wrong label, and a right repair may make it less sure."""
    candidate, second = collect_evidence(scorer, REPAIR, frames), collect_evidence(scorer, SIMILAR, frames)
    unsure = Evidence(candidate.score, AccuracyProxy(0.3, 0.1, 1.0, 0.0, 1.0, 10), candidate.answers)
    factory = collect_evidence(scorer, None, frames)
    sure = Evidence(factory.score, AccuracyProxy(1.0, 1.0, 0.1, 0.0, 10.0, 10), factory.answers)
    assert judge_evidence(unsure, {"factory": sure}, BAND, second).accepted


# ---- the branches of a split homogenizer


@pytest.mark.parametrize(("shifted", "met"), [(0, True), (102, True), (104, False), (128, False)])
def test_both_branches_must_see_the_same_classes(shifted, met):
    """Half of so many frames of the second branch, which takes 128, change from the first class to the other."""
    answers = torch.where((torch.arange(256) < shifted) & (LABELS == 0), 1, LABELS)
    in_second = torch.arange(256) < 128
    candidate, champions = evidence(answers=answers), {"factory": evidence(9.0, 1 - answers)}
    verdict = judge_evidence(candidate, champions, BAND, evidence(1.1, answers), in_second)
    (view,) = (criterion for criterion in verdict.criteria if criterion.name == "view")
    assert (view.against, view.limit, view.met) == ("branches", MAX_VIEW_DIFFERENCE, met)
    assert view.value == pytest.approx(shifted / 2 / 128)
    assert verdict.accepted is met and (met or "show other classes" in verdict.reason)


@pytest.mark.parametrize("takes", [False, True])
def test_a_branch_that_takes_no_frame_is_refused(takes):
    candidate, champions = evidence(), {"factory": evidence(9.0, 1 - LABELS)}
    verdict = judge_evidence(candidate, champions, BAND, evidence(1.1), torch.full((256,), takes))
    assert not verdict.accepted and verdict.as_dict()["criteria"][-1]["value"] is None
