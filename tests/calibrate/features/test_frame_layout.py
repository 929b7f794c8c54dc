"""Networks that fold parts of frames into their batch have features of single frames, and all works with them."""

from __future__ import annotations

import copy

import pytest
import torch
from synthetic import MEAN, SHAPE, STD, drifted, images, labelled, normalised
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibrate import Limits, UnsupportedModel, collect_statistics, fit, tap
from calibrate.features.frame_layout import group_by_frame
from calibrate.fitting import FitConfig
from calibrate.judge import collect_champions, collect_evidence, judge_evidence
from calibrate.scoring.scorer import Scorer
from deploy.model.program import export_program, load_program, save_program

LIMITS = Limits.of(MEAN, STD)
FRAMES = normalised(images(6, 3))


def tiles(frames: Tensor) -> Tensor:
    """Cut frames into 4 tiles: (N, 4, 3, 8, 8)."""
    return frames.unflatten(3, (2, 8)).unflatten(2, (2, 8)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


class Parts(nn.Module):
    """Convolution and BatchNorm over tiles; `first` says whether the tile or the frame comes first in the batch."""

    def __init__(self, first: str):
        super().__init__()
        self.first, self.conv, self.norm = first, nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, frames: Tensor) -> Tensor:
        parts = tiles(frames)
        rows = parts.flatten(0, 1) if self.first == "frame" else parts.transpose(0, 1).flatten(0, 1)
        features = self.norm(self.conv(rows)).relu().mean((2, 3))
        if self.first == "frame":
            return self.head(features.unflatten(0, (-1, 4)).mean(1))
        return self.head(features.unflatten(0, (4, -1)).mean(0))


class Scales(nn.Module):
    """The tiles of a frame and of its mirror image: two parts before and four behind the frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, frames: Tensor) -> Tensor:
        both = torch.cat([tiles(frames), tiles(frames.flip(3))]).flatten(0, 1)
        features = self.norm(self.conv(both)).relu().mean((2, 3))
        return self.head(features.unflatten(0, (2, -1, 4)).mean((0, 2)))


class Tokens(nn.Module):
    """BatchNorm1d over tokens (N, C, L), then over all tokens of all frames (N * L, C), then over vectors (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 8), nn.Linear(8, 4)
        self.tokens, self.rows, self.vectors = nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.tokens(self.embed(frames).flatten(2)).relu().transpose(1, 2)
        x = self.rows(self.mix(x).flatten(0, 1)).relu().unflatten(0, (-1, 16))
        return self.head(self.vectors(x.mean(1)))


class Volume(nn.Module):
    """BatchNorm3d over a stack of shifted frames."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.Linear(8, 4)

    def forward(self, frames: Tensor) -> Tensor:
        stack = torch.stack([frames, frames.roll(1, 3), frames.roll(2, 3)], 2)
        return self.head(self.norm(self.conv(stack)).relu().mean((2, 3, 4)))


class Vectors(nn.Module):
    """BatchNorm1d alone, over vectors (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.head = nn.Linear(768, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.norm(self.one(frames.flatten(1))).relu())


KINDS = {
    "tiles of a frame": lambda: Parts("frame"),
    "frames of a tile": lambda: Parts("tile"),
    "scales": Scales,
    "tokens": Tokens,
    "volume": Volume,
    "vectors": Vectors,
}


@pytest.fixture(scope="module", params=KINDS)
def network(request) -> nn.Module:
    """A network of each kind, with the statistics of clean images."""
    torch.manual_seed(0)
    network = KINDS[request.param]()
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = None
    with torch.no_grad():
        for seed in range(100, 110):
            network(normalised(images(64, seed)))
    return network.eval()


@pytest.fixture(scope="module", params=["module", "program"])
def model(network, request) -> nn.Module:
    return network if request.param == "module" else load_program(save_program(export_program(network, FRAMES[:1])))


def test_the_features_of_a_frame_are_those_of_the_frame_alone(model):
    taps = tap(model)
    together, alone = taps(FRAMES).features, [taps(frame[None]).features for frame in FRAMES]
    for layer, feature in enumerate(together):
        expected = torch.cat([features[layer] for features in alone])
        torch.testing.assert_close(feature, expected)
        assert feature.shape[:2] == (len(FRAMES), len(taps.reference.means[layer]))


def test_statistics_count_every_part_once(model):
    found, taps = collect_statistics(tap(model), normalised(images(640, 100))), tap(model)
    for means, shipped in zip(found.means, taps.reference.means, strict=True):
        assert (means - shipped).abs().max() < 0.2
    pictures, labels = labelled(64, 8)
    frames, classes = normalised(pictures), torch.from_numpy(labels)
    of_classes = collect_statistics(taps, frames, classes)
    for label in range(4):
        alone = collect_statistics(taps, frames[classes == label])
        torch.testing.assert_close(of_classes.of(label).means, alone.means)


def test_clean_frames_score_about_1_and_a_fit_repairs_a_drift(network):
    model = copy.deepcopy(network)
    scorer = Scorer.of(tap(model), SHAPE, LIMITS)
    pictures = images(192, 5)
    clean, drifting = normalised(pictures), normalised(drifted(pictures))
    assert scorer.measure(clean).drift.score < 1.3 < 2 < scorer.measure(drifting).drift.score
    result = fit(model, drifting[:96], limits=LIMITS, config=FitConfig(stages=((96, 12),)))
    with torch.no_grad():
        restored = scorer.measure(drifting[96:], result.homogenizer)
    assert restored.drift.score < 0.6 * scorer.measure(drifting[96:]).drift.score
    candidate, champions = (
        collect_evidence(scorer, result.homogenizer, drifting[96:]),
        collect_champions(scorer, None, drifting[96:]),
    )
    verdict = judge_evidence(candidate, champions, 2.0, candidate)
    assert verdict.evidence["candidate"].layers == restored.drift.layers


def test_rows_that_mix_frames_are_refused_with_the_name_of_the_layer():
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, frames: Tensor) -> Tensor:
            x = frames.mean((2, 3))
            return self.norm(torch.cat([x, x.cumsum(0)]))

    class Joins(Mixes):
        def forward(self, frames: Tensor) -> Tensor:
            return self.norm(frames.mean((2, 3)).transpose(0, 1)[None])

    for network in (Mixes(), Joins()):
        with pytest.raises(UnsupportedModel, match="'norm' gets .*single frames"):
            tap(network.eval())(FRAMES)


@pytest.mark.parametrize("rows_in_sequence", [1, 2, 6])
def test_rows_are_grouped_by_frame(rows_in_sequence):
    repeats, frames = 6 // rows_in_sequence, 3
    rows = torch.arange(frames).repeat_interleave(rows_in_sequence).repeat(repeats)
    feature = rows.float().view(-1, 1, 1).expand(-1, 5, 7)
    grouped = group_by_frame(feature, frames, rows_in_sequence)
    assert grouped.shape == (3, 5, 6, 7)
    assert all(bool((grouped[frame] == frame).all()) for frame in range(frames))
