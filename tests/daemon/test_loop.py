"""What the frame thread does with an error: a failed inference is served again, a fault of recald ends the process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from calibrate.errors import RecaldError
from daemon.loop import Daemon
from daemon.metrics import Metrics
from daemon.serving.refusals import Refusals
from deploy.path import InferenceError
from deploy.store.artefacts import FACTORY


class Scene:
    """A daemon whose frame server raises these errors, one a call; `version` serves until a rollback."""

    def __init__(self, *errors: Exception, version: str = "c0ffee") -> None:
        self.registry = CollectorRegistry()
        self.served, self.rolled_back = 0, 0
        self._errors = list(errors)
        self.sensor: Any = SimpleNamespace(name="front", hold=False, path=SimpleNamespace(version=version))
        self.daemon: Any = Daemon.__new__(Daemon)
        self.daemon._refusals = Refusals(Metrics(self.registry))
        self.daemon._frame_server = SimpleNamespace(serve=self._serve)
        self.daemon._controller = SimpleNamespace(roll_back=self._roll_back)

    def serve(self) -> None:
        self.daemon._serve(SimpleNamespace(hold=False), self.sensor)

    def _serve(self, frame: Any, sensor: Any) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.served += 1

    def _roll_back(self, sensor: Any, reason: str) -> None:
        self.rolled_back += 1
        sensor.path.version = FACTORY


def test_a_frame_on_which_a_homogenizer_fails_is_served_by_the_one_before():
    scene = Scene(InferenceError("no"))
    scene.serve()
    assert (scene.served, scene.rolled_back) == (1, 1)


def test_a_frame_on_which_the_model_fails_is_dropped():
    scene = Scene(InferenceError("no"), InferenceError("no"))
    scene.serve()
    assert (scene.served, scene.rolled_back) == (0, 1)
    labels = {"sensor": "front", "reason": "inference"}
    assert scene.registry.get_sample_value("recald_frames_dropped_total", labels) == 1


@pytest.mark.parametrize("error", [RuntimeError("a lock"), ValueError("a shape"), KeyError("a label")])
def test_any_other_error_takes_back_no_homogenizer(error: Exception):
    scene = Scene(error)
    with pytest.raises(type(error)):
        scene.serve()
    assert (scene.served, scene.rolled_back) == (0, 0)


def test_an_error_of_recald_while_serving_is_no_mistake_of_the_configuration():
    daemon: Any = Daemon.__new__(Daemon)
    daemon.should_exit = False
    daemon.on_tick = lambda: (_ for _ in ()).throw(RecaldError("a fault"))
    with pytest.raises(RuntimeError, match="a fault while serving"):
        daemon._serve_until_exit()
