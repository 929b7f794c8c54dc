"""The judge's bench: ground truth by labels, sabotage that does what its name says, and the daemon's own shadow."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.judge.cameras import FITTED, LOOKS, MIN_POOL, WINDOW_FRAMES, View, drifted_camera, parts_of_a_pool
from bench.judge.decision import BAND, FACTORY, answer_without_fit, decide, passes_shadow
from bench.judge.ground_truth import compare
from bench.judge.sabotage import changes, noisy, sabotaged, tiled
from bench.judge.state import State, from_record, to_record
from bench.judge.tables import counted, recovered, summarise, worst_served
from bench.material.subjects import Labelled, Subject
from bench.material.training import normalise
from calibrate import Limits
from calibrate.homogenizer import Homogenizer
from calibrate.judge import FIT_BAND_RATIO, Evidence
from calibrate.scoring.accuracy import AccuracyProxy

LIMITS = Limits.of((0.5, 0.4, 0.3), (0.25, 0.25, 0.25))
FRAMES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def good():
    return Homogenizer(3, 16, 16).requires_grad_(False).eval()


ANSWERS = torch.arange(20) % 4  # what the second fit says; a candidate says the same, the factory homogenizer does not


def evidence_for(score, answers=ANSWERS, label_shift=False):
    return Evidence(score, AccuracyProxy(0.9, 0.9, 0.2, 0.01, 9.0, 10), answers, (score, score), label_shift)


# ---- ground truth


def test_a_candidate_is_good_bad_or_neutral_by_points_of_accuracy():
    assert [compare(accuracy, 80.0) for accuracy in (82.0, 81.9, 80.0, 79.5, 79.4)] == [
        *("good", "neutral", "neutral", "neutral", "bad")
    ]


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
    [
        *[("+++", True), ("-++", True), ("++-", True), ("--", False), ("+--", False), ("-+-", False)],
        *[("+0++", True), ("000000", False), ("0+0+0+", True)],  # 0: a look at few classes counts neither way
    ],
)
def test_the_shadow_is_the_daemons(comparisons, served):
    found = [{"+": True, "-": False, "0": None}[mark] for mark in comparisons]
    parts = []

    def is_better(part):
        parts.append(part)
        return found[len(parts) - 1]

    assert passes_shadow(is_better) is served
    assert parts == [1 + look % LOOKS for look in range(len(comparisons))]


def by_name(**scores):
    """Return evidence by the name of a homogenizer: the same score on all parts, or one for each."""

    def examine(name, part):
        score = scores[name][part] if isinstance(scores[name], tuple) else scores[name]
        return evidence_for(score, ANSWERS + 1 if name in ("factory", "old") else ANSWERS)

    return examine


def decided(examine, candidate, replicate, active):
    """Decide where the answers to all frames are those to the held-out ones."""
    return decide(examine, lambda name: examine(name, 0).answers, candidate, replicate, active)


def test_a_candidate_has_to_pass_the_judge_and_the_shadow():
    assert decided(by_name(factory=5.0, it=1.0, second=1.0), "it", "second", None).served
    assert decided(by_name(factory=5.0, it=0.99 * FIT_BAND_RATIO * BAND, second=1.0), "it", "second", None).served
    refused = decided(by_name(factory=5.0, it=4.9, second=1.0), "it", "second", None)
    assert (refused.judged, refused.served) == ("rejected", False) and "no better than factory" in refused.reason
    later = decided(by_name(factory=5.0, it=(1.0, 4.9, 4.9, 4.9), second=1.0), "it", "second", None)
    assert (later.judged, later.served) == ("accepted", False) and "no better than factory" in later.reason


def test_a_candidate_has_to_agree_with_the_second_fit():
    refused = decided(by_name(factory=5.0, it=1.0, old=1.0), "it", "old", None)  # what was said of "old" is else
    assert refused.judged == "rejected" and "second fit" in refused.reason


def test_all_frames_of_a_fit_tell_whether_a_second_fit_agrees():
    examine = by_name(factory=5.0, it=1.0, second=1.0)
    refused = decide(examine, lambda name: ANSWERS, "it", "second", None)
    assert refused.judged == "rejected" and "no more than with factory (+0.0 standard errors)" in refused.reason
    assert decide(examine, lambda name: ANSWERS + (name == FACTORY), "it", "second", None).served


def test_a_candidate_has_to_beat_the_active_homogenizer_too():
    assert not decided(by_name(factory=5.0, old=2.0, it=1.7, second=1.0), "it", "second", "old").served
    assert decided(by_name(factory=5.0, old=2.0, it=1.0, second=1.0), "it", "second", "old").served


def test_nothing_is_fitted_for_a_clean_camera():
    assert answer_without_fit(by_name(factory=1.0), None) == "unneeded"
    assert answer_without_fit(by_name(factory=1.0, old=5.0), "old") == "factory"
    assert answer_without_fit(by_name(factory=5.0, old=5.0), "old") is None
    assert decided(by_name(factory=1.0, it=0.1), "it", "second", None).judged == "unneeded"


def test_nothing_is_fitted_to_few_classes():
    assert answer_without_fit(lambda name, part: evidence_for(5.0, label_shift=True), None) == "few classes"


# ---- cameras


def test_the_parts_of_a_view_share_no_image():
    view = View.of("all", np.arange(WINDOW_FRAMES))
    parts = [view.fitted, view.replicated, view.held_out, *view.looks]
    assert np.array_equal(np.concatenate(parts), np.arange(WINDOW_FRAMES)) and len(view.fitted) == FITTED


@given(st.integers(MIN_POOL, 2000))
def test_images_of_a_small_pool_come_again_in_their_own_part_only(count):
    view = View.of("few", parts_of_a_pool(np.arange(count), np.random.default_rng(count)))
    parts = [set(part) for part in (view.fitted, view.replicated, view.held_out, *view.looks)]
    assert all(parts) and sum(map(len, parts)) == len(set().union(*parts))


def subject(channels):
    size = (40, 16, 16, 3)[: 4 if channels == 3 else 3]
    images = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    labelled = Labelled(images, torch.arange(40) % 2)
    moments = ((0.5,) * channels, (0.25,) * channels)
    return Subject(nn.Identity(), Limits.of(*moments), lambda x: normalise(x, *moments), labelled, labelled)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", [10, 11, 12])  # the paper's perturbation, the camera, and a drawn drift
def test_a_camera_drifts_the_same_each_time_and_can_be_clean(channels, seed):
    films = [drifted_camera("GTSRB", seed, subject(channels)) for _ in range(2)]
    rows = np.arange(8)
    drifted = [camera.film(rows) for camera in films]
    assert torch.equal(*drifted) and drifted[0].shape == (8, channels, 16, 16)
    clean = films[0].clean
    assert torch.equal(clean.film(rows), subject(channels).normalise(subject(channels).scene.images[rows]))
    assert clean.name != films[0].name and not torch.equal(clean.film(rows), drifted[0])


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
    assert torch.equal(read.answers, evidence.answers)
    assert (read.layers, read.label_shift) == (evidence.layers, evidence.label_shift)


# ---- the tables


def row(truth, judged, served, kind="fit", seed=0, accuracy=80.0):
    where = {"data": "d", "camera": "drifted", "mode": "shipped", "active": "factory", "view": "all", "seed": seed}
    measured = {"incumbent": 70.0, "accuracy": accuracy}
    return where | measured | {"kind": kind, "candidate": "c", "truth": truth, "judged": judged, "served": served}


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


def test_what_is_recovered_is_a_share_of_what_the_best_fit_would_give():
    rows = [
        *[row("good", "accepted", True, accuracy=80.0), row("good", "rejected", False, "bad fit", accuracy=90.0)],
        *[row("good", "rejected", False, seed=1, accuracy=90.0)],
        *[row("good", "accepted", True, "sabotaged", accuracy=99.0)],  # no fit of the daemon
    ]
    (found,) = recovered(rows)
    assert (found["cameras"], found["served"], found["best"], found["share"]) == (2, 10.0, 40.0, 0.25)


def test_the_worst_that_served_is_the_one_that_cost_most():
    rows = [row("bad", "accepted", served, accuracy=accuracy) for served, accuracy in ((True, 69), (False, 10))]
    assert worst_served(rows) is rows[0]
    assert worst_served([]) is None
