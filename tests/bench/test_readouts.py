"""The bench of the read-outs: periods without common pictures, truths as they were drawn, counts as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.material.subjects import Labelled
from bench.readouts import ALL, ONE, THREE, Periods, by_class, clean_views, compare, drifts, realised, summarise
from calibrate.readouts.read_out import KINDS, ReadOut
from daemon.simulation.drifts import parse_drift

# Each picture has a grey level of its own, and one of four classes.
SCENE = Labelled(
    np.arange(240, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3), torch.arange(240) % 4
)


def test_a_picture_is_healthy_or_recent():
    periods = Periods.of(SCENE, seed=1)
    levels = [{int(image[0, 0, 0]) for image in part.images} for part in periods]
    assert not levels[0] & levels[1] and levels[0] | levels[1] == set(range(240))
    assert len(periods.recent.images) == 80
    assert all((part.images[:, 0, 0, 0] % 4 == part.labels.numpy()).all() for part in periods)


def test_healthy_pictures_come_class_after_class():
    ordered = by_class(SCENE)
    assert ordered.labels.tolist() == sorted(ordered.labels.tolist())
    assert (ordered.images[:, 0, 0, 0] % 4 == ordered.labels.numpy()).all()


def test_clean_views_show_all_one_and_three_classes():
    views = dict(clean_views(SCENE, seed=0))
    classes = {view: len({int(image[0, 0, 0]) % 4 for image in images}) for view, images in views.items()}
    assert classes == {ALL: 4, ONE: 1, THREE: 3}


def test_a_grey_camera_has_no_drifts_of_colour():
    kinds = [{text.partition("=")[0] for _, _, text in drifts(grey)} for grey in (False, True)]
    assert kinds[0] - kinds[1] == {"gain", "cross-talk"} and kinds[0] >= set(KINDS)


@pytest.mark.parametrize("text", ["fixed-pattern=12", "row-banding=12", "column-banding=12"])
def test_the_truth_of_a_pattern_is_the_sd_that_was_drawn(text):
    drift = parse_drift(text, 3)
    ((kind, strengths),) = drift.strengths.items()
    (truth,) = realised(kind, strengths, drift, (16, 16), 3).values()
    assert truth == pytest.approx(12, rel=0.35) and truth != 12


def test_the_truth_of_dead_pixels_is_their_number():
    drift = parse_drift("dead-pixels=0.1", 3)
    (truth,) = realised("dead-pixels", (0.1,), drift, (16, 16), 1).values()
    assert truth * 256 == pytest.approx(round(truth * 256)) and 0.03 < truth < 0.2


def test_the_error_is_that_of_the_difference_to_no_drift():
    images = SCENE.images[:2]
    outs = [ReadOut("gamma", 1.5**0.9, 0.01, True), ReadOut("blur", 9.0, 0.1, True)]
    row = compare(outs, parse_drift("gamma=1.5"), images)
    assert row["error"] == pytest.approx(10) and row["kinds"] == ["blur", "gamma"] and row["found"]
    missing = compare([], parse_drift("exposure=-1"), images)
    assert missing["error"] == pytest.approx(100) and not missing["found"]
    worse = compare(
        [ReadOut("gain", 1.3, 0, True, "red"), ReadOut("gain", 1.0, 0, False, "blue")],
        parse_drift("gain=1.3:1:0.75"),
        images,
    )
    assert worse["error"] == pytest.approx(100)


def test_the_summary_counts_what_was_named():
    common = {"data": "digits", "drift": "haze", "kind": "haze", "found": True}
    rows = [
        {**common, "strength": "medium", "error": 10.0, "kinds": ["haze"]},
        {**common, "strength": "medium", "error": 20.0, "kinds": ["gamma", "haze"]},
        {**common, "strength": "mild", "error": 90.0, "kinds": [], "found": False},
        {"data": "digits", "view": ALL, "healthy": "mixed", "kinds": []},
        {"data": "digits", "view": ALL, "healthy": "mixed", "kinds": ["blur"]},
    ]
    summary = summarise(rows)
    medium = summary["by drift"][0]
    assert (medium["median"], medium["worst"], medium["within_15"], medium["first"]) == (15.0, 20.0, 0.5, 0.5)
    assert medium["also"] == "gamma 1" and summary["medium and strong, by data"][0]["cameras"] == 2
    assert (summary["clean"][0]["cameras"], summary["clean"][0]["named"], summary["clean"][0]["kinds"]) == (
        2,
        1,
        "blur 1",
    )
