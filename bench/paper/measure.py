"""The tables of Willis & Oala (2021): which statistics to match, with their ρ and procedure and with ours.

Each (data set, setting, row, ρ, perturbation) is one piece; finished pieces are kept in the state file, and a run
that was stopped goes on from there. Their ρ aims at statistics of clean source images, as in the paper; ours at
those shipped in the network for the unsupervised NN and NN ALL, and at the collected ones elsewhere.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.fit import REPORTED_DRAWS
from bench.paper.pieces import IMAGES_OF, RHOS, Piece, State
from bench.paper.runner import Runner
from bench.paper.scenes import FRAMES, KAPPAS, NETWORKS, ROWS, SCENES, SOURCE_IMAGES, VALIDATION_IMAGES
from bench.paper.tables import COLUMNS, body, figure, markdown, summarise
from bench.report import show
from calibrate import FitConfig
from daemon.demo.picture import draw

PUBLISHED_RATE, RATE = 0.1, 0.03  # of the paper's procedure
RATES = (
    f"{PUBLISHED_RATE} is the published one; {RATE} recovers more of what the perturbation costs on CIFAR-10, 64.8 % "
    "against about 47 % on a draw that settings are chosen on, so that with it the comparison is to the paper's ρ at "
    "its best"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("RECALD_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="CIFAR-10, MNIST and networks (%(default)s)")
    draws = range(1, len(REPORTED_DRAWS) + 1)
    parser.add_argument(
        "--runs", type=int, choices=draws, metavar="N", default=5, help="perturbations, draws 10 and up (%(default)s)"
    )
    parser.add_argument("--state", type=Path, default=Path("paper.jsonl"), help="finished pieces (%(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help='DATASET/SETTING/ROW/ρ/DRAW or the front of it, * for any: "cifar10/unsupervised/NN ALL"; repeatable',
    )
    parser.add_argument("--network", choices=NETWORKS, default="resnet20", help="Φ on CIFAR-10 (%(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="of the paper's procedure (%(default)s)")
    rates = RATES.replace("%", "%%")
    parser.add_argument("--rate", type=float, default=RATE, help=f"of the paper's procedure (%(default)s): {rates}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--png", type=Path, metavar="FILE", help=f"write the images of draw {IMAGES_OF}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    pieces, state, runner = selected(args.only, args.runs), State(args.state), Runner(args)
    records = _run(pieces, state, runner)
    summary = summarise(records)
    titles = sorted({(p.dataset, p.setting) for p in pieces if p.setting != "baseline"})
    for title in titles:
        show(f"{', '.join(title)}; acc and SSIM in %, PSNR in dB", COLUMNS, body(summary, *title))
    note = f"The paper's ρ was trained at the rate {args.rate:g}: {RATES}."
    print(note)
    if args.markdown:
        args.markdown.write_text("\n".join([*(markdown(summary, *title) for title in titles), note + "\n"]))
    if args.png:
        args.png.write_bytes(draw(list(figure(pieces, state, runner))))
    return {
        "settings": {"frames": FRAMES, "validation_images": VALIDATION_IMAGES, "source_images": SOURCE_IMAGES}
        | {"kappa": KAPPAS, "network": args.network, "runs": args.runs}
        | {"epochs": args.epochs, "rate": args.rate, "fit": vars(FitConfig())},
        "pieces": records,
        "summary": summary,
    }


def selected(only: Sequence[str], runs: int) -> list[Piece]:
    """The pieces that a pattern asks for, all without one, after the baselines that they are compared with.

    Raises SystemExit where nothing has such a name.
    """
    draws = REPORTED_DRAWS[:runs]
    every = [
        Piece(dataset, setting, row, rho, d)
        for d in draws  # outermost, so that a run cut short leaves whole tables of fewer draws
        for dataset in SCENES
        for setting, rows in ROWS.items()
        for row in rows
        for rho in RHOS
    ]
    chosen = [piece for piece in every if not only or any(_matches(piece, pattern) for pattern in only)]
    if not chosen:
        raise SystemExit(f"--only: nothing is called {' or '.join(only)}; names look like {every[0].key}")
    asked = dict.fromkeys((p.dataset, p.draw) for p in chosen)
    distorted = [Piece(dataset, "baseline", "DISTORTED", "none", d) for dataset, d in asked]
    clean = [Piece(dataset, "baseline", "CLEAN", "none", draws[0]) for dataset in dict.fromkeys(d for d, _ in asked)]
    return [*clean, *distorted, *chosen]


def _matches(piece: Piece, pattern: str) -> bool:
    parts = pattern.split("/")
    return len(parts) <= len(piece) and all(fnmatchcase(str(n), p) for n, p in zip(piece, parts, strict=False))


def _run(pieces: Sequence[Piece], state: State, runner: Runner) -> list[dict[str, Any]]:
    """Records of all pieces: the finished ones from the state, the others measured now and added to it."""
    for dataset in dict.fromkeys(piece.dataset for piece in pieces):
        runner.scene(dataset)  # may train networks, behind a bar of its own
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console, records = Console(stderr=True), []
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(pieces))
        for number, piece in enumerate(pieces):
            progress.update(task, description=piece.key)

            def stepped(done: int, steps: int, _: float, number: int = number) -> None:
                progress.update(task, completed=number + done / steps)

            record = state.find(piece, runner.settings(piece))
            if record is None:
                record, images = runner.run(piece, stepped)
                state.add(piece, record, images if piece.draw == IMAGES_OF else None)
            records.append(record)
            progress.update(task, completed=number + 1)
    return records
