"""An engine is kept under all that its kernels were chosen for."""

from __future__ import annotations

import pytest

from deploy.backends.protocol import load_backend


@pytest.mark.parametrize(("name", "value"), [("CAPABILITY", (9, 0)), ("MULTIPROCESSORS", 8), ("NAME", "another GPU")])
def test_another_gpu_gets_another_engine(gpu, monkeypatch, name, value):
    """One of the same name may have fewer multiprocessors, or be split (MIG)."""
    backend, before = load_backend("cuda"), load_backend("cuda").version()
    assert "compute capability 8.7, 16 multiprocessors" in before
    monkeypatch.setattr(gpu, name, value)
    assert backend.version() != before
