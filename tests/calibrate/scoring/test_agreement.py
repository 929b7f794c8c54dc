"""Agreement is 1 for the same answers, 0 for those of chance, and none where answers are not finite."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.scoring.agreement import MAX_VALUES, NOT_FINITE, agreement, answers_of, standard_errors_nearer

COLUMNS = 4 * MAX_VALUES
LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60)


def labels(*given: int) -> torch.Tensor:
    return torch.tensor(given)


def values(*given: float) -> torch.Tensor:
    """One value for each frame."""
    return torch.tensor(given, dtype=torch.float32)[:, None]


def noise(count: int, seed: int) -> torch.Tensor:
    """Values for `count` frames with the mean 0 and the variance 1."""
    drawn = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn - drawn.mean()) / drawn.std(correction=0)


# ---- labels


def test_kappa_is_that_of_a_table_computed_by_hand():
    """Both say 0 of 20 frames and 1 of 15; so they agree on 0.7, and by chance on 0.5 * 0.6 + 0.5 * 0.4 = 0.5."""
    first, second = labels(*[0] * 25, *[1] * 25), labels(*[0] * 20, *[1] * 5, *[0] * 10, *[1] * 15)
    assert agreement(first, second) == pytest.approx(0.2 / 0.5)


def test_kappa_of_three_classes_is_that_computed_by_hand():
    """They agree on 4 of 6 frames, and by chance on 3/6 * 2/6 + 2/6 * 2/6 + 1/6 * 2/6 = 1/3."""
    assert agreement(labels(0, 0, 0, 1, 1, 2), labels(0, 0, 1, 1, 2, 2)) == pytest.approx((2 / 3 - 1 / 3) / (2 / 3))


@given(LABELS, st.randoms(use_true_random=False))
def test_kappa_lies_between_minus_1_and_1_and_has_no_first_and_second(first, random):
    second = [random.choice((label, random.randint(0, 4))) for label in first]
    found = agreement(labels(*first), labels(*second))
    assert -1 - 1e-5 <= found <= 1
    assert agreement(labels(*second), labels(*first)) == pytest.approx(found, abs=1e-6)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60))
def test_the_same_labels_agree_wholly_and_show_nothing_if_all_are_one_class(given_labels):
    found = agreement(labels(*given_labels), labels(*given_labels))
    assert found == (1.0 if len(set(given_labels)) > 1 else 0.0)


@pytest.mark.parametrize("second", [[2] * 9, [1] * 9, [0, 1, 2] * 3])
def test_labels_of_one_class_show_nothing_beside_any_others(second):
    assert agreement(labels(*[2] * 9), labels(*second)) == pytest.approx(0, abs=1e-6)


def test_opposite_labels_agree_less_than_by_chance():
    assert agreement(labels(0, 1).repeat(8), labels(1, 0).repeat(8)) == pytest.approx(-1)


def test_labels_drawn_independently_agree_as_by_chance():
    drawn = torch.randint(10, (2, 20_000), generator=torch.Generator().manual_seed(0))
    assert agreement(*drawn) == pytest.approx(0, abs=0.01)


def test_frequent_classes_agree_by_chance_and_count_less():
    """95 of 100 frames have the same label, but without the other classes chance alone would give 0.9506."""
    first, second = labels(*[0] * 97, 1, 1, 1), labels(*[0] * 96, 1, 0, 0, 0)
    assert agreement(first, second) < 0 < 0.95 < float((first == second).float().mean())


def test_there_is_no_agreement_where_a_label_is_not_finite():
    sound, spoilt = labels(0, 1, 0, 1), labels(0, 1, 0, NOT_FINITE)
    assert all(math.isnan(agreement(*pair)) for pair in ((sound, spoilt), (spoilt, sound), (spoilt, spoilt)))


# ---- values


def test_concordance_is_that_computed_by_hand():
    """Means 2 and 4, variances 2/3 and 8/3, covariance 4/3: 2 * 4/3 / (2/3 + 8/3 + (2 - 4)²) = 4/11."""
    assert agreement(values(1, 2, 3), values(2, 4, 6)) == pytest.approx(4 / 11)


@given(st.integers(2, 200), st.floats(-5, 5))
def test_a_shift_lowers_the_concordance(count, shift):
    first = noise(count, seed=count)
    assert agreement(first, first + shift) == pytest.approx(2 / (2 + shift**2), rel=1e-6)


@given(st.integers(2, 200), st.floats(-5, 5))
def test_a_scale_lowers_the_concordance(count, scale):
    first = noise(count, seed=count)
    assert agreement(first, scale * first) == pytest.approx(2 * scale / (1 + scale**2), rel=1e-6, abs=1e-9)


def test_values_of_other_frames_agree_as_by_chance():
    assert agreement(noise(20_000, seed=0), noise(20_000, seed=1)) == pytest.approx(0, abs=0.03)


def test_all_values_of_a_frame_count():
    first = torch.arange(12.0).reshape(3, 4)
    for column in range(4):
        second = first.clone()
        second[:, column] += 1
        assert agreement(first, second) < 1
    assert agreement(first, first) == pytest.approx(1)


def test_each_quantity_of_a_frame_counts_in_its_own_unit():
    """Pixels that agree do not hide that the angles beside them are those of other frames."""
    pixels, angles = 1000 * noise(500, 0), noise(500, 1)
    assert agreement(torch.cat([pixels, angles], 1), torch.cat([pixels, noise(500, 2)], 1)) == pytest.approx(
        0.5, abs=0.05
    )
    still = torch.full_like(pixels, 7.0)
    assert agreement(torch.cat([pixels, still], 1), torch.cat([pixels, still], 1)) == pytest.approx(1)


def test_a_map_is_compared_as_a_whole():
    """Most of it never changes; there the least noise would be no concordance at all."""
    still = torch.zeros(50, 400)
    moving = noise(50 * 20, 0).reshape(50, 20)
    first, second = (torch.cat([moving, still + 1e-3 * noise(50 * 400, seed).reshape(50, 400)], 1) for seed in (1, 2))
    assert agreement(first, second) > 0.99


def test_the_nearer_of_two_answers_is_told_in_the_unit_of_each_quantity():
    reference = torch.cat([1000 * noise(60, 0), noise(60, 1)], 1)
    other_pixels, other_angles = reference.clone(), reference.clone()
    other_pixels[:, 0] += 10  # a hundredth of what pixels vary by
    other_angles[:, 1] += 1
    assert standard_errors_nearer(other_pixels, other_angles, reference) == pytest.approx(60**0.5)


def test_values_far_from_zero_keep_their_digits():
    """In float32 sums of their squares would lose the differences between them."""
    first, second = ((1e6 + noise(64, seed)).float() for seed in (0, 1))
    near_zero = (first.double() - 1e6, second.double() - 1e6)
    assert agreement(first, second) == pytest.approx(agreement(*near_zero), rel=1e-9)


def test_values_that_are_all_the_same_show_nothing():
    assert agreement(values(3, 3, 3), values(3, 3, 3)) == 0
    assert agreement(values(3, 3, 3), values(1, 2, 3)) == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_the_concordance_of_values_that_are_not_finite_is_nan(broken):
    sound, spoilt = values(1, 2, 3), values(1, broken, 3)
    assert all(math.isnan(agreement(*pair)) for pair in ((sound, spoilt), (spoilt, sound), (spoilt, spoilt)))


# ---- answers


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_the_answers_of_a_classifier_are_its_labels(kind):
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 4.0, 1.0], [-5.0, -4.0, -3.0]])
    answers = answers_of(logits if kind == "logits" else logits.softmax(1), kind)
    assert answers.dtype == torch.int64 and answers.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_frame_whose_outputs_are_not_finite_has_no_label(kind, place):
    outputs = torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.9, 0.1]])
    outputs[1, place] = torch.nan
    assert answers_of(outputs, kind).tolist() == [1, NOT_FINITE, 0]


def test_an_infinite_logit_gives_no_label():
    assert answers_of(torch.tensor([[0.0, math.inf], [0.0, 1.0]]), "logits").tolist() == [NOT_FINITE, 1]


def test_a_class_that_the_network_rules_out_leaves_the_label_of_another():
    assert answers_of(torch.tensor([[-math.inf, 4.0, 1.0], [-math.inf, 0.0, 1.0]]), "logits").tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 7), (5, 3, 4, 4)])
def test_the_answers_of_another_network_are_all_its_values_if_they_are_few(shape):
    outputs = torch.arange(float(math.prod(shape))).reshape(shape).half()
    answers = answers_of(outputs, "none")
    assert answers.dtype == torch.float32
    assert torch.equal(answers.sort(1).values, outputs.float().reshape(5, -1))


def test_a_feature_map_is_no_logits_even_if_it_is_called_so():
    assert answers_of(torch.rand(5, 3, 4, 4), "logits").shape == (5, 48)


def test_of_many_values_the_same_columns_are_taken_each_time():
    """Answers of two calls could not be compared otherwise, nor those of other frames."""
    columns = torch.arange(float(COLUMNS)).expand(9, -1)
    torch.manual_seed(1)
    first = answers_of(columns, "none")
    torch.manual_seed(2)
    drawn = torch.get_rng_state()
    assert torch.equal(answers_of(columns, "none"), first)
    assert torch.equal(torch.get_rng_state(), drawn), "what others draw is another matter"
    assert torch.equal(answers_of(columns[:2].reshape(2, 4, 32, -1), "none"), first[:2])
    assert first.shape == (9, MAX_VALUES) and (first == first[0]).all()
    assert len(first[0].unique()) == MAX_VALUES


def test_the_columns_are_spread_over_a_picture():
    """Every row and every column of 64 x 64 pixels has some of them."""
    taken = answers_of(torch.arange(4096.0).expand(2, -1), "none")[0].long()
    assert len((taken % 64).unique()) == len((taken // 64).unique()) == 64


def test_answers_keep_no_gradients():
    outputs = torch.rand(4, 3, requires_grad=True)
    assert not any(answers_of(outputs, kind).requires_grad for kind in ("logits", "probabilities", "none"))


# ---- which of two is nearer


def test_frames_on_which_only_one_is_like_the_reference_are_counted():
    reference, first, other = labels(0, 1, 2, 0, 1), labels(0, 1, 2, 0, 2), labels(0, 0, 1, 1, 1)
    assert standard_errors_nearer(first, other, reference) == pytest.approx((3 - 1) / 2)
    assert standard_errors_nearer(other, first, reference) == pytest.approx(-(3 - 1) / 2)
    assert standard_errors_nearer(first, first, reference) == 0


def test_values_are_compared_frame_by_frame():
    reference = torch.zeros(4, 2)
    first = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [5.0, 0.0]])
    other = torch.tensor([[2.0, 0.0], [3.0, 1.0], [0.0, 0.0], [4.0, 0.0]])
    assert standard_errors_nearer(first, other, reference) == pytest.approx((2 - 1) / 3**0.5)


def test_everything_is_nearer_than_what_is_not_finite():
    sound, spoilt = labels(0, 1, 0, 1), labels(0, NOT_FINITE, 0, 1)
    assert standard_errors_nearer(sound, spoilt, sound) == math.inf
    values_with_one = torch.zeros(4, 2)
    values_with_one[1, 1] = torch.nan
    assert standard_errors_nearer(torch.ones(4, 2), values_with_one, torch.zeros(4, 2)) == math.inf


def test_a_quantity_that_only_rounding_changes_shows_nothing():
    """As a sigmoid that is saturated: it must not veto what the other quantities show."""
    telling = noise(200, 0)
    saturated = (1 - 1e-7 * noise(200, seed) for seed in (1, 2))
    first, second = (torch.cat([telling, still], 1) for still in saturated)
    assert agreement(first, second) == pytest.approx(1)
