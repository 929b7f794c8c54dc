"""The page shows what the dossier and the audit log say, loads nothing from elsewhere, and escapes every text."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from dossiers import AT, CANDIDATE, MODEL, content, dossier, earlier_verdict, refused, unneeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import ROOT
from running import write_config

from calibrate.homogenizer import Homogenizer
from calibrate.judge import MIN_SCORE_DROP_SHARE
from daemon.cli import main
from daemon.exit_codes import EX_CONFIG
from daemon.operator.report.audit_excerpt import AuditExcerpt
from daemon.operator.report.charts import chart
from daemon.operator.report.page import render
from deploy.audit.log import AuditLog, audit_path
from deploy.store.artefacts import ArtefactStore
from deploy.store.dossier import Dossier
from deploy.store.dossier_archive import DossierArchive

EMPTY = {"meta", "img", "circle", "line", "polyline"}
HOSTILE = "</p></style></svg><script>alert(1)</script>\" onload='x' <img src=http://evil/ onerror=y> {{ 7 * 7 }} &amp;"
FRAME = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)


class Seen(HTMLParser):
    """What a browser would make of a page: elements with the names of their attributes, texts, addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.sources: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], "an element is left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.sources += [str(value) for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in EMPTY
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


class Place:
    """A configuration and its state directory, without a daemon."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.config, self.state = write_config(folder, model), folder / "state"
        self.archive, self.store = DossierArchive(self.state), ArtefactStore(self.state)

    def tell(self, event: str, details: dict[str, Any], sensor: str = "front") -> int:
        with closing(AuditLog(audit_path(self.state))) as audit:
            return audit.append(sensor, event, details).number

    def fit(self, told: Dossier, frames: Sequence[bytes] = ()) -> int:
        """File a dossier, and have the audit log name it."""
        digest = self.archive.put(told, frames, 1 << 20)
        details = {"result": told.result, "reason": told.reason, "trigger": told.trigger, "dossier": digest}
        return self.tell("fit", details | ({"candidate": told.candidate} if told.candidate else {}), told.sensor)

    def page(self) -> Seen:
        return Seen(self.html())

    def html(self) -> str:
        """Of the newest."""
        audit = AuditExcerpt.read(audit_path(self.state))
        return render(self.archive.read_all()[0], audit, self.archive, self.store, AT + 60)

    def report(self, *arguments: str | Path) -> int:
        return main(["report", "--config", str(self.config), *map(str, arguments)])


@pytest.fixture
def place(folder: Path, tiny_model: Path) -> Place:
    return Place(folder, tiny_model)


# ---- the decision in words


def test_a_homogenizer_that_serves_is_shown_with_all_its_evidence(place):
    place.tell("start", {"mode": "supervised"}, "")
    place.tell("drift alarm", {"drift": 6.25, "score": 4.25, "homogenizer": "factory"})
    place.tell("read-out", {"camera": ["exposure -0.8 stops", "blur 0.9 px"]})
    number = place.fit(dossier())
    place.tell("order", {"order": "approve", "by": "ada"})
    place.tell("swap", {"from": "factory", "to": CANDIDATE, "pause": 3.1e-5, "frames_served": 9})
    place.tell("labels", {"homogenizer": CANDIDATE, "right": 385, "wrong": 27, "unknown": 3, "by": "grace"})
    page = place.page()
    for said in (
        "Accepted and serving",
        "serves since",
        "ordered by ada",
        "supervised: a person decides",
        "drift: the drift alarm was raised",
        CANDIDATE,
        MODEL,
        "48 fitted, 16 held out to judge; up to",
        "3 blank",
        "6.25 standard deviations beside healthy frames, score 4.25 with factory",
        "the camera: exposure -0.8 stops; blur 0.9 px",
        "the exchange took 31 µs",
        f"385 answers right, 27 wrong, with {CANDIDATE[:12]}; told by grace",
        "The drift score is near enough to that of clean frames",
        f"at least {MIN_SCORE_DROP_SHARE:.0%} below that of ",
        "at most 1.6",
        "Frames are not kept: recalibrate.keep_frames was 0.",
        f"record {number} of the audit log",
        "every record holds",
    ):
        assert said in page.text, said
    assert all(f"{record.number}:{record.digest}" in page.text for record in place_records(place)[1:])


def place_records(place: Place) -> list[Any]:
    with closing(AuditLog(audit_path(place.state), read_only=True)) as audit:
        return audit.records("front")


SWAP = ("swap", {"from": "factory", "to": CANDIDATE})
BACK = {"from": CANDIDATE, "to": "factory"}
OUTCOMES: dict[str, tuple[Dossier, list[tuple[str, dict[str, Any]]], tuple[str, ...]]] = {
    "waiting": (dossier(), [], ("Passed the judge, not serving yet",)),
    "replaced": (dossier(), [SWAP, ("swap", {"from": CANDIDATE, "to": "e" * 64})], ("Served, and replaced", "eeee")),
    "worse": (
        dossier(),
        [SWAP, ("rollback", BACK | {"reason": "regress"})],
        ("Served, and taken back", "the one before was better"),
    ),
    "undone": (
        dossier(),
        [
            SWAP,
            ("fit", {"result": "unneeded", "reason": "", "trigger": "timer", "dossier": None}),
            ("rollback", BACK | {"reason": "operator"}),
            ("order", {"order": "rollback", "by": "grace"}),
            ("order", {"order": "hold", "by": "somebody later"}),
        ],
        ("Served, and taken back", "ordered by grace"),
    ),
    "dropped": (
        dossier(),
        [("candidate dropped", {"candidate": CANDIDATE, "result": "rejected", "reason": "no better in 2 of 2"})],
        ("Passed the judge, then dropped", "no better in 2 of 2"),
    ),
    "rejected": (refused(), [], ("Candidate refused", "score 8.00 is no better", "✗ not met", "refused")),
    "unneeded": (unneeded(), [], ("Nothing to repair", "No candidate was judged")),
    "failed": (
        unneeded(result="failed", reason="FitError: the loss is not finite", evidence={}),
        [],
        ("Recalibration failed", "the loss is not finite", "Nothing was measured"),
    ),
    "clean": (
        unneeded(result="factory", reason="the frames are clean again", candidate="factory"),
        [("swap", {"from": "d" * 64, "to": "factory"})],
        ("Accepted and serving", "Going back to no ρ"),
    ),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_is_shown(place, name):
    told, followed, said = OUTCOMES[name]
    place.fit(told)
    for event, details in followed:
        place.tell(event, details)
    text = place.page().text
    assert all(part in text for part in said), text[:600]
    assert "somebody later" not in text


def test_a_candidate_that_the_daemon_refused_is_not_shown_as_waiting(place):
    digest = place.archive.put(dossier())
    place.tell("fit", {"result": "refused", "reason": "gain 31 is outside of envelope.yaml", "dossier": digest})
    text = place.page().text
    assert "Not taken by the daemon" in text and "gain 31 is outside of envelope.yaml" in text
    assert "not serving yet" not in text


def test_a_candidate_that_was_dropped_and_recalled_later_is_shown_as_dropped(place):
    place.fit(dossier())
    place.tell("candidate dropped", {"candidate": CANDIDATE, "result": "rejected", "reason": "no better in 2 of 2"})
    place.tell("fit", {"result": "recalled", "reason": "", "trigger": "drift", "dossier": None})
    place.tell(*SWAP)
    assert "Passed the judge, then dropped" in place.page().text


def test_without_the_audit_log_the_page_says_so(place):
    place.archive.put(dossier())
    assert "there is no audit log" in place.page().text
    place.tell("start", {})
    assert "No record of the audit log names this dossier" in place.page().text


def test_a_changed_log_is_reported(place):
    place.fit(dossier())
    with closing(sqlite3.connect(audit_path(place.state))) as connection, connection:
        connection.execute("UPDATE record SET at = '2020-01-01' WHERE number = 1")
    assert "The audit log cannot be relied on: record 1 is not what was written" in place.page().text


# ---- what the judge asked for


def test_the_second_fit_is_shown_beside_the_others(place):
    place.fit(dossier())
    page = place.page()
    columns = "without ρ with the ρ that served with the candidate with a second fit"
    assert f"{columns} Drift score 9 not finite 1.1 1.3" in page.text
    assert (
        "The candidate leads to the same answers as a second fit to other frames 0.93 at least 0.75 ✓ met" in page.text
    )
    told = "A second fit agrees with the candidate on more frames than with no ρ"
    assert f"{told} +3.50 standard errors more than +1.00 standard errors ✓ met" in page.text
    assert '<polyline class="line second"' in place.html() and '<circle class="dot second"' in place.html()


def test_without_a_second_fit_the_page_names_none(place):
    place.fit(refused())
    page = place.page()
    assert "with the candidate Drift score 9 not finite 1.1 Mean" in page.text
    assert "second fit" not in page.text and 'class="line second"' not in place.html()


def test_a_dossier_of_before_is_shown_with_its_criteria(place):
    place.fit(dossier(verdict=earlier_verdict()))
    text = place.page().text
    for said in (
        "The network is as confident as with no ρ, within two standard errors 90.0% at least 90.0%",
        "No class takes many more of the answers than with no ρ 30.0% at most 30.0%",
        "on frames with the same answer +2.50 standard errors at least +2.50 standard errors",
        "The network is more certain than with no ρ, on all frames +0.40 nats",
    ):
        assert said in text, said


# ---- what comes from outside


def hostile(text: str) -> Dossier:
    told = content()
    told["verdict"]["criteria"][0] |= {"name": text, "against": text}
    told["fit"] |= {"start": text, "start_losses": {text: 0.5}}
    told |= {
        "trigger": text,
        "layers": [text, text],
        "versions": {text: text},
        "seconds": [[text, 1.0]],
        "active": text,
    }
    told["frames"] |= {"refused": {text: 1}}
    told |= {"earlier": [{"version": text, "accepted": False, "reason": text}], "reason": text}
    return dossier(**told)


def fill(place: Place, text: str) -> Seen:
    """A page on which all that may be any text is `text`."""
    place.fit(hostile(text))
    place.tell("order", {"order": text, "by": text})
    place.tell("candidate dropped", {"candidate": CANDIDATE, "result": text, "reason": text})
    place.tell(text, {text: text})
    return place.page()


def test_hostile_text_stays_text(place):
    page = fill(place, HOSTILE)
    assert not {"script", "iframe", "object", "link", "base", "form"} & {element[0] for element in page.elements}
    assert not [name for element in page.elements for name in element if name.startswith("on")]
    assert "{{ 7 * 7 }}" in page.text and "<script>alert(1)</script>" in page.text


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
def test_no_text_changes_what_the_page_is_made_of(tmp_path_factory, tiny_model, text):
    elements = []
    for given_text in ("harmless", text + "<b title=x>"):
        folder = tmp_path_factory.mktemp("place")
        elements.append(fill(Place(folder, tiny_model), given_text).elements)
    assert elements[0] == elements[1]


def test_the_page_needs_nothing_else_and_allows_nothing_else(place):
    place.fit(dossier(), [png(FRAME)])
    html = place.html()
    page = Seen(html)
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html
    style = html[html.index("<style>") + len("<style>") : html.index("</style>")]
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}';" in html.replace("&#39;", "'")
    assert not [element for element in page.elements if "style" in element[1:]]
    assert html.lstrip().startswith("<!doctype html>")


# ---- frames


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def shown(source: str) -> np.ndarray:
    """The picture of an address, (8, 8, 3), as it was before it was enlarged."""
    data = base64.b64decode(source.partition("base64,")[2])
    large = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    times = len(large) // 8
    return large[::times, ::times]


def test_frames_are_shown_as_they_came_and_as_the_stored_homogenizer_makes_them(place):
    homogenizer = Homogenizer(3, 8, 8)
    with torch.no_grad():
        homogenizer.bias += torch.tensor([0.2, 0.0, -0.2])  # of 0.25 * 255 grey levels each
    version = place.store.put(homogenizer, {"model": MODEL}, b"compiled", "onnx")
    place.fit(dossier(candidate=version), [png(FRAME)])
    frames = place.page().sources[-2:]
    before, after = (shown(source) for source in frames)
    assert np.array_equal(before, FRAME)
    wanted = np.clip(FRAME + np.array([12.75, 0, -12.75]), 0, 255)
    assert np.abs(after - wanted).max() <= 1


def test_kept_frames_of_16_bits_are_shown_like_those_of_8(place):
    version = place.store.put(Homogenizer(3, 8, 8), {"model": MODEL}, b"compiled", "onnx")
    place.fit(dossier(candidate=version), [png(FRAME.astype(np.uint16) * 257)])
    before, after = (shown(source) for source in place.page().sources[-2:])
    assert np.array_equal(before, FRAME) and np.array_equal(after, FRAME)


@pytest.mark.parametrize(
    ("depth", "peak", "said"),
    [
        ("uint8", 1.0, "3 channel(s) of 8 bits up to 100.0% of white"),
        ("uint16", 4095 / 65535, "3 channel(s) of 16 bits up to 6.2% of white"),
        ("float32", 0.5, "3 channel(s) of floats up to 50.0% of white"),
        (None, None, "3 channel(s) Not taken"),
    ],
)
def test_the_depth_of_the_frames_is_told_where_it_was_recorded(place, depth, peak, said):
    told = dossier()
    place.fit(told.model_copy(update={"frames": told.frames.model_copy(update={"depth": depth, "peak": peak})}))
    assert said in place.page().text


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (dossier(), "ρ cannot be applied to them"),
        (refused(), "A candidate that does not pass is not stored"),
        (unneeded(result="factory", candidate="factory"), "without ρ"),
    ],
)
def test_frames_without_a_homogenizer_are_shown_as_they_came(place, told, said):
    place.fit(told, [png(FRAME)])
    page = place.page()
    assert said in page.text and np.array_equal(shown(page.sources[-1]), FRAME)


def test_missing_and_changed_frames_are_reported(place):
    place.fit(dossier(), [png(FRAME), png(FRAME)])
    first, second = sorted(place.archive.folder.glob("*/*.png"))
    first.unlink()
    assert "1 of 2 kept frames are deleted" in place.page().text
    second.write_bytes(png(255 - FRAME))
    assert "damaged: its SHA-256 is not the one that its dossier names" in place.page().text
    second.unlink()
    assert "The 2 frame(s) that were kept are deleted" in place.page().text


# ---- the command


@pytest.fixture
def several(place: Place) -> Place:
    """The newest of front, and one of rear that is newer."""
    place.numbers = [place.fit(dossier(at=AT)), place.fit(refused(at=AT + 1))]
    place.numbers.append(place.fit(unneeded(at=AT + 2, sensor="rear")))
    return place


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "Nothing to repair"),
        (["--sensor", "front"], "Candidate refused"),
        (["--version", CANDIDATE[:5]], "Passed the judge"),
        (["--number", "2"], "Passed the judge"),
    ],
)
def test_one_recalibration_is_chosen(several, tmp_path, arguments, line, capsys):
    assert several.numbers[0] == 2
    output = tmp_path / "page.html"
    assert several.report(*arguments, "-o", output) == 0
    assert f"<h1>{line}" in output.read_text()
    assert capsys.readouterr().out == f"{output}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--number", "1"], "record 1 of the audit log names no recalibration; `recald report --list` shows them"),
        (["--version", "beef"], "no recalibration on record proposed a version that begins with 'beef'"),
        (["--sensor", "side"], "no recalibration of side is on record yet"),
        (["--sensor", "../x"], "'../x' is not a sensor id"),
    ],
)
def test_what_is_not_on_record_is_one_line(several, arguments, said, capsys):
    assert several.report(*arguments) == EX_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_removed_dossier_is_reported(several, capsys):
    for path in several.archive.paths("front"):
        path.unlink()
    assert several.report("--number", "2") == EX_CONFIG
    assert "the dossier that record 2 names is not here" in capsys.readouterr().err


def test_programs_read_the_dossier_as_it_lies_on_the_disk(several, capsysbinary):
    assert several.report("--number", "2", "--json") == 0
    data = capsysbinary.readouterr().out
    assert json.loads(data)["candidate"] == CANDIDATE
    assert several.archive.path("front", hashlib.sha256(data).hexdigest()).read_bytes() == data


def test_a_list_names_what_can_be_chosen(several, capsys):
    assert several.report("--list", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["number"] for row in rows] == several.numbers[::-1]
    assert several.report("--list") == 0
    said = capsys.readouterr().out
    assert "unneeded" in said and CANDIDATE[:12] in said


def test_the_page_may_go_to_standard_output_and_nothing_is_changed(several, capsysbinary):
    before = {path: path.read_bytes() for path in several.state.rglob("*") if path.is_file()}
    assert several.report("-o", "-") == 0
    assert capsysbinary.readouterr().out.rstrip().endswith(b"</html>")
    assert {path: path.read_bytes() for path in several.state.rglob("*") if path in before} == before


def test_the_template_is_shipped():
    assert resources.files("daemon.operator.report").joinpath("page.html").is_file()
    _, _, sections = (ROOT / "pyproject.toml").read_text().partition("[tool.setuptools.package-data]\n")
    assert '"daemon.operator.report" = ["page.html"]' in sections.partition("\n[")[0].splitlines()


# ---- charts


@given(
    ys=st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=20),
    marks=st.lists(st.floats(0.1, 10), max_size=2),
)
def test_all_of_a_chart_lies_inside_it(ys, marks):
    drawn = chart("t", range(len(ys)), {"y": ("after", ys)}, x_label="x", y_label="y", marks=dict.fromkeys(marks, "m"))
    if drawn is None:
        assert all(y is None for y in ys)
        return
    across = [x for line in drawn.lines for x, _ in line.dots] + [tick.at for tick in drawn.x_ticks]
    up = [y for line in drawn.lines for _, y in line.dots] + [tick.at for tick in (*drawn.y_ticks, *drawn.marks)]
    assert all(drawn.left <= x <= drawn.right for x in across)
    assert all(drawn.top <= y <= drawn.bottom for y in up)
    assert len(drawn.y_ticks) <= 12


def test_values_far_apart_have_a_logarithmic_axis():
    drawn = chart("t", [0, 1, 2], {"y": ("after", [1.0, 10.0, 100.0])}, x_label="x", y_label="y")
    places = [y for _, y in drawn.lines[0].dots]
    assert places[0] - places[1] == pytest.approx(places[1] - places[2], abs=0.2)
    assert {"1", "10", "100"} <= {tick.label for tick in drawn.y_ticks}


def test_both_branches_of_a_split_homogenizer_are_shown(place):
    steps, shading = [61.5, 62.5, 63.5], [1.0, 1.2, 4.6]
    other = content()["extents"] | {"offset": [41.5, 42.5, 43.5], "defect_step": steps, "shading": shading}
    fit = {"start": "1: colour; 2: identity", "history": [0.2, 0.1]}
    fit |= {"start_losses": {"1: colour": 0.2, "1: identity": 0.4, "2: identity": 0.3}}
    place.fit(dossier(other_extents=[other], fit=fit))
    text = place.page().text
    assert "What ρ does to a frame of camera 1 of 2" in text and "What ρ does to a frame of camera 2 of 2" in text
    assert "43.5 levels" in text
    assert "by more levels than 61.5 (red), 62.5 (green), 63.5 (blue) is replaced." in text
    assert "evened out, in the corners by a factor of 4.6." in text
    assert "1: colour, chosen" in text and "2: identity, chosen" in text and "1: identity, chosen" not in text


def test_the_page_says_why_two_cameras_got_one_homogenizer(place):
    place.fit(dossier(refused_split="the two kinds of frames <b>show</b> other classes"))
    text = place.page().text
    assert "A ρ for each of them was refused before: the two kinds of frames <b>show</b> other classes." in text
    assert "camera 1 of 2" not in text
