"""The model card: the small YAML beside Φ that says what its input is and which bytes it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator


def _printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError(f"{text!r} has nothing, or control characters, to print")
    return text


LARGEST_SIDE = 8192  # pixels; above this a typing error is likelier than a network
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Label = Annotated[str, AfterValidator(_printable)]  # shown on terminals and in metrics
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputCard(_Part):
    """What Φ takes: `channels` x `height` x `width`; three channels are in the order RGB."""

    channels: Literal[1, 3]
    height: Side
    width: Side

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


class Normalisation(_Part):
    """How grey levels 0..255 become Φ's input: (v / 255 - mean) / std, one of each for a channel."""

    mean: list[FiniteFloat]
    std: list[Deviation]


class CommissionCard(_Part):
    """What `recald commission` measured: on how many clean frames, and the digest of the file that holds it."""

    frames: int = Field(ge=1)
    sha256: Digest


class ModelCard(_Part):
    v: Literal[1]
    name: Label
    sha256: Digest
    input: InputCard
    normalisation: Normalisation
    classes: list[Label] | None
    exported: dict[str, str]
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
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def card_path(model_path: Path) -> Path:
    """Where the card of the model file `model_path` lies: model.pt2 -> model.yaml."""
    return model_path.with_suffix(".yaml")
