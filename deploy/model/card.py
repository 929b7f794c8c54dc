"""The model card: a small YAML file beside Φ with its digest, its input and its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from deploy.files import SHA256_PATTERN


def _check_printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError(f"{text!r} must be printable text: not empty, without control characters")
    return text


MAX_INPUT_SIDE_PX = 8192  # a larger number is more likely a typing error than a network
Side = Annotated[int, Field(ge=1, le=MAX_INPUT_SIDE_PX)]
Bits = Annotated[int, Field(ge=8, le=16)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Label = Annotated[str, AfterValidator(_check_printable)]  # shown on terminals and in metrics
OutputKind = Literal["logits", "probabilities", "none"]  # none: neither, so that there are no labels
Digest = Annotated[str, Field(pattern=SHA256_PATTERN)]


class _CardPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputCard(_CardPart):
    """The size of one frame as Φ takes it, and what the values of its pictures mean. Three channels are RGB.

    bits: significant bits of a 16-bit word. inverted: 0 is white, as in DICOM's MONOCHROME1. Both hold where neither
    the frame nor the sensor's configuration says otherwise.
    """

    channels: Literal[1, 3]
    height: Side
    width: Side
    bits: Bits = 16
    inverted: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width


class Normalisation(_CardPart):
    """How values become Φ's input: (value / white - mean) / std, with one mean and one std a channel.

    white: the highest value, such as 255 with 8 bits.
    """

    mean: list[FiniteFloat]
    std: list[Deviation]


class CommissionCard(_CardPart):
    """The measurement of `recald commission`: the number of clean frames, and the SHA-256 of the file it is in.

    input, normalisation: of the card by which the frames were read; None on cards of versions that did not say it.
    """

    frames: int = Field(ge=1)
    sha256: Digest
    input: InputCard | None = None
    normalisation: Normalisation | None = None

    def differences(self, card: ModelCard) -> list[str]:
        """Say which fields of `card` read frames in another way than the measurement did."""
        return [
            *_differences("input", self.input, card.input),
            *_differences("normalisation", self.normalisation, card.normalisation),
        ]


def _differences(section: str, then: _CardPart | None, now: _CardPart) -> list[str]:
    fields = [(name, value, getattr(now, name)) for name, value in then or ()]
    return [f"{section}.{name} was {value} and is {new}" for name, value, new in fields if value != new]


class ModelCard(_CardPart):
    """The card of Φ.

    sha256: digest of the model file. exported: builder (under the key "factory"), weights and torch version.
    output: what the network's output is; None on cards of versions that did not say it.
    """

    v: Literal[1]
    name: Label
    sha256: Digest
    input: InputCard
    normalisation: Normalisation
    classes: list[Label] | None
    exported: dict[str, str]
    output: OutputKind | None = None
    commissioned: CommissionCard | None = None

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> ModelCard:
        for name, values in self.normalisation:
            if len(values) != self.input.channels:
                raise ValueError(
                    f"normalisation.{name} has {len(values)} values, but the input has "
                    f"{self.input.channels} channels: give one for each"
                )
        return self

    def to_yaml(self) -> str:
        """Convert to the text of the card's file."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def card_path(model_path: Path) -> Path:
    """Where the card of the model file `model_path` lies: model.pt2 -> model.yaml."""
    return model_path.with_suffix(".yaml")
