"""Print what recald says of each frame: the class, how sure the model is, which homogenizer made it, and the drift."""

from __future__ import annotations

import argparse
import itertools

from calibrate import RecaldError
from daemon.client import FrameResult, Results


def line(result: FrameResult) -> str:
    label = "no class"  # the model is no classifier
    if result.label is not None:
        label = f"{result.class_name} (class {result.label})" if result.class_name else f"class {result.label}"
    confidence = "-" if result.confidence is None else f"{result.confidence:.2f}"
    drift = "-" if result.drift_score is None else f"{result.drift_score:.2f}"  # about 1 on clean frames
    return (
        f"{result.sensor} frame {result.seq}: {label}, confidence {confidence}, homogenizer {result.homogenizer[:12]}, "
        f"drift {drift}, {result.state}, {result.latency_ms:.1f} ms"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", default="tcp://127.0.0.1:5551", help="output.bind of recald (%(default)s)")
    parser.add_argument("--sensor", help="print this sensor alone (default: all)")
    parser.add_argument("--count", type=int, help="stop after so many results (default: go on)")
    parser.add_argument("--timeout", type=float, default=10.0, help="stop after so many seconds without (%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    count = 0
    try:
        with Results(args.endpoint, sensor=args.sensor, timeout=args.timeout) as results:
            for result in itertools.islice(results, args.count):
                print(line(result), flush=True)
                count += 1
    except RecaldError as error:
        raise SystemExit(f"read_results.py: {error}") from None
    except KeyboardInterrupt:
        return
    if count == 0 or (args.count is not None and count < args.count):
        raise SystemExit(f"no result for {args.timeout:g} s: is recald running, and does a camera send?")


if __name__ == "__main__":
    main()
