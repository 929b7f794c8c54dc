"""The judge's bench: ground truth by labels, sabotage that does what its name says, and the daemon's own shadow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.judge.decision import answer_without_fit, decide, passes_shadow
from bench.judge.ground_truth import LEVEL, best, compare, from_text, mcnemar, to_text, wilson
from bench.judge.sabotage import changes, noisy, sabotaged, tiled
from bench.judge.state import State, from_record, to_record
from bench.judge.tables import counted, summarise
from calibrate import Limits
from calibrate.homogenizer import Homogenizer
from calibrate.judge import Evidence
from calibrate.scoring.accuracy import AccuracyProxy, Predictions

LIMITS = Limits.of((0.5, 0.4, 0.3), (0.25, 0.25, 0.25))
FRAMES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def good():
    return Homogenizer(3, 16, 16).requires_grad_(False).eval()


def evidence_for(score):
    """Make evidence from a network that is the more confident, the less the frames look drifted."""
    return Evidence(
        score, AccuracyProxy(0.9, 0.9, 0.2, 0.01, 9.0, 10), Predictions(torch.zeros(9), torch.full((9,), -score))
    )


# ---- ground truth


def test_mcnemar_is_the_exact_binomial_test_of_the_images_that_changed():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_a_probability_and_symmetric(gained, lost):
    assert 0 < mcnemar(gained, lost) <= 1
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_a_candidate_is_good_bad_or_neutral_by_the_images_that_changed():
    right = torch.tensor([True] * 50 + [False] * 50)
    assert compare(right, right) == ("neutral", 0, 0)
    worse = right.clone()
    worse[:5] = False
    assert compare(worse, right) == ("neutral", 0, 5) and mcnemar(0, 5) > LEVEL
    worse[:6] = False
    assert compare(worse, right) == ("bad", 0, 6)
    assert compare(right, worse) == ("good", 6, 0)


def test_the_best_is_the_one_that_is_right_most_often():
    rights = [torch.tensor(bits) for bits in ([True, False, False], [True, True, False], [False, False, True])]
    assert best(rights) is rights[1]


def test_the_interval_is_wilsons():
    assert wilson(0, 0) == (0, 1)
    low, high = wilson(0, 100)
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(0.0370, abs=1e-4)
    assert wilson(3, 100) == pytest.approx((0.0103, 0.0845), abs=1e-4)


@given(st.integers(0, 500), st.integers(0, 500))
def test_the_interval_holds_the_rate(count, more):
    low, high = wilson(count, count + more)
    assert 0 <= low <= high <= 1
    assert low - 1e-9 <= (count / (count + more) if count + more else 0.5) <= high + 1e-9


# ---- sabotage


def test_every_sabotage_changes_the_frames_and_keeps_their_shape():
    broken = sabotaged(good(), LIMITS, seed=0)
    assert len(broken) > 10
    for name, homogenizer in broken.items():
        made = homogenizer(FRAMES)
        assert made.shape == FRAMES.shape and torch.isfinite(made).all(), name
        assert not torch.allclose(made, FRAMES, atol=0.01), name


def test_sabotage_does_not_change_the_proper_homogenizer():
    homogenizer = good()
    sabotaged(homogenizer, LIMITS, seed=0)
    assert torch.equal(homogenizer(FRAMES), good()(FRAMES))


def test_the_negative_shows_black_as_white():
    made = changes(LIMITS)["negative"](LIMITS.black.view(1, 3, 1, 1).expand(1, 3, 2, 2))
    assert torch.allclose(made[0, :, 0, 0], LIMITS.white)


def test_a_tile_is_the_middle_four_times():
    made = tiled(FRAMES)
    assert torch.equal(made[:, :, :8, :8], FRAMES[:, :, 4:12, 4:12])
    assert torch.equal(made[:, :, :8, :8], made[:, :, 8:, 8:])


def test_noise_in_all_parameters_has_the_given_share():
    homogenizer = good()
    homogenizer.offset.add_(2.0)
    made = noisy(homogenizer, 0.1, torch.Generator().manual_seed(0))
    assert float((made.offset - 2).std()) == pytest.approx(0.2, rel=0.1)
    assert float((made.kernel - homogenizer.kernel).square().mean().sqrt()) == pytest.approx(
        0.1 * float(homogenizer.kernel.square().mean().sqrt()), rel=0.1
    )


# ---- decisions


@pytest.mark.parametrize(
    ("comparisons", "served"),
    [("+++", True), ("-++", True), ("++-", True), ("--", False), ("+--", False), ("-+-", False)],
)
def test_the_shadow_is_the_daemons(comparisons, served):
    parts = []

    def is_better(part):
        parts.append(part)
        return comparisons[part - 1] == "+"

    assert passes_shadow(is_better) is served
    assert parts == list(range(1, len(comparisons) + 1))


def by_name(**scores):
    """Return evidence by the name of a homogenizer: the same score on all parts, or one for each."""
    return lambda name, part: evidence_for(scores[name][part] if isinstance(scores[name], tuple) else scores[name])


def test_a_candidate_has_to_pass_the_judge_and_the_shadow():
    assert decide(by_name(factory=5.0, it=1.0), "it", None).served
    refused = decide(by_name(factory=5.0, it=4.9), "it", None)
    assert (refused.judged, refused.served) == ("rejected", False) and "no better than factory" in refused.reason
    later = decide(by_name(factory=5.0, it=(1.0, 4.9, 4.9, 4.9)), "it", None)
    assert (later.judged, later.served) == ("accepted", False) and "no better than factory" in later.reason


def test_a_candidate_has_to_beat_the_active_homogenizer_too():
    assert not decide(by_name(factory=5.0, old=2.0, it=1.7), "it", "old").served
    assert decide(by_name(factory=5.0, old=2.0, it=1.0), "it", "old").served


def test_the_worker_fits_nothing_for_a_clean_camera():
    assert answer_without_fit(by_name(factory=1.0), None) == "unneeded"
    assert answer_without_fit(by_name(factory=1.0, old=5.0), "old") == "factory"
    assert answer_without_fit(by_name(factory=5.0, old=5.0), "old") is None
    assert decide(by_name(factory=1.0, it=0.1), "it", None).judged == "unneeded"


# ---- resuming


def test_records_and_homogenizers_are_made_once_and_read_again(tmp_path):
    made = []

    def make():
        made.append(1)
        homogenizer = good()
        homogenizer.offset.add_(0.5)
        return homogenizer

    kept = [State(tmp_path).homogenizer("CIFAR-10, seed 3", make) for _ in range(2)]
    assert made == [1] and torch.equal(kept[0](FRAMES), kept[1](FRAMES))
    assert State(tmp_path).record("it", lambda: {"right": "01"}) == {"right": "01"}
    assert State(tmp_path).record("it", lambda: pytest.fail("it was known")) == {"right": "01"}


def test_a_record_that_was_cut_short_is_made_again(tmp_path):
    State(tmp_path).record("one", lambda: {"a": 1})
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('["two", {"a"')
    state = State(tmp_path)
    assert state.record("two", lambda: {"a": 2}) == {"a": 2}
    assert State(tmp_path).record("two", lambda: pytest.fail("it was known")) == {"a": 2}


def test_evidence_is_the_same_after_writing_and_reading():
    evidence = evidence_for(1.25)
    read = from_record(to_record(evidence))
    assert (read.score, read.proxy) == (evidence.score, evidence.proxy)
    assert torch.equal(read.predictions.log_odds, evidence.predictions.log_odds)
    bits = torch.tensor([True, False, True])
    assert torch.equal(from_text(to_text(bits)), bits)


# ---- the tables


def row(truth, judged, served):
    where = {"data": "d", "camera": "drifted", "active": "factory", "view": "all"}
    return where | {"kind": "k", "candidate": "c", "truth": truth, "judged": judged, "served": served}


def test_errors_are_counted_among_bad_and_among_good_candidates():
    rows = [
        *[row("bad", "accepted", True), row("bad", "accepted", False)],
        *[row("bad", "rejected", False)] * 2,
        *[row("good", "rejected", False), row("good", "accepted", True), row("good", "accepted", False)],
        row("neutral", "accepted", True),
    ]
    found = counted(rows)
    assert (found["bad"], found["bad_accepted"], found["bad_served"], found["bad_served_rate"]) == (4, 2, 1, 25.0)
    assert (found["good"], found["good_rejected"], found["good_not_served"]) == (3, 1, 2)
    assert (found["neutral"], found["neutral_served"]) == (1, 1)
    assert counted([])["good_rejected_rate"] is None
    unfitted = {"camera": "clean", "active": "factory", "view": "all", "answer": "unneeded"}
    summary = summarise(rows, [unfitted, unfitted])
    assert summary["doors"] == [unfitted | {"count": 2}]
    assert [part["bad"] for part in summary["candidates"]] == [4]
