"""The model serves only if what was compiled of it computes what it does; a stand-in serves only if it can."""

from __future__ import annotations

import errno
import hashlib
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from running import write_config

from daemon.config import load_config
from daemon.model.served_model import open_model
from daemon.systemd_notify import Notifier
from deploy.backends.eager import EagerBackend
from deploy.backends.engine_cache import ModelCache
from deploy.model.program import ModelError

OTHER = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))


@pytest.mark.parametrize("kept", ["another network", "nothing that loads"])
def test_what_is_kept_with_the_right_hash_and_is_of_no_use_is_built_again_once(tiny_model, tmp_path, caplog, kept):
    config = load_config(write_config(tmp_path, tiny_model))
    open_model(config, Notifier({})).runner.close()
    (path,) = (tmp_path / "state" / "compiled").iterdir()
    whole = path.read_bytes()
    other = b"x" if kept.startswith("nothing") else EagerBackend().compile(OTHER, torch.zeros(1, 3, 16, 16))
    path.write_bytes(hashlib.sha256(other).digest() + other)
    served = open_model(config, Notifier({}))
    served.runner.close()
    assert served.served_by == "eager" and caplog.text.count("it is built again") == 1
    assert len(path.read_bytes()) == len(whole)


def test_a_model_that_is_compiled_wrong_does_not_serve(tiny_model, tmp_path, monkeypatch):
    config, compile_ = load_config(write_config(tmp_path, tiny_model)), EagerBackend.compile
    monkeypatch.setattr(EagerBackend, "compile", lambda self, module, example: compile_(self, OTHER, example))
    for _ in range(2):  # the second time, what was kept is built again, and is no better
        with pytest.raises(ModelError, match="eager does not compute what the model does: .* differ by"):
            open_model(config, Notifier({}))


def test_a_model_that_fails_in_its_proof_is_closed(tiny_model, tmp_path, monkeypatch):
    """A GPU without memory is no fault of the model: its error goes on as it is."""
    error, closed = OSError(errno.ENOMEM, "the GPU has no memory left"), []
    runner = SimpleNamespace(run=Mock(side_effect=error), close=lambda: closed.append(True))
    monkeypatch.setattr(EagerBackend, "load", lambda *_: runner)
    with pytest.raises(OSError, match="the GPU has no memory left"):
        open_model(load_config(write_config(tmp_path, tiny_model)), Notifier({}))
    assert closed == [True]


def test_a_stand_in_that_cannot_run_the_model_leaves_it_to_the_backend(tiny_model, tmp_path, monkeypatch, caplog):
    config = load_config(write_config(tmp_path, tiny_model, model={"backend": "onnx"}))
    monkeypatch.setattr("deploy.backends.onnx.OnnxBackend.stand_in", "eager")
    monkeypatch.setattr("deploy.backends.eager.EagerBackend.load", refuse)
    served = open_model(config, Notifier({}))
    assert not served.has_stand_in and served.served_by == "onnx"
    assert "nothing serves until the engine of onnx is built: kernels" in caplog.text


def refuse(*_: object) -> None:
    raise ModelError("kernels cannot be captured")


def test_an_engine_of_no_use_is_built_again_while_the_stand_in_serves(tiny_model, tmp_path, gpu, caplog):
    config = load_config(write_config(tmp_path, tiny_model, model={"backend": "tensorrt"}))
    served = open_model(config, Notifier({}))
    assert served.served_by == "cuda"
    cache = ModelCache(served.backend, served.frozen, "float32", tmp_path / "state")
    cache.get()  # as the builder does
    assert open_model(config, Notifier({})).served_by == "tensorrt"
    newest = max((tmp_path / "state" / "compiled").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(hashlib.sha256(b"engine").digest() + b"engine")
    assert cache.is_cached()
    assert open_model(config, Notifier({})).served_by == "cuda"
    assert not cache.is_cached() and "it is built again" in caplog.text
