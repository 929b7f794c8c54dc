"""Count verdicts by candidate, by situation and in all, and show the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bench.judge.candidates import BAD_FIT, GOOD
from bench.judge.decision import FACTORY
from bench.judge.ground_truth import BETTER, NEUTRAL, WORSE
from bench.report import show
from calibrate.scoring.interval import wilson

Row = dict[str, Any]

PLAIN = ("drifted", "shipped", FACTORY)  # camera, mode and active of the situation of most users
COUNTS = ("bad", "bad_accepted", "bad_served", "good", "good_rejected", "good_not_served", "neutral", "neutral_served")
SITUATION = ("data", "camera", "mode", "active", "view")
UNFITTED = ("camera", "active", "view", "answer")  # the columns of situations without a fit


def summarise(rows: Sequence[Row], unfitted: Sequence[Row]) -> dict[str, Any]:
    """Return counts, and rates in percent, each with the ends of its interval.

    unfitted: the situations in which the worker fits nothing, stored as `doors`.
    """
    return {
        "all": counted(rows),
        "candidates": _by(rows, ("kind", "candidate")),
        "kinds": _by(rows, ("kind", "view")),
        "situations": _by(rows, SITUATION),
        "networks": _by(rows, ("data",)),
        "fits": _by([row for row in rows if row["kind"] == GOOD], ("data", "mode", "view")),
        "recovered": recovered(rows),
        "worst": worst_served(rows),
        "doors": [
            dict(zip(UNFITTED, key, strict=True)) | {"count": count}
            for key, count in sorted(Counter(_key(row, UNFITTED) for row in unfitted).items())
        ],
    }


def counted(rows: Iterable[Row]) -> Row:
    """Count bad candidates that were accepted and that served, and good ones that were rejected and did not serve."""
    truths: dict[str, list[Row]] = {BETTER: [], WORSE: [], NEUTRAL: []}
    for row in rows:
        truths[row["truth"]].append(row)
    bad, good, neutral = truths[WORSE], truths[BETTER], truths[NEUTRAL]
    return (
        _rate("bad", "accepted", bad, sum(row["judged"] == "accepted" for row in bad))
        | _rate("bad", "served", bad, sum(row["served"] for row in bad))
        | _rate("good", "rejected", good, sum(row["judged"] != "accepted" for row in good))
        | _rate("good", "not_served", good, sum(not row["served"] for row in good))
        | {"neutral": len(neutral), "neutral_served": sum(row["served"] for row in neutral)}
    )


def recovered(rows: Sequence[Row]) -> list[Row]:
    """Return by network what proper fits gain as served, as a share of what the best fit of each situation would gain.

    Without commissioning, and where no other fit serves. The gains are sums of points over the cameras.
    """
    groups: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for row in rows:
        if row["kind"] in (GOOD, BAD_FIT) and (row["camera"], row["mode"], row["active"]) == PLAIN:
            groups.setdefault((row["data"], row["view"]), {}).setdefault(row["seed"], []).append(row)
    return [_recovered_of(key, list(cameras.values())) for key, cameras in groups.items()]


def _recovered_of(key: tuple[Any, ...], cameras: Sequence[Sequence[Row]]) -> Row:
    served = best = 0.0
    for candidates in cameras:
        proper = next(row for row in candidates if row["kind"] == GOOD)
        served += (proper["accuracy"] - proper["incumbent"]) if proper["served"] else 0.0
        best += max(0.0, *(row["accuracy"] - row["incumbent"] for row in candidates))
    share = served / best if best else None
    return {"data": key[0], "view": key[1], "cameras": len(cameras), "served": served, "best": best, "share": share}


def worst_served(rows: Sequence[Row]) -> Row | None:
    """Return the row of the homogenizer that served and cost most."""
    served = [row for row in rows if row["served"]]
    return min(served, key=lambda row: float(row["accuracy"] - row["incumbent"]), default=None)


def _rate(of: str, name: str, rows: Sequence[Row], count: int) -> Row:
    low, high = wilson(count, len(rows))
    rate = 100 * count / len(rows) if rows else None
    return {of: len(rows), f"{of}_{name}": count, f"{of}_{name}_rate": rate, f"{of}_{name}_95": [100 * low, 100 * high]}


def _by(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row, columns), []).append(row)
    return [dict(zip(columns, key, strict=True)) | counted(group) for key, group in groups.items()]


def _key(row: Row, columns: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[column] for column in columns)


def show_tables(summary: dict[str, Any]) -> None:
    """Print the counts and the rates."""
    for title, part, columns in (
        ("by candidate", "candidates", ("kind", "candidate")),
        ("by situation", "situations", SITUATION),
        ("by network", "networks", ("data",)),
        ("proper fits", "fits", ("data", "mode", "view")),
    ):
        show(title, (*columns, *COUNTS), [[row[c] for c in (*columns, *COUNTS)] for row in summary[part]])
    show(
        "nothing was fitted", (*UNFITTED, "count"), [[row[c] for c in (*UNFITTED, "count")] for row in summary["doors"]]
    )
    gains = ("data", "view", "cameras", "served", "best", "share")
    show("points that proper fits gain", gains, [[row[c] for c in gains] for row in summary["recovered"]])
    if worst := summary["worst"]:
        cost = worst["accuracy"] - worst["incumbent"]
        print(f"worst that served: {cost:+.2f} points, {worst['candidate']} ({worst['data']}, seed {worst['seed']})")
    groups = [("all", summary["all"]), *((f"{row['kind']}, {row['view']}", row) for row in summary["kinds"])]
    show("rates", ("what", "count", "of", "%", "95 %"), list(_rates(groups)))


def _rates(groups: Iterable[tuple[str, Row]]) -> Iterable[list[object]]:
    for name, row in groups:
        for of, what in (("bad", "accepted"), ("bad", "served"), ("good", "rejected"), ("good", "not_served")):
            if row[of]:
                low, high = row[f"{of}_{what}_95"]
                title = f"{name}: {of}, {what.replace('_', ' ')}"
                yield [title, row[f"{of}_{what}"], row[of], row[f"{of}_{what}_rate"], f"{low:.2f} to {high:.2f}"]
