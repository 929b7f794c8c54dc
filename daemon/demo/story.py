"""The demo's story: all is well, one camera drifts, the daemon notices, refits and recovers."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from contextlib import closing
from pathlib import Path

import zmq
from rich.console import Console

from daemon.config import load_config
from daemon.demo import material
from daemon.demo.camera import Cameras
from daemon.demo.digits import DemoError
from daemon.demo.ledger import Ledger, Reading, Swap
from daemon.demo.material import Material
from daemon.demo.picture import draw
from daemon.demo.restore import picture_rows
from daemon.demo.scene import Scene
from daemon.demo.service import Daemon, Folder, export, free_port, write_config
from daemon.demo.show import Display
from daemon.demo.summary import Summary
from daemon.simulation.drifts import Drift, parse_drift
from deploy.files import digest_file

DRIFTING, STEADY = "front", "rear"
SENSORS = (DRIFTING, STEADY)
FPS = 30.0
FIT_FRAMES = 256  # 9 s of one camera
CONNECT_S = 20.0  # from the first frame to the first answer
HEALTHY_S, RECOVERED_S = 12.0, 15.0
RECOVERY_TIMEOUT_S = 240.0
AROUND_SWAP_S = 1.0


def perform(args: argparse.Namespace, console: Console) -> Summary:
    """Prepare, run the story, and write the output files."""
    started = time.monotonic()
    drift = parse_drift(args.drift, args.seed)
    shown = material.cifar(args.data) if args.data else material.digits(args.seed, console)
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="recald-demo-") as name:
        folder = Folder(Path(name))
        console.print(f"recald export: freezing the network for {shown.title}")
        export(shown.network, folder.model)
        write_config(folder, SENSORS, free_port(), FIT_FRAMES)
        folder.log.touch()
        try:
            summary = tell(folder, shown, drift, console, started)
        finally:
            shutil.copyfile(folder.log, args.output / "recald.log")
        rows = picture_rows(folder.model, folder.state, DRIFTING, shown, drift, summary.accuracies())
    (args.output / "frames.png").write_bytes(draw(rows))
    (args.output / "summary.json").write_text(json.dumps(summary.document(), indent=2) + "\n")
    return summary


def tell(folder: Folder, shown: Material, drift: Drift, console: Console, started: float) -> Summary:
    """Start the daemon and the cameras, let the story happen, and stop them."""
    config, digest = load_config(folder.config), digest_file(folder.model)
    console.print("recald run: starting")
    with Daemon(folder.config, folder.log, config.metrics.port) as daemon, zmq.Context() as context:
        daemon.wait_until_serving()
        ledger = Ledger(SENSORS)
        cameras = Cameras(
            context,
            ledger,
            shown.images,
            shown.labels,
            sensors=SENSORS,
            frames=config.input.bind[0],
            results=config.output.bind,
            fps=FPS,
            seed=drift.seed,
        )
        with closing(cameras), Display(f"recald: {shown.title}", console) as display:
            scene = Scene(SENSORS, daemon, cameras, ledger, display, config.drift.threshold)
            drifted_at = story(scene, drift)
            display.event("SIGTERM to recald")
            exit_code, stop_seconds = daemon.stop()
    now = time.monotonic()
    readings = {sensor: ledger.read(sensor, now) for sensor in SENSORS}
    swap = first_swap(readings[DRIFTING], drifted_at)
    return Summary(
        drifting=DRIFTING,
        drift=str(drift),
        seed=drift.seed,
        readings=readings,
        superseded={sensor: scene.superseded(sensor) for sensor in SENSORS},
        seconds_to_recover=swap.at - drifted_at if swap else None,
        swap_pause_seconds=scene.swap_pause(DRIFTING),
        missing_around_swap=ledger.unanswered_around(DRIFTING, swap.at, AROUND_SWAP_S) if swap else 0,
        digest_before=digest,
        digest_after=digest_file(folder.model),
        exit_code=exit_code,
        stop_seconds=stop_seconds,
        total_seconds=now - started,
    )


def story(scene: Scene, drift: Drift) -> float:
    """All is well, one camera drifts, the daemon recovers; returns when the drift set in."""
    scene.cameras.start()
    if not scene.follow(CONNECT_S, until=lambda: all(scene.read(sensor).answered for sensor in SENSORS)):
        raise DemoError(f"recald answered nothing for {CONNECT_S:g} s")
    scene.display.event("both cameras are well")
    scene.follow(HEALTHY_S)
    drifted_at = scene.monotonic()
    scene.cameras.drift(DRIFTING, drift)
    scene.display.event(f"{DRIFTING}: the camera drifts by {drift}")
    if scene.follow(RECOVERY_TIMEOUT_S, until=lambda: first_swap(scene.read(DRIFTING), drifted_at) is not None):
        scene.follow(RECOVERED_S)
    scene.cameras.stop()
    scene.look()
    return drifted_at


def first_swap(reading: Reading, since: float) -> Swap | None:
    return next((swap for swap in reading.swaps if swap.at >= since), None)
