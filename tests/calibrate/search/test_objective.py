"""The objective and its gradient do not depend on the chunk, and are those of the definition."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibrate import FeatureStatistics, PaddedCrop, collect_statistics, random_projection, tap
from calibrate.features.statistics import gaussian_divergence
from calibrate.features.taps import ForwardPass
from calibrate.search import objective
from calibrate.search.objective import LIMIT_EXCESS_WEIGHT, Objective
from calibrate.source.description import Limits

SIDE, COUNT, CLASSES = 12, 10, 3
LIMITS = Limits(torch.tensor([-0.5, -0.4, -0.3]), torch.tensor([0.2, 0.6, 0.4]))
CROP = PaddedCrop(2, (1.0, -2.0, 0.5))
LABELS = torch.tensor([0, 2, 2, 0, 0, 2, 0, 2, 2, 2])  # none of class 1
KINDS = ["plain", "limits", "classes", "criterion", "crop", "all together"]


@pytest.fixture(scope="module")
def taps():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES)]
    return tap(nn.Sequential(*layers, *head).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def classes(taps):
    labels = torch.arange(60) % CLASSES
    return collect_statistics(taps, noise(60, seed=5) + labels.view(-1, 1, 1, 1), labels)


@pytest.fixture(scope="module", params=KINDS)
def goal(request, taps, classes):
    return {
        "plain": Objective(taps, taps.reference),
        "limits": Objective(taps, taps.reference, limits=LIMITS),
        "classes": Objective(taps, classes),
        "criterion": Objective(taps, taps.reference, criterion=0.7),
        "crop": Objective(taps, taps.reference, CROP),
        "all together": Objective(taps, classes, CROP, 0.7, LIMITS),
    }[request.param]


@pytest.fixture(scope="module")
def rho():
    torch.manual_seed(1)
    return nn.Conv2d(3, 3, 1)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr(objective, "HAS_BFLOAT16", False)


def noise(count: int = COUNT, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def in_chunks(frames_at_once, compute):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "OBJECTIVE_CHUNK_PIXELS", frames_at_once * SIDE * SIDE)
        return compute()


def value(goal, rho, frames_at_once=COUNT):
    return in_chunks(frames_at_once, lambda: goal.evaluate(rho, noise(), LABELS))


def gradients(goal, rho, frames_at_once=COUNT):
    trained = [rho.weight, rho.bias]
    loss, found = in_chunks(frames_at_once, lambda: goal.differentiate(rho, trained, noise(), LABELS))
    return loss, *found


def by_definition(goal, rho):
    """The objective by its definition, on all frames at once."""
    features, output = goal.features(goal.crop(rho(noise())) if goal.crop else rho(noise()))
    groups = [slice(None)] if isinstance(goal.target, FeatureStatistics) else LABELS.unique()
    layers = []
    for feature, means, variances in zip(features, goal.target.means, goal.target.variances, strict=True):
        for group in groups:
            chosen = feature if isinstance(group, slice) else feature[group == LABELS]
            row = () if isinstance(group, slice) else group
            variance, mean = torch.var_mean(chosen, dim=(0, 2, 3), unbiased=False)
            layers.append(gaussian_divergence(mean, variance, means[row], variances[row]).mean())
    loss = torch.stack(layers).mean() + goal.criterion * F.cross_entropy(output, LABELS)
    if goal.limits is None:
        return loss
    black, white = (level.view(1, -1, 1, 1) for level in goal.limits)
    restored = rho(noise())
    return loss + LIMIT_EXCESS_WEIGHT * (F.relu(black - restored).square() + F.relu(restored - white).square()).mean()


@settings(max_examples=10)
@given(frames_at_once=st.integers(1, COUNT + 1))
def test_value_and_gradient_are_those_of_the_definition_under_any_chunking(goal, rho, frames_at_once):
    loss = by_definition(goal, rho)
    expected, loss = torch.autograd.grad(loss, [rho.weight, rho.bias]), loss.detach()
    found, *gradient = gradients(goal, rho, frames_at_once)
    assert value(goal, rho, frames_at_once) == pytest.approx(float(loss), rel=1e-4)
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient, list(expected), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("frames_at_once", [4, COUNT])
def test_both_precisions_agree_to_a_few_percent(goal, rho, monkeypatch, frames_at_once):
    (loss, *exact), exact_value = gradients(goal, rho, frames_at_once), value(goal, rho, frames_at_once)
    monkeypatch.setattr(objective, "HAS_BFLOAT16", True)
    rough_loss, *rough = gradients(goal, rho, frames_at_once)
    assert value(goal, rho, frames_at_once) == pytest.approx(exact_value, rel=0.02)
    assert float(rough_loss) == pytest.approx(float(loss), rel=0.02)
    assert float(rough_loss) != float(loss)
    for found, expected in zip(rough, exact, strict=True):
        assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("crop", [None, CROP])
def test_the_last_layer_alone_can_be_evaluated(taps, rho, crop):
    class Last:
        names = taps.names[-1:]

        def __call__(self, frames):
            return ForwardPass(taps(frames).features[-1:], None)

    reference = taps.reference
    alone = FeatureStatistics(Last.names, reference.means[-1:], reference.variances[-1:])
    found = in_chunks(3, lambda: Objective(taps, reference, crop).evaluate_last_layer(rho, noise()))
    assert found == pytest.approx(Objective(Last(), alone, crop).evaluate(rho, noise()), rel=1e-4)


def test_classes_without_a_frame_do_not_count(taps, rho, classes):
    first = classes.of(0)
    goal = Objective(taps, classes)
    alone = goal.evaluate(rho, noise(), torch.zeros(COUNT, dtype=torch.long))
    assert alone == pytest.approx(Objective(taps, first).evaluate(rho, noise()), rel=1e-5)


@pytest.mark.parametrize("frames_at_once", [1, 3, 4])
def test_a_frame_is_cropped_alike_whatever_the_chunk(taps, rho, frames_at_once):
    shown = []

    class Watched:
        names = taps.names

        def __call__(self, frames):
            shown.append(frames.detach().clone())
            return taps(frames)

    gradients(
        Objective(Watched(), taps.reference, CROP), rho, frames_at_once
    )  # two passes: to observe, and to carry the gradient back
    whole = CROP(rho(noise()))
    torch.testing.assert_close(torch.cat(shown), torch.cat([whole, whole]))


@pytest.mark.parametrize("frames_at_once", [4, COUNT])
def test_only_what_is_trained_is_differentiated_and_nothing_is_kept(goal, rho, frames_at_once):
    with torch.no_grad():  # also if the caller has switched gradients off
        _, found = in_chunks(frames_at_once, lambda: goal.differentiate(rho, [rho.weight], noise(), LABELS))
    torch.testing.assert_close(found, (gradients(goal, rho)[1],), rtol=1e-3, atol=1e-5)
    assert rho.weight.grad is None and rho.bias.grad is None


@pytest.mark.parametrize("frames_at_once", [4, COUNT])
def test_the_network_gets_no_gradients(rho, frames_at_once):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    goal = Objective(tap(network), tap(network).reference)
    gradients(goal, rho, frames_at_once)
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("frames_at_once", [2, COUNT])
@pytest.mark.parametrize("level", [1e38, torch.nan])
def test_an_objective_that_is_not_finite_is_returned_as_such(goal, rho, frames_at_once, level):
    batch = torch.full((COUNT, 3, SIDE, SIDE), level)
    loss, _ = in_chunks(frames_at_once, lambda: goal.differentiate(rho, [rho.weight], batch, LABELS))
    assert not torch.isfinite(loss)


def test_features_without_a_network_have_an_objective(rho):
    projection = random_projection((3, SIDE, SIDE), width=8)
    goal = Objective(projection, collect_statistics(projection, noise(60)))
    assert value(goal, rho, 3) == pytest.approx(value(goal, rho), rel=1e-4)
    torch.testing.assert_close(gradients(goal, rho, 3)[1], gradients(goal, rho)[1], rtol=1e-3, atol=1e-5)


def test_statistics_of_another_network_are_refused(taps, rho):
    reference = taps.reference
    shorter = FeatureStatistics(reference.names[:1], reference.means[:1], reference.variances[:1])
    with pytest.raises(ValueError):
        Objective(taps, shorter).evaluate(rho, noise())


def test_the_clean_floor_is_the_mean_objective_of_clean_frames(monkeypatch):
    monkeypatch.setattr(objective, "HAS_BFLOAT16", False)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None))
    clean = torch.randn(4000, 3, 1, 1) + torch.randn(4000, 3, 8, 8)
    with torch.no_grad():
        module(clean)
    taps = tap(module.eval())
    goal = Objective(taps, taps.reference)
    found = torch.tensor([goal.evaluate(lambda x: x, few) for few in clean.split(50)])
    floors = torch.tensor([goal.clean_floor(lambda x: x, few) for few in clean.split(50)])
    assert float(floors.mean()) == pytest.approx(float(found.mean()), rel=0.1)
    assert floors.std() < 0.5 * found.std()
