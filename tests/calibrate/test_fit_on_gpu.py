"""On a real GPU a fit gives what it gives on the processor, captured or not, and the same bits each time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from synthetic import MEAN, STD, drifted, images, normalised, trained_network
from torch import nn

from calibrate import FitConfig, fit, tap
from calibrate.homogenizer import Homogenizer, reflect_borders
from calibrate.search.memory import affordable_chunk
from calibrate.search.objective import Objective, default_chunk
from calibrate.source.description import Limits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
CONFIG = FitConfig(stages=((48, 6), (96, 6)))
LIMITS = Limits.of(MEAN, STD)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr("calibrate.search.objective.HAS_BFLOAT16", False)


@pytest.fixture(scope="module")
def network():
    return trained_network()


@pytest.fixture(scope="module")
def frames():
    return normalised(drifted(images(96, seed=1)))


def fitted(model, frames, **options):
    return fit(copy.deepcopy(model).cuda(), frames.cuda(), config=CONFIG, limits=LIMITS, **options)


def weights(result) -> torch.Tensor:
    return torch.cat([value.cpu().flatten() for value in result.homogenizer.state_dict().values()])


def test_it_finds_what_the_processor_finds(network, frames):
    here, there = fit(network, frames, config=CONFIG, limits=LIMITS), fitted(network, frames)
    assert all(value.is_cuda for value in there.homogenizer.state_dict().values())
    assert there.start == here.start
    assert there.start_losses == pytest.approx(here.start_losses, rel=1e-2)
    assert min(there.history) == pytest.approx(min(here.history), rel=0.1)


def test_the_same_seed_gives_the_same_bits(network, frames):
    torch.testing.assert_close(*(weights(fitted(network, frames, seed=5)) for _ in range(2)), rtol=0, atol=0)


def test_captured_kernels_do_what_the_others_do(network, frames, monkeypatch):
    captured = fitted(network, frames)
    monkeypatch.setattr(Objective, "can_be_captured", lambda *_: False)
    plain = fitted(network, frames)
    assert captured.start_losses == pytest.approx(plain.start_losses, rel=1e-4)
    assert captured.history[:3] == pytest.approx(plain.history[:3], rel=1e-3)
    assert min(captured.history) == pytest.approx(min(plain.history), rel=0.05)


def test_small_chunks_do_too(network, frames):
    whole, chunks = fitted(network, frames), fitted(network, frames, chunk=20)
    assert chunks.start_losses == pytest.approx(whole.start_losses, rel=1e-3)
    assert min(chunks.history) == pytest.approx(min(whole.history), rel=0.1)


def test_max_pooling_is_the_same_each_time_too(frames):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(6, momentum=None)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        model(normalised(images(256, seed=3)))
    torch.testing.assert_close(*(weights(fitted(model.eval(), frames)) for _ in range(2)), rtol=0, atol=0)


def test_settings_of_pytorch_stay_as_they_were(network, frames):
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    fitted(network, frames)
    assert before == (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_the_memory_is_given_back(network, frames):
    fitted(network, frames)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        fitted(network, frames)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**23


@pytest.mark.parametrize("margin", [1, 7])
def test_reflected_borders_have_pytorchs_gradient(margin):
    values = torch.randn(2, 3, 16, 9, device="cuda", requires_grad=True)
    factors = torch.randn(2, 3, 16 + 2 * margin, 9 + 2 * margin, device="cuda")
    own = torch.autograd.grad((reflect_borders(values, margin) * factors).sum(), values)[0]
    other = torch.autograd.grad((F.pad(values, (margin,) * 4, mode="reflect") * factors).sum(), values)[0]
    torch.testing.assert_close(own, other)


def test_the_chunk_follows_the_free_memory(network, frames, monkeypatch):
    taps = tap(copy.deepcopy(network).cuda())
    assert affordable_chunk(taps, frames.cuda()) == default_chunk(frames)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**23, 2**30))
    assert 0 < affordable_chunk(taps, frames.cuda()) < default_chunk(frames)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 2**30))
    assert affordable_chunk(taps, frames.cuda()) == 0


def test_a_homogenizer_from_the_gpu_serves_on_the_processor(network, frames):
    homogenizer = fitted(network, frames).homogenizer.cpu()
    assert torch.isfinite(homogenizer(frames)).all() and isinstance(homogenizer, Homogenizer)
