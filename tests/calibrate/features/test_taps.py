"""Taps read the same from a module by hooks as from the graph of its exported program."""

import functools

import pytest
import torch
from torch import nn

from calibrate import FitError, UnsupportedModel, fit, reference_statistics, tap
from deploy.model.program import export_program, load_program, save_program

FRAMES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """A residual network whose BatchNorm layers are registered as they run."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.body, self.second = nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4, affine=False)
        self.skip, self.third = nn.Conv2d(6, 4, 1, stride=2), nn.BatchNorm2d(4)
        self.head, self.fourth = nn.Linear(4, 8), nn.BatchNorm1d(8)

    def forward(self, frames):
        x = self.first(self.stem(frames)).relu()
        x = self.second(self.body(x)) + self.third(self.skip(x))
        return self.fourth(self.head(x.relu().mean((2, 3))))


class Backwards(nn.Module):
    """A network whose BatchNorm layers are registered in the reverse order of their runs."""

    def __init__(self):
        super().__init__()
        self.late, self.early = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, frames):
        return self.late(self.two(self.early(self.one(frames)).relu()))


class Auxiliary(Backwards):
    """A network with a BatchNorm layer that never runs."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.BatchNorm2d(4)


class Recurrent(nn.Module):
    """A network with a BatchNorm layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.shared = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, frames):
        return self.shared(self.two(self.shared(self.one(frames)).relu()))


def trained(network: nn.Module) -> nn.Module:
    """Give each layer different statistics, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats:
                layer.running_mean.normal_(generator=generator)
                layer.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


def exported(network: nn.Module) -> nn.Module:
    return load_program(save_program(export_program(network, FRAMES[:1])))


@pytest.fixture(scope="module", params=["module", "program"])
def form(request):
    return functools.cache(exported) if request.param == "program" else lambda network: network


def assert_same(found, expected):
    assert len(found) == len(expected)
    for tensor, expected_tensor in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, expected_tensor)


def hooks(network):
    return [hook for module in network.modules() for hook in module._forward_pre_hooks]


@pytest.fixture(scope="module")
def branches():
    return trained(Branches())


@pytest.fixture(scope="module")
def program(branches):
    return exported(branches)


def test_names_and_reference_are_those_of_the_layers(branches, form):
    reference = reference_statistics(form(branches))
    assert reference.names == ("first", "second", "third", "fourth") == tap(form(branches)).names
    layers = [branches.get_submodule(name) for name in reference.names]
    assert_same(reference.means, [layer.running_mean for layer in layers])
    assert_same(reference.variances, [layer.running_var for layer in layers])


def test_features_are_the_inputs_of_the_layers(branches, form):
    forward = tap(form(branches))(FRAMES)
    assert [tuple(f.shape) for f in forward.features] == [(5, 6, 16, 16), (5, 4, 8, 8), (5, 4, 8, 8), (5, 8)]
    torch.testing.assert_close(forward.features[0], branches.stem(FRAMES))
    torch.testing.assert_close(branches.fourth(forward.features[3]), forward.output)
    torch.testing.assert_close(forward.output, branches(FRAMES))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_module_and_program_agree_for_any_batch(branches, program, count):
    by_hooks, by_graph = tap(branches)(FRAMES[:count]), tap(program)(FRAMES[:count])
    assert_same(by_hooks.features, by_graph.features)
    torch.testing.assert_close(by_hooks.output, by_graph.output)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_truncated_pass_gives_the_first_features_and_no_output(branches, form, depth):
    taps = tap(form(branches))
    truncated = taps(FRAMES, depth)
    assert truncated.output is None
    assert_same(truncated.features, taps(FRAMES).features[:depth])


@pytest.mark.parametrize("depth", [-1, 0, 5])
def test_a_depth_that_the_network_does_not_have_is_refused(branches, form, depth):
    with pytest.raises(ValueError, match="from 1 to the 4"):
        tap(form(branches))(FRAMES, depth)


def test_a_truncated_pass_does_not_compute_the_rest(branches):
    ran = []
    handle = branches.body.register_forward_pre_hook(lambda *_: ran.append("body"))
    tap(branches)(FRAMES, depth=1)
    handle.remove()
    assert ran == []


def test_gradients_reach_the_frames(branches, form):
    frames = FRAMES.clone().requires_grad_()
    sum(feature.square().sum() for feature in tap(form(branches))(frames).features).backward()
    assert frames.grad.abs().sum() > 0


def test_no_hook_remains(branches):
    taps = tap(branches)
    taps(FRAMES)
    taps(FRAMES, depth=2)
    with pytest.raises(RuntimeError):
        taps(FRAMES[:, :2])
    assert hooks(branches) == []


def test_the_reference_is_a_copy():
    network = trained(Branches())
    reference = tap(network).reference
    before = reference.means[0].clone()
    network.first.running_mean += 1
    torch.testing.assert_close(reference.means[0], before)


def test_the_graph_shares_the_weights_of_the_program(branches):
    program = exported(branches)
    taps = tap(program)
    before = taps(FRAMES).output
    with torch.no_grad():
        program.get_parameter("head.bias").add_(1)
        program.get_parameter("fourth.weight").zero_()
    assert not torch.allclose(taps(FRAMES).output, before)


def test_features_have_the_order_of_the_names_for_any_order_of_runs(form):
    network = trained(Backwards())
    taps = tap(form(network))
    features = dict(zip(taps.names, taps(FRAMES).features, strict=True))
    reference = dict(zip(taps.names, taps.reference.means, strict=True))
    torch.testing.assert_close(features["early"], network.one(FRAMES))
    torch.testing.assert_close(network.late(features["late"]), network(FRAMES))
    torch.testing.assert_close(reference["early"], network.early.running_mean)
    torch.testing.assert_close(reference["late"], network.late.running_mean)
    for depth in (1, 2):
        assert_same(taps(FRAMES, depth).features, [features[name] for name in taps.names[:depth]])


def test_a_program_is_tapped_in_the_order_it_runs():
    assert tap(exported(trained(Backwards()))).names == ("early", "late")
    assert tap(trained(Backwards())).names == ("late", "early")


def test_a_reference_in_another_order_than_the_features_is_refused():
    network = trained(Backwards())
    with pytest.raises(FitError, match="other layers"):
        fit(exported(network), torch.randn(32, 3, 16, 16), reference_statistics(network))


def test_a_layer_that_never_runs_is_refused_in_a_module_and_absent_from_a_program():
    network = trained(Auxiliary())
    with pytest.raises(UnsupportedModel, match="'auxiliary' does not run"):
        tap(network)(FRAMES)
    with pytest.raises(UnsupportedModel, match="'auxiliary' does not run"):
        tap(network)(FRAMES, depth=3)
    assert hooks(network) == []
    assert tap(exported(network)).names == ("early", "late")


def test_a_layer_that_runs_twice_is_refused(form):
    network = form(trained(Recurrent()))
    before = hooks(network)
    with pytest.raises(UnsupportedModel, match="'shared' runs more than once"):
        tap(network)(FRAMES)
    assert hooks(network) == before


def test_a_network_without_batchnorm_is_refused(form):
    with pytest.raises(UnsupportedModel, match="no BatchNorm layer"):
        tap(form(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()))


def test_a_layer_without_running_statistics_is_refused(form):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(UnsupportedModel, match="track_running_stats=True"):
        tap(form(network))


def test_a_network_in_training_mode_is_refused(form):
    with pytest.raises(UnsupportedModel, match=r"model.eval\(\)"):
        tap(form(Branches().train()))


def test_a_single_layer_in_training_mode_is_refused():
    network = trained(Branches())
    network.third.train()
    with pytest.raises(UnsupportedModel, match=r"third is in training mode"):
        tap(network)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch 2.13 uses what it deprecates
def test_a_program_with_decomposed_operators_is_tapped_too(branches):
    program = export_program(branches, FRAMES[:1]).run_decompositions().module()
    assert tap(program).names == tap(branches).names
    assert_same(tap(program)(FRAMES).features, tap(branches)(FRAMES).features)
