"""A fit makes drifted frames look like the training frames, and changes nothing else."""

import hashlib
import math
import sys
import time

import numpy as np
import pytest
import torch
from coloured import network as network_of
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import MEAN, SHAPE, STD, images, labelled, normalised, trained_network
from torch import nn

from calibrate import (
    FeatureStatistics,
    FitConfig,
    FitError,
    Homogenizer,
    PaddedCrop,
    collect_statistics,
    fit,
    measured_source,
    penultimate,
    random_projection,
    tap,
    with_logits,
)
from calibrate.search.best_start import _lowest_of_both_signs
from calibrate.search.objective import Objective
from calibrate.source.description import Limits
from calibrate.validation import MAX_ABS_VALUE, MIN_FIT_FRAMES
from deploy.model.program import export_program, load_program, save_program

SHORT = FitConfig(stages=((32, 3),))
MIX = torch.tensor([[0.45, 0.15, 0.0], [0.05, 0.4, 0.15], [0.1, 0.0, 0.5]])  # colours mixed at half the exposure
WITHOUT_STEPS = FitConfig(stages=())
LONGER = FitConfig(stages=((32, 10), (128, 10)))


def drifted(frames: torch.Tensor) -> torch.Tensor:
    return torch.einsum("cd,ndhw->nchw", MIX, frames) - 0.8


def digest(model: nn.Module) -> str:
    """SHA-256 of all bytes, and of everything that training would change."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        sha.update(name.encode() + value.numpy().tobytes())
    sha.update(repr([(n, p.requires_grad, p.grad) for n, p in model.named_parameters()]).encode())
    sha.update(repr([(n, m.training, len(m._forward_pre_hooks)) for n, m in model.named_modules()]).encode())
    return sha.hexdigest()


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr("calibrate.search.objective.HAS_BFLOAT16", False)


@pytest.fixture(scope="module")
def network():
    return trained_network()


@pytest.fixture(scope="module")
def program(network):
    return load_program(save_program(export_program(network, torch.zeros(1, *SHAPE))))


@pytest.fixture(scope="module")
def frames():
    return drifted(normalised(images(48, seed=1)))


@pytest.fixture(scope="module")
def labels():
    return torch.from_numpy(labelled(48, seed=1)[1])


@pytest.fixture(scope="module")
def clean():
    """Clean frames to measure, and their labels."""
    batch, labels = labelled(256, seed=3)
    return normalised(batch), torch.from_numpy(labels)


def objective_of(model, rho, frames) -> float:
    taps = tap(model)
    return Objective(taps, taps.reference).evaluate(rho, frames)


def accuracy(model, frames, labels):
    with torch.no_grad():
        return float((model(frames).argmax(1) == torch.from_numpy(labels)).float().mean())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_exposure_and_colours_are_recovered(network, monkeypatch, bfloat16):
    monkeypatch.setattr("calibrate.search.objective.HAS_BFLOAT16", bfloat16)
    fitted = fit(network, drifted(normalised(images(256, seed=1))), config=LONGER).homogenizer
    monkeypatch.setattr("calibrate.search.objective.HAS_BFLOAT16", False)
    clean, labels = labelled(256, seed=2)
    clean = normalised(clean)
    before, after = (objective_of(network, rho, drifted(clean)) for rho in (Homogenizer(*SHAPE), fitted))
    assert after < before / 100
    assert after < 3 * objective_of(network, Homogenizer(*SHAPE), clean)
    with torch.no_grad():
        assert accuracy(network, fitted(drifted(clean)), labels) > accuracy(network, clean, labels) - 0.03
        error = (fitted(drifted(clean)) - clean)[..., 4:-4, 4:-4].square().mean().sqrt()
    assert error < 0.3 * (drifted(clean) - clean).square().mean().sqrt()


def test_a_good_start_stays_good_in_the_descent(network):
    result = fit(network, normalised(images(128, seed=1)), config=LONGER)
    fresh = normalised(images(128, seed=2))
    with torch.no_grad():
        change = (result.homogenizer(fresh) - fresh).square().mean().sqrt()
    assert change < 0.1 * fresh.std()
    assert objective_of(network, result.homogenizer, fresh) < 1.5 * objective_of(network, Homogenizer(*SHAPE), fresh)


def opaque_network() -> nn.Module:
    """A network whose first layer is not linear, so that no source can be read from it."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.ReLU6(), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=None))
    with torch.no_grad():
        first(normalised(images(256, seed=3)))
    return first.eval()


def test_gradient_steps_alone_lower_the_loss(frames):
    result = fit(opaque_network(), frames, config=FitConfig(stages=((48, 40),)))
    assert result.start.startswith("identity") and all(name.startswith("identity") for name in result.start_losses)
    assert result.history[-1] < 0.3 * result.history[0]


def test_a_measured_source_helps_a_network_that_no_source_can_be_read_from(frames, clean):
    source = measured_source(clean[0])
    losses = fit(opaque_network(), frames, source=source, config=WITHOUT_STEPS).start_losses
    assert set(losses) >= {"identity", "colour", "spectral"}
    assert min(losses["colour"], losses["spectral"]) < 0.1 * losses["identity"]


def test_a_given_source_replaces_the_one_read_from_the_network(network, frames, clean):
    darker = measured_source(clean[0] - 3)
    own, other = (fit(network, frames, source=s, config=WITHOUT_STEPS).start_losses for s in (None, darker))
    assert own["identity"] == pytest.approx(other["identity"], rel=1e-4)
    assert other["colour"] > 10 * own["colour"]


def test_frames_are_cropped_for_shipped_statistics_only():
    frames, limits = normalised(images(256, seed=3)), Limits.of(MEAN, STD)
    cropped = network_of(PaddedCrop(2, tuple(limits.black.tolist()))(frames), filters=24)
    own = tap(cropped).reference
    measured = FeatureStatistics(own.names, own.means, own.variances)
    shipped, plain = (
        fit(cropped, frames, r, limits=limits, config=WITHOUT_STEPS).start_losses["identity"] for r in (own, measured)
    )
    assert shipped < 0.1 * plain


def test_a_fit_can_aim_at_class_conditional_statistics(network, frames, labels, clean):
    reference = collect_statistics(tap(network), *clean)
    result = fit(network, frames, reference, labels=labels, config=LONGER)
    objective = Objective(tap(network), reference)
    found, identity = (objective.evaluate(r, frames, labels) for r in (result.homogenizer, Homogenizer(*SHAPE)))
    assert found == pytest.approx(min(result.history), rel=0.01)
    assert found < 0.1 * identity


def test_each_frame_keeps_its_label(network, frames, labels, clean):
    reference = collect_statistics(tap(network), *clean)
    rolled = fit(network, frames, reference, labels=labels.roll(1), config=WITHOUT_STEPS).start_losses
    right = fit(network, frames, reference, labels=labels, config=WITHOUT_STEPS).start_losses
    expected = Objective(tap(network), reference).evaluate(Homogenizer(*SHAPE), frames, labels)
    assert right["identity"] == pytest.approx(expected, rel=1e-3)
    assert rolled["identity"] != pytest.approx(expected, rel=1e-2)


def test_the_criterion_adds_its_weight_times_the_cross_entropy(network, frames, labels):
    plain, weighted = (
        fit(network, frames, labels=labels, criterion=c, config=SHORT).start_losses["identity"] for c in (0.0, 2.0)
    )
    with torch.no_grad():
        entropy = nn.functional.cross_entropy(network(frames), labels)
    assert weighted - plain == pytest.approx(2 * float(entropy), rel=1e-3)


@pytest.mark.parametrize("criterion", [0.0, 0.5])
def test_a_fit_can_use_another_feature_map(network, frames, labels, clean, criterion):
    projection = with_logits(random_projection(SHAPE, width=32), network)
    reference = collect_statistics(projection, clean[0])
    before = digest(network)
    result = fit(
        network,
        frames,
        reference,
        features=projection,
        labels=labels,
        criterion=criterion,
        config=FitConfig(((48, 8),)),
    )
    assert min(result.history) < 0.5 * result.start_losses["identity"]
    assert digest(network) == before


def test_a_fit_can_aim_at_the_last_layer_alone(network, frames):
    last = penultimate(network)
    result = fit(network, frames, last.reference, features=last, config=LONGER)
    assert min(result.history) < 0.1 * result.start_losses["identity"]


@pytest.mark.parametrize("given", ["criterion", "classes"])
def test_missing_labels_are_refused(network, frames, clean, given):
    reference = collect_statistics(tap(network), *clean) if given == "classes" else None
    with pytest.raises(FitError, match="need labels"):
        fit(network, frames, reference, criterion=float(given == "criterion"), config=SHORT)


@pytest.mark.parametrize("wrong", [lambda x: x[:-1], lambda x: torch.cat([x, x]), lambda x: x[:, None]])
def test_labels_of_other_frames_are_refused(network, frames, labels, wrong):
    with pytest.raises(FitError, match="48 frames need as many int64 labels"):
        fit(network, frames, labels=wrong(labels), criterion=1.0, config=SHORT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x - 1, "from 0 to 3, got -1 to 2"),
        (lambda x: x + 1, "from 0 to 3, got 1 to 4"),
        (lambda x: x.float(), "int64 labels, got torch.float32"),
    ],
)
@pytest.mark.parametrize("given", ["criterion", "classes"])
def test_labels_out_of_range_or_of_another_type_are_refused(network, frames, labels, clean, given, change, message):
    reference = collect_statistics(tap(network), *clean) if given == "classes" else None
    with pytest.raises(FitError, match=message):
        fit(network, frames, reference, labels=change(labels), criterion=float(given == "criterion"), config=SHORT)


def test_a_criterion_without_logits_is_refused(network, frames, labels):
    features = random_projection(SHAPE, width=16)
    with pytest.raises(FitError, match="logits"):
        fit(network, frames, collect_statistics(features, frames), features=features, labels=labels, criterion=1.0)


@pytest.mark.parametrize("shape", [(48, 3, 16, 0), (48, 0, 16, 16)])
def test_frames_without_pixels_are_refused(network, shape):
    with pytest.raises(FitError, match="have no pixels"):
        fit(network, torch.zeros(shape))


@pytest.mark.parametrize("kind", ["network", "program"])
def test_the_network_is_bit_identical_after_a_fit(request, frames, kind):
    model = request.getfixturevalue(kind)
    before = digest(model)
    fit(model, frames, config=SHORT)
    assert digest(model) == before


def test_the_network_gets_no_gradients(frames):
    model = trained_network().requires_grad_()
    before = digest(model)
    fit(model, frames, config=SHORT)
    assert digest(model) == before


def test_module_and_program_give_the_same_fit(network, program, frames):
    by_module, by_program = (fit(model, frames, config=SHORT) for model in (network, program))
    assert by_module.start == by_program.start
    assert by_module.history == pytest.approx(by_program.history, rel=1e-3)


def test_the_frames_stay_unchanged(network, frames):
    before = frames.clone()
    fit(network, frames, config=SHORT)
    assert torch.equal(frames, before)


def test_the_same_seed_gives_the_same_homogenizer_for_any_global_random_state(network, frames):
    def weights(seed):
        torch.rand(seed + 3)
        state = torch.get_rng_state()
        found = fit(network, frames, config=SHORT, seed=seed).homogenizer.state_dict()
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([value.flatten() for value in found.values()])

    first = weights(1)
    torch.testing.assert_close(
        first, weights(1), atol=1e-3, rtol=0
    )  # the last bits depend on the linear algebra library
    assert (first - weights(2)).abs().max() > 1e-3


def test_the_homogenizer_is_ready_to_serve(network, frames):
    homogenizer = fit(network, frames, config=SHORT).homogenizer
    assert not homogenizer.training
    assert not any(p.requires_grad for p in homogenizer.parameters())
    assert not homogenizer(frames[:2]).requires_grad


def test_a_fit_works_with_gradients_switched_off(network, frames):
    with torch.no_grad():
        result = fit(network, frames, config=SHORT)
    assert result.history == pytest.approx(fit(network, frames, config=SHORT).history, rel=1e-3)


@pytest.mark.parametrize("stages", [((32, 3),), ((32, 2), (48, 3)), ((32, 1), (32, 1), (32, 1))])
def test_progress_reports_every_evaluation_and_time_is_measured_for_each_stage(network, frames, stages):
    reports, config = [], FitConfig(stages=stages)
    result = fit(network, frames, config=config, progress=lambda *step: reports.append(step), clock=time.perf_counter)
    done, (in_all,) = [done for done, _, _ in reports], {in_all for _, in_all, _ in reports}
    assert [loss for _, _, loss in reports][-result.steps :] == result.history
    assert done == sorted(done) and 0 < done[0] < 0.1 * in_all and done[-1] == in_all
    assert len(reports) > result.steps + 4, "the starts report, too: they take a third of a fit"
    assert result.steps >= config.evaluations
    assert all(map(math.isfinite, result.history))
    assert list(result.stage_seconds) == [
        "source",
        "starts",
        *dict.fromkeys(f"{frames} frames" for frames, _ in stages),
    ]
    assert min(result.stage_seconds.values()) > 0 and result.seconds == sum(result.stage_seconds.values())
    assert math.isnan(fit(network, frames, config=config).seconds), "a fit reads no clock of its own"


def test_a_stage_uses_all_frames_if_there_are_fewer(network, frames):
    few, many = (fit(network, frames, config=FitConfig(stages=((n, 4),))).history for n in (48, 10_000))
    assert few == pytest.approx(many, rel=1e-3)


def test_a_result_counts_the_frames_that_the_descent_used(network, frames):
    assert [fit(network, frames[:48], config=FitConfig(stages=((n, 1),))).frames for n in (32, 10_000)] == [32, 48]


def test_each_stage_continues_from_the_one_before(network, frames, monkeypatch):
    monkeypatch.setattr(sys.modules["calibrate.fitting"], "STOP_LOSS_PER_FLOOR", 0.0)
    history = fit(network, frames, config=FitConfig(stages=((48, 10), (48, 10)))).history
    assert min(history[10:]) < min(history[:10]) < history[0]
    assert history[-1] < 0.5 * history[0]


def test_without_stages_the_best_start_is_the_result(network, frames):
    result = fit(network, frames, config=WITHOUT_STEPS)
    assert result.history == [] and result.steps == 0
    assert set(result.start_losses) >= {"identity", "colour", "spectral"}
    assert result.start == min(result.start_losses, key=result.start_losses.get)
    expected = result.start_losses[result.start]
    assert objective_of(network, result.homogenizer, frames) == pytest.approx(expected, rel=1e-2)


def test_clean_frames_stay_as_they_are(network):
    clean = normalised(images(128, seed=4))
    result = fit(network, clean, config=WITHOUT_STEPS)
    assert (result.homogenizer(clean) - clean).square().mean().sqrt() < 0.15 * clean.std()


def test_a_fit_can_aim_at_another_reference(network, frames):
    own = tap(network).reference
    other = FeatureStatistics(own.names, tuple(m + 5 for m in own.means), own.variances)
    at_own, at_other = (fit(network, frames, r, config=WITHOUT_STEPS).start_losses["identity"] for r in (own, other))
    assert at_other > 2 * at_own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[: MIN_FIT_FRAMES - 1], f"at least {MIN_FIT_FRAMES} frames, got {MIN_FIT_FRAMES - 1}"),
        (lambda f: f[0], r"must be float \(N, C, H, W\), got torch.float32 \(3, 16, 16\)"),
        (lambda f: (40 * f).byte(), "must be float .* got torch.uint8"),
        (lambda f: f.where(f < f.max(), torch.nan), "not finite"),
        (lambda f: f.where(f < f.max(), torch.inf), "not finite"),
        (lambda f: f * MAX_ABS_VALUE, "must be normalised"),
        (lambda f: f[:1].expand(48, -1, -1, -1), "the same image"),
        (lambda f: torch.zeros_like(f), "the same image"),
        (lambda f: f[:, :1], "cannot take .* to have 3 channels, but got 1 channel"),
        (lambda f: torch.cat([f, f], 1), "cannot take .* to have 3 channels, but got 6 channels"),
        (lambda f: f[..., :9], r"cannot take torch.float32 frames of shape \(3, 16, 9\)"),
        (lambda f: f.double(), "cannot take torch.float64 frames"),
    ],
)
@pytest.mark.parametrize("kind", ["network", "program"])
def test_frames_that_cannot_be_fitted_are_refused_in_one_line(request, frames, kind, change, message):
    with pytest.raises(FitError, match=message) as refusal:
        fit(request.getfixturevalue(kind), change(frames))
    assert "\n" not in str(refusal.value)


def test_a_reference_of_another_network_is_refused(network, frames):
    own = tap(network).reference
    with pytest.raises(FitError, match="other layers"):
        fit(network, frames, FeatureStatistics(own.names[:1], own.means[:1], own.variances[:1]))


@pytest.mark.parametrize("stage", [(MIN_FIT_FRAMES - 1, 5), (MIN_FIT_FRAMES, 0), (MIN_FIT_FRAMES, -1), (0, 5)])
@pytest.mark.parametrize("before", [(), ((64, 5),)])
def test_stages_with_too_few_frames_or_evaluations_are_refused(before, stage):
    with pytest.raises(ValueError, match=f"{MIN_FIT_FRAMES} frames and 1 evaluation at least"):
        FitConfig(stages=(*before, stage))


@pytest.mark.parametrize("config", [SHORT, WITHOUT_STEPS])
def test_a_network_that_overflows_is_refused(frames, config):
    model = trained_network()
    model[3].weight.data *= 1e30
    before = digest(model)
    with pytest.raises(FitError, match="loss is not finite"):
        fit(model, frames, config=config)
    assert digest(model) == before


def test_a_loss_that_becomes_nan_ends_the_fit(network, frames, monkeypatch):
    before, evaluated, intact = digest(network), [], Objective.differentiate

    def breaking(self, *arguments):
        evaluated.append(arguments)
        loss, gradient = intact(self, *arguments)
        return (loss if len(evaluated) < 5 else torch.full_like(loss, torch.nan)), gradient

    monkeypatch.setattr(Objective, "differentiate", breaking)
    with pytest.raises(FitError, match="loss is not finite"):
        fit(network, frames, config=LONGER)
    assert len(evaluated) == 5
    assert digest(network) == before


def test_an_exception_from_progress_ends_the_fit(network, frames):
    def progress(done, total, loss):
        raise KeyboardInterrupt

    before = digest(network)
    with pytest.raises(KeyboardInterrupt):
        fit(network, frames, config=SHORT, progress=progress)
    assert digest(network) == before


def test_images_of_one_colour_each_give_finite_parameters():
    flat = torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 16, 16)
    result = fit(trained_network(), flat, config=SHORT)
    assert all(torch.isfinite(p).all() for p in result.homogenizer.parameters())


extremes = st.sampled_from([0.0, 1.0, -9e3, 2e4, 3e38, math.inf, -math.inf, math.nan])


@settings(max_examples=12)
@given(st.sampled_from([1e-30, 1e-3, 1.0, 1e3]), extremes, st.sampled_from([0.0, 0.01, 0.5]), st.booleans())
def test_for_any_values_the_homogenizer_is_finite_or_the_fit_is_refused(network, scale, level, share, whole):
    random = torch.Generator().manual_seed(0)
    frames = scale * torch.randn(MIN_FIT_FRAMES, *SHAPE, generator=random)
    frames[torch.rand(frames.shape[: 1 if whole else 4], generator=random) < share] = level
    try:
        result = fit(network, frames, config=SHORT)
    except FitError:
        return
    assert frames.isfinite().all()
    assert all(torch.isfinite(value).all() for value in result.homogenizer.state_dict().values())
    assert all(map(math.isfinite, result.history))


shapes = st.tuples(st.integers(30, 34), st.integers(1, 5), st.sampled_from([1, 2, 9, 16]), st.sampled_from([1, 16, 23]))


@given(shapes.filter(lambda shape: shape[0] < MIN_FIT_FRAMES or shape[1:] != SHAPE))
def test_frames_of_a_shape_that_cannot_be_fitted_are_refused(network, shape):
    with pytest.raises(FitError):
        fit(network, torch.randn(shape, generator=torch.Generator().manual_seed(0)), config=SHORT)


def with_gamma(batch: np.ndarray, exponent: float) -> torch.Tensor:
    """The frames of a camera with another gamma."""
    return normalised(np.rint(255 * (batch / 255) ** exponent).astype(np.uint8))


@pytest.mark.parametrize(("exponent", "expected"), [(2.2, "tone 0.45"), (0.45, "tone 2.2")])
def test_another_tone_curve_is_recognised_and_undone(network, exponent, expected):
    seen, limits = images(256, seed=4), Limits.of(MEAN, STD)
    source = measured_source(normalised(images(512, seed=9)))
    result = fit(network, with_gamma(seen, exponent), source=source, limits=limits, config=SHORT)
    assert result.start == expected
    restored, clean = result.homogenizer(with_gamma(seen, exponent)), normalised(seen)
    assert (restored - clean).square().mean() < 0.05 * (with_gamma(seen, exponent) - clean).square().mean()


@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_a_tone_start_is_used_only_if_it_is_much_better(network, exponent):
    result = fit(network, with_gamma(images(256, seed=4), exponent), limits=Limits.of(MEAN, STD), config=WITHOUT_STEPS)
    assert not result.start.startswith("tone")


def test_tone_starts_need_black_and_white(network):
    result = fit(network, with_gamma(images(256, seed=4), 2.2), config=WITHOUT_STEPS)
    assert not any(name.startswith("tone") for name in result.start_losses)


def grey(batch: np.ndarray) -> torch.Tensor:
    return normalised(batch).mean(1, keepdim=True)


@pytest.fixture(scope="module")
def grey_network():
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
    module = nn.Sequential(
        first, nn.BatchNorm2d(8, momentum=None), nn.ReLU(), second, nn.BatchNorm2d(12, momentum=None)
    )
    with torch.no_grad():
        module(grey(images(512, seed=9)))
    return module.eval()


@pytest.mark.parametrize("limits", [None, Limits.of(MEAN[:1], STD[:1])])
@pytest.mark.parametrize("gain", [1.0, 0.6])
def test_a_camera_that_shows_black_as_white_is_recognised_and_undone(grey_network, gain, limits):
    clean = grey(images(256, seed=4))
    seen = -gain * clean
    result = fit(grey_network, seen, limits=limits, config=SHORT)
    assert result.start.startswith("negative")
    assert (result.homogenizer(seen) - clean).square().mean() < 0.05 * (seen - clean).square().mean()


@pytest.mark.parametrize("gain", [1.0, 0.6])
def test_a_dimmer_image_is_not_taken_for_a_negative(grey_network, gain):
    result = fit(grey_network, gain * grey(images(256, seed=4)), config=WITHOUT_STEPS)
    assert not result.start.startswith("negative")


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({"identity": 1.0, "negative identity": 0.49}, "negative identity"),
        ({"identity": 1.0, "negative identity": 0.51}, "identity"),
        ({"identity": 1.0, "colour": 0.5, "negative identity": 0.3}, "colour"),
        ({"identity": math.nan, "negative identity": 0.3}, "negative identity"),
        ({"identity": 1.0, "negative identity": math.inf}, "identity"),
        ({"identity": math.nan, "negative identity": math.inf}, None),
    ],
)
def test_a_negative_is_taken_where_nothing_else_comes_near(losses, chosen):
    """The sign of grey frames is open to second order; a blurred X-ray hardly differs from its negative."""
    assert _lowest_of_both_signs(losses) == chosen


def test_no_negative_is_tried_for_colour_frames(network, frames):
    assert not any(name.startswith("negative") for name in fit(network, frames, config=WITHOUT_STEPS).start_losses)
