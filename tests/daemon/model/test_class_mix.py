"""A stated mix of classes is checked against the model and its clean frames."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from calibrate import FitError
from daemon.config import ConfigError, SensorConfig
from daemon.model.class_mix import resolve_class_mixes
from daemon.model.labels import ClassNames

NAMES = ClassNames(3, ["cat", "dog", "cow"])


class Classes:
    """Clean frames of the first two classes."""

    def check(self, shares):
        if any(share and number > 1 for number, share in shares.items()):
            raise FitError("class 2 had fewer than 16 clean frames")


CLEAN: Any = SimpleNamespace(classes=Classes())


def sensors(**mixes: dict | None) -> dict[str, SensorConfig]:
    return {name: SensorConfig(class_mix=mix) for name, mix in mixes.items()}


def test_classes_are_named_or_numbered():
    found = resolve_class_mixes(
        sensors(front={"dog": 0.75, 0: 0.25}, rear=None, top={"cow": 0, "cat": 1}), NAMES, CLEAN
    )
    assert found == {"front": {1: 0.75, 0: 0.25}, "top": {2: 0, 0: 1}}
    assert resolve_class_mixes(sensors(front=None), NAMES, None) == {}


@pytest.mark.parametrize(
    ("mix", "clean", "said"),
    [
        ({"horse": 1}, CLEAN, "'horse' is no class of the model: give a name of its card, such as 'cat', or a number"),
        ({3: 1}, CLEAN, "'3' is no class of the model"),
        ({"dog": 0.5, 1: 0.5}, CLEAN, "class '1' is there twice, by name and by number"),
        (
            {"cow": 1},
            CLEAN,
            "class 2 had fewer than 16 clean frames: measure more clean frames with `recald commission`",
        ),
        ({"dog": 1}, None, "the classes of this model's clean frames were not measured: measure more"),
        ({"dog": 1}, SimpleNamespace(classes=None), "the classes of this model's clean frames were not measured"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_place(mix, clean, said):
    with pytest.raises(ConfigError) as refused:
        resolve_class_mixes(sensors(rear={"dog": 1}, front=mix), NAMES, clean)
    assert any(problem.startswith(f"sensors.front.class_mix: {said}") for problem in refused.value.problems)


def test_a_network_that_is_no_classifier_has_no_mix():
    with pytest.raises(ConfigError, match=r"sensors\.front\.class_mix: the network is no classifier"):
        resolve_class_mixes(sensors(front={"dog": 1}), ClassNames(None, None), CLEAN)
