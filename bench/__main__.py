"""`python -m bench NAME --json FILE`: one claim, measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import curve, drifts, fit, latency, overhead, peers, precision, speed
from bench.gpu import measure as gpu
from bench.intake import measure as intake
from bench.judge import measure as judge
from bench.paper import measure as paper
from bench.report import write
from bench.streams import measure as streams
from bench.swap import measure as swap
from daemon.exit_codes import EX_CONFIG
from deploy.backends.protocol import BackendUnavailable

BENCHES = {"latency": latency, "swap": swap, "fit": fit, "curve": curve, "speed": speed, "intake": intake}
BENCHES |= {"overhead": overhead, "peers": peers, "drifts": drifts, "judge": judge, "streams": streams, "paper": paper}
BENCHES |= {"precision": precision, "gpu": gpu}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, module in BENCHES.items():
        command = commands.add_parser(name, help=module.__doc__, description=module.__doc__)
        command.add_argument("--json", type=Path, help="where the measurements are written")
        module.add_arguments(command)
        command.set_defaults(measure=module.measure)
    args = parser.parse_args(argv)
    try:
        results = args.measure(args)
    except BackendUnavailable as error:
        print(f"bench {args.name}: {error}", file=sys.stderr)
        return EX_CONFIG
    write(args.name, results, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
