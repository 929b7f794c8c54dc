"""Links lead somewhere, commands exist, diagrams and examples agree with the code, and the README fits on one page."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from places import ROOT, SYSTEMD
from synthetic import MEAN, STD, drifted, images, normalised, trained_network

from daemon.config import Config, Section
from daemon.parser import build_parser
from docs.configuration_page import _section_in
from docs.generate import _tested_transitions

BY_HAND = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "bench/README.md", "examples/README.md")
PAGES = [ROOT / name for name in BY_HAND]
PAGES += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs" / "runbooks").glob("*.md"))
ABOUT_RECALD = [page for page in PAGES if page.parent.name != "bench"]  # the other names keys of its own files
WITH_FIVE_LINES = [ROOT / "README.md", ROOT / "docs" / "bring-your-model.md"]
MAX_README_LINES = 120


def fenced(path: Path, language: str) -> list[str]:
    """Return the code blocks of this language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in blocks if name == language]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


# ---- links


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text()))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as forges make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {name for name in links(index) if "/" not in name}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == {"index.md", *linked}


# ---- the README


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", WITH_FIVE_LINES, ids=lambda page: page.name)
def test_its_five_lines_run(page):
    (lines,) = fenced(page, "python")
    model, frames = trained_network().eval(), normalised(drifted(images(64, seed=1))).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = {"model": model, "frames": frames, "new_frames": frames[:2], "mean": MEAN, "std": STD}
    exec(lines, names)
    assert names["restored"].shape == (2, 4) and torch.isfinite(names["restored"]).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ---- commands


def commands(path: Path) -> list[list[str]]:
    """Return the arguments of every `recald ...` in the code blocks of a page."""
    text = "\n".join(fenced(path, "")).replace("\\\n", " ")
    lines = re.findall(r"^(?:sudo )?(?:\S*/)?recald (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def mentioned(path: Path) -> list[list[str]]:
    """Return the words of every `recald COMMAND ...` inside a sentence, which need not be complete."""
    found = re.findall(r"`recald ([a-z][a-z-]*(?: [^`]*)?)`", " ".join(path.read_text().split()))
    return [text.split() for text in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs_as_it_is_written(page, capsys):
    for command in commands(page):
        try:
            build_parser().parse_args(command)
        except SystemExit:
            pytest.fail(f"{page.name}: recald {' '.join(command)}: {capsys.readouterr().err.splitlines()[-1]}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_a_page_mentions_exists(page):
    (choices,) = (a.choices for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, *words in mentioned(page):
        assert name in choices, f"{page.name}: recald {name}"
        choices[name].complete()
        known = {option for action in choices[name]._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("-")} <= known, f"{page.name}: recald {name} {words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_program_exists_and_takes_these_options(page):
    for line in re.findall(r"^python (\w+\.py.*)$", "\n".join(fenced(page, "")), re.MULTILINE):
        name, *words = shlex.split(line, comments=True)
        source = (ROOT / "examples" / name).read_text()
        assert not [word for word in words if word.startswith("--") and f'"{word}"' not in source], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_of_make_exists(page):
    named = set(re.findall(r"^make ([a-z0-9-]+)|`make ([a-z0-9-]+)`", page.read_text(), re.MULTILINE))
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {a or b for a, b in named} <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_of_the_configuration_is_valid(page):
    for text in fenced(page, "yaml"):
        content = yaml.safe_load(text)
        if "model" in content:
            Config.model_validate(content)


# ---- diagrams


def test_the_state_diagram_shows_ways_that_exist_and_every_state():
    (diagram,) = (t for t in fenced(ROOT / "docs" / "how-it-decides.md", "mermaid") if "stateDiagram" in t)
    ways = {a.value: {b.value for b in others} for a, others in _tested_transitions().items()}
    arrows = [(a, b) for a, b in re.findall(r"^  (\S+) --> (\w+)", diagram, re.MULTILINE) if a != "[*]"]
    assert [(a, b) for a, b in arrows if b not in ways[a]] == []
    assert {state for arrow in arrows for state in arrow} == set(ways)


# ---- example files


def keys(section: type[Section] = Config, prefix: str = "") -> set[str]:
    """Return every key of the configuration, such as "recalibrate.mode"."""
    found = set()
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        found |= {prefix + name} | (keys(inner, f"{prefix}{name}.") if inner else set())
    return found


@pytest.mark.parametrize("name", ["recald.yaml", "envelope.yaml"])
def test_comments_of_the_examples_name_no_unknown_key(name):
    sections = "|".join(sorted(Config.model_fields))
    text = (SYSTEMD / name).read_text()
    comments = "\n".join(re.findall(r"#(.*)$", text, re.MULTILINE))
    dotted = set(re.findall(rf"\b(?:{sections})\.[a-z_]+\b(?!\.)", comments)) - {"model.yaml", "model.pt2"}
    assert dotted <= keys()


def test_keys_in_comments_of_the_example_are_keys_of_their_section():
    section = ""
    for line in (SYSTEMD / "recald.yaml").read_text().splitlines():
        if match := re.match(r"(\w+):", line):
            section = match[1]
        if match := re.match(r"  # (\w+): ", line):
            assert f"{section}.{match[1]}" in keys()


@pytest.mark.parametrize("page", ABOUT_RECALD, ids=lambda page: page.name)
def test_every_key_that_a_page_names_exists(page):
    sections = "|".join(sorted(set(Config.model_fields) - {"sensors"}))
    named = set(re.findall(rf"`((?:{sections})\.[a-z_0-9]+)`", page.read_text()))
    files = {"model.pt2", "model.yaml"}
    assert named - files <= keys()
