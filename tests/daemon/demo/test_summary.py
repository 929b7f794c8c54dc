"""A run of the demo passes when every promise was kept; a broken promise fails by its name."""

import dataclasses
import io
import json

import pytest
from demo_answers import FITTED, answer
from rich.console import Console

from daemon.demo.bookkeeping import Bookkeeping
from daemon.demo.summary import Summary
from deploy.store.artefacts import FACTORY

WELL = (99, 100, False, FACTORY)
ILL = (40, 100, True, FACTORY)
CURED = (90, 100, True, FITTED)


def stats_of(*parts, unanswered=()):
    """What a books reads after parts of (right answers, all, drifted, homogenizer)."""
    books, seq = Bookkeeping(["x"]), 0
    for right, answers, drifted, version in parts:
        for number in range(answers):
            books.add_shown("x", seq, 1, drifted, now=0)
            if seq not in unanswered:
                books.add_answer("x", answer(seq, int(number < right), version), now=0)
            seq += 1
    return books.stats("x", now=10)


REAR = stats_of((9, 10, False, FACTORY))


def summary(**changes):
    given = Summary(
        drifting="front",
        drift="blur=1",
        seed=0,
        stats={"front": stats_of(WELL, ILL, CURED), "rear": REAR},
        superseded={"front": 0, "rear": 0},
        seconds_to_recover=30.0,
        swap_pause_seconds=2e-6,
        missing_around_swap=0,
        digest_before="a" * 64,
        digest_after="a" * 64,
        exit_code=0,
        stop_seconds=1.0,
        total_seconds=90.0,
    )
    return dataclasses.replace(given, **changes)


def failed(given):
    return [check.promise for check in given.checks() if not check.kept]


def test_a_run_that_kept_every_promise_passes():
    given = summary()
    assert given.passed() and failed(given) == []
    assert given.recovered_share() == pytest.approx((0.9 - 0.4) / (0.99 - 0.4))
    document = json.loads(json.dumps(given.document()))
    assert document["passed"] and document["accuracy"] == {"before": 0.99, "drifted": 0.4, "recovered": 0.9}
    assert document["frames"]["front"] == {"sent": 300, "answered": 300, "unanswered": 0, "superseded": 0}


def with_front(*parts, unanswered=()):
    return {"stats": {"front": stats_of(*parts, unanswered=unanswered), "rear": REAR}}


def with_rear(*parts):
    return {"stats": {"front": stats_of(WELL, ILL, CURED), "rear": stats_of(*parts)}}


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        (with_front(WELL, ILL, (80, 100, True, FITTED)), "lost accuracy"),
        (with_front(WELL, (96, 100, True, FACTORY), (99, 100, True, FITTED)), "lost accuracy"),  # little was lost
        (with_front(WELL, ILL, CURED, unanswered=(200,)), "no frame"),
        (with_rear((9, 10, False, FACTORY), (9, 10, False, FITTED)), "rear kept"),
        ({"digest_after": "b" * 64}, "model file"),
        ({"exit_code": None}, "SIGTERM"),
        ({"exit_code": 75}, "SIGTERM"),
    ],
)
def test_each_broken_promise_fails_by_its_name(changes, promise):
    given = summary(**changes)
    assert not given.passed()
    assert len(failed(given)) == 1 and promise in failed(given)[0]


def test_a_run_without_a_swap_fails():
    given = summary(**with_front(WELL, ILL), seconds_to_recover=None)
    assert [promise.split()[0] for promise in failed(given)] == ["at", "no"]
    out = io.StringIO()
    Console(file=out, width=80).print(given.render())
    assert "FAILED" in out.getvalue() and "there was no swap" in out.getvalue()
