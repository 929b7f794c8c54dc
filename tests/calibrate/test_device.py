"""A fit runs where its frames are: everything is made there, and the same seed gives the same homogenizer."""

import pytest
import torch
from other_device import DEVICE, MixedDevices, OtherDeviceTensor, moved, other_device
from synthetic import MEAN, STD, drifted, images, normalised, trained_network
from torch import nn

from calibrate import FitConfig, PaddedCrop, fit, measured_source
from calibrate.search import starts as starts_module
from calibrate.source.description import Limits

CONFIG = FitConfig(stages=((32, 2), (48, 2)))
LIMITS = Limits.of(MEAN, STD)


@pytest.fixture(autouse=True)
def exact_and_short(monkeypatch):
    monkeypatch.setattr("calibrate.search.objective.HAS_BFLOAT16", False)
    monkeypatch.setattr("calibrate.search.starts.RANDOM_ROTATIONS", 4)
    monkeypatch.setattr("calibrate.search.starts.REFINEMENT_SPREADS_RAD", (0.5,))


@pytest.fixture(scope="module")
def network():
    return trained_network()


@pytest.fixture(scope="module")
def frames():
    return normalised(drifted(images(48, seed=1)))


def weights(result) -> torch.Tensor:
    return torch.cat([value.cpu().flatten() for value in result.homogenizer.state_dict().values()])


def fitted_there(model, frames, **options):
    with other_device():
        result = fit(moved(model), OtherDeviceTensor(frames.clone()), config=CONFIG, **options)
        assert all(value.device == DEVICE for value in result.homogenizer.state_dict().values())
        return result, weights(result)


def same(model, frames, **options) -> None:
    here = fit(model, frames, config=CONFIG, **options)
    there, found = fitted_there(model, frames, **options)
    assert there.start == here.start
    assert there.start_losses == pytest.approx(here.start_losses, rel=1e-3)
    assert there.history == pytest.approx(here.history, rel=1e-2)
    torch.testing.assert_close(found, weights(here), atol=1e-2, rtol=0)


@pytest.mark.parametrize("given", [False, True])
def test_everything_is_made_where_the_frames_are(network, frames, given):
    """What is given may be on the processor. Matrices are decomposed on either device."""
    source = measured_source(normalised(images(256, seed=3))) if given else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starts_module, "MAX_MATRICES_ON_PROCESSOR", 0 if given else 4096)
        same(network, frames, limits=LIMITS, source=source, chunk=20 if given else None)


def test_labels_and_single_channels_have_their_place_too(frames):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 14 * 14, 3)]
    grey, model = frames[:, :1], nn.Sequential(*layers)
    with torch.no_grad():
        model(normalised(images(256, seed=3))[:, :1])
    same(model.eval(), grey, limits=Limits.of(MEAN[:1], STD[:1]))
    with other_device():
        labels = OtherDeviceTensor(torch.arange(len(grey)) % 3)
        there = fit(moved(model), OtherDeviceTensor(grey.clone()), labels=labels, criterion=1.0, config=CONFIG)
    assert there.history == pytest.approx(
        fit(model, grey, labels=torch.arange(len(grey)) % 3, criterion=1.0, config=CONFIG).history, rel=1e-2
    )


def test_crops_are_made_there(frames):
    crop = PaddedCrop(2, (0.1, -0.2, 0.3))
    with other_device():
        found = crop(OtherDeviceTensor(frames), 5)
        torch.testing.assert_close(found.cpu(), crop(frames, 5))


def test_a_tensor_left_on_the_processor_would_be_noticed(frames):
    with other_device(), pytest.raises(MixedDevices):
        OtherDeviceTensor(frames) + torch.zeros(3, 1, 1)
