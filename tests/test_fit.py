"""A fit gives the network back what it was trained on, and leaves everything else alone."""

import hashlib
import math

import pytest
import torch
from synthetic import SHAPE, images, labelled, normalised, trained_network
from torch import nn

from calibrate import FeatureStatistics, FitConfig, FitError, Homogenizer, fit, tap
from calibrate.fit import MAX_VALUE, MIN_FRAMES
from calibrate.objective import evaluate
from deploy.program import export_program, load_program, save_program

SHORT = FitConfig(steps=4, batch=16)
MIX = torch.tensor([[0.45, 0.15, 0.0], [0.05, 0.4, 0.15], [0.1, 0.0, 0.5]])  # colours mixed at half the exposure
WITHOUT_STEPS = FitConfig(steps=0)


def drifted(frames: torch.Tensor) -> torch.Tensor:
    return torch.einsum("cd,ndhw->nchw", MIX, frames) - 0.8


def digest(model: nn.Module) -> str:
    """Of all bytes, and of all that training would change."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        sha.update(name.encode() + value.numpy().tobytes())
    sha.update(repr([(n, p.requires_grad, p.grad) for n, p in model.named_parameters()]).encode())
    sha.update(repr([(n, m.training, len(m._forward_pre_hooks)) for n, m in model.named_modules()]).encode())
    return sha.hexdigest()


@pytest.fixture(scope="module")
def network():
    return trained_network()


@pytest.fixture(scope="module")
def program(network):
    return load_program(save_program(export_program(network, torch.zeros(1, *SHAPE))))


@pytest.fixture(scope="module")
def frames():
    return drifted(normalised(images(48, seed=1)))


def accuracy(model, frames, labels):
    with torch.no_grad():
        return float((model(frames).argmax(1) == torch.from_numpy(labels)).float().mean())


def test_exposure_and_colours_are_recovered(network):
    fitted = fit(network, drifted(normalised(images(256, seed=1)))).homogenizer
    taps = tap(network)
    clean, labels = labelled(256, seed=2)
    clean = normalised(clean)
    before, after = (evaluate(taps, rho, drifted(clean), taps.reference) for rho in (Homogenizer(*SHAPE), fitted))
    assert after < before / 100
    assert after < 3 * evaluate(taps, Homogenizer(*SHAPE), clean, taps.reference)
    with torch.no_grad():
        assert accuracy(network, fitted(drifted(clean)), labels) > accuracy(network, clean, labels) - 0.03
        error = (fitted(drifted(clean)) - clean)[..., 4:-4, 4:-4].square().mean().sqrt()
    assert error < 0.25 * (drifted(clean) - clean).square().mean().sqrt()


def test_steps_do_not_carry_a_good_start_away(network):
    result = fit(network, normalised(images(64, seed=1)), config=FitConfig(batch=32))
    fresh = normalised(images(128, seed=2))
    with torch.no_grad():
        change = (result.homogenizer(fresh) - fresh).square().mean().sqrt()
    assert result.start == "identity"
    assert 0 < change < 0.25  # full rates would make it 0.35


def test_gradient_steps_alone_lower_the_loss(frames):
    torch.manual_seed(0)
    first = nn.Sequential(nn.ReLU6(), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=None))
    with torch.no_grad():
        first(normalised(images(256, seed=3)))
    result = fit(first.eval(), frames, config=FitConfig(steps=60, batch=48))
    assert result.start == "identity" and list(result.start_losses) == ["identity"]
    assert result.history[-1] < 0.3 * result.history[0]


@pytest.mark.parametrize("kind", ["network", "program"])
def test_the_network_is_the_same_to_the_bit_afterwards(request, frames, kind):
    model = request.getfixturevalue(kind)
    before = digest(model)
    fit(model, frames, config=SHORT)
    assert digest(model) == before


def test_a_network_that_would_take_gradients_gets_none(frames):
    model = trained_network().requires_grad_()
    before = digest(model)
    fit(model, frames, config=SHORT)
    assert digest(model) == before


def test_module_and_program_are_fitted_alike(network, program, frames):
    one, other = (fit(model, frames, config=SHORT) for model in (network, program))
    assert one.start == other.start
    assert one.history == pytest.approx(other.history, rel=1e-3)


def test_the_frames_are_left_alone(network, frames):
    before = frames.clone()
    fit(network, frames, config=SHORT)
    assert torch.equal(frames, before)


def test_the_same_seed_gives_the_same_homogenizer_whatever_was_drawn_before(network, frames):
    def weights(seed):
        torch.rand(seed + 3)
        state = torch.get_rng_state()
        found = fit(network, frames, config=SHORT, seed=seed).homogenizer.state_dict()
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([value.flatten() for value in found.values()])

    first = weights(1)
    torch.testing.assert_close(first, weights(1), atol=1e-4, rtol=0)  # the last bit is the linear algebra library's
    assert (first - weights(2)).abs().max() > 1e-3


def test_the_homogenizer_is_ready_to_serve(network, frames):
    homogenizer = fit(network, frames, config=SHORT).homogenizer
    assert not homogenizer.training
    assert not any(p.requires_grad for p in homogenizer.parameters())
    assert not homogenizer(frames[:2]).requires_grad


def test_a_caller_may_have_gradients_switched_off(network, frames):
    with torch.no_grad():
        off = fit(network, frames, config=SHORT)
    assert off.history == fit(network, frames, config=SHORT).history


def test_progress_is_told_once_for_each_step(network, frames):
    told = []
    result = fit(network, frames, config=SHORT, progress=lambda *step: told.append(step))
    assert [step[:2] for step in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [loss for _, _, loss in told] == result.history
    assert result.steps == 4 and all(map(math.isfinite, result.history))


def test_without_steps_the_best_start_is_the_result(network, frames):
    result = fit(network, frames, config=WITHOUT_STEPS)
    taps = tap(network)
    assert result.history == [] and result.steps == 0
    assert set(result.start_losses) == {"identity", "colour", "spectral"}
    assert result.start == min(result.start_losses, key=result.start_losses.get)
    assert evaluate(taps, result.homogenizer, frames, taps.reference) == pytest.approx(
        result.start_losses[result.start], rel=1e-4
    )


def test_clean_frames_stay_as_they_are(network):
    clean = normalised(images(128, seed=4))
    result = fit(network, clean, config=WITHOUT_STEPS)
    assert (result.homogenizer(clean) - clean).square().mean().sqrt() < 0.15 * clean.std()


def test_another_reference_may_be_aimed_at(network, frames):
    own = tap(network).reference
    other = FeatureStatistics(own.names, tuple(m + 5 for m in own.means), own.variances)
    at_own, at_other = (fit(network, frames, r, config=WITHOUT_STEPS).start_losses["identity"] for r in (own, other))
    assert at_other > 2 * at_own


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda f: f[: MIN_FRAMES - 1], f"at least {MIN_FRAMES} frames, got {MIN_FRAMES - 1}"),
        (lambda f: f[0], r"must be float \(N, C, H, W\), got torch.float32 \(3, 16, 16\)"),
        (lambda f: (40 * f).byte(), "must be float .* got torch.uint8"),
        (lambda f: f.where(f < f.max(), torch.nan), "not finite"),
        (lambda f: f.where(f < f.max(), torch.inf), "not finite"),
        (lambda f: f * MAX_VALUE, "must be normalised"),
        (lambda f: f[:1].expand(48, -1, -1, -1), "the same image"),
        (lambda f: torch.zeros_like(f), "the same image"),
        (lambda f: f[:, :1], "cannot take .* to have 3 channels, but got 1 channel"),
        (lambda f: torch.cat([f, f], 1), "cannot take .* to have 3 channels, but got 6 channels"),
        (lambda f: f[..., :9], r"cannot take torch.float32 frames of shape \(3, 16, 9\)"),
        (lambda f: f.double(), "cannot take torch.float64 frames"),
    ],
)
@pytest.mark.parametrize("kind", ["network", "program"])
def test_frames_that_cannot_be_fitted_are_refused_in_one_line(request, frames, kind, broken, said):
    with pytest.raises(FitError, match=said) as refusal:
        fit(request.getfixturevalue(kind), broken(frames))
    assert "\n" not in str(refusal.value)


def test_a_reference_of_another_network_is_refused(network, frames):
    own = tap(network).reference
    with pytest.raises(FitError, match="other layers"):
        fit(network, frames, FeatureStatistics(own.names[:1], own.means[:1], own.variances[:1]))


@pytest.mark.parametrize("settings", [{"steps": -1}, {"batch": 1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match="steps must be >= 0 and batch >= 2"):
        FitConfig(**settings)


def test_a_network_that_overflows_is_refused(frames):
    model = trained_network()
    model[3].weight.data *= 1e30
    before = digest(model)
    with pytest.raises(FitError, match="loss is not finite"):
        fit(model, frames, config=SHORT)
    assert digest(model) == before


def test_a_fit_that_breaks_on_its_way_gives_nothing(network, frames):
    before, told = digest(network), []
    with pytest.raises(FitError, match="loss is not finite"):
        fit(network, frames, config=FitConfig(kernel_rate=1e25), progress=lambda *step: told.append(step))
    assert 0 < len(told) < FitConfig().steps
    assert digest(network) == before


def test_images_of_one_colour_each_are_carried():
    torch.manual_seed(0)
    flat = torch.randn(64, 3, 1, 1).expand(-1, -1, 16, 16)
    result = fit(trained_network(), flat, config=SHORT)
    assert all(torch.isfinite(p).all() for p in result.homogenizer.parameters())
