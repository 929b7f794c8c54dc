"""The envelope: a signed file with the limits of every homogenizer and of the configuration. It is written once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from calibrate.errors import RecaldError
from calibrate.judge import MIN_SCORE_DROP_SHARE, split_frames
from calibrate.scoring.extent import Extent, Range
from calibrate.search.best_start import DEFECTS, SHADING
from calibrate.split import AnyHomogenizer
from daemon.config import Config, ConfigError, Duration, Mode, Section
from deploy.audit.signature import check_signature
from deploy.model.document import parse_document, read_document
from deploy.store.artefacts import Artefact

Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RangeLimit(Section):
    """The smallest and the largest value allowed anywhere. The identity has 1 everywhere, which is always allowed."""

    least: float | None = Field(default=None, le=1, allow_inf_nan=False)
    most: float | None = Field(default=None, ge=1, allow_inf_nan=False)

    def violations(self, measured: Range) -> Iterator[str]:
        """Yield each limit that the measured range exceeds. NaN exceeds both."""
        if self.least is not None and not measured.least >= self.least:
            yield f"least {measured.least:.6g}, at least {self.least:.6g} is allowed"
        if self.most is not None and not measured.most <= self.most:
            yield f"most {measured.most:.6g}, at most {self.most:.6g} is allowed"


class HomogenizerLimits(Section):
    """Limits of what calibrate.scoring.extent measures; a missing key means no limit.

    But where `shading` or `defect_step` is missing, no homogenizer has that part: an envelope that was signed before
    there were such parts admits none of them. defect_step: the least one, null for none.
    """

    curve: Distance | None = None
    offset: Distance | None = None
    kernel: Distance | None = None
    bias: Distance | None = None
    kernel_size: int | None = Field(default=None, ge=1)
    slope: RangeLimit = RangeLimit()
    gain: RangeLimit = RangeLimit()
    shading: RangeLimit = RangeLimit(least=1, most=1)
    black: Distance | None = None
    defect_step: Distance | None = None
    jacobian: RangeLimit = RangeLimit()

    @property
    def corrections(self) -> list[str]:
        """The parts that a homogenizer may have where a camera needs them, as arguments of calibrate.fit."""
        allowed = {DEFECTS: self.defect_step is not None, SHADING: self.shading != RangeLimit(least=1, most=1)}
        return [name for name, may in allowed.items() if may]

    def violations(self, extent: Extent) -> Iterator[str]:
        """Yield each limit that a homogenizer exceeds, with its value. NaN exceeds every limit."""
        for name, limit in self:
            measured = getattr(extent, name)
            if isinstance(limit, RangeLimit):
                yield from (f"{name}.{problem}" for problem in limit.violations(measured))
            elif name == "defect_step":
                least = math.inf if limit is None else limit
                if not measured >= least:
                    yield f"{name} {measured:.6g}, at least {least:.6g} is allowed"
            elif limit is not None and not measured <= limit:
                yield f"{name} {measured:.6g}, at most {limit:.6g} is allowed"


class RequiredEvidence(Section):
    """What the configuration must ask for, at least, before a homogenizer serves. `threshold` is a maximum."""

    frames: int | None = Field(default=None, ge=1)
    held_out: int | None = Field(default=None, ge=1)
    collect: Duration | None = Field(default=None, ge=0)
    margin: float | None = Field(default=None, ge=0, le=1)
    threshold: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    shadow: Duration | None = Field(default=None, ge=0)
    probation: Duration | None = Field(default=None, ge=0)


class OperationLimits(Section):
    """The modes that the configuration may use, and the most fits and swaps in 24 h."""

    modes: list[Mode] | None = Field(default=None, min_length=1)
    fits_a_day: int | None = Field(default=None, ge=1)
    swaps_a_day: int | None = Field(default=None, ge=1)


class EnvelopeDocument(Section):
    """The whole file."""

    version: Literal[1]
    homogenizer: HomogenizerLimits = HomogenizerLimits()
    evidence: RequiredEvidence = RequiredEvidence()
    operation: OperationLimits = OperationLimits()


class OutsideEnvelope(RecaldError):
    """A homogenizer that may not serve. The message names each limit that it exceeds, and its value."""


@dataclass(frozen=True)
class Envelope:
    """An envelope as read from `path`. digest: SHA-256 of the file. signed: its signature was checked."""

    path: Path
    digest: str
    signed: bool
    document: EnvelopeDocument

    @property
    def limits_budget(self) -> bool:
        """Return whether an operator's order may not exceed the configuration's budget of fits and swaps."""
        operation = self.document.operation
        return operation.fits_a_day is not None or operation.swaps_a_day is not None

    def __str__(self) -> str:
        signed = "its signature is valid" if self.signed else "not signed"
        return f"{self.path}, SHA-256 {self.digest}, {signed}"

    def admit(self, artefact: Artefact) -> AnyHomogenizer:
        """Return the homogenizer that was measured, so that the caller can compare the compiled form with it.

        Of a split one, both branches are measured. Raises OutsideEnvelope if it exceeds a limit.
        """
        limits, extents = self.document.homogenizer, map(Extent.of, artefact.homogenizer.branches)
        violations = "; ".join(dict.fromkeys(chain.from_iterable(map(limits.violations, extents))))
        if violations:
            raise OutsideEnvelope(f"homogenizer {artefact.version[:12]} is outside of {self.path.name}: {violations}")
        return artefact.homogenizer


def open_envelope(config: Config) -> Envelope | None:
    """Return the envelope that the configuration names, after checking its signature and the configuration.

    Raises ConfigError, DocumentError or SignatureError; each line says what to do.
    """
    settings = config.recalibrate
    if settings.envelope is None:
        return None
    envelope = load_envelope(settings.envelope, settings.envelope_key)
    violations = list(_config_violations(envelope.document, config))
    if violations:
        raise ConfigError([f"{envelope.path}: {violation}: change one of them" for violation in violations])
    return envelope


def load_envelope(path: Path, key: Path | None = None) -> Envelope:
    """Read the file once, so that the verified bytes are the parsed ones. key: the public key of its signature.

    Raises DocumentError or SignatureError.
    """
    data = read_document(path)
    if key is not None:
        check_signature(path, data, key)
    document = parse_document(path, data, EnvelopeDocument)
    return Envelope(path, hashlib.sha256(data).hexdigest(), key is not None, document)


def _config_violations(document: EnvelopeDocument, config: Config) -> Iterator[str]:
    """Yield each setting that the envelope does not allow."""
    settings, evidence, operation = config.recalibrate, document.evidence, document.operation
    held_out = int(split_frames(settings.frames).held_out.sum())
    for key, least, subject, value in (
        ("frames", evidence.frames, "recalibrate.frames is", settings.frames),
        ("held_out", evidence.held_out, f"of recalibrate.frames {settings.frames} the judge gets", held_out),
        ("collect", evidence.collect, "recalibrate.collect is", settings.collect),
        ("margin", evidence.margin, "this release of recald has", MIN_SCORE_DROP_SHARE),
        ("shadow", evidence.shadow, "recalibrate.shadow is", settings.shadow),
        ("probation", evidence.probation, "recalibrate.probation is", settings.probation),
    ):
        if least is not None and value < least:
            yield f"evidence.{key} is at least {least:g}, {subject} {value:g}"
    for key, most, setting, value in (
        ("evidence.threshold", evidence.threshold, "drift.threshold", config.drift.threshold),
        ("operation.fits_a_day", operation.fits_a_day, "recalibrate.fits_a_day", settings.fits_a_day),
        ("operation.swaps_a_day", operation.swaps_a_day, "recalibrate.swaps_a_day", settings.swaps_a_day),
    ):
        if most is not None and value > most:
            yield f"{key} is at most {most:g}, {setting} is {value:g}"
    if operation.modes is not None and settings.mode not in operation.modes:
        yield f"operation.modes has {', '.join(operation.modes)}, recalibrate.mode is {settings.mode}"
