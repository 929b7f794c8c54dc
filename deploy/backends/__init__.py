"""What runs networks: the protocol, one file for each backend, and the engine cache."""

import os

# ONNX Runtime 1.32 reports device id, processor and interpreter path to its vendor from its import on; its own call to
# stop that comes too late. This module runs before any backend imports its library.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
