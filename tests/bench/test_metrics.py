"""The metrics of the paper: what each counts and what not; and the experiments and tables that they are in."""

import json
import math
from argparse import Namespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.material.metrics import l2_error, luminance, psnr, ssim
from bench.material.perturbation import Perturbation
from bench.paper.experiments import METRICS, Experiment, State
from bench.paper.measure import selected
from bench.paper.runner import Runner
from bench.paper.tables import body, markdown, summarise

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3)
NOISE = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_luminance_is_that_of_each_image_scaled_by_its_own_extremes():
    found = luminance(IMAGES)
    assert found.shape == (6, 1, 16, 16) and found.min() >= 0 and found.max() <= 1
    grey = luminance(IMAGES[:, :1])
    assert grey.amin((1, 2, 3)).eq(0).all() and grey.amax((1, 2, 3)).eq(1).all()
    red = torch.zeros(1, 3, 2, 2)
    red[0, 0, 0, 0] = 5
    assert float(luminance(red).max()) == pytest.approx(0.2126)


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_gain_and_offset_of_the_whole_image_cost_nothing(gain, offset):
    changed = IMAGES + 2 * NOISE
    assert psnr(IMAGES, gain * changed + offset) == pytest.approx(psnr(IMAGES, changed), abs=0.01)
    assert ssim(IMAGES, gain * changed + offset) == pytest.approx(ssim(IMAGES, changed), abs=0.01)


def test_psnr_is_the_mean_over_images_in_decibels():
    clean, restored = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    clean[:, 0, 0, 0] = restored[:, 0, 0, 0] = 1
    restored[0, 0, 1, :] = 0.5  # 4 of 16 pixels by 0.5: 12 dB
    restored[1, 0, 2, 0] = 0.4  # 1 of 16 by 0.4: 20 dB
    assert psnr(clean, restored) == pytest.approx((10 * math.log10(16) + 20) / 2, abs=1e-4)


def test_equal_images_are_perfect():
    assert ssim(IMAGES, IMAGES) == pytest.approx(100)
    assert psnr(IMAGES, IMAGES) == pytest.approx(100)


def test_a_black_image_is_no_error():
    black = torch.zeros(1, 3, 16, 16)
    assert psnr(black, black) == pytest.approx(100) and ssim(black, black) == pytest.approx(100)


def test_more_noise_is_worse():
    for metric in (psnr, ssim):
        values = [metric(IMAGES, IMAGES + strength * NOISE) for strength in (0, 1, 3, 10)]
        assert values == sorted(values, reverse=True)


def test_ssim_of_a_negative_is_below_the_middle():
    assert ssim(NOISE, -NOISE) < 50


def test_l2_error_of_a_perfect_inverse_is_zero():
    gain, offset = 3.0, torch.randn(1, 2, 5, 5)
    assert l2_error(lambda frames: ((frames * gain + offset) - offset) / gain, (2, 5, 5)) == pytest.approx(0, abs=1e-6)


def test_l2_error_is_a_ratio_of_norms_and_counts_an_offset_for_every_unit_image():
    assert l2_error(torch.zeros_like, (3, 4, 4)) == pytest.approx(1)
    assert l2_error(lambda frames: 3 * frames, (1, 24, 24)) == pytest.approx(2)
    assert l2_error(lambda frames: frames + 0.5, (1, 4, 4)) == pytest.approx(0.5 * 4)


def test_l2_error_does_not_depend_on_how_the_units_are_cut(monkeypatch):
    delta = Perturbation(0, shape=(3, 6, 6))
    whole = l2_error(delta, (3, 6, 6))
    monkeypatch.setattr("bench.material.metrics.UNIT_IMAGES_AT_ONCE", 7)
    assert l2_error(delta, (3, 6, 6)) == pytest.approx(whole)


EXPERIMENT = Experiment("cifar10", "unsupervised", "NN ALL", "paper", 10)
SETTINGS = {"epochs": 100}


def record(experiment, value, settings=SETTINGS):
    return {"piece": experiment.key, "settings": settings, **dict.fromkeys(METRICS, value), "seconds": value}


def test_a_pattern_selects_from_the_front_and_brings_its_baselines():
    keys = [experiment.key for experiment in selected(["mnist/*/NN"], 2)]
    rows = [f"mnist/{setting}/NN/{rho}" for setting in ("supervised", "unsupervised") for rho in ("paper", "ours")]
    fits = [f"{row}/{draw}" for draw in (10, 11) for row in rows]
    baselines = ["CLEAN/none/10", "DISTORTED/none/10", "DISTORTED/none/11"]
    assert keys == [*(f"mnist/baseline/{name}" for name in baselines), *fits]


def test_without_a_pattern_every_row_of_the_tables_is_there():
    experiments = [experiment for experiment in selected([], 1) if experiment.setting != "baseline"]
    assert len(set(experiments)) == len(experiments) == 2 * 2 * (9 + 4)


def test_a_pattern_for_nothing_is_refused_with_an_example():
    with pytest.raises(SystemExit, match="no experiment is called svhn; names look like cifar10/supervised/CRITERION"):
        selected(["svhn"], 1)


def test_finished_experiments_are_found_under_their_own_settings_only(tmp_path):
    path = tmp_path / "new" / "state.jsonl"
    State(path).add(EXPERIMENT, record(EXPERIMENT, 1.0), None)
    State(path).add(EXPERIMENT, record(EXPERIMENT, 2.0, {"epochs": 5}), None)
    again = State(path)
    assert again.find(EXPERIMENT, SETTINGS)["acc"] == 1.0
    assert again.find(EXPERIMENT, {"epochs": 7}) is None
    assert again.find(EXPERIMENT._replace(draw=11), SETTINGS) is None


@pytest.mark.parametrize("experiment", selected([], 1), ids=lambda experiment: experiment.key)
def test_an_experiment_is_found_under_the_settings_that_it_was_measured_with(tmp_path, experiment):
    runner = Runner(Namespace(network="resnet20", epochs=100, rate=0.03))
    State(tmp_path / "state.jsonl").add(experiment, record(experiment, 1.0, runner.settings(experiment)), None)
    again = State(tmp_path / "state.jsonl")
    assert again.find(experiment, runner.settings(experiment)) is not None
    other = Runner(Namespace(network="resnet56", epochs=50, rate=0.1)).settings(experiment)
    depends = experiment.rho == "paper" or experiment.dataset == "cifar10"
    assert (again.find(experiment, other) is None) == depends


def test_the_papers_rho_always_matches_source_images_and_ours_the_model_where_it_can():
    shipped = {experiment.key for experiment in selected([], 1) if experiment.uses_shipped_statistics}
    assert shipped == {
        f"{data}/unsupervised/{row}/ours/10" for data in ("cifar10", "mnist") for row in ("NN", "NN ALL")
    }


def test_a_line_that_was_cut_short_is_left_out_and_does_not_spoil_the_next(tmp_path):
    path, other = tmp_path / "state.jsonl", EXPERIMENT._replace(draw=11)
    whole = json.dumps(record(EXPERIMENT, 1.0))
    path.write_text(whole + "\n" + whole[:30])
    State(path).add(other, record(other, 3.0), None)
    again = State(path)
    assert again.find(EXPERIMENT, SETTINGS)["acc"] == 1.0 and again.find(other, SETTINGS)["acc"] == 3.0


def test_a_table_has_mean_and_deviation_over_the_draws_that_did_not_fail():
    draws = [EXPERIMENT._replace(draw=d) for d in (10, 11, 12)]
    failed = {"piece": draws[2].key, "settings": SETTINGS, "error": "not finite"}
    baseline = Experiment("cifar10", "baseline", "DISTORTED", "none", 10)
    summary = summarise([record(baseline, 40.0), record(draws[0], 80.0), record(draws[1], 82.0), failed])
    lines = {(line[0], line[1]): line for line in body(summary, "cifar10", "unsupervised")}
    assert set(lines) == {("DISTORTED", name) for name in ("published", "none")} | {
        ("NN ALL", name) for name in ("published", "paper")
    }
    assert lines["NN ALL", "paper"][2] == "81.0 ± 1.4" and lines["NN ALL", "paper"][8] == "2 (1 failed)"
    assert lines["NN ALL", "published"][2:5] == ["91.8", "84.5", "83.6"]
    assert lines["DISTORTED", "none"][2] == "40.0"
    text = markdown(summary, "cifar10", "unsupervised")
    assert text.startswith("### cifar10, unsupervised") and "NN ALL: the paper, Table 3" in text
