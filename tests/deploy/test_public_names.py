"""The public names of deploy: its three lists of them agree, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from public_names import names_for_type_checkers

import deploy


def test_type_checkers_see_the_names_that_are_imported_at_their_first_use():
    assert names_for_type_checkers("deploy") == deploy._NAMES_BY_MODULE


def test_all_lists_each_name_once():
    names = [name for names in deploy._NAMES_BY_MODULE.values() for name in names]
    assert sorted(deploy.__all__) == sorted(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("name", deploy.__all__)
def test_every_public_name_is_there(name):
    assert getattr(deploy, name) is not None


def test_any_other_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="'deploy' has no attribute 'engine'"):
        deploy.engine  # noqa: B018


def test_reading_a_configuration_does_not_wait_for_torch():
    code = "import sys; from deploy import ModelCard, load_document; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
