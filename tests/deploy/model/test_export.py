"""What `recald export` accepts, `recald run` runs; the rest is refused in one line with the right reason."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibrate import tap
from deploy.model.card import ModelCard, card_path
from deploy.model.document import load_document
from deploy.model.export import check_batchnorm, check_scale, export_model
from deploy.model.frozen import FrozenModel, load_frozen
from deploy.model.program import ModelError

SHAPE = (3, 8, 8)
SETTINGS = {"input_shape": SHAPE, "mean": [0.5] * 3, "std": [0.25] * 3}
IMAGES = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(5))
Export = Callable[..., FrozenModel]


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export a network and load it as the daemon does."""

    def export(network: nn.Module, **settings: Any) -> FrozenModel:
        builders = ModuleType("given_networks")
        builders.make = lambda: network  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "given_networks", builders)
        export_model("given_networks:make", None, tmp_path / "model.pt2", **(SETTINGS | settings))
        return load_frozen(tmp_path / "model.pt2")

    return export


def trained(network: nn.Module) -> nn.Module:
    """Give each layer statistics of its own, as after training."""
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


class Net(nn.Module):
    """A small classifier; a test replaces one of its parts."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes)
        self.last: nn.Module = nn.Identity()
        trained(self)

    def features(self, frames: Tensor) -> Tensor:
        return self.norm(self.conv(frames)).relu().mean((2, 3))

    def forward(self, frames: Tensor) -> Any:
        return self.last(self.head(self.features(frames)))


class Squeezes(Net):
    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.features(frames).squeeze())


class Branches(Net):
    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.features(frames * 0.5 if frames.mean() > 0.5 else frames))


class Twice(Net):
    def forward(self, frames: Tensor) -> Tensor:
        x = self.conv(frames)
        return self.head((self.norm(x).relu() + self.norm(-x)).mean((2, 3)))


class Raises(Net):
    def forward(self, frames: Tensor) -> Tensor:
        raise OSError("no licence\nfor this camera")


class Several(Net):
    def forward(self, frames: Tensor) -> Any:
        features = self.features(frames)
        return {"logits": self.head(features), "pair": (features, [frames])}


class Counts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, frames: Tensor) -> Tensor:
        self.passes += 1
        return self.head(self.features(frames)) * self.passes


class Detached(Net):
    def features(self, frames: Tensor) -> Tensor:
        return super().features(frames.detach())


class OfFrames(Net):
    """Normalises by statistics of the frame itself."""

    def features(self, frames: Tensor) -> Tensor:
        x = self.conv(frames)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        return nn.functional.batch_norm(x, mean * 0 + self.norm.running_mean, variance * 0 + 1).mean((2, 3))


class Idle(Net):
    def features(self, frames: Tensor) -> Tensor:
        x = (self.conv(frames) - self.norm.running_mean.view(-1, 1, 1)) / self.norm.running_var.view(-1, 1, 1).sqrt()
        return x.relu().mean((2, 3))


def stuck() -> nn.Module:
    class Stuck(Net):
        def train(self, mode: bool = True) -> Stuck:
            self.training = mode
            return self

    network = Stuck()
    network.norm.train()
    network.norm.training = True
    return network


def overflowed() -> nn.Module:
    network = Net()
    network.norm.running_var[2] = torch.inf
    return network


def with_last(layer: nn.Module) -> nn.Module:
    network = Net()
    network.last = layer
    return network


def without_batchnorm() -> nn.Module:
    network = Net()
    network.norm = nn.GroupNorm(2, 4)
    return network


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Squeezes, r"returned shape \(5,\) for 1 images"),
        (Branches, "branches on the values of tensors"),
        (Twice, "'norm' runs more than once"),
        (Raises, "does not run on an input of shape .*: no licence"),
        (Several, r"must return one tensor, not dict of 2 \(logits: \(3, 5\), pair: tuple of 2"),
        (Counts, "one image alone gives another output"),
        (Detached, "fits need: is it detached"),
        (OfFrames, "normalises by statistics of the frames"),
        (Idle, r"forward runs none of its BatchNorm layers \(norm\)"),
        (stuck, "in training mode after eval.*: norm: .*correct the train"),
        (overflowed, "'norm' ships running statistics that are not finite"),
        (without_batchnorm, "only GroupNorm, which ships none"),
        (lambda: Net().half(), "float16: call .float"),
        (lambda: Net().double(), "float64: call .float"),
        (lambda: with_last(nn.Flatten(0)), "its first dimension must match"),
    ],
)
def test_what_run_would_refuse_is_refused_in_one_line(export, tmp_path, capfd, build, reason):
    with pytest.raises(ModelError, match=f"given_networks:make: .*{reason}") as caught:
        export(build())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


class FrozenBatchNorm2d(nn.Module):
    """As detection libraries have it."""

    def __init__(self, layer: nn.BatchNorm2d, eps: float | None = None) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(layer, name).detach().clone())
        if eps is not None:
            self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + getattr(self, "eps", 0.0)).rsqrt()
        return x * scale.view(-1, 1, 1) + (self.bias - self.running_mean * scale).view(-1, 1, 1)


@pytest.mark.parametrize("eps", [None, 1e-5, 1e-2])
def test_a_frozen_batchnorm_is_a_batchnorm(export, eps):
    network = Net()
    network.norm = FrozenBatchNorm2d(network.norm, eps).eval()
    live = tap(network)
    features, expected = live(IMAGES)
    frozen = export(network)
    torch.testing.assert_close(frozen.module(IMAGES), expected)
    taps = tap(frozen.module)
    assert taps.names == live.names == ("norm",)
    torch.testing.assert_close(taps(IMAGES).features, features)
    assert torch.equal(taps.reference.variances[0], live.reference.variances[0])


class InFloat32(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        variance = self.running_var.float().clamp(min=0.6)
        return nn.functional.batch_norm(x, self.running_mean.float(), variance, self.weight.float(), self.bias.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_statistics_that_are_computed_from_stored_ones_are_read(export, dtype):
    network = Net()
    network.norm = trained(InFloat32(4)).to(dtype)
    taps = tap(export(network).module)
    assert taps.names == ("norm",)
    torch.testing.assert_close(taps.reference.means[0], network.norm.running_mean.float())
    torch.testing.assert_close(taps.reference.variances[0], network.norm.running_var.float().clamp(min=0.6))


def exits(*outputs: int) -> list[str]:
    return [f"class {number}" for number in range(*outputs)]


@pytest.mark.parametrize(
    ("network", "settings", "kind"),
    [
        (lambda: Net(5), {}, "none"),  # nothing tells a classifier from a regression
        (lambda: Net(5), {"classes": exits(5)}, "logits"),
        (lambda: Net(5), {"kind": "logits"}, "logits"),
        (lambda: Net(5), {"kind": "none", "classes": exits(5)}, "none"),
        (lambda: with_last(nn.Softmax(1)), {}, "probabilities"),
        (lambda: with_last(nn.Softmax(1)), {"classes": exits(5)}, "probabilities"),
        (lambda: with_last(nn.LogSoftmax(1)), {"classes": exits(5)}, "logits"),
        (lambda: with_last(nn.Sigmoid()), {"classes": exits(5)}, "none"),
        (lambda: Net(1), {}, "none"),
        (lambda: with_last(nn.Unflatten(1, (5, 1, 1))), {}, "none"),
    ],
)
def test_the_card_says_what_the_output_is(export, network, settings, kind):
    frozen = export(network(), **settings)
    assert frozen.output == frozen.card.output == kind


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (lambda: with_last(nn.Softmax(1)), "logits"),
        (lambda: Net(5), "probabilities"),
        (lambda: Net(1), "logits"),
        (lambda: with_last(nn.Sigmoid()), "probabilities"),
    ],
)
def test_a_wrong_statement_about_the_output_is_refused(export, network, kind):
    with pytest.raises(ModelError, match=f"its output is not {kind}: .*can be .*none"):
        export(network(), kind=kind)


@pytest.mark.parametrize(
    ("network", "settings", "kind"),
    [
        (lambda: Net(5), {"classes": exits(5)}, "logits"),
        (lambda: Net(2), {"classes": exits(2)}, "logits"),
        (lambda: Net(5), {}, "logits"),
        (lambda: Net(2), {}, "none"),
        (lambda: with_last(nn.Softmax(1)), {}, "probabilities"),
    ],
)
def test_the_output_of_an_older_card_is_found_out(export, network, settings, kind):
    path = export(network(), **settings).path
    card = card_path(path).read_text().splitlines(keepends=True)
    card_path(path).write_text("".join(line for line in card if not line.startswith("output:")))
    assert load_document(card_path(path), ModelCard).output is None
    assert load_frozen(path).output == kind


def test_a_card_that_says_something_else_than_the_output_is_refused(export):
    path = export(Net(1)).path
    card_path(path).write_text(card_path(path).read_text().replace("output: none", "output: logits"))
    with pytest.raises(ModelError, match=r"the card says that the output is logits, but an image gives shape \(1,\)"):
        load_frozen(path)


def test_an_output_that_results_cannot_hold_is_refused(export):
    class Half(Net):
        def forward(self, frames: Tensor) -> Tensor:
            return self.head(self.features(frames)).bfloat16()

    with pytest.raises(ModelError, match="its output is of type torch.bfloat16"):
        export(Half())


@pytest.mark.parametrize(
    ("mean", "std"), [([123.675, 116.28, 103.53], [58.395] * 3), ([104.0], [1.0]), ([0.0], [255.0])]
)
def test_a_scale_of_grey_levels_is_recognised(mean, std):
    with pytest.raises(ModelError, match="on the scale 0..255: divide them by 255: --mean 0") as caught:
        check_scale(mean, std)
    assert f"--std {std[0] / 255:.4g}" in str(caught.value)


@pytest.mark.parametrize(("mean", "std"), [([0.485, 0.456, 0.406], [0.229] * 3), ([0.0], [1.0]), ([0.5], [1 / 255])])
def test_a_scale_of_values_up_to_1_is_accepted(mean, std):
    check_scale(mean, std)


def batchnorm(**options: bool) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(2, **options)
    layer(torch.randn(8, 2, 4, 4))
    return layer.eval()


def test_trained_running_statistics_are_accepted():
    check_batchnorm(nn.Sequential(nn.Conv2d(1, 2, 3), batchnorm()))


def folded() -> nn.Module:
    network = Net()
    network.norm = nn.Identity()
    return network


def test_a_network_whose_batchnorm_was_folded_is_refused(export):
    with pytest.raises(ModelError, match="were folded into the convolutions: export the unfused float model"):
        export(folded())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            nn.Sequential(batchnorm(), batchnorm(track_running_stats=False)),
            "without running statistics: 1: build it with track_running_stats=True",
        ),
        (nn.Sequential(nn.BatchNorm2d(2)).eval(), "statistics it starts with .* give the trained weights"),
    ],
)
def test_statistics_that_the_method_cannot_use_are_refused(module, reason):
    with pytest.raises(ModelError, match=reason):
        check_batchnorm(module)
