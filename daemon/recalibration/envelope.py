"""The envelope: what a homogenizer may be and how it may come to serve, in a file that is written once, and signed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from calibrate.errors import RecaldError
from calibrate.homogenizer import Homogenizer
from calibrate.judge import HELD_OUT_EVERY, MARGIN
from calibrate.scoring.extent import Extent, Range
from daemon.config import Config, ConfigError, Duration, Mode, Section
from deploy.audit.signature import check_signature
from deploy.model.document import parse_document, read_document
from deploy.store.artefacts import Artefact

Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Span(Section):
    """The least and the most that something may be anywhere; the identity, which has 1, is always inside."""

    least: float | None = Field(default=None, le=1, allow_inf_nan=False)
    most: float | None = Field(default=None, ge=1, allow_inf_nan=False)

    def broken(self, measured: Range) -> Iterator[str]:
        if self.least is not None and not measured.least >= self.least:
            yield f"least {measured.least:.6g}, at least {self.least:.6g} is allowed"
        if self.most is not None and not measured.most <= self.most:
            yield f"most {measured.most:.6g}, at most {self.most:.6g} is allowed"


class Bounds(Section):
    """Of a homogenizer, by what calibrate.scoring.extent measures of it; what is not there is not bounded."""

    curve: Distance | None = None
    offset: Distance | None = None
    kernel: Distance | None = None
    bias: Distance | None = None
    kernel_size: int | None = Field(default=None, ge=1)
    slope: Span = Span()
    gain: Span = Span()
    jacobian: Span = Span()

    def broken(self, extent: Extent) -> Iterator[str]:
        """Each bound that a homogenizer is beyond, with what it has there."""
        for name, bound in self:
            measured = getattr(extent, name)
            if isinstance(bound, Span):
                yield from (f"{name}.{problem}" for problem in bound.broken(measured))
            elif bound is not None and not measured <= bound:
                yield f"{name} {measured:.6g}, at most {bound:.6g} is allowed"


class Evidence(Section):
    """What has to be seen, at least, before a homogenizer serves for good; `threshold` is the highest."""

    frames: int | None = Field(default=None, ge=1)
    held_out: int | None = Field(default=None, ge=1)
    collect: Duration | None = Field(default=None, ge=0)
    margin: float | None = Field(default=None, ge=0, le=1)
    threshold: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    shadow: Duration | None = Field(default=None, ge=0)
    probation: Duration | None = Field(default=None, ge=0)


class Operation(Section):
    """Who decides, and how often, at most."""

    modes: list[Mode] | None = Field(default=None, min_length=1)
    fits_a_day: int | None = Field(default=None, ge=1)
    swaps_a_day: int | None = Field(default=None, ge=1)


class Contents(Section):
    """The whole file."""

    version: Literal[1]
    homogenizer: Bounds = Bounds()
    evidence: Evidence = Evidence()
    operation: Operation = Operation()


class OutsideEnvelope(RecaldError):
    """A homogenizer that may not serve: which bounds it is beyond, and by what."""


@dataclass(frozen=True)
class Envelope:
    """The contents of the file `path`, and the SHA-256 of its bytes; `signed`: its signature was checked."""

    path: Path
    digest: str
    signed: bool
    contents: Contents

    @property
    def bounds_the_day(self) -> bool:
        """No order of an operator may exceed the configuration's budget of fits and swaps."""
        operation = self.contents.operation
        return operation.fits_a_day is not None or operation.swaps_a_day is not None

    def __str__(self) -> str:
        signed = "its signature holds" if self.signed else "not signed"
        return f"{self.path}, SHA-256 {self.digest}, {signed}"

    def admit(self, artefact: Artefact) -> Homogenizer:
        """The homogenizer that was measured, which what serves has to equal; OutsideEnvelope for one beyond a bound."""
        broken = "; ".join(self.contents.homogenizer.broken(Extent.of(artefact.homogenizer)))
        if broken:
            raise OutsideEnvelope(f"homogenizer {artefact.version[:12]} is outside of {self.path.name}: {broken}")
        return artefact.homogenizer


def open_envelope(config: Config) -> Envelope | None:
    """The envelope that the configuration names, signature checked, the configuration found inside of it.

    ConfigError, DocumentError or SignatureError, each line with what to do.
    """
    settings = config.recalibrate
    if settings.envelope is None:
        return None
    envelope = load_envelope(settings.envelope, settings.envelope_key)
    beyond = list(_beyond(envelope.contents, config))
    if beyond:
        raise ConfigError([f"{envelope.path}: {problem}: change one of them" for problem in beyond])
    return envelope


def load_envelope(path: Path, key: Path | None = None) -> Envelope:
    """Read the file once: the bytes that are verified are those that are parsed."""
    data = read_document(path)
    if key is not None:
        check_signature(path, data, key)
    return Envelope(path, hashlib.sha256(data).hexdigest(), key is not None, parse_document(path, data, Contents))


def _beyond(contents: Contents, config: Config) -> Iterator[str]:
    """What the configuration allows and the envelope does not."""
    asked, evidence, operation = config.recalibrate, contents.evidence, contents.operation
    held_out = math.ceil(asked.frames / HELD_OUT_EVERY)
    for bound, least, name, value in (
        ("frames", evidence.frames, "recalibrate.frames is", asked.frames),
        ("held_out", evidence.held_out, f"of recalibrate.frames {asked.frames} the judge gets", held_out),
        ("collect", evidence.collect, "recalibrate.collect is", asked.collect),
        ("margin", evidence.margin, "this release of recald has", MARGIN),
        ("shadow", evidence.shadow, "recalibrate.shadow is", asked.shadow),
        ("probation", evidence.probation, "recalibrate.probation is", asked.probation),
    ):
        if least is not None and value < least:
            yield f"evidence.{bound} is at least {least:g}, {name} {value:g}"
    for bound, most, name, value in (
        ("evidence.threshold", evidence.threshold, "drift.threshold", config.drift.threshold),
        ("operation.fits_a_day", operation.fits_a_day, "recalibrate.fits_a_day", asked.fits_a_day),
        ("operation.swaps_a_day", operation.swaps_a_day, "recalibrate.swaps_a_day", asked.swaps_a_day),
    ):
        if most is not None and value > most:
            yield f"{bound} is at most {most:g}, {name} is {value:g}"
    if operation.modes is not None and asked.mode not in operation.modes:
        yield f"operation.modes has {', '.join(operation.modes)}, recalibrate.mode is {asked.mode}"
