"""The interval of a rate: known values, and what holds of every count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.scoring.interval import wilson


def test_the_interval_is_wilsons():
    assert wilson(0, 0) == (0, 1)
    low, high = wilson(0, 100)
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(0.0370, abs=1e-4)
    assert wilson(3, 100) == pytest.approx((0.0103, 0.0845), abs=1e-4)


@given(st.integers(0, 500), st.integers(0, 500))
def test_the_interval_holds_the_rate(count, more):
    low, high = wilson(count, count + more)
    assert 0 <= low <= high <= 1
    assert low - 1e-9 <= (count / (count + more) if count + more else 0.5) <= high + 1e-9
