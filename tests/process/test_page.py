"""The page of a real daemon in a real Chromium: a drift and its repair, seen live; what it looks like; when it is lost.

One daemon and one browser for all tests. What is shown of other situations is put into the daemon's own answer.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from browser import Visit, browser
from running import Camera, Daemon, write_config
from synthetic import drifted, images

from daemon.demo.processes import free_port

CLEAN, OTHER = images(128, 1), images(128, 2)
DARK = drifted(CLEAN, light=0.65)
HOSTILE = '<img src=x onerror="document.title=1"><b>bold</b> & "quoted"'
TABLET, PHONE = 768, 400  # CSS pixels
WIDE = 64 * "w"  # the longest id
BUSY_S = 130.0


@dataclass
class Seen:
    """What the page showed while a camera drifted and was repaired."""

    address: str
    visit: Visit
    opened: Any
    standings: list[str] = field(default_factory=list)  # of front, each once, in their order
    healthy: str = ""  # the card of front before the drift

    def look(self) -> None:
        standing = self.visit.text("#sensor-front .badge")
        if standing and standing not in self.standings:
            self.standings.append(standing)

    def answer(self) -> Any:
        with urllib.request.urlopen(f"{self.address}status.json", timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def seen(tiny_model: Path) -> Iterator[Seen]:
    with TemporaryDirectory(prefix="recald-", dir="/tmp") as name:
        address = f"http://127.0.0.1:{(port := free_port())}/"
        config = write_config(Path(name), tiny_model, metrics={"port": port, "show_frames": True})
        with Daemon(config) as recald, browser() as opened, Camera(recald.wait_until_serving()) as camera:
            with closing_visit(opened, address) as visit:
                seen = Seen(address, visit, opened)
                drift_and_repair(camera, seen)
                yield seen


@contextmanager
def closing_visit(opened: Any, address: str, own_clock: bool = False) -> Iterator[Visit]:
    visit = Visit(opened, address, own_clock)
    with closing(visit.context):
        yield visit


def drift_and_repair(camera: Camera, seen: Seen) -> None:
    def shows(selector: str, text: str) -> Callable[[], bool]:
        def look() -> bool:
            seen.look()
            return text in seen.visit.text(selector)

        return look

    clean, drift = {"front": CLEAN, "rear": OTHER}, {"front": DARK, "rear": OTHER}
    camera.stream(clean, shows("#headline", "All 2 cameras are well"), "the page shows that all is well", BUSY_S)
    camera.stream(clean, shows("#sensor-front .frames", "as received"), "the page shows a frame", BUSY_S)
    seen.healthy = seen.visit.text("#sensor-front")
    camera.stream(drift, shows("#decision-list", "drift alarm"), "the page shows the alarm", BUSY_S)
    camera.stream(drift, shows("#sensor-front", "Serves with a fitted"), "the page shows the repair", BUSY_S)
    camera.stream(drift, shows("#sensor-front .frames", "as restored"), "the page shows a restored frame", BUSY_S)


# ---- what was seen


def test_a_healthy_camera_is_shown(seen):
    assert seen.standings[0] in ("well", "no drift check yet") and "well" in seen.standings
    for text in ("Serves without a homogenizer", "drift score, line 2", "a second", "as received"):
        assert text.lower() in seen.healthy.lower(), text


def test_the_drift_and_its_repair_are_seen_live(seen):
    assert "drifts, recalibrates" in seen.standings
    decisions = seen.visit.text("#decision-list")
    order = [
        decisions.index(text) for text in ("new homogenizer", "recalibration ended", "drift alarm", "recald started")
    ]
    assert order == sorted(order)


def test_the_chart_is_drawn_with_its_line_and_the_alarm(seen):
    page = seen.visit.page
    path = page.get_attribute("#sensor-front svg path.served", "d")
    assert path.count("L") >= 1 and "NaN" not in path
    assert page.get_attribute("#sensor-front svg path.raw", "d"), "the drift without the homogenizer"
    assert page.query_selector("#sensor-front svg rect.alarm") and page.query_selector("#sensor-front svg line.limit")
    assert not page.query_selector("#sensor-rear svg rect.alarm")
    assert "times its line" in page.get_attribute("#sensor-front svg", "aria-label")


def test_the_frame_is_shown_as_received_and_as_restored(seen):
    shown = seen.visit.page.evaluate(
        "[...document.querySelectorAll('#sensor-front img')].map(i => [i.alt, i.naturalWidth, i.complete])"
    )
    assert shown == [[f"front: the newest frame as {which}", 16, True] for which in ("received", "restored")]
    assert len(seen.visit.page.query_selector_all("#sensor-rear img")) == 1
    assert "No homogenizer serves" in seen.visit.text("#sensor-rear .frames")


def test_the_words_are_those_of_recald_status(seen):
    summary = seen.visit.page.query_selector("#sensor-front .more summary")
    summary.click()
    notes = seen.visit.text("#sensor-front .more")
    assert "last fit: accepted" in notes
    assert not [note for note in seen.answer()["sensors"][0]["notes"] if "last fit" in note and note not in notes]
    summary.click()


def test_no_error_and_nothing_from_elsewhere(seen):
    assert seen.visit.errors == []
    assert seen.visit.hosts == {seen.address.split("/")[2]}
    assert {"/", "/page.css", "/page.js", "/chart.js", "/link.js", "/status.json"} <= {*seen.visit.paths}


def test_health_and_readiness_of_a_daemon_that_serves(seen):
    for path, text in (("healthz", "ok"), ("readyz", "ready")):
        with urllib.request.urlopen(seen.address + path, timeout=10) as answer:
            assert answer.status == 200 and answer.read().decode().startswith(text)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{seen.address}no", timeout=10)


# ---- what it looks like


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_no_severe_barrier(seen, scheme):
    seen.visit.page.emulate_media(color_scheme=scheme)
    assert seen.visit.severe_barriers() == []
    ground = seen.visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, ground[4:-1].split(","))) < 64) is (scheme == "dark")


@pytest.mark.parametrize("width", [TABLET, PHONE])
def test_it_fits_a_tablet_and_a_phone(seen, width):
    assert seen.visit.overflow(width) == []


@contextmanager
def answered(seen: Seen, change: Callable[[Any], None]) -> Iterator[Visit]:
    """A visit whose data is what the daemon answers, changed."""
    content = deepcopy(seen.answer())
    for sensor in content["sensors"]:
        sensor["frame"] = None
    change(content)
    context = seen.opened.new_context()
    context.route("**/status.json*", lambda route: route.fulfill(json=content))
    with closing(context):
        visit = Visit(_Opened(context), seen.address)
        visit.page.wait_for_selector(".card")
        yield visit


class _Opened:
    """A context in the place of a browser, so that its routes exist before the page is opened."""

    def __init__(self, context: Any) -> None:
        self.new_context = lambda: context


def test_what_comes_from_outside_is_text(seen):
    def hostile(content: Any) -> None:
        content["headline"]["text"] = HOSTILE
        for decision in content["decisions"]:
            decision |= {"title": HOSTILE, "text": HOSTILE, "sensor": HOSTILE, "at": HOSTILE}
        for sensor in content["sensors"]:
            sensor |= {"reason": HOSTILE, "drifted": [HOSTILE], "notes": [HOSTILE], "standing": HOSTILE}
            sensor |= {"homogenizer": HOSTILE, "sentence": HOSTILE, "state": HOSTILE}
        content["recald"] |= {"strangers": HOSTILE, "backend": HOSTILE, "model": HOSTILE}

    with answered(seen, hostile) as visit:
        for selector in ("#headline", "#sensor-front .why", "#decision-list .what", "#device", "#strangers"):
            assert HOSTILE in visit.text(selector), selector
        assert visit.page.query_selector("img, b:not(.range b)") is None and visit.errors == []
        assert visit.page.title() != "1"


def test_commands_in_a_reason_look_like_commands(seen):
    def waiting(content: Any) -> None:
        content["sensors"][0]["reason"] = "`recald approve` lets the candidate serve, `recald reject` drops it"

    with answered(seen, waiting) as visit:
        assert visit.text("#sensor-front .why") == "recald approve lets the candidate serve, recald reject drops it"
        commands = visit.page.query_selector_all("#sensor-front .why code")
        assert [command.inner_text() for command in commands] == ["recald approve", "recald reject"]


def test_a_frame_from_before_a_swap_is_not_called_that_of_no_homogenizer(seen):
    def swapped(content: Any) -> None:
        content["sensors"][0] |= {"homogenizer": "ab12", "frame": {"mark": "1", "restored": False}}

    with answered(seen, swapped) as visit:
        assert visit.text("#sensor-front .frames .empty") == "The next drift check shows it as restored."


def every_situation(content: Any) -> None:
    """Sixteen cameras in all situations, with the longest ids and long words."""
    tones = ("bad", "warn", "wait", "busy", "idle", "good")
    first = content["sensors"][0]
    content["sensors"] = [
        deepcopy(first) | {"id": f"{number}{WIDE}"[:64], "tone": tones[number % 6], "standing": "waits for approval"}
        for number in range(16)
    ]
    for sensor in content["sensors"]:
        sensor |= {"accuracy": {"value": 0.31, "lower": 0.02, "upper": 0.74}, "progress": 0.4, "frames": 10**9}
        sensor |= {"drifted": [WIDE, "blur 0.7 pixels"], "reason": 4 * WIDE, "homogenizer": WIDE, "dropped": 10**8}
        sensor["drift"] = {"value": 1234.5, "line": 3.0, "quantity": "standard deviations"}
    content["headline"] = {"tone": "bad", "text": 3 * f"{WIDE}: no frames; "}


def test_many_cameras_in_all_situations_fit_and_have_no_severe_barrier(seen):
    with answered(seen, every_situation) as visit:
        assert len(visit.page.query_selector_all("#chips a")) == len(visit.page.query_selector_all(".card")) == 16
        for width in (PHONE, TABLET):
            assert visit.overflow(width) == []
        for scheme in ("light", "dark"):
            visit.page.emulate_media(color_scheme=scheme)
            assert visit.severe_barriers() == [], scheme


def test_of_many_cameras_those_that_are_well_are_brief_until_opened(seen):
    with answered(seen, every_situation) as visit:
        page = visit.page
        brief = page.query_selector_all(".card.brief")
        assert {card.get_attribute("data-tone") for card in brief} == {"good", "idle"}
        assert [*page.query_selector_all(".card")][-len(brief) :][0].get_attribute("id") == brief[0].get_attribute("id")
        summary = brief[0].query_selector("summary")
        assert not brief[0].query_selector(".figures").is_visible()
        summary.click()
        page.wait_for_function("card => !card.classList.contains('brief')", arg=brief[0])
        assert brief[0].query_selector(".figures").is_visible()


# ---- when recald does not answer


def let_pass(visit: Visit, seconds: int) -> None:
    """Let the page's time pass, second by second, so that a request can end in between."""
    for _ in range(seconds):
        visit.page.clock.run_for(1000)
        visit.page.wait_for_timeout(30)


@contextmanager
def standing_still(seen: Seen) -> Iterator[Visit]:
    """A visit whose time passes only in `let_pass`, while recald has answered."""
    with closing_visit(seen.opened, seen.address, own_clock=True) as visit:
        visit.page.wait_for_selector("#link[data-link=live]")
        visit.page.clock.pause_at(visit.page.evaluate("Date.now()") / 1000 + 3)  # s; not in the page's past
        with visit.page.expect_response("**/status.json*"):
            visit.page.clock.run_for(2000)
        visit.page.wait_for_timeout(100)
        yield visit


def test_one_refused_request_is_no_loss(seen):
    with standing_still(seen) as visit:
        headline, age = visit.text("#headline"), visit.text("#sensor-front .age")
        visit.context.set_offline(True)
        let_pass(visit, 4)
        assert "no answer for" in visit.text("#link") and visit.text("#headline") == headline
        assert visit.text("#sensor-front .age") == age, "nothing is known of newer frames"
        assert visit.page.get_attribute("#link", "data-link") == "late" and not visit.page.query_selector("body.lost")
        visit.context.set_offline(False)
        let_pass(visit, 4)
        assert visit.page.get_attribute("#link", "data-link") == "live"


def test_it_says_that_recald_does_not_answer_how_old_all_is_and_tries_ever_more_rarely(seen):
    with standing_still(seen) as visit:
        visit.context.set_offline(True)
        let_pass(visit, 9)
        assert "recald does not answer What is below is " in visit.text("#headline")
        assert visit.text("#sensor-front .age") == "newest frame: not known"
        let_pass(visit, 52)  # a tick may be a second old
        assert "What is below is 1 min old, from " in visit.text("#headline")
        asked = visit.paths.count("/status.json")
        let_pass(visit, 60)
        assert visit.paths.count("/status.json") - asked in (2, 3)
        visit.context.set_offline(False)
        let_pass(visit, 31)
        visit.page.wait_for_selector("body:not(.lost)")
        assert "does not answer" not in visit.text("#headline") and "ago" in visit.text("#sensor-front .age")


def test_after_sleep_nothing_old_is_shown_as_of_now(seen):
    with standing_still(seen) as visit:
        visit.context.route("**/status.json*", lambda route: None)  # the network is not back yet
        visit.page.clock.fast_forward(3_600_000)
        assert visit.page.get_attribute("#link", "data-link") == "late"
        assert visit.text("#link") == "no answer for 1 h"
        assert visit.text("#sensor-front .age") == "newest frame: not known"
        visit.context.unroute("**/status.json*")
        visit.page.evaluate("window.dispatchEvent(new Event('online'))")
        visit.page.wait_for_selector("#link[data-link=live]")
        assert re.match("newest frame: (now|.* ago)$", visit.text("#sensor-front .age"))


def test_after_sleep_a_lost_recald_is_not_shown_as_if_it_answered(seen):
    with standing_still(seen) as visit:
        visit.context.set_offline(True)
        let_pass(visit, 12)
        assert visit.page.query_selector("body.lost")
        visit.page.clock.fast_forward(3_600_000)
        let_pass(visit, 1)
        assert visit.text("#link") == "no answer for 1 h" and visit.page.query_selector("body.lost")
        assert visit.text("#sensor-front .age") == "newest frame: not known"


def test_a_silent_camera_is_seen_at_a_glance(seen):
    def silent(content: Any) -> None:
        content["sensors"][0] |= {"frame_age_s": 125.0, "silent": True}
        content["sensors"][1] |= {"frame_age_s": None, "silent": False}

    with answered(seen, silent) as visit:
        visit.page.wait_for_selector("#sensor-front .age.silent")
        assert visit.text("#sensor-front .age") == "newest frame: 2 min ago"
        assert visit.text("#sensor-rear .age") == "no frame yet"


def test_it_says_since_when_the_drift_is_known(seen):
    def older(content: Any) -> None:
        content["began_point"] = content["newest"] - 800

    assert re.match(r"Drift since recald started at \d\d:\d\d:\d\d$", seen.visit.text("#sensor-front .chart h3"))
    with answered(seen, older) as visit:
        assert re.match(r"Drift, last \d+ minutes$", visit.text("#sensor-front .chart h3"))


def test_a_page_that_nobody_sees_asks_nothing(seen):
    with closing_visit(seen.opened, seen.address, own_clock=True) as visit:
        visit.page.wait_for_selector("#link[data-link=live]")

        def let_it_be(hidden: str) -> None:
            visit.page.evaluate(f"Object.defineProperty(document, 'hidden', {{value: {hidden}, configurable: true}})")
            visit.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

        let_it_be("true")
        asked = visit.paths.count("/status.json")
        visit.page.clock.run_for(60_000)
        assert visit.paths.count("/status.json") == asked and "paused" in visit.text("#link")
        let_it_be("false")
        visit.page.wait_for_selector("#link[data-link=live]")
        assert visit.paths.count("/status.json") == asked + 1
