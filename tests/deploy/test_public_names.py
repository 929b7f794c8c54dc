"""The room's public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import deploy


@pytest.mark.parametrize("name", deploy.__all__)
def test_every_public_name_is_there(name):
    assert getattr(deploy, name) is not None


def test_any_other_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="'deploy' has no attribute 'engine'"):
        deploy.engine  # noqa: B018


def test_reading_a_configuration_does_not_wait_for_torch():
    code = "import sys; from deploy import ModelCard, load_document; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
