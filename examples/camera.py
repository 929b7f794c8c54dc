"""A camera: sends a film of moving shapes, a webcam's pictures or a video file to recald, and counts the frames."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator

import numpy as np
import shapes

from daemon.client import Camera, EndpointError

BROKEN = np.array([0.35, 0.5, 0.75])  # share of red, green and blue light that --drift-after leaves


def pictures(source: str | None) -> Iterator[np.ndarray]:
    """Yield (H, W, 3) RGB uint8."""
    if source is None:
        yield from (shapes.frame(number)[0] for number in itertools.count())
        return
    import cv2

    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not capture.isOpened():
        raise SystemExit(f"camera.py: {source} is neither the number of a webcam nor a video file that can be read")
    while (read := capture.read())[0]:
        yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)


def show(camera: Camera, args: argparse.Namespace) -> None:
    """Publish the pictures at a steady rate until they end, or until Ctrl-C."""
    began = time.monotonic()
    for number, picture in enumerate(itertools.islice(pictures(args.source), args.frames)):
        time.sleep(max(0.0, began + number / args.fps - time.monotonic()))
        if args.drift_after is not None and number >= args.drift_after * args.fps:
            picture = (picture * BROKEN).astype(np.uint8)
        camera.publish(picture)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="number of a webcam, such as 0, or a video file (default: moving shapes)")
    parser.add_argument("--endpoint", default="tcp://127.0.0.1:5550", help="input.bind of recald (%(default)s)")
    parser.add_argument("--sensor", default="front", help="sensor id (%(default)s)")
    parser.add_argument("--fps", type=float, default=30.0, help="frames a second (%(default)s)")
    parser.add_argument("--frames", type=int, help="stop after so many (default: go on)")
    parser.add_argument("--drift-after", type=float, metavar="S", help="seconds until the pictures get dark and blue")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    try:
        with Camera(args.endpoint, args.sensor) as camera:
            if not camera.has_reader():
                print(f"nobody reads {args.sensor} at {args.endpoint} yet: is recald running?")
            try:
                show(camera, args)
            except KeyboardInterrupt:
                pass
            print(f"{camera.sent} frames sent, {camera.dropped} that nobody took")
    except EndpointError as error:
        raise SystemExit(f"camera.py: {error}") from None


if __name__ == "__main__":
    main()
