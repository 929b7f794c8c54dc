"""The demo recovers 80 % or more of the lost accuracy in front of a live daemon, and the swap loses no frame."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from bench.provenance import DAEMON, DEPLOYMENT, METHOD
from bench.report import show
from daemon.demo.run import DEFAULT_DRIFT

CODE = (*METHOD, *DEPLOYMENT, *DAEMON, "daemon/demo/*.py", "daemon/simulation/*.py", "bench/demo.py")

SEED = 0
TIMEOUT_S = 280.0  # the demo takes under three minutes on two cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--drift", default=DEFAULT_DRIFT, help="of the front camera (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of everything random (%(default)d)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="file for the frames before and after")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run `recald demo` and return its summary. Raises SystemExit where the demo wrote none."""
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as name:
        output = Path(name)
        command = [sys.executable, "-m", "daemon", "demo", "--output", name, "--drift", args.drift]
        exit_code = run_command([*command, "--seed", str(args.seed)])
        if not (output / "summary.json").exists():
            raise SystemExit(f"bench demo: recald demo ended with {exit_code} and wrote no summary")
        summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
        if args.png is not None:
            args.png.write_bytes((output / "frames.png").read_bytes())
    show("the demo, accuracy in %", list(summary["accuracy"]), [[100 * a for a in summary["accuracy"].values()]])
    settings = {"drift": args.drift, "seed": args.seed}
    return {"seeds": {"demo": args.seed}, "settings": settings, "exit_code": exit_code, **summary}


def run_command(command: list[str]) -> int:
    """Run the demo and return its exit code; after TIMEOUT_S end it by SIGTERM, upon which it stops its daemon."""
    with Popen(command) as process:
        try:
            return process.wait(TIMEOUT_S)
        except TimeoutExpired:
            process.terminate()
            return process.wait()
