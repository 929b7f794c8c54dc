"""Every result says what was measured, the page shows the results as they are, and every bench states its claim."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

import pytest

from bench.__main__ import main
from bench.benches import BENCHES, claim
from bench.page.result import Result, load
from bench.provenance import METHOD, ROOT, code_digest, normalised_statements, source_files
from bench.report import write
from bench.results_page import FOLDER, HEADLINES, PAGE, PARTS, TITLES, headline, render
from bench.state_file import append_line, read_lines
from bench.swap.daemon_without_fits import REPLACED
from daemon.demo.run import DEFAULT_DRIFT

FILES = sorted(FOLDER.glob("*.json"))
MAX_HEADLINE_LINES = 13
NOTES = "notes"


# ---- results


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_result_has_commit_and_date(path):
    document = json.loads(path.read_text())
    assert datetime.fromisoformat(document["measured_at"]).utcoffset() is not None
    assert re.fullmatch("[0-9a-f]{40}", document["commit"])
    assert document["bench"] in {*BENCHES, NOTES} and document["machine"]["cpu"]
    assert document["code"] is None or re.fullmatch("[0-9a-f]{64}", document["code"])


def test_every_commit_of_a_result_is_in_the_history():
    commits = {json.loads(path.read_text())["commit"] for path in FILES}
    commits |= {note["commit"] for note in load(FOLDER)[NOTES]["notes"]}
    shallow = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True
    )
    if shallow.stdout.strip() != "false":
        pytest.skip("this is no checkout with its history")
    for commit in commits:
        subprocess.run(["git", "-C", ROOT, "merge-base", "--is-ancestor", commit, "HEAD"], check=True)


def test_a_note_is_about_a_bench_and_has_commit_and_date():
    for note in load(FOLDER)[NOTES]["notes"]:
        assert note["about"] in BENCHES and note["text"].endswith(".")
        assert re.fullmatch("[0-9a-f]{40}", note["commit"]) and datetime.fromisoformat(note["measured_at"])


def test_a_written_result_says_what_it_was_measured_on(tmp_path):
    path = tmp_path / "it.json"
    write("fit", {"seeds": {"fit": 0}, "rows": [1]}, path, {"commit": "c" * 40, "dirty": True, "code": "d" * 64})
    document = json.loads(path.read_text())
    assert (document["bench"], document["commit"], document["dirty"]) == ("fit", "c" * 40, True)
    assert datetime.fromisoformat(document["measured_at"]).utcoffset() is not None
    assert document["seeds"] == {"fit": 0} and document["rows"] == [1]


# ---- the digest of the code


SOURCE = '''
"""What it is for."""
import os

LIMIT = 3  # apples


def first(number: int) -> int:
    """Return more."""
    return number + LIMIT


class Thing:
    """A thing."""

    def second(self) -> str:
        return f"{first(1):.2f}" if os else "x"
'''


def digest(folder: Path, **files: str) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return code_digest(("*.py",), folder)


def test_words_and_places_do_not_change_the_digest(tmp_path):
    whole = digest(tmp_path / "whole", code=SOURCE)
    reworded = SOURCE.replace("What it is for", "Other").replace("# apples", "# pears").replace("Return more", "Add")
    assert digest(tmp_path / "reworded", code=reworded) == whole
    head, tail = SOURCE.split("\n\n\n", 1)
    parts = {"thing": f"import os\n{tail.split(chr(10) * 3, 1)[1]}", "first": tail.split("\n\n\n", 1)[0], "limit": head}
    assert digest(tmp_path / "split", **parts) == whole
    assert digest(tmp_path / "layout", code=SOURCE.replace("number + LIMIT", "(number\n        + LIMIT)")) == whole


@pytest.mark.parametrize(
    ("old", "new"),
    [("LIMIT = 3", "LIMIT = 4"), ("number + LIMIT", "number - LIMIT"), ("second", "other"), ('"x"', '"y"')],
)
def test_a_change_of_the_code_changes_the_digest(tmp_path, old, new):
    assert digest(tmp_path / "changed", code=SOURCE.replace(old, new)) != digest(tmp_path / "whole", code=SOURCE)


def test_a_definition_that_is_there_twice_counts_twice(tmp_path):
    assert digest(tmp_path / "twice", a=SOURCE, b=SOURCE) != digest(tmp_path / "once", a=SOURCE)


def test_the_normalised_text_is_the_same_in_every_version_of_python(tmp_path):
    path = tmp_path / "it.py"
    path.write_text("def f(a, *, b=None):\n    'Doc.'\n    return [a, b]\n")
    (text,) = normalised_statements(path)
    assert text == (
        "FunctionDef(name='f',args=arguments(args=[arg(arg='a')],kwonlyargs=[arg(arg='b')],kw_defaults=[Constant()]),"
        "body=[Return(value=List(elts=[Name(id='a'),Name(id='b')]))])"
    )


def test_a_pattern_for_nothing_is_refused():
    with pytest.raises(ValueError, match="no file is called nowhere"):
        code_digest(("nowhere/*.py",))


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_declares_its_own_sources(name):
    files = source_files(BENCHES[name].CODE)
    assert Path(BENCHES[name].__file__) in files


def test_the_method_is_all_of_calibrate_but_what_no_fit_needs():
    everything = set((ROOT / "calibrate").rglob("*.py"))
    rest = everything - set(source_files(METHOD))
    assert {path.parent.name for path in rest} == {"readouts", "baseline"}


# ---- the page


def test_the_page_is_not_stale():
    assert render(FOLDER) == PAGE.read_text(), "docs/results.md is out of date: run python -m bench.results_page"


def test_the_page_has_a_section_for_every_bench():
    assert set(TITLES) == {name for sections in PARTS.values() for name in sections} == set(BENCHES)


def test_every_table_of_the_page_says_when_it_was_measured():
    for section in PAGE.read_text().split("\n### ")[1:]:
        assert "| --- |" not in section or re.search(r"\d{4}-\d\d-\d\d at `[0-9a-f]{7}`", section), section[:40]


def test_the_headline_is_short_and_every_line_says_when_it_was_measured():
    lines = headline(load(FOLDER)).splitlines()
    assert len(lines) <= MAX_HEADLINE_LINES
    rows = lines[2 : 2 + len(HEADLINES)]
    assert len(rows) == len(HEADLINES) and all(re.search(r"at `[0-9a-f]{7}`", row) for row in rows)


def result(**changes: object) -> Result:
    document = {"bench": "fit", "measured_at": "2026-01-02T03:04:05+00:00", "commit": "a" * 40, "dirty": False}
    return Result("fit", document | {"code": None} | changes)


def test_a_result_says_when_the_code_has_changed_since():
    assert result().measured() == "2026-01-02 at `aaaaaaa`, code has changed since"
    assert "changed since" in result(code="0" * 64).measured()
    today = code_digest(BENCHES["fit"].CODE)
    assert result(code=today).measured() == "2026-01-02 at `aaaaaaa`"
    assert result(code=today, dirty=True).measured() == "2026-01-02 at `aaaaaaa` with uncommitted changes"


def test_a_result_that_is_missing_leaves_the_rest(tmp_path):
    for name in ("fit", "notes"):
        (tmp_path / f"{name}.json").write_text((FOLDER / f"{name}.json").read_text())
    assert "There is no result of this bench yet." in render(tmp_path)
    assert "frames lost" not in headline(load(tmp_path))


# ---- the command line


def test_help_lists_every_bench_with_its_claim(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in BENCHES:
        assert re.search(r"[^.]{20,}\.$", claim(name)), name
        assert f"{name} {claim(name)}" in shown


def test_the_readme_lists_every_bench():
    table = (ROOT / "bench" / "README.md").read_text().partition("| bench |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE) == list(BENCHES)


# ---- parts of benches


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "new" / "state.jsonl"
    append_line(path, {"row": 1})
    with path.open("a") as file:
        file.write('{"row"')
    assert read_lines(path) == [{"row": 1}]
    append_line(path, {"row": 2})
    assert read_lines(path) == [{"row": 1}, {"row": 2}]
    assert read_lines(None) == [] == read_lines(tmp_path / "none")
    append_line(None, {"row": 3})


@pytest.mark.parametrize(("module", "name", "replacement"), REPLACED, ids=lambda value: str(value)[:20])
def test_the_daemon_without_fits_replaces_names_that_exist(module, name, replacement):
    with patch.object(module, name, replacement):
        assert getattr(module, name) is replacement


def test_the_demos_bench_keeps_summary_and_picture(tmp_path, monkeypatch):
    def run(command: list[str]) -> int:
        output = Path(command[command.index("--output") + 1])
        (output / "summary.json").write_text(json.dumps({"accuracy": {"before": 0.9, "drifted": 0.4}}))
        (output / "frames.png").write_bytes(b"picture")
        return 0

    monkeypatch.setattr("bench.demo.run_command", run)
    monkeypatch.setattr("bench.__main__.provenance", lambda code: {"commit": "c" * 40})
    json_file, png = tmp_path / "demo.json", tmp_path / "demo.png"
    assert main(["demo", "--json", str(json_file), "--png", str(png)]) == 0
    document = json.loads(json_file.read_text())
    assert document["accuracy"]["drifted"] == 0.4 and document["settings"]["drift"] == DEFAULT_DRIFT
    assert document["exit_code"] == 0 and document["commit"] == "c" * 40 and png.read_bytes() == b"picture"
