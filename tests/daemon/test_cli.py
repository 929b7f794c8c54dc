"""The command line as a person uses it: exit codes, one clear line; for each command a process of its own, too."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from envelopes import sign
from places import SUPPORT
from running import RECALD, recald, recald_here, write_config

from daemon import __version__
from daemon.cli import RUN, main
from daemon.exit_codes import EX_CONFIG, EX_SOFTWARE, EX_TEMPFAIL
from daemon.operator.control import ControlServer
from daemon.parser import build_parser
from deploy.files import digest_file
from deploy.model.card import ModelCard, card_path

COMMANDS = ["run", "check-config", "doctor", "export", "commission", "status", "check", "recalibrate", "approve"]
COMMANDS += ["reject", "rollback", "restore", "relearn", "hold", "label", "history", "verify", "report", "purge"]
COMMANDS += ["simulate", "demo"]
STATUS = {"front": {"state": "fitting", "progress": 0.25, "homogenizer": ("c0ffee" * 11)[:64], "drift_score": 3.456}}
STATUS["front"] |= {"drift_alarm": True, "frames": 0, "last_fit": "none yet", "candidate": "ab12" * 16}
STATUS["front"]["reason"] = "`recald approve` lets the candidate serve, `recald reject` drops it; " + "word " * 20


def refused(done, code: int = EX_CONFIG) -> str:
    """The one line on standard error of a command that was refused."""
    assert done.returncode == code
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


# ---- help


def test_every_command_is_tested(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE) == COMMANDS
    assert RUN.keys() == set(COMMANDS), "the parser and what runs are two files"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example: recald {command} -" in " ".join(capsys.readouterr().out.split())


def test_the_version_is_that_of_the_package():
    assert recald("--version").stdout == f"recald {__version__}\n"


# ---- check-config and run


def test_a_configuration_without_mistakes_is_ok(tmp_path: Path, tiny_model: Path):
    config = write_config(tmp_path, tiny_model)
    done = recald("check-config", "--config", config)
    assert done.returncode == 0
    first, *lines = done.stdout.splitlines()
    assert first == f"{config}: ok, 2 sensor(s)"
    assert {"backend: eager", "envelope: none"} < set(lines)
    assert any(line.startswith(f"model: {tiny_model}, SHA-256 ") for line in lines)


def test_check_config_names_the_envelope(tmp_path: Path, tiny_model: Path):
    envelope = tmp_path / "envelope.yaml"
    envelope.write_text("version: 1\n")
    given = {"envelope": "envelope.yaml", "envelope_key": str(sign(envelope))}
    done = recald_here("check-config", "--config", write_config(tmp_path, tiny_model, recalibrate=given))
    assert done.returncode == 0
    assert f"envelope: {envelope}, SHA-256 {digest_file(envelope)}, its signature is valid; " in done.stdout


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_an_envelope_that_somebody_changed_is_a_mistake(tmp_path: Path, tiny_model: Path, command: str):
    envelope = tmp_path / "envelope.yaml"
    envelope.write_text("version: 1\n")
    given = {"envelope": "envelope.yaml", "envelope_key": str(sign(envelope))}
    envelope.write_text("version: 1\n\n")
    done = recald_here(command, "--config", write_config(tmp_path, tiny_model, recalibrate=given))
    line = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (EX_CONFIG, "")
    assert "envelope.yaml.sig is no signature of these bytes" in line and "sign it again: openssl pkeyutl" in line


def test_check_config_names_each_mistake_with_its_line(tmp_path: Path, tiny_model: Path):
    config = write_config(tmp_path, tiny_model, drift={"window": 3}, output={"bnd": "ipc:///x"})
    done = recald("check-config", "--config", config)
    assert done.returncode == EX_CONFIG
    first, second = done.stderr.removeprefix("recald check-config: ").splitlines()
    assert re.match(rf"{config}:\d+: drift\.window: ", first)
    assert re.match(rf"{config}:\d+: output\.bnd: ", second)


@pytest.mark.parametrize("lost", ["model.pt2", "model.yaml"])
def test_check_config_names_the_missing_model_or_card(tmp_path: Path, tiny_model: Path, lost: str):
    model = tmp_path / "model.pt2"
    shutil.copy(tiny_model, model)
    shutil.copy(card_path(tiny_model), card_path(model))
    (tmp_path / lost).unlink()
    line = refused(recald_here("check-config", "--config", write_config(tmp_path, model)))
    assert f"{tmp_path / lost}: " in line and ("cannot be read" in line or "`recald export` writes it" in line)


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_a_missing_configuration_is_one_line(tmp_path: Path, command: str):
    assert f"{tmp_path}/absent.yaml" in refused(recald(command, "--config", tmp_path / "absent.yaml"))


def test_a_state_directory_of_another_user_may_pass(tmp_path: Path, tiny_model: Path):
    (tmp_path / "state").write_text("in the way")
    done = recald_here("run", "--config", write_config(tmp_path, tiny_model))
    assert done.returncode == EX_TEMPFAIL
    assert f"recald run: {tmp_path}/state: File exists" in done.stderr


# ---- export


def export(output: Path, *arguments: str, builder: str = "synthetic:trained_network"):
    normalisation = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"]
    return recald("export", "--builder", builder, *normalisation, *arguments, "-o", output, cwd=SUPPORT)


def test_export_writes_a_model_and_its_card(tmp_path: Path):
    model = tmp_path / "corners.pt2"
    done = export(model, "--input", "3x16x16", "--classes", "a,b,c,d", "--name", "corners")
    assert (done.returncode, done.stdout) == (0, f"{model}: sha256 {digest_file(model)}\noutput: logits\n")
    card = ModelCard.model_validate(yaml.safe_load(card_path(model).read_text()))
    assert (card.name, card.sha256, card.classes) == ("corners", digest_file(model), ["a", "b", "c", "d"])
    assert (card.input.channels, card.input.height, card.input.width) == (3, 16, 16)


def test_export_reads_names_with_commas_from_a_file_and_says_what_the_output_is(tmp_path: Path, monkeypatch):
    names = ["tench, Tinca tinca", "goldfish", "rock, stone", "other"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    monkeypatch.syspath_prepend(SUPPORT)
    required = ["--builder", "synthetic:trained_network", "--input", "3x16x16", "--mean", "0.5,0.5,0.5"]
    required += ["--std", "0.25,0.25,0.25", "-o", tmp_path / "m.pt2"]
    assert recald_here("export", *required, "--classes-file", tmp_path / "names.txt").stdout.endswith(
        "output: logits\n"
    )
    assert ModelCard.model_validate(yaml.safe_load((tmp_path / "m.yaml").read_text())).classes == names
    said = recald_here("export", *required)
    assert "output: none, so that results have no label; of a classifier give --classes" in said.stdout
    refused_line = recald_here("export", *required, "--classes", ",".join(names)).stderr
    assert "names 6 classes" in refused_line and "--classes-file" in refused_line
    with pytest.raises(SystemExit):
        recald_here("export", *required, "--classes-file", tmp_path / "absent.txt")


def test_export_says_in_one_line_what_it_cannot_do(tmp_path: Path):
    model = tmp_path / "corners.pt2"
    line = refused(export(model, "--input", "3x16x16", builder="synthetic:absent"))
    assert line.startswith("recald export: synthetic:absent: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--builder", "--factory"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "16x16"], "'16x16' is not CHANNELSxHEIGHTxWIDTH, such as 3x32x32"),
        (["--input", "3x16x16", "--mean", "grey"], "'grey' is not a list of numbers, such as 0.5,0.5,0.5"),
    ],
)
def test_a_mistyped_argument_is_explained(tmp_path: Path, arguments: list[str], message: str, flag: str, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", flag, "a:b", "--mean", "0", "--std", "1", *arguments, "-o", str(tmp_path / "m.pt2")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_builder_may_be_given_under_its_older_name():
    required = ["--input", "3x32x32", "--mean", "0", "--std", "1", "-o", "m.pt2"]
    for flag in ("--builder", "--factory"):
        assert build_parser().parse_args(["export", flag, "nets:make", *required]).builder == "nets:make"


# ---- an operator's commands


@pytest.mark.parametrize(
    "command", [["status"], ["recalibrate", "--sensor", "front"], ["rollback", "--sensor", "front"]]
)
def test_without_a_daemon_an_order_says_so(tmp_path: Path, tiny_model: Path, command: list[str]):
    line = refused(recald(*command, "--config", write_config(tmp_path, tiny_model)), EX_TEMPFAIL)
    assert line == (
        f"recald {command[0]}: no recald answers on ipc://{tmp_path}/control (No such file or directory): "
        "is it running?"
    )


@pytest.mark.parametrize("width", [80, None])
def test_status_is_a_table_for_people_that_cuts_nothing_off(
    folder: Path, tiny_model: Path, context, capsys, monkeypatch, width: int | None
):
    monkeypatch.setattr("daemon.operator.terminal.terminal_width", lambda: width)
    answer = {"version": "1", "model": "f" * 64, "backend": "onnx", "compiling": None, "sensors": STATUS}
    server = ControlServer(context, f"ipc://{folder}/control", lambda _: answer)
    server.start()
    try:
        assert main(["status", "--config", str(write_config(folder, tiny_model))]) == 0
    finally:
        server.close()
    lines = capsys.readouterr().out.splitlines()
    for value in (
        "front",
        "fitting 25%",
        "3.46",
        "yes",
        " 0 ",
        "c0ffeec0ffee",
        "candidate: ab12ab12ab12",
        "`recald approve`",
    ):
        assert any(value in line for line in lines), value
    assert len(lines) == 3 if width is None else all(len(line) <= width for line in lines)


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, tiny_model: Path):
    command = f"{' '.join(RECALD)} --help; {' '.join(RECALD)} commission --help"
    done = subprocess.run(["sh", "-c", f"({command}) | head -n 1"], capture_output=True, text=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_a_fault_of_recald_keeps_its_traceback_and_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch):
    def broken(args: object) -> int:
        return [1, 2].index(3)

    monkeypatch.setitem(RUN, "status", broken)
    done = recald_here("status")
    assert done.returncode == EX_SOFTWARE
    assert "in broken" in done.stderr and "ValueError: 3 is not in list" in done.stderr
    assert done.stderr.splitlines()[-1] == "recald status: a fault of recald, please report the lines above"
