"""The process: it serves frames, publishes results, and recalibrates in the background."""

from importlib.metadata import PackageNotFoundError, version

CONTROL_ENDPOINT = "ipc:///run/recald/control"  # by default; `recald status` finds it without a configuration
UNKNOWN_SENSOR = "unknown"  # in metrics, for messages that name no configured sensor

try:
    __version__ = version("recald")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
