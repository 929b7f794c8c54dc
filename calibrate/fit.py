"""Fit a homogenizer without labels: closed-form starts, the best of them refined by gradient steps.

The objective is the one of guided data homogenization (Willis & Oala 2021, "Post-hoc domain adaptation via
guided data homogenization"): features of the transformed frames shall have the means and variances that the
frozen network's BatchNorm layers carry. Distance is the Gaussian divergence instead of the paper's norms, so
that layers and channels of any scale weigh the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from calibrate.features import Taps, tap
from calibrate.homogenizer import Homogenizer
from calibrate.initialize import colour_start, source_moments, spectral_start
from calibrate.objective import backpropagate, evaluate
from calibrate.statistics import FeatureStatistics

MIN_FRAMES = 32  # below it the statistics of deep layers are noise
MAX_VALUE = 1e4  # normalised frames stay near 3; far beyond it float32 loses the covariances
START_FRAMES = 256  # frames on which the starts are compared
TRAINED_KERNEL = 9  # taps that gradients move; the wider rim of the closed form stays as it is
WHITENING_RIDGE = 1e-2  # of the mean patch variance: bounds how much a weak direction is amplified
WARM_UP = 5  # steps of rising rate, so that Adam's first steps do not throw a good start away
FAR = 0.03  # nats, the objective of a start from which the full rates are right; CIFAR-10's lie near it

NOT_FINITE = "the loss is not finite: the frames are outside anything the network can carry"


class FitError(ValueError):
    """The frames cannot be fitted, or the fit broke; nothing was changed."""


@dataclass(frozen=True)
class FitConfig:
    """steps, batch: gradient steps and frames in each. Rates are Adam's, per unit of output variance, and for a
    start that is FAR off; a closer one is refined by smaller steps."""

    steps: int = 80
    batch: int = 128
    kernel_rate: float = 0.02
    offset_rate: float = 0.008
    curve_rate: float = 0.005

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 2:
            raise ValueError(f"steps must be >= 0 and batch >= 2, got {self.steps} and {self.batch}")


@dataclass(frozen=True)
class FitResult:
    """homogenizer: ρ, in evaluation mode, without gradients. history: loss of each step. start: its name."""

    homogenizer: Homogenizer
    start: str
    start_losses: dict[str, float]
    history: list[float] = field(repr=False)
    seconds: float
    steps: int


Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss


def fit(
    model: nn.Module,
    frames: Tensor,
    reference: FeatureStatistics | None = None,
    *,
    config: FitConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> FitResult:
    """Fit ρ so that the features of ρ(frames) match the statistics shipped in `model`, which stays unchanged.

    frames: (N, C, H, W) float32 in the model's normalised input space, N >= MIN_FRAMES.
    reference: statistics to aim at instead of those shipped in the model.
    Raises FitError for frames that cannot be fitted, for a reference of other layers and for a loss that is not
    finite, UnsupportedModel for a network without BatchNorm statistics.
    """
    began = time.perf_counter()
    config = config or FitConfig()
    _refuse_unusable(frames)
    taps = tap(model)
    target = reference or taps.reference
    _refuse_unrelated(taps, frames, target)
    generator = torch.Generator().manual_seed(seed)
    homogenizer, start, losses = _best_start(taps, frames, target, seed)
    history = []
    steps = _refine(taps, homogenizer, frames, target, config, generator, losses[start])
    for step, loss in enumerate(steps):
        history.append(loss)
        if progress is not None:
            progress(step + 1, config.steps, loss)
    return FitResult(homogenizer.eval(), start, losses, history, time.perf_counter() - began, len(history))


def _refuse_unusable(frames: Tensor) -> None:
    if frames.dim() != 4 or not frames.is_floating_point():
        raise FitError(f"frames must be float (N, C, H, W), got {frames.dtype} {tuple(frames.shape)}")
    if len(frames) < MIN_FRAMES:
        raise FitError(f"a fit needs at least {MIN_FRAMES} frames, got {len(frames)}")
    if not frames.abs().max() <= MAX_VALUE:  # also true for NaN
        raise FitError(f"frames hold values that are not finite or beyond {MAX_VALUE:g}: they must be normalised")
    if float(frames.std(0).max()) < 1e-3:
        raise FitError("all frames are the same image: a covered or frozen camera cannot be fitted")


def _refuse_unrelated(taps: Taps, frames: Tensor, target: FeatureStatistics) -> None:
    if target.names != taps.names:
        raise FitError("the reference statistics are those of other layers than the model has")
    try:
        with torch.no_grad():
            taps(frames[:1])
    except RuntimeError as error:  # how torch says that shapes or dtypes do not fit, with both of them
        shape, reason = tuple(frames.shape[1:]), str(error).partition("\n")[0]
        raise FitError(f"the model cannot take {frames.dtype} frames of shape {shape}: {reason}") from error


def _best_start(
    taps: Taps, frames: Tensor, target: FeatureStatistics, seed: int
) -> tuple[Homogenizer, str, dict[str, float]]:
    """The identity or a closed form, whichever the whole network's statistics like best."""
    _, *sizes = frames.shape
    shape = (sizes[0], sizes[1], sizes[2])
    starts = {"identity": Homogenizer(*shape)}
    source = source_moments(taps, shape, seed)
    if source is not None:
        starts["colour"] = colour_start(frames, source)
        starts["spectral"] = spectral_start(frames, source, seed)
    few = frames[:START_FRAMES]
    losses = {name: evaluate(taps, h, few, target) for name, h in starts.items()}
    finite = [name for name in starts if math.isfinite(losses[name])]
    if not finite:
        raise FitError(NOT_FINITE)
    best = min(finite, key=lambda name: losses[name])
    return starts[best], best, losses


def _refine(
    taps: Taps,
    homogenizer: Homogenizer,
    frames: Tensor,
    target: FeatureStatistics,
    config: FitConfig,
    generator: torch.Generator,
    start_loss: float,
) -> Iterator[float]:
    """Adam with a cosine schedule; yields each step's loss and leaves the result in `homogenizer`."""
    coordinates = _Coordinates(homogenizer, frames, generator)
    optimizer = torch.optim.Adam(coordinates.groups(config))
    stride = _stride(start_loss)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: stride * _rate(step, config.steps))
    for batch in _batches(frames, config, generator):
        optimizer.zero_grad()
        loss = backpropagate(taps, coordinates, batch, target)
        if not torch.isfinite(loss):
            raise FitError(NOT_FINITE)
        optimizer.step()
        schedule.step()
        yield float(loss)
    coordinates.write_back()


def _stride(start_loss: float) -> float:
    """Share of the full rates: the objective is quadratic near its minimum, so its root is the way left to go.

    Adam's steps have the length of their rate however small the gradient is. Near the minimum it is all sampling
    noise, and full steps carry a good start away.
    """
    return min(1.0, math.sqrt(max(start_loss, 0.0) / FAR))


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))


def _batches(frames: Tensor, config: FitConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches without replacement, reshuffled when the frames are used up."""
    size = min(config.batch, len(frames))
    order = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(len(frames), generator=generator)])
        yield frames[order[:size]]
        order = order[size:]


class _Coordinates(nn.Module):
    """The homogenizer in coordinates in which every direction changes the output by the same amount.

    The kernel's taps are strongly correlated on natural images: one step of Adam on raw taps moves the mean
    gain far more than any detail. `weight` (C, C*k*k) acts on whitened patches instead, so that
    kernel = start + weight @ whitener.
    """

    def __init__(self, homogenizer: Homogenizer, frames: Tensor, generator: torch.Generator):
        super().__init__()
        self._homogenizer = homogenizer.requires_grad_(False)
        self._size = min(TRAINED_KERNEL, homogenizer.kernel.shape[-1])
        with torch.no_grad():
            whitener = patch_whitener(homogenizer.tone(frames) + homogenizer.offset, self._size, generator)
        self._whitener = whitener
        self.weight = nn.Parameter(torch.zeros(frames.shape[1], len(whitener), device=frames.device))
        self.bias = nn.Parameter(homogenizer.bias.clone())
        self.offset = nn.Parameter(homogenizer.offset.clone())
        self.curve = nn.Parameter(homogenizer.curve.clone())

    def groups(self, config: FitConfig) -> list[dict[str, object]]:
        return [
            {"params": [self.weight, self.bias], "lr": config.kernel_rate},
            {"params": [self.offset], "lr": config.offset_rate},
            {"params": [self.curve], "lr": config.curve_rate},
        ]

    def forward(self, frames: Tensor) -> Tensor:
        return functional_call(self._homogenizer, self._values(), (frames,))

    def write_back(self) -> None:
        self._homogenizer.load_state_dict({name: value.detach() for name, value in self._values().items()})

    def _values(self) -> dict[str, Tensor]:
        channels, rim = len(self.bias), (self._homogenizer.kernel.shape[-1] - self._size) // 2
        change = (self.weight @ self._whitener).view(channels, channels, self._size, self._size)
        kernel = self._homogenizer.kernel + F.pad(change, (rim,) * 4)
        return {"kernel": kernel, "bias": self.bias, "offset": self.offset, "curve": self.curve}


def patch_whitener(frames: Tensor, size: int, generator: torch.Generator, samples: int = 30_000) -> Tensor:
    """Inverse square root of the covariance of size x size patches, (C*size*size, C*size*size)."""
    height, width = frames.shape[-2:]
    draw = (samples,)
    image = torch.randint(len(frames), draw, generator=generator)
    row = torch.randint(height - size + 1, draw, generator=generator)
    column = torch.randint(width - size + 1, draw, generator=generator)
    taps = torch.arange(size)
    patches = frames[  # (samples, size, size, C)
        image[:, None, None], :, row[:, None, None] + taps[:, None], column[:, None, None] + taps[None, :]
    ]
    patches = patches.permute(0, 3, 1, 2).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    scale = (values.clamp_min(0) + WHITENING_RIDGE * values.mean()).rsqrt()
    return (vectors * scale) @ vectors.T
