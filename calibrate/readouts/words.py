"""Say in words what the read-outs found, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from calibrate.readouts.read_out import ReadOut

MAX_LINES = 5
ABOUT = 0.15  # standard error by the value, above which a number is rounded in the reader's mind, too
NUMBER = re.compile(r"[+-]?\d[\d.]*")
NOTHING = "nothing beyond the natural variation of the pictures"

# Name and number of each kind; `:+` shows the sign of kinds that go both ways.
PHRASES: dict[str, Callable[[float], str]] = {
    "haze": lambda x: f"haze {100 * x:.0f} %",
    "motion-blur": lambda x: f"motion blur {x:.1f} px",
    "blur": lambda x: f"blur {x:.1f} px",
    "vignetting": lambda x: f"vignetting {100 * x:.0f} % of the light in the corners",
    "exposure": lambda x: f"exposure {x:+.1f} stops",
    "cross-talk": lambda x: f"cross-talk of the colours {100 * x:.0f} %",
    "fixed-pattern": lambda x: f"fixed pattern {x:.0f} levels",
    "temporal-noise": lambda x: f"temporal noise {x:.0f} levels",
    "dead-pixels": lambda x: f"dead pixels {100 * x:.1f} %",
    "row-banding": lambda x: f"row banding {x:.0f} levels",
    "column-banding": lambda x: f"column banding {x:.0f} levels",
    "black-level": lambda x: f"black level {x:+.0f} levels",
    "gain": lambda x: f"{100 * (x - 1):+.0f} %",
    "gamma": lambda x: f"gamma {x:.2f}",
}
REMEDIES = {
    "haze": "clean the lens and its window",
    "motion-blur": "check the camera's mount and the exposure time",
    "blur": "clean the lens, check its focus",
    "vignetting": "check the lens mount and hood",
    "exposure": "check the exposure table and the lighting",
    "fixed-pattern": "renew the camera's dark frame",
    "temporal-noise": "check the analogue gain and the sensor's temperature",
    "dead-pixels": "renew the camera's map of dead pixels",
    "row-banding": "check the power supply and the lighting's frequency",
    "column-banding": "renew the camera's dark frame",
    "black-level": "check the camera's black level",
    "gain": "check the white balance and the lighting",
    "gamma": "check the camera's gamma setting",
}


def describe(read_outs: Sequence[ReadOut]) -> list[str]:
    """Return one line for each kind of drift that is significant, the strongest first, MAX_LINES at most."""
    found = sorted((one for one in read_outs if one.significant), key=lambda one: -one.strength)
    kinds = list(dict.fromkeys(one.kind for one in found))[:MAX_LINES]
    return [_line([one for one in found if one.kind == kind]) for kind in kinds] or [NOTHING]


def _line(of_a_kind: Sequence[ReadOut]) -> str:
    phrase = ", ".join(_phrase(one) for one in of_a_kind)
    kind = of_a_kind[0].kind
    named = f"colour cast: {phrase}" if kind == "gain" else phrase
    return f"{named}; {REMEDIES[kind]}" if kind in REMEDIES else named


def _phrase(one: ReadOut) -> str:
    """Return the phrase of a read-out; where it is not exact, with "about" before its number."""
    words = f"{one.colour} {PHRASES[one.kind](one.value)}" if one.colour else PHRASES[one.kind](one.value)
    if one.relative_error <= ABOUT:
        return words
    return NUMBER.sub(r"about \g<0>", words, count=1)
