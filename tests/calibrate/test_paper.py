"""The published procedure has the paper's loss, repairs the synthetic network, and leaves Φ unchanged."""

import pytest
import synthetic
import torch
from torch import nn

from bench.material.perturbation import Perturbation
from calibrate import FeatureStatistics, FitError, ImageMoments
from calibrate.features.class_statistics import ClassStatistics, collect_statistics
from calibrate.features.feature_maps import all_layers, penultimate, random_projection
from calibrate.paper import ReconstructionNetwork, fit_as_published, published_loss, statistics_distance

DELTA = Perturbation(1, 0.3, synthetic.SHAPE)  # a third of the network's labels becomes wrong


def labelled(count, seed):
    images, labels = synthetic.labelled(count, seed)
    return synthetic.normalised(images), torch.from_numpy(labels)


CLEAN, LABELS = labelled(128, 1)
DRIFTED = DELTA(CLEAN)


@pytest.fixture(scope="module")
def network():
    network = synthetic.trained_network()
    network.zero_grad()
    return network


def small_rho():
    torch.manual_seed(0)
    return ReconstructionNetwork(3, width=4, depth=1)


def accuracy(network, frames, labels):
    with torch.no_grad():
        return float((network(frames).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(("channels", "width", "depth"), [(1, 8, 8), (3, 4, 1), (2, 5, 3)])
def test_frames_keep_their_shape_and_the_network_has_its_parts(channels, width, depth):
    rho = ReconstructionNetwork(channels, width, depth)
    assert rho(torch.randn(2, channels, 7, 5)).shape == (2, channels, 7, 5)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in rho.modules()) == 2 * depth + 1
    assert sum(isinstance(m, nn.Conv2d) for m in rho.modules()) == 2 * depth + 1


def test_when_new_its_first_convolution_mixes_nothing_and_later_blocks_are_smaller():
    torch.manual_seed(0)
    rho = ReconstructionNetwork(3, width=32, depth=4)
    frames = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(rho.colour(frames), frames + rho.colour.bias.detach().view(1, 3, 1, 1))
    first, last = rho.blocks[0].change[0], rho.blocks[3].change[0]
    assert float((last.weight.std() / first.weight.std()).detach()) == pytest.approx(0.5, abs=0.1)
    assert not first.bias.any()


def test_the_stream_is_rectified_after_all_blocks_but_the_last():
    rho = ReconstructionNetwork(3, depth=3)
    frames = torch.randn(4, 3, 8, 8)
    assert (rho.blocks[:2](frames) >= 0).all()
    assert (rho.blocks(frames) < 0).any()


def test_the_distance_is_the_norms_divided_by_the_number_of_maps():
    maps, vectors = torch.randn(6, 3, 4, 4), torch.randn(6, 5)
    means, variances = (torch.randn(3), torch.randn(5)), (torch.rand(3), torch.rand(5))
    expected = 0.0
    for feature, mean, variance in zip((maps, vectors), means, variances, strict=True):
        dims = [d for d in range(feature.dim()) if d != 1]
        found, center = torch.var_mean(feature, dim=dims, correction=0)
        expected += float((center - mean).norm() + (found - variance).norm()) / 2
    target = FeatureStatistics(("a", "b"), means, variances)
    assert float(statistics_distance(ImageMoments.of([maps, vectors]), target)) == pytest.approx(expected, rel=1e-4)


def test_a_class_without_a_frame_in_the_batch_counts_as_mean_0_and_variance_1():
    feature = torch.tensor([[1.0], [3.0], [5.0]])
    target = ClassStatistics(
        ("x",), (torch.tensor([[2.0], [4.0], [7.0]]),), (torch.tensor([[1.0], [0.0], [3.0]]),), torch.ones(3)
    )
    found = statistics_distance(ImageMoments.of([feature]), target, torch.tensor([0, 0, 1]))
    assert float(found) == pytest.approx(((0 + 0) + (1 + 0) + (7 + 2)) / 3)


def test_the_loss_weighs_statistics_and_criterion(network):
    target = collect_statistics(all_layers(network), CLEAN)
    both, statistics, criterion = (
        float(published_loss(all_layers(network), DRIFTED, target, LABELS, *weights).detach())
        for weights in ((2.0, 3.0), (0.0, 3.0), (2.0, 0.0))
    )
    assert both == pytest.approx(statistics + criterion, rel=1e-5)
    entropy = float(nn.functional.cross_entropy(network(DRIFTED), LABELS).detach())
    assert criterion == pytest.approx(2 * entropy, rel=1e-5)


@pytest.mark.parametrize("row", ["unsupervised", "class-conditional", "criterion"])
def test_a_fit_lowers_its_loss_and_repairs_the_network_it_does_not_change(network, row):
    features, before = all_layers(network), {k: v.clone() for k, v in network.state_dict().items()}
    supervised = row != "unsupervised"
    target = collect_statistics(features, CLEAN, LABELS) if row == "class-conditional" else features.reference
    result = fit_as_published(
        features,
        small_rho(),
        DRIFTED,
        target,
        labels=LABELS if supervised else None,
        criterion=1.0 * supervised,
        statistics=0.0 if row == "criterion" else 10.0,
        epochs=12,
        batch=64,
        rate=0.03,
    )
    assert result.history[-1] < 0.5 * result.history[0]
    assert result.passes == 12 * 128 and len(result.history) == 12 * 2
    assert not result.rho.training and not any(p.requires_grad for p in result.rho.parameters())
    fresh, labels = labelled(256, 2)
    assert accuracy(network, DELTA(fresh), labels) < 0.7
    assert accuracy(network, result.rho(DELTA(fresh)), labels) > 0.9
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_a_seed_repeats_a_fit_and_progress_reports_each_step(network):
    steps = []
    first, second = (
        fit_as_published(
            penultimate(network),
            small_rho(),
            DRIFTED,
            penultimate(network).reference,
            epochs=2,
            batch=50,
            rate=0.01,
            seed=4,
            progress=lambda *step: steps.append(step),
        )
        for _ in range(2)
    )
    assert first.history == pytest.approx(second.history, rel=1e-4)
    assert [step[:2] for step in steps[:6]] == [(n, 6) for n in range(1, 7)]
    assert [step[2] for step in steps[:6]] == first.history


def test_a_loss_that_is_not_finite_ends_the_fit(network):
    frames = DRIFTED.clone()
    frames[100] = torch.nan
    with pytest.raises(FitError, match="not finite at step 1; lower the rate of 0.1"):
        fit_as_published(all_layers(network), small_rho(), frames, all_layers(network).reference, batch=128)


def test_inputs_that_do_not_match_are_refused(network):
    features, rho = penultimate(network), small_rho()
    with pytest.raises(FitError, match="other features"):
        fit_as_published(features, rho, DRIFTED, all_layers(network).reference)
    with pytest.raises(FitError, match="need labels"):
        fit_as_published(features, rho, DRIFTED, features.reference, criterion=1.0)
    with pytest.raises(FitError, match="need labels"):
        fit_as_published(features, rho, DRIFTED, collect_statistics(features, CLEAN, LABELS))
    projection = random_projection(synthetic.SHAPE, width=4)
    target = collect_statistics(projection, CLEAN)
    with pytest.raises(FitError, match="with_logits"):
        fit_as_published(projection, rho, DRIFTED, target, labels=LABELS, criterion=1.0)
