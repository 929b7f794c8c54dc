"""The model serves only if what was compiled of it computes what it does; a stand-in serves only if it can."""

from __future__ import annotations

import hashlib

import pytest
import torch
from running import write_config

from daemon.config import load_config
from daemon.model.served_model import open_model
from daemon.systemd_notify import Notifier
from deploy.backends.eager import EagerBackend
from deploy.model.program import ModelError


def test_a_model_that_was_compiled_wrong_does_not_serve(tiny_model, tmp_path):
    """What is kept for the next start is believed by its key and digest, and compared all the same."""
    config = load_config(write_config(tmp_path, tiny_model))
    right = open_model(config, Notifier({}))
    right.runner.close()
    (kept,) = (tmp_path / "state" / "compiled").iterdir()
    other = EagerBackend().compile(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)), torch.zeros(1, 3, 16, 16)
    )
    kept.write_bytes(hashlib.sha256(other).digest() + other)
    with pytest.raises(ModelError, match="eager does not compute what the model does: .* differ by"):
        open_model(config, Notifier({}))


def test_a_stand_in_that_cannot_run_the_model_leaves_it_to_the_backend(tiny_model, tmp_path, monkeypatch, caplog):
    config = load_config(write_config(tmp_path, tiny_model, model={"backend": "onnx"}))
    monkeypatch.setattr("deploy.backends.onnx.OnnxBackend.stand_in", "eager")
    monkeypatch.setattr("deploy.backends.eager.EagerBackend.load", refuse)
    served = open_model(config, Notifier({}))
    assert not served.has_stand_in and served.served_by == "onnx"
    assert "nothing serves until the engine of onnx is built: kernels" in caplog.text


def refuse(*_: object) -> None:
    raise ModelError("kernels cannot be captured")
