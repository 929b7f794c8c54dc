"""The command line: `recald COMMAND`. Only `main` turns errors into exit codes; daemon/parser.py has the arguments."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

from calibrate.errors import RecaldError
from daemon import CONTROL_ENDPOINT
from daemon.exit_codes import EX_CONFIG, EX_INTERRUPTED, EX_SOFTWARE, EX_TEMPFAIL, error_text, exit_code
from daemon.log_limit import log_to_stderr
from daemon.parser import ORDERS, build_parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; an error is one line on standard error."""
    args = build_parser().parse_args(argv)
    _log_to_stderr()
    try:
        code = RUN[args.command](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"recald {args.command}: interrupted", file=sys.stderr)
        return EX_INTERRUPTED
    except (RecaldError, OSError) as error:  # what came from outside: configuration, model, arguments, the machine
        if isinstance(error, BrokenPipeError) and args.command != "run":  # a reader such as `head` has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would complain at its end
            return EX_TEMPFAIL
        print(f"recald {args.command}: {error_text(error)}", file=sys.stderr)
        return exit_code(error)
    except Exception:  # a fault of recald: it must not look like a mistake of its user
        traceback.print_exc()
        print(f"recald {args.command}: a fault of recald, please report the lines above", file=sys.stderr)
        return EX_SOFTWARE
    return code


def _log_to_stderr() -> None:
    """Log messages of recald from INFO on, of libraries from WARNING on."""
    log_to_stderr("%(levelname)s %(name)s: %(message)s")
    for package in ("calibrate", "deploy", "daemon"):
        logging.getLogger(package).setLevel(logging.INFO)


def run_daemon(args: argparse.Namespace) -> int:
    from daemon.config import load_config

    config = load_config(args.config)  # first: a mistake is reported before torch is imported, which takes seconds

    from prometheus_client import REGISTRY

    from daemon.loop import Daemon, ThreadDied
    from daemon.systemd_notify import Notifier

    with closing(Notifier()) as notifier:
        try:
            Daemon(config, REGISTRY, notifier).run()
        except ThreadDied as error:  # its traceback is in the log
            print(f"recald run: {error}", file=sys.stderr)
            return EX_SOFTWARE
    gc.freeze()  # all is closed; to search PyTorch's objects for garbage at the exit would take seconds
    return 0


def check_config(args: argparse.Namespace) -> int:
    from daemon.config import load_config

    config = load_config(args.config)  # first, as in run_daemon

    from daemon.operator.check_config import check_config

    check_config(args.config, config)
    return 0


def examine(args: argparse.Namespace) -> int:
    from daemon.operator import doctor

    return 0 if doctor.examine(args) else EX_CONFIG


def history(args: argparse.Namespace) -> int:
    from daemon.operator import history

    history.history(args)
    return 0


def verify(args: argparse.Namespace) -> int:
    from daemon.operator import verify

    return 0 if verify.verify(args) else EX_CONFIG


def report(args: argparse.Namespace) -> int:
    from daemon.operator.report import command

    command.report(args)
    return 0


def purge(args: argparse.Namespace) -> int:
    from daemon.operator import purge
    from daemon.operator.peer import user_name

    purge.purge(args, user_name(os.getuid()))
    return 0


def export(args: argparse.Namespace) -> int:
    from deploy.model.export import export_model

    card = export_model(
        args.builder,
        args.weights,
        args.output,
        input_shape=args.input,
        mean=args.mean,
        std=args.std,
        classes=args.classes,
        name=args.name,
        kind=args.output_kind,
    )
    print(f"{args.output}: sha256 {card.sha256}")
    hint = ", so that results have no label; of a classifier give --classes or --output-kind logits"
    print(f"output: {card.output}{hint if card.output == 'none' else ''}")
    return 0


def commission(args: argparse.Namespace) -> int:
    from daemon.operator.commissioning import commission

    commission.run(args)
    return 0


def status(args: argparse.Namespace) -> int:
    answer = _ask(args, {"command": "status"})
    if args.json:
        print(json.dumps(answer))
        return 0
    from daemon.operator.status import print_status

    print_status(answer)
    return 0


def check(args: argparse.Namespace) -> int:
    """Print the verdict on a camera, of a live sensor or of pictures; the verdict is the exit code."""
    _require_one_source(args)
    from daemon.operator.checking import check

    if args.sensor:
        verdict = check.check_sensor(_ask(args, {"command": "status"}), args.sensor)
    else:
        from daemon.operator.checking.pictures import check_pictures

        verdict = check_pictures(args.model, args.frames)
    return check.tell(verdict, args.json)


def _require_one_source(args: argparse.Namespace) -> None:
    live, pictures = (args.sensor, args.config), (args.model, args.frames)
    if not (args.sensor and not any(pictures)) and not (all(pictures) and not any(live)):
        raise RecaldError("give a live sensor's id (with --config, if needed), or else both --model and --frames")


def order(args: argparse.Namespace) -> int:
    """Give one order to a running daemon and print one line: what happened and what comes next."""
    name = "release" if getattr(args, "release", False) else args.command
    message = {"command": name, "sensor": args.sensor, "by": _user(), "version": getattr(args, "version", None)}
    answer = _ask(args, message)
    print(json.dumps(answer) if args.json else f"{answer['sensor']}: {answer['said']}")
    return 0


def label(args: argparse.Namespace) -> int:
    from daemon.operator import label

    label.label(args, _control_endpoint(args.config), _user())
    return 0


def _user() -> str:
    """Return the name that an order carries as a note; the daemon itself finds out whose process gives it."""
    from daemon.operator.peer import user_name

    return os.environ.get("SUDO_USER") or user_name(os.getuid())


def _ask(args: argparse.Namespace, message: dict[str, Any]) -> dict[str, Any]:
    from daemon.operator.control import ask

    return ask(_control_endpoint(args.config), message, timeout=args.timeout)


def _control_endpoint(config: Path | None) -> str:
    if config is None:
        return CONTROL_ENDPOINT
    from daemon.config import load_config

    return load_config(config).control.endpoint


def _run_module(args: argparse.Namespace) -> int:
    code: int = import_module(args.module).run(args)
    return code


RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run_daemon,
    "check-config": check_config,
    "doctor": examine,
    "export": export,
    "commission": commission,
    "status": status,
    "check": check,
    **dict.fromkeys(ORDERS, order),
    "label": label,
    "history": history,
    "verify": verify,
    "report": report,
    "purge": purge,
    "simulate": _run_module,
    "demo": _run_module,
}
