"""The process: frames in, results out, recalibration beside them."""

from importlib.metadata import PackageNotFoundError, version

UNKNOWN_SENSOR = "unknown"

try:
    __version__ = version("recald")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
