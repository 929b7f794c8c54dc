"""An engineer reads the strongest drifts first, with what to do, and where a number is not exact."""

from __future__ import annotations

import pytest

from calibrate.readouts.read_out import KINDS, ReadOut
from calibrate.readouts.words import MAX_LINES, NOTHING, REMEDIES, describe


def significant(kind: str, value: float, error: float = 0.0, colour: str = "") -> ReadOut:
    return ReadOut(kind, value, error, True, colour)


def test_the_strongest_comes_first_with_its_remedy():
    lines = describe([significant("blur", 0.9), significant("exposure", -0.8), significant("haze", 0.5)])
    assert lines == [
        "haze 50 %; clean the lens and its window",
        "exposure -0.8 stops; check the exposure table and the lighting",
        "blur 0.9 px; clean the lens, check its focus",
    ]


def test_a_colour_cast_is_one_line():
    lines = describe([significant("gain", 1.06, 0, "red"), significant("gain", 0.8, 0, "blue")])
    assert lines == ["colour cast: blue -20 %, red +6 %; check the white balance and the lighting"]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (significant("fixed-pattern", 11.2, 2), "fixed pattern about 11 levels"),
        (significant("fixed-pattern", 11.2, 1), "fixed pattern 11 levels"),
        (significant("exposure", -0.8, 0.2), "exposure about -0.8 stops"),
        (significant("gain", 1.06, 0.02, "red"), "colour cast: red about +6 %"),
        (significant("gamma", 1.5, 0.1), "gamma about 1.50"),  # 0.1 of the half that it is above none
        (significant("cross-talk", 0.2, 0.01), "cross-talk of the colours 20 %"),
    ],
)
def test_about_is_said_where_the_standard_error_is_above_15_percent(one, words):
    assert describe([one])[0].partition(";")[0] == words


def test_at_most_five_lines_and_only_what_is_significant():
    everything = [significant(kind, max(kind_.neutral + 0.5, 0.5)) for kind, kind_ in KINDS.items()]
    assert len(describe(everything)) == MAX_LINES
    assert describe([one._replace(significant=False) for one in everything]) == describe([]) == [NOTHING]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_words(kind):
    (line,) = describe([significant(kind, 1.7, 0, "red" if kind == "gain" else "")])
    assert any(letter.isdigit() for letter in line) and (kind in REMEDIES) == (";" in line)
