"""`recald demo`: its arguments and exit codes. It imports nothing large, so that other commands start at once."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from daemon.exit_codes import EX_INTERRUPTED
from daemon.simulation.camera import at_least

# The digit network loses 45 to 65 points of accuracy, depending on the seed. Less than 0.1 % of the values are clipped:
# the images still contain what the network no longer recognises.
DEFAULT_DRIFT = "fixed-pattern=16,cross-talk=0.25,blur=0.7,exposure=-0.5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `recald demo`."""
    add = parser.add_argument
    add("--data", type=Path, help="folder with CIFAR-10 and ResNet-20 to use instead of digits")
    add("--output", type=Path, default=Path("demo-output"), help="folder for the results (%(default)s)")
    add("--drift", default=DEFAULT_DRIFT, help="what happens to the front camera (%(default)s)")
    add(
        "--keep",
        action="store_true",
        help="go on after the demo until Ctrl-C, to look at the page",
    )
    add("--seed", type=at_least(0, int), default=0, help="of everything random (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns 0 when every promise was kept, 1 when not."""
    from rich.console import Console  # imported here, as all below: torch would slow down every other command

    from daemon.demo.digits import DemoError
    from daemon.demo.scenario import perform

    console = Console(markup=False, emoji=False)  # brackets in a path are no markup
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell lets its background jobs ignore the second
        signal.signal(number, signal.default_int_handler)  # else the daemon would outlive the demo
    try:
        summary = perform(args, console)
    except DemoError as error:
        print(f"recald demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("recald demo: stopped", file=sys.stderr)
        return EX_INTERRUPTED
    console.print(summary.render())
    console.print(f"\nframes.png, summary.json and recald.log are in {args.output}", soft_wrap=True)
    return 0 if summary.passed() else 1
