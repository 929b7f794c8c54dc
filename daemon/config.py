"""The configuration file: the keys, their bounds and defaults, and the check that names every mistake."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PrivateAttr, model_validator

from daemon import CONTROL_ENDPOINT
from daemon.settings import endpoints
from daemon.settings.endpoints import Endpoint
from daemon.settings.metrics import MetricsConfig
from daemon.settings.section import Duration, GivenPath, Section, with_paths_in
from daemon.settings.values import DAY, HOUR, MINUTE, AlarmRate, alarm_rate_of, class_mix_of, sensor_id_of
from deploy.model.card import Digest
from deploy.model.document import DocumentError, MisplacedValue, load_document

SYSTEM_STATE = Path("/var/lib/recald")


class ConfigError(DocumentError):
    """A configuration that cannot be used. `problems` holds one line for each mistake."""


Alarms = Annotated[AlarmRate, BeforeValidator(alarm_rate_of), PlainSerializer(str)]
IpcEndpoint = Annotated[str, AfterValidator(endpoints.check_ipc)]
BindEndpoint = Annotated[str, AfterValidator(endpoints.check_bind)]
ConnectEndpoint = Annotated[str, AfterValidator(endpoints.check_connect)]
ClassMix = Annotated[dict[str, float], BeforeValidator(class_mix_of)]
SensorId = Annotated[str, AfterValidator(sensor_id_of)]
# deploy.backends.protocol.BACKENDS and AUTO, without the seconds that importing torch takes
BackendName = Literal["eager", "onnx", "cuda", "tensorrt", "tensorrt-rtx", "auto"]
PrecisionName = Literal["float32", "float16", "bfloat16"]  # deploy.model.precision.PRECISIONS
Mode = Literal["locked", "shadow", "supervised", "autonomous"]


class ModelConfig(Section):
    """The frozen model, and the backend that runs it."""

    path: GivenPath
    """The model file, `*.pt2`, from `recald export`. Its card, `*.yaml`, lies beside it. A relative path starts at
    the folder of the configuration file.
    """
    backend: BackendName = "onnx"
    """The library that runs the networks: `onnx` is ONNX Runtime on the CPU, `eager` PyTorch on the CPU; `cuda`,
    `tensorrt` and `tensorrt-rtx` need an NVIDIA GPU; `auto` takes the best that works. The default needs nothing
    more than recald itself.
    """
    precision: PrecisionName = "float32"
    """The number format in which the model computes; the homogenizer always computes in float32. `float16` and
    `bfloat16` are faster on a GPU and less exact. The default is the format in which networks are trained.
    """
    sha256: Digest | None = None
    """The SHA-256 of the model file, 64 hexadecimal digits, as `recald export` prints it. recald then refuses every
    other model, also one that was replaced together with its card. By default only the card is checked.
    """
    threads: int | None = Field(default=None, ge=1, le=256)
    """CPU threads that compute the model and the fits. By default one less than there are cores, so that frames and
    scrapes keep one.
    """

    @property
    def thread_count(self) -> int:
        """Return the threads to compute with: as configured, else one less than there are cores, at least 1."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) - 1)


class SensorConfig(Section):
    """One camera stream."""

    sample_every: int = Field(default=1, ge=1, le=1_000_000)
    """1 frame in so many is kept for drift checks and fits; every frame is answered. The default keeps all. Take
    more for a fast camera whose frames hardly differ.
    """
    bits: int | None = Field(default=None, ge=8, le=16)
    """Significant bits of a 16-bit word, such as 12: the highest value, 2^bits - 1, is white. Frames that state their
    own `bits` come first. By default as the model card says, which is 16 unless it names another number.
    """
    inverted: bool | None = None
    """`true` where 0 is white, as in DICOM's MONOCHROME1: such frames are turned round before all else. By default as
    the model card says, which is `false` unless it names it.
    """
    class_mix: ClassMix | None = None
    """The share of each class in what this camera shows, where it is known and another than in training, such as
    `{neutrophil: 0.6, lymphocyte: 0.3, monocyte: 0.1}`; a class that is not named has no share. Classes are named as
    on the model card, or by number. Fits, drift scores and the judge then expect this mix. It needs clean frames of
    each of these classes (`recald commission`). By default the mix of the clean frames is expected, else training's.
    """
    max_pixels: int = Field(default=25_000_000, ge=1, le=1 << 26)  # daemon.serving.pixels.MAX_PIXELS
    """Pixels, width times height, that a frame of this camera may have; a larger one is refused before it is
    decoded. The default holds the largest common machine-vision sensors, 5328 x 4608. Set it to what the camera
    sends: a PNG of a few kilobytes can claim any size, and decoding takes time and memory.
    """


# `front:` with nothing after it means the defaults.
OptionalSensor = Annotated[SensorConfig, BeforeValidator(lambda given: {} if given is None else given)]


class InputConfig(Section):
    """Where frames come from: `bind`, `connect` or both."""

    pattern: Literal["sub", "pull", "rep"] = "sub"
    """The kind of ZeroMQ socket: with `sub` cameras publish (PUB), with `pull` they push (PUSH), with `rep` they send
    requests (REQ, as imagezmq does by default), and each frame is answered `OK`. PUB is the default since a camera
    that publishes never waits for its reader.
    """
    bind: list[BindEndpoint] = []
    """Endpoints that recald opens and cameras connect to: `ipc://PATH` or `tcp://HOST:PORT`."""
    connect: list[ConnectEndpoint] = []
    """Endpoints that cameras open and recald connects to: `ipc://PATH` or `tcp://HOST:PORT`."""
    max_frame_bytes: int = Field(default=64 << 20, ge=64 << 10, le=1 << 30)
    """Bytes that one part of a message may have; ZeroMQ disconnects a sender of more. The default, 64 MiB, holds a
    raw 4K frame (25 MB) twice.
    """
    max_age: Duration = Field(default=5.0, ge=0.01, le=HOUR)
    """Age in seconds, from acquisition, above which a frame is refused as `stale`. The default is far above the
    time one frame takes, and below the watchdog's 15 s.
    """

    @model_validator(mode="after")
    def _has_endpoint(self) -> InputConfig:
        if not self.bind and not self.connect:
            raise ValueError("no endpoint: give bind or connect, such as bind: [ipc:///run/recald/frames]")
        return self


class OutputConfig(Section):
    """Where results are published."""

    bind: BindEndpoint
    """The endpoint where recald publishes results (PUB): `ipc://PATH` or `tcp://HOST:PORT`."""


class ControlConfig(Section):
    """Where `recald status`, `recalibrate` and the other orders reach the daemon."""

    endpoint: IpcEndpoint = CONTROL_ENDPOINT
    """A UNIX socket, `ipc://PATH`. The mode of the file (0600) is the only lock: the daemon's user and root may
    give orders.
    """


def default_state_directory() -> Path:
    """Return where state is kept unless the configuration says it. Raises ConfigError for a user without a home."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given or os.geteuid() == 0:
        return Path(given or SYSTEM_STATE)
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".local" / "state") / "recald"
    except RuntimeError:
        raise ConfigError(["this user has no home: set state.directory"]) from None


class StateConfig(Section):
    """Where homogenizers, dossiers and the audit log are kept."""

    directory: GivenPath = Field(default_factory=default_state_directory)
    """A folder for one daemon alone; it is locked. A relative path starts at the folder of the configuration file. The
    default is `$STATE_DIRECTORY`, which systemd sets for the unit; else `/var/lib/recald` for root, and
    `$XDG_STATE_HOME/recald` or `~/.local/state/recald` for other users. Not a folder that the system cleans, as `/tmp`.
    """
    _earlier_directory: Path | None = PrivateAttr(None)

    @property
    def earlier_directory(self) -> Path | None:
        """Return where the first releases kept the state with the same file; None where no file was read."""
        return self._earlier_directory

    def with_paths_in(self, folder: Path) -> StateConfig:
        """Let a relative path start at the folder; before it started at the working directory."""
        given = "directory" in self.model_fields_set or "STATE_DIRECTORY" in os.environ
        state = with_paths_in(folder, self, "directory")
        state._earlier_directory = self.directory if given else SYSTEM_STATE
        return state


class DriftConfig(Section):
    """When the drift alarm is raised."""

    window: int = Field(default=64, ge=8, le=100_000)
    """Newest frames that one drift check scores. On 64 clean frames the score reached 1.0 (CIFAR-10) and 1.3
    (traffic signs); with fewer it spreads more.
    """
    interval: Duration = Field(default=1.0, ge=0.05, le=HOUR)
    """Seconds between two drift checks, at least. Checks of large frames come more rarely: they take at most 5 % of
    one core, 20 % while a drift shows or a candidate is compared.
    """
    false_alarms: Alarms = alarm_rate_of("1 per 90d")
    """The highest rate of false alarms of one sensor, such as `1 per 90d`, once its baseline is known: by then recald
    tells a changed camera from changed content. A lower rate makes the alarm slower: with the default a drift that
    costs accuracy is told after two windows of frames in most cases (`bench drift`).
    """
    learn: Duration = Field(default=HOUR, ge=1, le=30 * DAY)
    """Seconds of healthy frames from which a sensor's baseline is learned where the model is not commissioned, at
    least. The default shows a camera more than one light and scene. A homogenizer that comes to serve has a baseline
    of its own, learned in the same way.
    """
    threshold: float = Field(default=1.6, gt=0, le=1e6, allow_inf_nan=False)
    """The drift score, no unit, up to which frames count as clean (the clean band). About 1 is clean; the default
    lies above the highest score of clean windows (1.3).
    """
    hold: Duration = Field(default=10.0, ge=0, le=DAY)
    """Seconds above the threshold until the alarm while there is no baseline; seconds below it count back. With the
    default, one wild score raises no alarm.
    """


class RecalibrateConfig(Section):
    """When a homogenizer is fitted, and what a candidate must pass before it serves for good."""

    mode: Mode = "autonomous"
    """Who decides. `autonomous`: a proven candidate serves by itself. `supervised`: it waits for `recald approve`.
    `shadow`: candidates are fitted and judged, and none serves. `locked`: drift is watched, and nothing is fitted.
    Where this key is not given and the network is no classifier, the mode is `supervised`: outputs judge then, which
    was measured on fewer networks than labels.
    """
    every: Duration = Field(default=HOUR, ge=1, le=365 * DAY)
    """Seconds from one recalibration to the next that the timer starts, with or without an alarm."""
    frames: int = Field(default=512, ge=128, le=10_000)  # thinning more of them would keep a frame waiting
    """Frames to collect: half for the fit, a quarter to judge it, a quarter for a second fit that must agree with it.
    From 128 on a fit reached over 90 % (CIFAR-10, `bench curve`); the default leaves room for frames that are alike.
    """
    collect: Duration = Field(default=2 * MINUTE, ge=0, le=DAY)
    """Seconds over which these frames are spread, at least, so that they show more than one scene. On a stream of
    long scenes a fit on the first 512 frames reached 80.1 %, one on two minutes 89.4 % (CIFAR-10).
    """
    timeout: Duration = Field(default=15 * MINUTE, ge=1, le=DAY)
    """Seconds after which a fit is stopped, with the result `timeout`. A fit takes about 18 s on two PC cores; the
    default leaves room for a small device.
    """
    memory_mib: int | None = Field(default=None, ge=256, le=1 << 24)
    """MiB of memory that the worker of a fit may take; above it is ended, and the fit has failed. By default half of
    what is free when the fit begins; the log says how much that is.
    """
    backoff: Duration = Field(default=MINUTE, ge=0, le=DAY)
    """Seconds to wait after a recalibration that led to nothing. The wait doubles each time, up to 64 times or
    `every`, so that a drift that no fit can undo costs little.
    """
    shadow: Duration = Field(default=5.0, ge=0, le=DAY)
    """Seconds for which a candidate runs beside what serves, on new frames, before it may serve; three comparisons
    at least.
    """
    probation: Duration = Field(default=MINUTE, ge=0, le=DAY)
    """Seconds for which a new homogenizer is compared with the one before, which serves again if it was better;
    three comparisons at least.
    """
    fits_a_day: int = Field(default=48, ge=1, le=86_400)
    """Fits in 24 hours, at most; an operator's order may exceed it. The timer alone asks for 24, so the default
    leaves as many for drift.
    """
    swaps_a_day: int = Field(default=24, ge=1, le=86_400)
    """Swaps in 24 hours, at most; an operator's order may exceed it. The way back to no homogenizer does not count."""
    keep_frames: int = Field(default=0, ge=0, le=64)
    """Frames of each recalibration to keep on the disk for `recald report`. The default keeps none, since frames
    may show people. `recald purge` deletes them.
    """
    keep_frames_mib: int = Field(default=64, ge=1, le=65_536)
    """MiB that all kept frames together may take; the oldest are deleted first."""
    envelope: GivenPath | None = None
    """A file of bounds on every homogenizer, and on this configuration; outside of them nothing serves. A relative
    path starts at the folder of the configuration file. By default there are no such bounds.
    """
    envelope_key: GivenPath | None = None
    """The public key, Ed25519 in PEM form, that must have signed the envelope; the signature lies beside it as
    `*.sig`. By default no signature is asked for.
    """

    @model_validator(mode="after")
    def _key_has_envelope(self) -> RecalibrateConfig:
        if self.envelope_key is not None and self.envelope is None:
            raise ValueError("envelope_key is of no use without envelope: name the file that it has signed")
        return self


class FitDeviceConfig(Section):
    """Where fits compute."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cpu`, or `cuda` for an NVIDIA GPU. `auto` takes the GPU if PyTorch finds one and the backend uses it too, or
    2 GiB of it are free. A GPU that runs out of memory gets fewer frames at once; with `auto` the processor takes
    over at the end, with `cuda` the fit fails.
    """


class Config(Section):
    """The whole file."""

    version: Literal[1]
    """The version of this format: 1."""
    model: ModelConfig
    """The frozen model, and the backend that runs it."""
    sensors: dict[SensorId, OptionalSensor] = Field(min_length=1)
    """One entry for each camera, named by the id that its frames carry: 1 to 64 letters, digits, `_`, `.` or `-`,
    not led by `.` or `-`, not `unknown`.
    """
    input: InputConfig
    """Where frames come from; give `bind`, `connect` or both."""
    output: OutputConfig
    """Where results are published."""
    metrics: MetricsConfig = MetricsConfig()
    """Where Prometheus scrapes, supervisors ask for health, and people look at the page."""
    control: ControlConfig = ControlConfig()
    """Where operators' commands arrive."""
    state: StateConfig = Field(default_factory=StateConfig)
    """Where everything that lasts is kept."""
    drift: DriftConfig = DriftConfig()
    """When the drift alarm is raised."""
    recalibrate: RecalibrateConfig = RecalibrateConfig()
    """When a homogenizer is fitted, and when one may serve."""
    fit: FitDeviceConfig = FitDeviceConfig()
    """Where fits compute."""
    allow_remote: bool = False
    """`true` permits endpoints and metrics that other machines can reach. The default refuses them, since
    nothing is encrypted or authenticated but the metrics with a certificate.
    """

    @model_validator(mode="after")
    def _endpoints_differ(self) -> Config:
        clash = endpoints.find_clash(self.endpoints())
        if clash is not None:
            raise MisplacedValue(clash[0].key, clash[1])
        return self

    def endpoints(self) -> list[Endpoint]:
        """Return every place that recald opens or connects to."""
        metrics = self.metrics
        return [
            *(Endpoint(("input", "bind", index), address) for index, address in enumerate(self.input.bind)),
            *(Endpoint(("input", "connect", i), address, opened=False) for i, address in enumerate(self.input.connect)),
            Endpoint(("output", "bind"), self.output.bind),
            Endpoint(("control", "endpoint"), self.control.endpoint),
            Endpoint(("metrics", "port"), f"tcp://{metrics.host}:{metrics.port or '*'}"),
        ]

    @model_validator(mode="wrap")
    @classmethod
    def _share_allow_remote(cls, data: Any, handler: Callable[[Any], Config]) -> Config:
        allowed = isinstance(data, dict) and data.get("allow_remote") is True
        with endpoints.remote_allowed(allowed):
            return handler(data)


def load_config(path: Path) -> Config:
    """Read and check the file, and make its relative paths start at its folder.

    Raises ConfigError, which names every mistake with its line.
    """
    try:
        config = load_document(path, Config)
    except DocumentError as error:
        raise ConfigError(error.problems) from None
    folder = path.resolve().parent
    return config.model_copy(
        update={
            "model": with_paths_in(folder, config.model, "path"),
            "metrics": with_paths_in(folder, config.metrics, "certificate", "certificate_key", "client_ca"),
            "state": config.state.with_paths_in(folder),
            "recalibrate": with_paths_in(folder, config.recalibrate, "envelope", "envelope_key"),
        }
    )
