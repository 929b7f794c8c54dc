"""`recald demo`: what it takes, and its exit codes."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from daemon.simulation.camera import at_least

# Takes 45 to 65 points of the digit network's accuracy, by seed, and clips less than 0.1 % of the values: what
# the network no longer recognises is still in the picture.
DEFAULT_DRIFT = "fixed-pattern=16,cross-talk=0.25,blur=0.7,exposure=-0.5"
INTERRUPTED = 128 + signal.SIGINT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `recald demo` takes."""
    add = parser.add_argument
    add("--data", type=Path, help="folder with CIFAR-10 and ResNet-20 to use instead of digits")
    add("--output", type=Path, default=Path("demo-output"), help="folder for the results (%(default)s)")
    add("--drift", default=DEFAULT_DRIFT, help="what happens to the front camera (%(default)s)")
    add("--seed", type=at_least(0, int), default=0, help="of everything random (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if everything it promises was kept, 1 if not."""
    from rich.console import Console  # late, as all below: torch would slow down every other command

    from daemon.demo.digits import DemoError
    from daemon.demo.story import perform

    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the daemon would outlive the demo
    try:
        summary = perform(args, console)
    except DemoError as error:
        print(f"recald demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("recald demo: stopped", file=sys.stderr)
        return INTERRUPTED
    console.print(summary.render())
    console.print(f"\nframes.png, summary.json and recald.log are in {args.output}", soft_wrap=True)
    return 0 if summary.passed() else 1
