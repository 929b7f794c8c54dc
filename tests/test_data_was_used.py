"""Where the real data is, the tests that read it must have run: a silent skip would prove nothing."""

import os

import pytest
from conftest import DATA, DATA_OUTCOMES


def test_where_the_data_is_the_tests_on_it_ran(request):
    outcomes = request.config.stash[DATA_OUTCOMES]
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA}: set RECALD_DATA to the folder that holds cifar10_test.npz")
    if not outcomes and not os.environ.get("CI"):
        pytest.skip("no test on real data was selected")
    assert outcomes, "no test on real data was collected"
    assert "skipped" not in outcomes.values(), outcomes
