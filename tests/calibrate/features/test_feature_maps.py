"""The feature maps of the paper; none of them changes the network it is made from."""

import pytest
import synthetic
import torch
from torch import nn

from calibrate import UnsupportedModel, tap
from calibrate.features.feature_maps import all_layers, penultimate, random_network, random_projection, with_logits
from deploy.model.program import export_program, load_program, save_program

FRAMES = synthetic.normalised(synthetic.images(48, 1))


@pytest.fixture(scope="module")
def network():
    network = synthetic.trained_network()
    network.zero_grad()
    return network


@pytest.fixture(scope="module")
def program(network):
    return load_program(save_program(export_program(network, FRAMES[:1])))


@pytest.fixture(params=["all layers", "penultimate", "random network", "random projection", "with logits"])
def feature_map(request, network):
    projection = random_projection(synthetic.SHAPE, width=16)
    return {
        "all layers": lambda: all_layers(network),
        "penultimate": lambda: penultimate(network),
        "random network": lambda: random_network(network, 0, FRAMES),
        "random projection": lambda: projection,
        "with logits": lambda: with_logits(projection, network),
    }[request.param]()


def test_there_is_a_feature_of_each_frame_for_each_name(feature_map):
    features = feature_map(FRAMES).features
    assert len(features) == len(feature_map.names) > 0
    assert all(len(feature) == len(FRAMES) for feature in features)


def test_gradients_reach_the_frames_and_nothing_else(feature_map, network):
    frames = FRAMES.clone().requires_grad_()
    sum(feature.square().sum() for feature in feature_map(frames).features).backward(inputs=[frames])
    assert frames.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


def test_all_layers_are_the_taps(network):
    torch.testing.assert_close(all_layers(network)(FRAMES).features, tap(network)(FRAMES).features)


def test_the_penultimate_feature_is_the_last_convolutions_output(network):
    last = penultimate(network)
    forward = last(FRAMES)
    assert last.names == ("4",)
    torch.testing.assert_close(forward.features, [network[:4](FRAMES)])
    torch.testing.assert_close(forward.output, network(FRAMES))
    torch.testing.assert_close(last.reference.means[0], network[4].running_mean)
    torch.testing.assert_close(last.reference.variances[0], network[4].running_var)


def test_the_penultimate_feature_of_an_exported_graph_is_the_same(network, program):
    torch.testing.assert_close(penultimate(program)(FRAMES).features, penultimate(network)(FRAMES).features)


def test_a_random_network_depends_on_its_seed_and_leaves_torchs_random_state_alone(network):
    state = torch.get_rng_state()
    one, same, other = (random_network(network, seed)(FRAMES).features for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(one, same)
    assert not torch.allclose(one[0], other[0])
    assert not torch.allclose(one[0], tap(network)(FRAMES).features[0])


def test_a_random_network_gives_no_logits(network):
    random = random_network(network)
    assert random(FRAMES).output is None
    torch.testing.assert_close(with_logits(random, network)(FRAMES).output, network(FRAMES))


def test_a_random_network_measures_the_source_at_its_batchnorm_layers(network):
    measured, bare = (random_network(network, 0, source)(FRAMES).features for source in (FRAMES, None))
    torch.testing.assert_close(measured[0], bare[0])  # before any BatchNorm
    assert not torch.allclose(measured[1], bare[1])


def test_the_network_stays_unchanged(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random_network(network, 3, FRAMES)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_exported_graph_cannot_be_initialised_anew(program):
    with pytest.raises(UnsupportedModel, match="cannot be initialised anew.*not its exported graph"):
        random_network(program)


def test_a_parameter_without_initialisation_is_refused_by_name(network):
    class Scaled(nn.Sequential):
        def __init__(self):
            super().__init__(network)
            self.gain = nn.Parameter(torch.ones(1))

    with pytest.raises(UnsupportedModel, match="'gain'"):
        random_network(Scaled().eval())


def test_a_projection_keeps_unit_variance_and_depends_on_its_seed():
    noise = torch.randn(2000, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    one, same, other = (random_projection((3, 8, 8), seed=seed)(noise) for seed in (0, 0, 1))
    assert one.features[0].shape == (2000, 512) and one.output is None
    assert one.features[0].var() == pytest.approx(1, abs=0.01)
    assert torch.equal(one.features[0], same.features[0])
    assert not torch.allclose(one.features[0], other.features[0])
