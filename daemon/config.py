"""The configuration file: what may be set, within which bounds, and why a value is refused."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from daemon import UNKNOWN_SENSOR
from deploy.model.document import DocumentError, load_document

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MAX_IPC_PATH = 107  # bytes; sun_path of a UNIX socket holds 108 with the terminating zero
UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0

# Endpoints are judged deep inside the document while the permission stands at its top; a validator sees
# only its own value, so the root tells the others before they run.
_remote_allowed: ContextVar[bool] = ContextVar("remote_allowed", default=False)


class ConfigError(DocumentError):
    """A configuration that cannot be used; `problems` holds every mistake, one line each."""


def _seconds(value: object) -> int | float:
    if not isinstance(value, str | int | float):
        raise ValueError("expected seconds or a duration such as 500ms, 30s, 15m or 1h")
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value, re.ASCII)
    if match is None:
        raise ValueError(f"{value[:40]!r} is not a duration: write a number and ms, s, m or h, such as 30s")
    return float(match[1]) * UNITS[match[2]]


def _local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def _host(host: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,253}", host, re.ASCII):
        raise ValueError(f"{host[:60]!r} is not an IPv4 address or a host name")
    if not _local(host) and not _remote_allowed.get():
        raise ValueError(
            f"{host} is open to other machines, and what passes here is neither encrypted nor authenticated: "
            "use ipc:// or 127.0.0.1, or set allow_remote: true"
        )
    return host


def _sensor_id(name: str) -> str:
    # The id becomes a folder in the state directory and a metric label.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name) or name == UNKNOWN_SENSOR:
        raise ValueError(
            f"{name[:70]!r} is no sensor id: up to 64 letters, digits, _ . or -, "
            f"not led by . or -, and not {UNKNOWN_SENSOR!r}"
        )
    return name


def _ipc(endpoint: str) -> str:
    path = endpoint.removeprefix("ipc://")
    if path == endpoint or not path or path[0] in "@*":  # neither has a file whose mode protects it
        raise ValueError(f"{endpoint[:60]!r} is not ipc://PATH")
    if len(path.encode()) > MAX_IPC_PATH:
        raise ValueError(f"the path has {len(path.encode())} bytes, a UNIX socket takes {MAX_IPC_PATH}")
    return endpoint


def _bind_endpoint(endpoint: str) -> str:
    if not endpoint.startswith("tcp://"):
        return _ipc(endpoint)
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if port != "*" and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise ValueError(f"{endpoint[:60]!r} is not tcp://HOST:PORT with a port from 1 to 65535, or *")
    _host("0.0.0.0" if host == "*" else host)
    return endpoint


def _connect_endpoint(endpoint: str) -> str:
    if "*" in endpoint:
        raise ValueError(f"{endpoint[:60]!r} names no place to connect to: only bind can choose one")
    return _bind_endpoint(endpoint)


Duration = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False)]
Host = Annotated[str, AfterValidator(_host)]
IpcEndpoint = Annotated[str, AfterValidator(_ipc)]
BindEndpoint = Annotated[str, AfterValidator(_bind_endpoint)]
ConnectEndpoint = Annotated[str, AfterValidator(_connect_endpoint)]
SensorId = Annotated[str, AfterValidator(_sensor_id)]
# deploy.backends.protocol.BACKENDS and AUTO, without the seconds that importing torch takes
Backend = Literal["eager", "onnx", "cuda", "tensorrt", "tensorrt-rtx", "auto"]
Precision = Literal["float32", "float16", "bfloat16"]  # deploy.model.precision.PRECISIONS
Mode = Literal["locked", "shadow", "supervised", "autonomous"]
GivenPath = Annotated[Path, Field(strict=False)]


class Section(BaseModel):
    """A part of the file: unknown keys are errors, and numbers are not made from text or booleans."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Section)


class ModelConfig(Section):
    """The frozen model and what runs it, in which precision; `path` is relative to the folder of the file."""

    path: GivenPath
    backend: Backend = "onnx"
    precision: Precision = "float32"
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    threads: int | None = Field(default=None, ge=1, le=256)

    @property
    def thread_count(self) -> int:
        """The threads to compute with; by default one core is left to frames and scrapes."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) - 1)


class SensorConfig(Section):
    """One camera stream: 1 frame in `sample_every` goes to the reservoir."""

    sample_every: int = Field(default=1, ge=1, le=1_000_000)


# `front:` with nothing behind it means the defaults
OptionalSensor = Annotated[SensorConfig, BeforeValidator(lambda given: {} if given is None else given)]


class InputConfig(Section):
    """Where frames come from; `max_frame_bytes` bounds each part of a message."""

    pattern: Literal["sub", "pull"] = "sub"
    bind: list[BindEndpoint] = []
    connect: list[ConnectEndpoint] = []
    max_frame_bytes: int = Field(default=64 * MIB, ge=64 * KIB, le=GIB)  # a header may have 64 KiB
    max_age: Duration = Field(default=5.0, ge=0.01, le=HOUR)

    @model_validator(mode="after")
    def _has_endpoint(self) -> InputConfig:
        if not self.bind and not self.connect:
            raise ValueError("no endpoint: give bind or connect, such as bind: [ipc:///run/recald/frames]")
        return self


class OutputConfig(Section):
    """Where results are published."""

    bind: BindEndpoint


class MetricsConfig(Section):
    """Where Prometheus scrapes; port 0 takes any free one."""

    host: Host = "127.0.0.1"
    port: int = Field(default=9748, ge=0, le=65535)


class ControlConfig(Section):
    """Where `recald status` and its like reach the daemon; the mode of the socket file is the only lock."""

    endpoint: IpcEndpoint = "ipc:///run/recald/control"


class StateConfig(Section):
    """Where homogenizers and the audit log are kept."""

    directory: GivenPath = Path("/var/lib/recald")


class DriftConfig(Section):
    """When drift alarms: the last `window` frames, judged every `interval`, over `threshold` for `hold`."""

    window: int = Field(default=64, ge=8, le=100_000)
    interval: Duration = Field(default=1.0, ge=0.05, le=HOUR)
    threshold: float = Field(default=1.6, gt=0, le=1e6, allow_inf_nan=False)
    hold: Duration = Field(default=10.0, ge=0, le=DAY)


class RecalibrateConfig(Section):
    """When to fit: each `every`, on `frames` frames of at least `collect`, for `timeout`, `backoff` after a failure.

    And what may serve: nothing is fitted when locked, nothing serves in the shadow mode, nothing without approval when
    supervised. A candidate runs beside what serves for `shadow`, and is on `probation` after it. Of the frames that
    judge, `keep_frames` are kept on the disk for `recald report`, `keep_frames_mib` of them in all. Nothing serves
    that is outside of `envelope`, whose signature `envelope_key` proves; both are relative to the folder of the file.
    """

    mode: Mode = "autonomous"
    every: Duration = Field(default=HOUR, ge=1, le=365 * DAY)
    frames: int = Field(default=512, ge=64, le=10_000)  # thinning more of them would keep a frame waiting
    collect: Duration = Field(default=2 * MINUTE, ge=0, le=DAY)
    timeout: Duration = Field(default=15 * MINUTE, ge=1, le=DAY)
    backoff: Duration = Field(default=MINUTE, ge=0, le=DAY)
    shadow: Duration = Field(default=5.0, ge=0, le=DAY)
    probation: Duration = Field(default=MINUTE, ge=0, le=DAY)
    fits_a_day: int = Field(default=48, ge=1, le=86_400)
    swaps_a_day: int = Field(default=24, ge=1, le=86_400)
    keep_frames: int = Field(default=0, ge=0, le=64)
    keep_frames_mib: int = Field(default=64, ge=1, le=65_536)
    envelope: GivenPath | None = None
    envelope_key: GivenPath | None = None

    @model_validator(mode="after")
    def _key_of_an_envelope(self) -> RecalibrateConfig:
        if self.envelope_key is not None and self.envelope is None:
            raise ValueError("envelope_key is of no use without envelope: name the file that it has signed")
        return self


class Config(Section):
    """The whole file."""

    version: Literal[1]
    model: ModelConfig
    sensors: dict[SensorId, OptionalSensor] = Field(min_length=1)
    input: InputConfig
    output: OutputConfig
    metrics: MetricsConfig = MetricsConfig()
    control: ControlConfig = ControlConfig()
    state: StateConfig = StateConfig()
    drift: DriftConfig = DriftConfig()
    recalibrate: RecalibrateConfig = RecalibrateConfig()
    allow_remote: bool = False

    @model_validator(mode="wrap")
    @classmethod
    def _tell_allow_remote(cls, data: Any, handler: Callable[[Any], Config]) -> Config:
        allowed = isinstance(data, dict) and data.get("allow_remote") is True
        token = _remote_allowed.set(allowed)
        try:
            return handler(data)
        finally:
            _remote_allowed.reset(token)


def load_config(path: Path) -> Config:
    """Read and check the file; ConfigError names every mistake with its line."""
    try:
        config = load_document(path, Config)
    except DocumentError as error:
        raise ConfigError(error.problems) from None
    folder = path.resolve().parent
    return config.model_copy(
        update={
            "model": _within(folder, config.model, "path"),
            "recalibrate": _within(folder, config.recalibrate, "envelope", "envelope_key"),
        }
    )


def _within(folder: Path, section: S, *names: str) -> S:
    """The section with these of its paths relative to `folder`, where they are given."""
    given = {name: getattr(section, name) for name in names}
    return section.model_copy(update={name: folder / path for name, path in given.items() if path is not None})
