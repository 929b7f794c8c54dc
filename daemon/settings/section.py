"""What all sections of the configuration have in common: strict values, and types that several of them use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from daemon.settings import endpoints
from daemon.settings.values import seconds_of

Duration = Annotated[float, BeforeValidator(seconds_of), Field(allow_inf_nan=False)]
Host = Annotated[str, AfterValidator(endpoints.check_host)]
GivenPath = Annotated[Path, Field(strict=False)]


class Section(BaseModel):
    """One section of the file. An unknown key is an error; text and booleans are not converted to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Section)


def with_paths_in(folder: Path, section: S, *names: str) -> S:
    """Let the relative paths of these keys start at the folder."""
    given = {name: getattr(section, name) for name in names}
    return section.model_copy(update={name: folder / path for name, path in given.items() if path is not None})
