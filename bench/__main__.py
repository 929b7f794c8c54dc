"""Measure one claim of recald: `python -m bench NAME --json FILE`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench.benches import BENCHES, claim
from bench.provenance import provenance
from bench.report import write
from daemon.exit_codes import EX_CONFIG
from deploy.backends.protocol import BackendUnavailable


def main(argv: list[str] | None = None) -> int:
    """Run a bench; return its exit code, EX_CONFIG where the machine lacks what it needs."""
    args = _parse(argv)
    if args.json is not None:
        args.provenance = provenance(BENCHES[args.name].CODE)
    try:
        results = BENCHES[args.name].measure(args)
    except BackendUnavailable as error:
        print(f"bench {args.name}: {error}", file=sys.stderr)
        return EX_CONFIG
    if args.json is not None:
        write(args.name, results, args.json, args.provenance)
        print(f"written: {args.json}")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, bench in BENCHES.items():
        text = claim(name).replace("%", "%%")
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", type=Path, help="file for the results")
        bench.add_arguments(command)
    return parser.parse_args(argv)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else a daemon that a bench started would go on running
    sys.exit(main())
