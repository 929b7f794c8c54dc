"""The arguments of every command. It imports nothing that takes time, so that `recald --help` answers at once."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from daemon import __version__
from daemon.states import HOLD_MEANING


class Command(argparse.ArgumentParser):
    """The parser of one command.

    add_arguments_of: the module that adds its arguments when the command is used, so that no command imports what
    only another one needs.
    """

    add_arguments_of: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        return super().parse_known_args(args, namespace)

    def complete(self) -> None:
        """Add the arguments of the module `add_arguments_of`, once."""
        module, self.add_arguments_of = self.add_arguments_of, None
        if module is not None:
            import_module(module).add_arguments(self)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; docs/commands.md is generated from it."""
    parser = argparse.ArgumentParser(
        prog="recald", description="Keep a frozen BatchNorm network working while the camera in front of it drifts."
    )
    parser.add_argument("--version", action="version", version=f"recald {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Command)
    _add_daemon(commands)
    _add_export(commands)
    _add_commission(commands)
    _add_operator(commands)
    _add_audit(commands)
    _add_camera(commands)
    return parser


def _add(commands: Any, name: str, text: str, example: str) -> Any:
    return commands.add_parser(name, help=text, description=text, epilog=f"example: recald {name} {example}")


def _add_daemon(commands: Any) -> None:
    for name, text in (
        ("run", "run the daemon in the foreground until SIGTERM"),
        ("check-config", "check a configuration file and name every mistake in it"),
    ):
        command = _add(commands, name, text, "--config /etc/recald/recald.yaml")
        command.add_argument("--config", type=Path, required=True, help="the configuration file")
    text = "check this machine and every backend, and say what is missing and what to do"
    doctor = _add(commands, "doctor", text, "--config /etc/recald/recald.yaml")
    doctor.add_argument("--config", type=Path, help="check also what this configuration file asks for")
    doctor.add_argument("--json", action="store_true", help="print JSON for programs")


def _add_export(commands: Any) -> None:
    example = "--builder nets:resnet20 --weights resnet20.pth --input 3x32x32 --mean 0.485,0.456,0.406 "
    example += "--std 0.229,0.224,0.225 -o model.pt2"
    command = _add(commands, "export", "freeze a trained network into a model file and its card", example)
    command.add_argument(
        "--builder", "--factory", required=True, help="module:function that builds the network; older name: --factory"
    )
    command.add_argument("--weights", type=Path, help="a .safetensors file, or a .pt, .pth or .th state dict")
    command.add_argument("--input", type=_shape, required=True, help="size of one frame: CHANNELSxHEIGHTxWIDTH")
    command.add_argument("--mean", type=_numbers, required=True, help="mean of each channel, of values 0..1")
    command.add_argument(
        "--std", type=_numbers, required=True, help="standard deviation of each channel, of values 0..1"
    )
    names = command.add_mutually_exclusive_group()
    names.add_argument("--classes", type=lambda text: text.split(","), help="names of the classes, separated by commas")
    names.add_argument(
        "--classes-file", type=_lines, dest="classes", help="a text file with one name of a class a line"
    )
    command.add_argument(
        "--output-kind",
        choices=("logits", "probabilities", "none"),
        help="what the network returns for an image (default: found out; with names of classes logits): without logits "
        "or probabilities results have no label",
    )
    command.add_argument("--name", help="name of the model in its card (default: the name of the file)")
    command.add_argument("-o", "--output", type=Path, required=True, help="the model file, *.pt2")


def _add_commission(commands: Any) -> None:
    text = "measure clean frames once, for a finer drift score and better fits"
    command = _add(commands, "commission", text, "--model model.pt2 --frames clean/")
    command.add_argument("--model", type=Path, required=True, help="the model file, *.pt2, with its card beside it")
    action = command.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--frames", type=Path, help="clean pictures: a folder of png, jpg or tif files, or an .npz file with key images"
    )
    action.add_argument("--remove", action="store_true", help="undo: use the statistics shipped in the model again")
    text = "their classes, to learn how to estimate accuracy: a CSV file picture,label, or the .npz with key labels"
    command.add_argument("--labels", type=Path, metavar="FILE", help=text)
    command.add_argument("--count", type=int, default=2048, help="pictures at most, evenly from all (%(default)s)")
    command.add_argument("--force", action="store_true", help="take frames as clean that score as drifted")


ORDERS = {
    "recalibrate": "fit a homogenizer for a sensor now",
    "approve": "let the waiting candidate serve (recalibrate.mode supervised)",
    "reject": "drop the waiting candidate",
    "rollback": "let the homogenizer before the active one serve again",
    "restore": "bring a stored homogenizer back, through the shadow run and probation",
    "relearn": "forget what a sensor's healthy frames look like, and learn it anew",
    "hold": f"hold the homogenizer until --release: {HOLD_MEANING}",
}


def _add_operator(commands: Any) -> None:
    text = "show what a running daemon does with each sensor"
    show = _add(commands, "status", text, "--config /etc/recald/recald.yaml")
    camera = _add_check(commands)
    examples = dict.fromkeys(ORDERS, "--sensor front") | {"restore": "--version 3fa94c01"}
    orders = {name: _add(commands, name, text, examples[name]) for name, text in ORDERS.items()}
    text = "8 digits of its version or more; `recald report --list` names those that were fitted"
    orders["restore"].add_argument("--version", metavar="V", required=True, help=text)
    orders["hold"].add_argument("--release", action="store_true", help="undo: new homogenizers may serve again")
    for name in ("approve", "reject"):
        orders[name].add_argument(
            "--version", metavar="V", help="only if this candidate waits, no newer one: 8 digits of its version or more"
        )
    text = "tell the true classes of served frames, and see how many answers were right"
    orders["label"] = _add(commands, "label", text, "--sensor front labels.csv")
    text = "a CSV file with a line `seq,label` for each frame: its sequence number, and the name or number of its class"
    orders["label"].add_argument("file", type=Path, metavar="FILE", help=text)
    for name, parser in orders.items():
        text = "the id of the sensor" + (" (default: the one it was fitted for)" if name == "restore" else "")
        parser.add_argument("--sensor", required=name != "restore", help=text)
    for parser in (show, camera, *orders.values()):
        parser.add_argument("--json", action="store_true", help="print JSON for programs")
        parser.add_argument("--config", type=Path, help="the daemon's file, where control.endpoint is not the default")
        parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for an answer (%(default)s)")


def _add_check(commands: Any) -> Any:
    text = "give one verdict on a camera, live or from pictures: ok, content shift, or degraded and repairable or not"
    command = _add(commands, "check", text, "--model model.pt2 --frames pictures/")
    command.add_argument("sensor", nargs="?", metavar="SENSOR", help="the id of a live sensor; its daemon is asked")
    command.add_argument("--model", type=Path, help="of pictures: the model file, *.pt2, with its card beside it")
    text = (
        "the pictures: a folder of png, jpg or tif files, or an .npz file with key images; at most 512, evenly from all"
    )
    command.add_argument("--frames", type=Path, help=text)
    return command


def _add_audit(commands: Any) -> None:
    example = "--config /etc/recald/recald.yaml"
    text = "show the audit log: what was done, when and why"
    records = _add(commands, "history", text, example)
    records.add_argument("--sensor", help="only this sensor")
    records.add_argument("--limit", type=int, default=50, metavar="N", help="the newest N records (%(default)s)")
    records.add_argument("--all", action="store_true", help="show every change of state, too")
    check = _add(commands, "verify", "check every byte of model, state and audit log", example)
    check.add_argument("--anchor", metavar="NUMBER:DIGEST", help="a record that was noted elsewhere, such as 17:3fa9")
    page = _add_report(commands)
    for parser in (records, check, page):
        parser.add_argument("--config", type=Path, required=True, help="the configuration file")
        parser.add_argument("--json", action="store_true", help="print JSON for programs")
    delete = _add(commands, "purge", "delete all frames that were kept for reports", example)
    delete.add_argument("--config", type=Path, required=True, help="the configuration file")
    delete.add_argument("--sensor", help="only this sensor")


def _add_report(commands: Any) -> Any:
    text = "write an HTML page about one recalibration: evidence, verdict, what followed"
    page = _add(commands, "report", text, "--config /etc/recald/recald.yaml -o report.html")
    page.add_argument("--sensor", help="only this sensor")
    choice = page.add_mutually_exclusive_group()
    choice.add_argument("--number", type=int, help="the number of its record in the audit log (default: the newest)")
    choice.add_argument("--version", dest="version_prefix", metavar="V", help="the first digits of its homogenizer")
    choice.add_argument("--list", action="store_true", help="list all recalibrations instead")
    page.add_argument("-o", "--output", type=Path, metavar="FILE", help="default report.html; - is standard output")
    return page


def _add_camera(commands: Any) -> None:
    for name, module, text, example in (
        (
            "simulate",
            "daemon.simulation.camera",
            "publish pictures as a drifting camera would",
            "--images photos/ --endpoint tcp://127.0.0.1:5550 --sensor front --drift exposure=-1 --after 10",
        ),
        ("demo", "daemon.demo.run", "show a camera that drifts and the daemon that recovers", "--output demo-output"),
    ):
        command = _add(commands, name, text, example)
        command.set_defaults(module=module)
        command.add_arguments_of = module


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not CHANNELSxHEIGHTxWIDTH, such as 3x32x32") from None
    return channels, height, width


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: cannot be read as text: {error}") from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, such as 0.5,0.5,0.5") from None
