"""A read-out: how much of one kind of drift there is, in its physical unit, and how sure that is."""

from __future__ import annotations

import math
from typing import NamedTuple

STANDARD_ERRORS = 3.0  # beyond which a read-out is no natural variation


class Kind(NamedTuple):
    """unit; neutral: value without a drift. matters: smallest difference to it that costs a network something.

    one_sided: no camera has less than the neutral value. logarithmic: differences are those of logarithms.
    """

    unit: str
    neutral: float
    matters: float
    one_sided: bool = True
    logarithmic: bool = False

    def difference(self, value: float) -> float:
        """Return how far a value is from the neutral one."""
        return math.log(value / self.neutral) if self.logarithmic else value - self.neutral


# By their names in `recald simulate`, in the order in which light becomes a picture.
KINDS = {
    "haze": Kind("fraction", 0, 0.05),
    "motion-blur": Kind("pixels", 1, 0.7),
    "blur": Kind("pixels sigma", 0, 0.35),
    "vignetting": Kind("fraction lost in the corners", 0, 0.2),
    "exposure": Kind("stops", 0, 0.15, one_sided=False),
    "cross-talk": Kind("fraction", 0, 0.06),
    "fixed-pattern": Kind("grey levels sd", 0, 2.5),
    "temporal-noise": Kind("grey levels sd", 0, 2.5),
    "dead-pixels": Kind("fraction", 0, 0.001),
    "row-banding": Kind("grey levels sd", 0, 2.5),
    "column-banding": Kind("grey levels sd", 0, 2.5),
    "black-level": Kind("grey levels", 0, 4, one_sided=False),
    "gain": Kind("factor", 1, 0.05, one_sided=False, logarithmic=True),
    "gamma": Kind("exponent", 1, 0.1, one_sided=False, logarithmic=True),
}


class ReadOut(NamedTuple):
    """One kind of drift.

    kind: its name in KINDS. value: in the kind's unit. error: standard error of the value, in the same unit.
    significant: it is beyond the natural variation of the pictures and large enough to matter.
    colour: "red" or "blue" where a gain is meant, by that of green; "" otherwise.
    """

    kind: str
    value: float
    error: float
    significant: bool
    colour: str = ""

    @staticmethod
    def of(kind: str, value: float, error: float, colour: str = "") -> ReadOut:
        """Judge a value by its standard error."""
        difference = KINDS[kind].difference(value)
        if not KINDS[kind].one_sided:
            difference = abs(difference)
        of_difference = error / value if KINDS[kind].logarithmic else error
        significant = difference > max(STANDARD_ERRORS * of_difference, KINDS[kind].matters)
        return ReadOut(kind, value, error, significant, colour)

    @property
    def unit(self) -> str:
        """Unit of value and error."""
        return KINDS[self.kind].unit

    @property
    def strength(self) -> float:
        """How many times the smallest value that matters it is."""
        return abs(KINDS[self.kind].difference(self.value)) / KINDS[self.kind].matters

    @property
    def relative_error(self) -> float:
        """Standard error by the difference to the neutral value."""
        return self.error / max(abs(self.value - KINDS[self.kind].neutral), 1e-9)
