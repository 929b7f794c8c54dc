"""The mix of classes that the configuration states for a sensor, checked against the model and its clean frames."""

from __future__ import annotations

from collections.abc import Mapping

from calibrate.errors import RecaldError
from calibrate.source.class_mix import Shares
from calibrate.source.commissioned import CleanData
from calibrate.validation import FitError
from daemon.config import ConfigError, SensorConfig
from daemon.model.labels import ClassNames

MIX_ADVICE = "measure more clean frames with `recald commission`, or leave class_mix out"


def resolve_class_mixes(
    sensors: Mapping[str, SensorConfig], classes: ClassNames, clean: CleanData | None
) -> dict[str, Shares]:
    """Return the shares of the classes by their numbers, for each sensor with a class_mix.

    classes: of the model. clean: what was measured on clean frames; None for nothing. Raises ConfigError.
    """
    resolved: dict[str, Shares] = {}
    problems = []
    for name, sensor in sensors.items():
        if sensor.class_mix is None:
            continue
        try:
            resolved[name] = _resolve(sensor.class_mix, classes, clean)
        except RecaldError as error:
            problems.append(f"sensors.{name}.class_mix: {error}")
    if problems:
        raise ConfigError(problems)
    return resolved


def _resolve(class_mix: Mapping[str, float], classes: ClassNames, clean: CleanData | None) -> Shares:
    """Return the shares by number. Raises RecaldError for classes that are unknown, named twice or not measured."""
    shares: dict[int, float] = {}
    for label, share in class_mix.items():
        number = classes.number(label)
        if number in shares:
            raise RecaldError(f"class {label!r} is there twice, by name and by number")
        shares[number] = share
    if clean is None or clean.classes is None:
        raise RecaldError(f"the classes of this model's clean frames were not measured: {MIX_ADVICE}")
    try:
        clean.classes.check(shares)
    except FitError as error:
        raise RecaldError(f"{error}: {MIX_ADVICE}") from error
    return shares
