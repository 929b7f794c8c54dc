"""The alternatives to recald do what their papers say, to a copy of the model."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from synthetic import images, labelled, normalised, trained_network
from torch import nn

from bench.material.adaptation import (
    BatchNormAdaptation,
    ColourMatching,
    HistogramMatching,
    Method,
    Recald,
    Tent,
    colours,
    curve,
    entropy,
    quantiles,
)
from bench.peers import changed_values, digest, percent, serve
from calibrate import FitConfig, fit

IMAGES, NAMES = labelled(512, seed=1)
LABELS = torch.from_numpy(NAMES)
FRAMES = normalised((IMAGES * 0.25).astype(np.uint8))  # two stops less light
SOURCE = normalised(images(512, seed=2))


@pytest.fixture(scope="module")
def network():
    return trained_network()


def accuracy(method, frames=FRAMES):
    return percent(serve(copy.deepcopy(method), frames)[0], LABELS)


def statistics(model):
    """Running means and variances, by name."""
    return {name: value for name, value in model.named_buffers() if not name.endswith("num_batches_tracked")}


def test_batch_statistics_repair_an_exposure_change(network):
    clean = accuracy(Method(network), normalised(IMAGES))
    assert accuracy(Method(network)) < 60 < 95 < clean
    assert accuracy(BatchNormAdaptation(network)) > clean - 3


def test_batch_statistics_are_those_of_torch_in_training_mode(network):
    theirs = copy.deepcopy(network).train()
    with torch.no_grad():
        torch.testing.assert_close(BatchNormAdaptation(network).predict(FRAMES), theirs(FRAMES), atol=1e-4, rtol=1e-4)


def test_a_prior_blends_the_first_layer_in_the_stated_share(network):
    shipped, own, blended = Method(network), BatchNormAdaptation(network), BatchNormAdaptation(network, prior=128)
    for method in (own, blended):
        method.predict(FRAMES[:64])
    (mean, variance), target, blend = (list(statistics(m.model).values())[:2] for m in (shipped, own, blended))
    torch.testing.assert_close(blend[0], mean + (target[0] - mean) / 3)  # 64 of 128 + 64
    torch.testing.assert_close(blend[1], variance + (target[1] - variance) / 3)


def test_a_prior_is_between_the_shipped_and_the_batch_statistics(network):
    logits = [m.predict(FRAMES) for m in (Method(network), BatchNormAdaptation(network, prior=512))]
    far = (BatchNormAdaptation(network).predict(FRAMES) - logits[0]).square().mean()
    assert 0 < (logits[1] - logits[0]).square().mean() < far
    assert torch.equal(BatchNormAdaptation(network, prior=10**9).predict(FRAMES).argmax(1), logits[0].argmax(1))


def test_a_prior_forgets_the_last_batch(network):
    method = BatchNormAdaptation(network, prior=16)
    first = method.predict(FRAMES[:64])
    method.predict(SOURCE)
    assert torch.equal(method.predict(FRAMES[:64]), first)


def test_tent_lowers_the_entropy_by_batchnorms_scales_and_shifts_alone(network):
    method = Tent(network)
    found = [float(entropy(method.predict(FRAMES)).mean()) for _ in range(8)]
    assert all(after < before for before, after in zip(found, found[1:], strict=False))
    before = network.state_dict()
    changed = {name for name, value in method.model.state_dict().items() if not torch.equal(value, before[name])}
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert {name for name, _ in method.model.named_parameters() if name in changed} == {
        f"{norm}.{part}" for norm in norms for part in ("weight", "bias")
    }


def test_tent_gives_the_logits_from_before_its_step(network):
    expected = BatchNormAdaptation(network).predict(FRAMES)
    assert torch.equal(Tent(network).predict(FRAMES), expected)


def test_entropy_is_that_of_the_softmax():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy(logits), torch.tensor([float(np.log(4)), 0.0]))


def test_histogram_matching_gives_the_sources_marginals(network):
    method = HistogramMatching(network, SOURCE)
    method.adapt(FRAMES)
    before, after = (np.abs(quantiles(f) - quantiles(SOURCE)).mean() for f in (FRAMES, method.restore(FRAMES)))
    assert after < 0.02 < 0.5 < before  # the restored grey levels are 0.06 apart
    assert accuracy(method) > accuracy(Method(network)) + 20


def test_colour_matching_gives_the_sources_mean_and_covariance(network):
    method = ColourMatching(network, SOURCE)
    method.adapt(FRAMES)
    for found, wanted in zip(colours(method.restore(FRAMES)), colours(SOURCE), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert accuracy(method) > accuracy(Method(network)) + 20


def test_a_grey_level_that_holds_several_quantiles_goes_to_their_middle():
    levels, values = curve(np.array([0.0, 1.0, 1.0, 1.0, 2.0]), np.array([5.0, 6.0, 7.0, 8.0, 9.0]))
    assert levels.tolist() == [0, 1, 2] and values.tolist() == [5, 7, 9]


@pytest.mark.parametrize("make", [HistogramMatching, ColourMatching])
def test_matching_changes_nothing_before_it_has_seen_the_camera(network, make):
    torch.testing.assert_close(make(network, SOURCE).restore(SOURCE), SOURCE, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (Method, False),
        (BatchNormAdaptation, True),
        (Tent, True),
        (lambda model: HistogramMatching(model, SOURCE), False),
        (lambda model: ColourMatching(model, SOURCE), False),
        (Recald, False),
    ],
    ids=["nothing", "BN-adapt", "TENT", "histogram", "colour", "recald"],
)
def test_the_given_model_stays_and_the_copy_tells_what_was_changed(network, monkeypatch, make, changes):
    monkeypatch.setattr("bench.material.adaptation.fit", partial(fit, config=FitConfig(stages=((64, 1),))))
    before = digest(network)
    method = make(network)
    method.adapt(FRAMES[:64])
    method.predict(FRAMES[:64])
    assert digest(network) == before
    assert (digest(method.model) != before) == (changed_values(network, method.model) > 0) == changes
