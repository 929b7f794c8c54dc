import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from daemon.simulation.drifts import DRIFT_KINDS, SimulationError, motion_blur, parse_drift, quantise, vignetting


def grey(level, shape=(32, 32, 3)):
    return np.full(shape, level, np.uint8)


def textured(shape=(32, 32, 3)):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def drifted(text, image, seed=0, frame=0):
    return parse_drift(text, seed)(image, frame).astype(float)


# ---- every kind


NEUTRAL = ("haze", "motion-blur", "vignetting", "dead-pixels", "row-banding", "column-banding")
FIXED = ("fixed-pattern=12", "dead-pixels=0.1", "row-banding=12", "column-banding=12")


@given(image=arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40).map(lambda side: (*side, 3))))
def test_no_strength_leaves_a_picture_of_any_size_as_it_is(image):
    assert np.array_equal(parse_drift(",".join(f"{name}=0" for name in NEUTRAL))(image), image)


@given(
    kind=st.sampled_from(sorted(DRIFT_KINDS)),
    end=st.sampled_from(["low", "high"]),
    shape=array_shapes(min_dims=2, max_dims=2, max_side=40),
)
def test_the_ends_of_every_range_can_be_applied_to_a_picture_of_any_size(kind, end, shape):
    image = grey(200, (*shape, 3))
    after = parse_drift(f"{kind}={getattr(DRIFT_KINDS[kind], end)}")(image)
    assert after.shape == image.shape and after.dtype == np.uint8


@pytest.mark.parametrize("kind", DRIFT_KINDS)
def test_light_stays_in_single_precision(kind):
    values = (0.5,) * (3 if DRIFT_KINDS[kind].per_channel else 1)
    assert DRIFT_KINDS[kind].apply(textured().astype(np.float32), values, 0, 0).dtype == np.float32


@pytest.mark.parametrize("text", FIXED)
def test_what_is_fixed_stays_in_each_frame_and_comes_from_the_seed(text):
    first = drifted(text, grey(128), seed=1, frame=0)
    assert np.array_equal(first, drifted(text, grey(128), seed=1, frame=9))
    assert not np.array_equal(first, drifted(text, grey(128), seed=2, frame=0))


@pytest.mark.parametrize("frame", [0, 1, 7])
def test_noise_is_not_the_fixed_pattern_again_in_any_frame(frame):
    pattern, noise = (
        drifted(f"{name}=12", grey(128), seed=3, frame=frame) for name in ("fixed-pattern", "temporal-noise")
    )
    assert abs(np.corrcoef(pattern.ravel(), noise.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("haze=1.1", "not within 0 to 1; write haze=NUMBER in fraction"),
        ("motion-blur=-1", "not within 0 to 100; write motion-blur=NUMBER in pixels"),
        ("vignetting=1", "not within 0 to 0.99; write vignetting=NUMBER in fraction lost in the corners"),
        ("dead-pixels=2", "not within 0 to 1"),
        ("row-banding=nan", "not within 0 to 128; write row-banding=NUMBER in grey levels sd"),
        ("column-banding=1:1:1", "holds 3 numbers"),
        ("jpeg=0", "not within 1 to 100; write jpeg=NUMBER in quality"),
        ("jpeg=101", "not within 1 to 100"),
    ],
)
def test_a_strength_out_of_range_is_refused_with_the_way_out(text, message):
    with pytest.raises(SimulationError) as caught:
        parse_drift(text)
    assert message in str(caught.value)


def test_the_help_names_every_kind_and_its_unit():
    command = [sys.executable, "-m", "daemon", "simulate", "--help"]
    help_text = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    for name, kind in DRIFT_KINDS.items():
        assert f"{name} in {kind.unit}" in help_text.replace("- ", "-")  # argparse breaks lines after hyphens


# ---- air and lens


def test_haze_moves_every_level_towards_that_of_the_air_by_its_fraction():
    assert (drifted("haze=0.25", grey(100)) == 130).all()  # 100 + 0.25 * (220 - 100)
    assert (drifted("haze=0.5", grey(0)) == 110).all()
    assert (drifted("haze=1", textured()) == 220).all()


def test_haze_lies_before_the_camera_so_less_exposure_darkens_it():
    assert (drifted("exposure=-1,haze=1", grey(0)) == 110).all()


@pytest.mark.parametrize("length", [1.5, 2, 3, 4.4, 9, 20])
def test_motion_smears_a_point_sideways_over_its_length_and_keeps_its_light(length):
    point = np.zeros((41, 61, 3), np.float32)
    point[20, 30] = 1000
    smeared = motion_blur(point, length)[..., 0]
    assert np.delete(smeared, 20, axis=0).max() == 0
    assert smeared.sum() == pytest.approx(1000, rel=1e-5)
    assert smeared[20].max() == pytest.approx(1000 / length, rel=1e-5)
    assert np.count_nonzero(smeared[20]) == 2 * np.ceil((length - 1) / 2) + 1
    assert np.allclose(smeared[20], smeared[20, ::-1])


def test_motion_within_a_pixel_does_not_show():
    assert np.array_equal(drifted("motion-blur=1", textured()), textured())


@pytest.mark.parametrize("shape", [(32, 32, 3), (7, 40, 3)])
def test_vignetting_takes_its_fraction_in_the_corners_and_nothing_in_the_middle(shape):
    after = drifted("vignetting=0.5", grey(200, (shape[0] + 1, shape[1] + 1, 3)))
    corners = after[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners == pytest.approx(100)
    odd = drifted("vignetting=0.5", grey(200, (9, 9, 3)))
    assert (odd[4, 4] == 200).all() and (np.diff(odd[4, 4:, 0]) < 0).all()


def test_vignetting_is_the_fourth_power_of_the_cosine():
    tangent = np.linspace(-1, 1, 21)  # light comes into the end of this line at 45 degrees
    seen = vignetting(np.ones((1, 21, 3), np.float32), 0.75)[0, :, 0]
    assert seen == pytest.approx(np.cos(np.arctan(tangent)) ** 4, rel=1e-5)


# ---- pixels and readout


@pytest.mark.parametrize(("axis", "name"), [(1, "row-banding"), (0, "column-banding")])
def test_banding_is_one_grey_offset_for_a_line_with_its_strength(axis, name):
    offsets = drifted(f"{name}=10", grey(128, (400, 400, 3))) - 128
    assert (np.ptp(offsets, axis=axis) == 0).all() and (np.ptp(offsets, axis=2) == 0).all()
    assert offsets[..., 0].mean(axis=axis).std() == pytest.approx(10, rel=0.1)


def test_rows_and_columns_are_banded_by_numbers_of_their_own():
    rows, columns = (drifted(f"{name}-banding=10", grey(128)) for name in ("row", "column"))
    assert not np.array_equal(rows, columns.transpose(1, 0, 2))


def test_dead_pixels_are_black_or_white_in_all_colours_and_as_many_as_said():
    after = drifted("dead-pixels=0.1", grey(128, (200, 200, 3)))
    assert (np.ptp(after, axis=2) == 0).all()
    black, white = ((after[..., 0] == level).mean() for level in (0, 255))
    assert black == pytest.approx(0.05, rel=0.15) and white == pytest.approx(0.05, rel=0.15)
    assert ((after == 128) | (after == 0) | (after == 255)).all()


def test_dead_pixels_only_grow_more_and_light_does_not_wake_them():
    few, many = (drifted(f"dead-pixels={f}", grey(128)) for f in (0.05, 0.3))
    assert (many[few != 128] == few[few != 128]).all()
    dark = drifted("dead-pixels=0.05,exposure=-4", grey(128))
    assert np.array_equal(dark == 255, few == 255)


# ---- the file


def test_jpeg_loses_more_at_less_quality_and_next_to_nothing_at_the_best():
    ramp = np.linspace(0, 255, 32).astype(np.uint8)[:, None, None].repeat(32, 1).repeat(3, 2)
    assert np.abs(drifted("jpeg=100", ramp) - ramp).max() <= 1
    grained = ramp // 2 + textured((32, 32, 1)) // 8
    errors = [np.abs(drifted(f"jpeg={quality}", grained) - grained).mean() for quality in (100, 75, 25, 5)]
    assert errors == sorted(errors) and errors[0] < 0.5 and errors[-1] > 5


def test_jpeg_keeps_red_red():
    red = grey(0)
    red[..., 0] = 200
    assert np.abs(drifted("jpeg=90", red) - red).max() <= 3


def test_jpeg_compresses_what_the_converter_gives():
    image = textured()
    assert np.array_equal(drifted("exposure=1,jpeg=50", image), drifted("jpeg=50", parse_drift("exposure=1")(image)))


def test_the_converter_rounds_and_ends_at_black_and_white():
    assert quantise(np.float32([-3, 0.4, 0.6, 254.7, 300])).tolist() == [0, 0, 1, 255, 255]
