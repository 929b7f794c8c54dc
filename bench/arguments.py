"""Command line arguments that several benches share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_data(parser: argparse.ArgumentParser, contents: str = "CIFAR-10 and networks") -> None:
    """Add --data, the folder with images and networks; its default is $RECALD_DATA."""
    default = Path(os.environ.get("RECALD_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help=f"folder with {contents} (%(default)s)")


def add_draws(parser: argparse.ArgumentParser, default: int) -> None:
    """Add --draws, the number of perturbations."""
    parser.add_argument("--draws", type=int, default=default, help="draws of the paper's perturbation (%(default)s)")


def add_state(parser: argparse.ArgumentParser) -> None:
    """Add --state, a file of finished rows."""
    text = "file of JSON lines: finished rows are added to it and not measured again"
    parser.add_argument("--state", type=Path, help=text)
