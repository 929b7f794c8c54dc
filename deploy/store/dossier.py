"""The dossier of a recalibration: what was proposed, the evidence, the verdict and the result.

The field names are the keys of the stored JSON.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.model.card import Digest, Normalisation
from deploy.model.mistakes import describe_mistake

STARTS_SEPARATOR = "; "  # between the starts of the two fits of a split homogenizer
NumberOrNone = float | None  # None stands for a number that is not finite, which JSON cannot hold


class _DossierPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ReferenceRecord(_DossierPart):
    """The reference statistics that were used.

    source: shipped in the model, or measured at commissioning. digest: SHA-256 of names, means and variances.
    class_mix: shares of the classes that the configuration states, by their numbers; {} where it states none.
    """

    source: Literal["shipped", "commissioned"]
    digest: Digest
    class_mix: dict[str, float] = {}


class FramesRecord(_DossierPart):
    """The frames that were used.

    fitted, held_out: number of frames for the fit and for the judge. replicated: for the second fit, if there was one.
    until: when the newest of them arrived, s since the epoch.
    shape: (height, width, channels) as the network takes them.
    depth: type of their values. peak: the highest of them, as a share of white. None in dossiers of before.
    refused: number of frames that no fit may use, by reason, since the collection began.
    kept: SHA-256 of each PNG file that is stored beside the dossier.
    """

    fitted: int
    held_out: int
    replicated: int = 0
    until: float
    shape: tuple[int, int, int]
    depth: Literal["uint8", "uint16", "float32"] | None = None
    peak: NumberOrNone = None
    refused: dict[str, int]
    kept: list[Digest] = []


class EvidenceRecord(_DossierPart):
    """What was measured with one homogenizer on the held-out frames.

    score: drift score. proxy: accuracy proxies by name, None without a classifier. layers: drift score of each layer.
    """

    score: NumberOrNone
    proxy: dict[str, NumberOrNone] | None
    layers: list[NumberOrNone]


class CriterionRecord(_DossierPart):
    """One condition that the candidate had to meet (calibrate.judge.Criterion)."""

    name: str
    against: str
    value: NumberOrNone
    limit: NumberOrNone
    met: bool
    objection: str


class VerdictRecord(_DossierPart):
    """The answer of the judge, with all evidence by "factory", "active", "candidate" and "replicate"."""

    accepted: bool
    reason: str
    evidence: dict[str, EvidenceRecord]
    criteria: list[CriterionRecord]


class RecallRecord(_DossierPart):
    """An earlier homogenizer of this sensor that was tried before a new one was fitted."""

    version: str
    accepted: bool
    reason: str


class FitRecord(_DossierPart):
    """How the fit went.

    start: the closed form it began with; of a split homogenizer those of both fits, joined by STARTS_SEPARATOR.
    start_losses: the objective of each closed form that was tried (nats).
    history: the objective at each evaluation (nats).
    device: where the fit computed, and why there; None in a dossier of an earlier release.
    """

    start: str
    start_losses: dict[str, NumberOrNone]
    history: list[NumberOrNone]
    device: str | None = None


class HomogenizerRecord(_DossierPart):
    """What the candidate does to a frame. C: channels, k: kernel size.

    knots: (knots,) where the tone curve bends, in Φ's normalised input space.
    curve: (C, knots) each knot stretches the values above it by 1 + curve.
    offset: (C,) largest absolute value of the offset map, in grey levels.
    levels: (levels,) grey levels. response: (levels, C) output for an even frame of that level, in grey levels, where
    no shading is undone.
    colour: (C, C) weight of each input channel (column) in each output channel (row), summed over the kernel.
    kernels: (C, k, k) kernel of each channel onto itself.
    defect_step: (C,) grey levels above which a pixel that differs from its neighbours is replaced; None if none is.
    shading: (radii,) factor for the light, from the middle to a corner in equal steps; None without one.
    """

    knots: list[float]
    curve: list[list[NumberOrNone]]
    offset: list[NumberOrNone]
    levels: list[float]
    response: list[list[NumberOrNone]]
    colour: list[list[NumberOrNone]]
    kernels: list[list[list[NumberOrNone]]]
    defect_step: list[NumberOrNone] | None = None
    shading: list[NumberOrNone] | None = None


class Dossier(_DossierPart):
    """One recalibration of a sensor.

    at: when the dossier was written, s since the epoch.
    active: version that served meanwhile.
    band: the highest drift score that counts as clean.
    evidence: of the homogenizers that served; used where the recalibration ended without a verdict.
    earlier: earlier homogenizers that were tried first.
    extents: of a split homogenizer, those of its first branch. other_extents: of its second.
    refused_split: why frames of two cameras in turn got no homogenizer for each; None where that was not tried.
    candidate: version that was stored, or "factory"; None if nothing was to serve.
    seconds: duration of each stage, in their order.
    """

    v: Literal[1] = 1
    sensor: str
    at: float
    trigger: str
    seed: int
    model: Digest
    reference: ReferenceRecord
    normalisation: Normalisation
    versions: dict[str, str]
    active: str
    frames: FramesRecord
    band: float
    layers: list[str]
    evidence: dict[str, EvidenceRecord] = {}
    earlier: list[RecallRecord] = []
    fit: FitRecord | None = None
    extents: HomogenizerRecord | None = None
    other_extents: list[HomogenizerRecord] = []
    refused_split: str | None = None
    verdict: VerdictRecord | None = None
    result: str
    reason: str
    candidate: str | None
    seconds: list[tuple[str, float]]

    @property
    def all_evidence(self) -> dict[str, EvidenceRecord]:
        """The evidence of the verdict if there is one, else that of what served."""
        return self.verdict.evidence if self.verdict else self.evidence


def read_dossier(content: dict[str, Any]) -> Dossier:
    """Convert unsealed JSON to a dossier. Raises ValueError for content that this release does not know."""
    try:
        return Dossier.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"not a dossier this release knows: {place}: {describe_mistake(first)}") from None
