"""What is written down of a recalibration: what was proposed, on what evidence, how it was judged, what came of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.model.card import Normalisation

Number = float | None  # None for what was not finite
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Reference(_Part):
    """The statistics gone by: shipped in the model, or commissioned; the SHA-256 of names, means and variances."""

    source: Literal["shipped", "commissioned"]
    digest: Digest


class Frames(_Part):
    """How many frames went to the fit and to the judge, and until when (s since the epoch) they came.

    shape: (h, w, C) as the network takes them. refused: by reason, those that were kept for no fit since collecting
    began. kept: the SHA-256 of each PNG file that was stored beside the dossier.
    """

    fitted: int
    held_out: int
    until: float
    shape: tuple[int, int, int]
    refused: dict[str, int]
    kept: list[Digest] = []


class Evidence(_Part):
    """Of one homogenizer on the held-out frames: drift score, accuracy proxies by name, the score by layer."""

    score: Number
    proxy: dict[str, Number] | None
    layers: list[Number]


class Criterion(_Part):
    """One thing asked of the candidate (calibrate.judge.Criterion)."""

    name: str
    against: str
    value: Number
    limit: Number
    met: bool
    objection: str


class Verdict(_Part):
    accepted: bool
    reason: str
    evidence: dict[str, Evidence]
    criteria: list[Criterion]


class Earlier(_Part):
    """A homogenizer of this sensor's past that was tried before a fit."""

    version: str
    accepted: bool
    reason: str


class Fitted(_Part):
    """start: the closed form it began from. start_losses: of all that were tried. history: the objective, nats."""

    start: str
    start_losses: dict[str, Number]
    history: list[Number]


class Extents(_Part):
    """What the candidate does to a frame. In grey levels but for knots, curve, colour and kernels.

    knots, curve: (C, knots) of the tone curve, normalised units. offset: (C,) the largest of the map, without sign.
    response: (levels, C) what becomes of a frame that is all `levels`. colour: (C, C) what output takes of input, the
    kernel summed over its taps. kernels: (C, k, k) of each colour for itself.
    """

    knots: list[float]
    curve: list[list[Number]]
    offset: list[Number]
    levels: list[float]
    response: list[list[Number]]
    colour: list[list[Number]]
    kernels: list[list[list[Number]]]


class Dossier(_Part):
    """One recalibration of a sensor; `at`: when it was written, s since the epoch.

    active: what served. band: the highest drift score that counts as clean. evidence: of what served, where it came to
    no verdict. candidate: the version that was stored, or "factory"; None where nothing was to serve. seconds: what
    each stage took, in their order.
    """

    v: Literal[1] = 1
    sensor: str
    at: float
    trigger: str
    seed: int
    model: Digest
    reference: Reference
    normalisation: Normalisation
    versions: dict[str, str]
    active: str
    frames: Frames
    band: float
    layers: list[str]
    evidence: dict[str, Evidence] = {}
    earlier: list[Earlier] = []
    fit: Fitted | None = None
    extents: Extents | None = None
    verdict: Verdict | None = None
    result: str
    reason: str
    candidate: str | None
    seconds: list[tuple[str, float]]

    @property
    def measured(self) -> dict[str, Evidence]:
        """All evidence there is, by factory, active and candidate."""
        return self.verdict.evidence if self.verdict else self.evidence


def read_dossier(content: dict[str, Any]) -> Dossier:
    """Raises ValueError for what this release does not know."""
    try:
        return Dossier.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"not a dossier this release knows: {place}: {first['msg']}") from None
