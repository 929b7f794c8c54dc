"""`recald check-config`: name everything for which `recald run` would end before it serves."""

from __future__ import annotations

from pathlib import Path

from calibrate.errors import RecaldError
from daemon.config import Config, ConfigError
from daemon.exit_codes import EX_CONFIG, TemporaryError, error_text, exit_code
from daemon.operator import deployment
from daemon.operator.terminal import printable

CHECKS = {
    "backend": deployment.check_backend,
    "fits": deployment.check_fit_device,
    "model": deployment.check_model,
    "memory": deployment.check_memory,
    "envelope": deployment.check_envelope,
    "state": deployment.check_state,
    "certificate": deployment.check_certificate,
    "endpoints": deployment.check_endpoints,
}


def check_config(path: Path, config: Config) -> None:
    """Print what was found, one line for each check. path: of the configuration.

    Raises ConfigError with all mistakes, one in each line, or TemporaryError where each of them may pass.
    """
    results: list[str] = []
    errors: list[RecaldError | OSError] = []
    for name, check in CHECKS.items():
        try:
            results.append(f"{name}: {check(config)}")
        except (RecaldError, OSError) as error:
            errors.append(error)
    if errors:
        lines = list(dict.fromkeys(map(error_text, errors)))  # two checks read the model
        permanent = any(exit_code(error) == EX_CONFIG for error in errors)
        raise ConfigError(lines) if permanent else TemporaryError("\n".join(lines))
    print(printable(f"{path}: ok, {len(config.sensors)} sensor(s)"))
    print("\n".join(printable(line) for line in results))
