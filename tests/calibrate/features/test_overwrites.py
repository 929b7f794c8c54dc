"""Features are what each BatchNorm layer was given, whatever the network overwrites afterwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibrate import tap
from calibrate.features.overwrites import overwrites_values
from deploy.model.program import export_program, load_program, save_program

FRAMES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Steps(nn.Module):
    """A network of named steps; each has a BatchNorm layer and a convolution of its own."""

    def __init__(self, steps: tuple[str, ...]):
        super().__init__()
        self.steps = steps
        torch.manual_seed(0)
        self.stem, self.last, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in steps)
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in steps)
        self.register_buffer("passes", torch.zeros(1))
        self.dropout, self.relu_ = nn.Dropout(), nn.ReLU(inplace=True)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.stem(frames)
        for step, norm, convolution in zip(self.steps, self.norms, self.convolutions, strict=True):
            x = STEPS[step](self, x, norm, convolution)
        return self.head(self.last(x).mean((2, 3)))


def whole(function):
    """Make a step of one that overwrites x and returns nothing."""

    def step(network, x, norm, convolution):
        y = norm(x)
        function(x, y, convolution)
        return x + 0.1 * y

    return step


def add_residual(network, x, norm, convolution):
    x += convolution(norm(x).relu())
    return x


def add_convolution_of_itself(network, x, norm, convolution):
    x += convolution(x)
    return norm(x)


def write_through_dropout(network, x, norm, convolution):
    y = network.dropout(x)  # in evaluation mode the same memory
    z = norm(x)
    y.mul_(0.5)
    return x + z


def write_before_the_layer(network, x, norm, convolution):
    x.mul_(0.5)
    return norm(x)


def keep_an_older_name(network, x, norm, convolution):
    older, z = x, norm(x)
    x = torch.relu_(convolution(x))
    older.add_(1)
    return x + older + z


def count_passes(network, x, norm, convolution):
    network.passes += 1
    return network.relu_(norm(x))


STEPS = {
    "plain": lambda network, x, norm, convolution: network.relu_(norm(convolution(x))),
    "residual": add_residual,
    "own convolution": add_convolution_of_itself,
    "dropout": write_through_dropout,
    "before": write_before_the_layer,
    "older": keep_an_older_name,
    "count": count_passes,
    "part": whole(lambda x, y, f: x[:, :2].mul_(2)),
    "assign": whole(lambda x, y, f: x[:, 1:].copy_(y[:, 1:])),
    "view": whole(lambda x, y, f: x.view(x.shape[0], -1).clamp_(-1, 1)),
    "result": whole(lambda x, y, f: y.sigmoid().mul_(x)),
    "activation": whole(lambda x, y, f: nn.functional.silu(x, inplace=True)),
    "input": lambda network, x, norm, convolution: norm(nn.functional.hardtanh_(x)),
}

OVERWRITES_NOTHING = {"plain", "before", "input"}  # that anybody still reads


def network_of(steps: tuple[str, ...]) -> nn.Module:
    network = Steps(steps)
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval().requires_grad_(False)


def true_features(network: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
    """Return the inputs of the layers, copied at once, and the output."""
    found: dict[str, Tensor] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: found.update({name: inputs[0].clone()}))
    return found, network(FRAMES.clone())


def assert_true_features(taps, expected: dict[str, Tensor], output: Tensor) -> None:
    frames = FRAMES.clone()
    features, found_output = taps(frames)
    assert torch.equal(frames, FRAMES)
    assert torch.equal(found_output, output)
    assert set(taps.names) == set(expected)
    for name, feature in zip(taps.names, features, strict=True):
        assert torch.equal(feature, expected[name]), name
    for depth in range(1, len(taps.names) + 1):
        for name, feature in zip(taps.names, taps(FRAMES, depth).features, strict=False):
            assert torch.equal(feature, expected[name]), (name, depth)


def assert_gradient(taps) -> None:
    frames = FRAMES.clone().requires_grad_()
    sum(feature.square().sum() for feature in taps(frames).features).backward()
    assert frames.grad.isfinite().all() and frames.grad.abs().sum() > 0


@settings(max_examples=4)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=3).map(tuple))
def test_features_of_any_network_are_what_its_layers_were_given(steps):
    expected, output = true_features(network_of(steps))
    assert_true_features(tap(network_of(steps)), expected, output)
    stored = load_program(save_program(export_program(network_of(steps), FRAMES[:1])))
    assert torch.equal(stored(FRAMES.clone()), output)
    assert_true_features(tap(stored), expected, output)
    assert_gradient(tap(stored))


EVERY_STEP = tuple(sorted(STEPS))


def test_features_of_a_network_with_every_step():
    network = network_of(EVERY_STEP)
    expected, output = true_features(network_of(EVERY_STEP))
    assert_true_features(tap(network), expected, output)
    raw = export_program(network_of(EVERY_STEP), FRAMES[:1])
    assert_true_features(tap(raw.module()), expected, output)  # a program that recald did not load
    stored = load_program(save_program(raw))
    assert_true_features(tap(stored), expected, output)
    assert_gradient(tap(stored))


def test_a_rewritten_program_can_be_exported_again():
    stored = load_program(save_program(export_program(network_of(("residual", "assign")), FRAMES[:1])))
    again = load_program(save_program(export_program(stored, FRAMES[:1])))
    assert torch.equal(again(FRAMES), network_of(("residual", "assign"))(FRAMES))


@pytest.mark.parametrize("steps", [(name,) for name in STEPS])
def test_a_graph_that_overwrites_what_others_read_is_told_from_one_that_does_not(steps):
    graph = export_program(network_of(steps), FRAMES[:1]).graph
    assert overwrites_values(graph) == (not OVERWRITES_NOTHING.issuperset(steps))


def test_a_program_writes_neither_into_its_input_nor_into_its_buffers():
    class Impure(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network_of(("plain",))
            self.register_buffer("passes", torch.zeros(1))

        def forward(self, frames):
            frames.sub_(0.5)
            self.passes += 1
            return self.body(frames)

    stored = load_program(save_program(export_program(Impure().eval(), FRAMES[:1])))
    frames = FRAMES.clone()
    assert torch.equal(stored(frames), network_of(("plain",))(FRAMES - 0.5))
    assert torch.equal(frames, FRAMES) and not stored.get_buffer("passes")


def test_the_layers_of_a_live_network_may_be_called_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.BatchNorm2d(3)

        def forward(self, frames):
            return self.body(input=frames)

    assert torch.equal(tap(Named().eval())(FRAMES).features[0], FRAMES)
