"""The public names of calibrate: its three lists of them agree, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from public_names import names_for_type_checkers

import calibrate


def test_type_checkers_see_the_names_that_are_imported_at_their_first_use():
    assert names_for_type_checkers("calibrate") == calibrate._NAMES_BY_MODULE


def test_all_lists_each_name_once():
    names = [name for names in calibrate._NAMES_BY_MODULE.values() for name in names]
    assert sorted(calibrate.__all__) == sorted(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("name", calibrate.__all__)
def test_every_public_name_is_there(name):
    assert getattr(calibrate, name) is not None


def test_any_other_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="'calibrate' has no attribute 'engine'"):
        calibrate.engine  # noqa: B018


def test_the_base_of_all_errors_does_not_wait_for_torch():
    code = "import sys; from calibrate import RecaldError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
