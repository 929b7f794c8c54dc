"""Sections of docs/results.md about decisions: the judge, and hours of a camera."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from bench.page.result import Result, Row, blocks, notes, percent, prose, table
from calibrate.validation import MIN_FIT_FRAMES

Results = Mapping[str, Result]

COUNTED = {  # question about candidates, and its name in the summary
    "bad, accepted by the judge": ("bad", "accepted"),
    "bad, served": ("bad", "served"),
    "good, rejected by the judge": ("good", "rejected"),
    "good, not served": ("good", "not_served"),
}
NETWORKS = {  # by their name in bench.material.subjects
    "CIFAR-10": "a ResNet-20 for CIFAR-10",
    "CIFAR-10, light": "a depthwise separable network for CIFAR-10",
    "GTSRB": "a ResNet-20 for traffic signs (GTSRB)",
    "MNIST": "a ResNet-8 for digits (MNIST)",
    "X-rays": "a network of three stages for X-rays of the chest, grey, of two classes",
    "blood cells": "a residual network for blood cells of five classes",
}
METHODS = ("recald", "BN-adapt", "TENT")
FITTED = ("accepted", "rejected", "failed")  # results of a recalibration that fitted
DRIFT_NAMES = {"mixed": "two drifts in turn"}


def judge(results: Results) -> str:
    """Return the section of the judge."""
    result = results["judge"]
    summary, settings = result["summary"], result["settings"]
    everything = summary["all"]
    rows = [_rate_row("all candidates", everything)]
    rows += [_rate_row(row["data"], row) for row in summary["networks"]]
    rows += [_rate_row(f"{row['kind']}, {row['view']}", row) for row in summary["kinds"]]
    cameras = Counter(row["data"] for row in {(row["data"], row["seed"]): row for row in result["rows"]}.values())
    text = [
        f"""Of {everything["bad"]} verdicts on bad homogenizers {everything["bad_served"]} let them serve; with 95 %
        confidence the rate is at most {everything["bad_served_95"][1]:.1f} %. {_worst_served(summary["worst"])} Bad is
        what costs more than {settings["cost_points"]:g} points of accuracy on labelled test images that nothing else
        sees, good what wins {settings["win_points"]:g} or more, against the better of the factory homogenizer and the
        active one. Of {everything["neutral"]} verdicts on others {everything["neutral_served"]} let them serve.""",
        f"""Networks, and the number of cameras in front of each:
        {"; ".join(f"{NETWORKS[name]}, {count}" for name, count in cameras.items())}. Each seed is one camera: the
        perturbation of the paper, a drifting camera, or one or two kinds of drift at one of three strengths. Limits
        were chosen on the seeds 0 to 9 of other networks than that for blood cells, that of 2.5 standard errors also on
        clean cameras with a label shift. {_not_measured(cameras)}""",
        f"""*fit* is what the daemon does: {settings["fitted"]} frames fitted to, {settings["replicated"]} for the
        second fit, {settings["held_out"]} to judge on, then {settings["looks"]} looks of {settings["look_frames"]}
        frames in the shadow, by the daemon's own state machine. With few classes in view all these frames are of one
        class or of three. *bad fit* is a fit to another drift, to {MIN_FIT_FRAMES} frames, to frames of which a quarter
        or three quarters are clean, one that was stopped after two evaluations, and one to few classes in front of a
        camera that did not drift at all. *sabotaged* is the proper fit, and after it: negative, colours swapped,
        constant, half or twice the contrast, blurred, shifted, mirrored, upside down, one tile four times, quarters
        exchanged; or noise in its kernel, another offset map, 5 or 20 % noise in all parameters. *adversary* is a
        descent on the statistics that the drift score measures: from the negative with colours swapped; with the
        network's own answers to the drifted frames, many of them wrong; with one answer to all frames.""",
        """Intervals are Wilson's for 95 %; the verdicts behind one camera share their frames, so that the intervals are
        narrower than they should be. Sabotaged homogenizers that still beat a strongly drifted camera count as good,
        too; it is no fault that they are refused.""",
    ]
    tables = [table(("candidates", *COUNTED), rows), result.provenance(), _fits_table(summary)]
    return blocks(*tables, *map(prose, text), notes(results, "judge"))


def _not_measured(cameras: Mapping[str, int]) -> str:
    missing = [text for name, text in NETWORKS.items() if name not in cameras]
    return f"Not measured yet: {'; '.join(missing)}." if missing else ""


def _worst_served(row: Row | None) -> str:
    if row is None:
        return ""
    cost = row["accuracy"] - row["incumbent"]
    return f"""The worst that came to serve changed accuracy by {cost:+.1f} points ({row["candidate"]}; {row["data"]},
        seed {row["seed"]}, {row["view"]})."""


def _fits_table(summary: Row) -> str:
    """Return a table of proper fits by network, mode and view, and what they recover as served."""
    gains = {(row["data"], row["view"]): row["share"] for row in summary["recovered"]}
    rows = []
    for row in summary["fits"]:
        share = gains.get((row["data"], row["view"])) if row["mode"] == "shipped" else None
        refused = f"{row['good_not_served']} of {row['good']}"
        bad = f"{row['bad_served']} of {row['bad']}"
        recovered = "-" if share is None else f"{share:.2f}"
        rows.append([row["data"], row["mode"], row["view"], refused, bad, recovered])
    head = ("network", "statistics", "in view", "good fits, not served", "bad fits, served", "recovered as served")
    return table(head, rows)


def _rate_row(name: str, counts: Row) -> list[str]:
    cells = [name]
    for of, what in COUNTED.values():
        low, high = counts[f"{of}_{what}_95"]
        interval = f"{low:.1f} to {high:.1f} %"
        cells.append(f"{counts[f'{of}_{what}']} of {counts[of]} ({interval})" if counts[of] else "-")
    return cells


def proxy(results: Results) -> str:
    """Return the section of the accuracy estimate."""
    result = results["proxy"]
    settings, rows = result["settings"], result["summary"]
    networks = list(dict.fromkeys(row["data"] for row in rows if row["data"] != "all"))
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    shown = {(row["data"], row["stage"]): row for row in rows if row["method"] == "estimate"}
    by_network = [
        [data] + [_errors(shown[data, stage]) if (data, stage) in shown else "-" for stage in stages]
        for data in (*networks, "all")
    ]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    by_method = [
        [method, *(_error_of(rows, method, stage) for stage in stages)] for method in methods if method != "estimate"
    ]
    text = f"""Errors are in points of accuracy: the mean / the root of the mean square, and in brackets how often the
        {100 * settings["coverage"]:.0f} % interval held the truth. The truth is the accuracy on labelled test images
        that nothing else sees; the estimate is the mean of {settings["windows"]} windows of {settings["window"]} of
        them. It was learned on {settings["learnt_frames"]} labelled clean frames at most, as `recald commission` does:
        behind random drifts of 15 kinds, not those of these cameras. The paper's perturbations, fits, and the other
        laboratory's camera are of no kind that it knows. *No ρ* is a drifted camera alone, *its ρ* behind the fit that
        the judge lets serve, *a refused ρ* behind one that it does not, *another camera's ρ* behind a fit to another
        drift. The signs were chosen on other seeds of the same networks."""
    before = """Other estimates, over all networks; for one of them all simulated drifts of a kind that the camera's
        drift has were left out. *COT* needs the classes' shares among clean frames and an assignment problem of all
        frames, which the daemon does not solve; as a further sign it improved nothing."""
    tables = [table(("network", *stages), by_network), result.provenance(), prose(text)]
    return blocks(*tables, prose(before), table(("method", *stages), by_method), notes(results, "proxy"))


def _errors(row: Row) -> str:
    covered = "" if row["covered"] is None else f" ({percent(100 * row['covered'])})"
    return f"{row['mae']:.1f} / {row['rmse']:.1f}{covered}"


def _error_of(rows: list[Row], method: str, stage: str) -> str:
    found = [row for row in rows if (row["data"], row["method"], row["stage"]) == ("all", method, stage)]
    return _errors(found[0]) if found else "-"


def readouts(results: Results) -> str:
    """Return the section of the read-outs."""
    result = results["readouts"]
    settings, summary = result["settings"], result["summary"]
    head = ("median error", "worst", "within 15 %", "found", "named first", "also named")
    by_drift = [[row["drift"], row["strength"], *_read_out_cells(row)] for row in summary["by drift"]]
    by_data = [
        [row["data"], str(row["cameras"]), *_read_out_cells(row)] for row in summary["medium and strong, by data"]
    ]
    clean = [
        [row["recent"], row["healthy"], str(row["cameras"]), str(row["named"]), row["kinds"]]
        for row in summary["clean"]
    ]
    text = f"""At most {settings["healthy"]:,} healthy pictures and {settings["recent"]} recent ones, of other content,
        without labels or pairs; blood cells, X-rays and traffic signs have fewer. One drift at a time, at the three
        strengths of `bench drifts`. The error is that of the difference to no drift, against what the simulator did:
        for patterns and dead pixels against the sd or share that the drawn pattern has. *Named first* is the share of
        cameras whose strongest read-out is the right kind; *also named* counts other kinds. Settings were chosen on
        the seeds 0 to 4."""
    narrow = """Clean pictures, with the number of cameras for which anything was named. A view of few classes is
        another scene, which pixels alone cannot tell from a drift: only where the healthy period showed one class after
        the other do the standard errors know of it. The daemon tells such a view by its predictions."""
    jpeg = Counter(kind for row in result["rows"] if row.get("kind") == "jpeg" for kind in row["kinds"] or ("nothing",))
    taken = "There is no read-out for JPEG; it was taken for " + ", ".join(f"{k} {n}" for k, n in jpeg.most_common())
    return blocks(
        table(("data", "cameras", *head), by_data),
        result.provenance(),
        prose(text),
        table(("drift", "strength", *head), by_drift),
        prose(narrow),
        table(("recent pictures", "healthy pictures", "cameras", "named", "kinds"), clean),
        prose(f"{taken} (times)."),
        notes(results, "readouts"),
    )


def _read_out_cells(row: Row) -> list[str]:
    shares = [percent(100 * row[key]) for key in ("within_15", "found", "first")]
    return [percent(row["median"]), percent(row["worst"]), *shares, row["also"] or "-"]


def dense(results: Results) -> str:
    """Return the section of the network that is no classifier."""
    result = results["dense"]
    summary, settings = result["summary"], result["settings"]
    rows = [
        [row["drift"], str(row["seed"]), percent(row["drifted"]), _or_dash(row["candidate"], percent), row["verdict"]]
        + [percent(row["served"]), _or_dash(row["agreement"], "{:.2f}".format)]
        for row in result["rows"]
    ]
    clean, recovered = percent(result["rows"][0]["clean"]), f"{summary['recovered']:.2f}"
    text = f"""A U-Net of three levels that finds handwritten digits on photographs, {settings["test_images"]} test
        images with exact masks; the overlap (Dice) of clean frames is {clean}. {settings["fit_frames"]} frames fitted
        to, {settings["replicate_frames"]} for the second fit, {settings["judge_frames"]} to judge on. Of
        {summary["good_accepted"] + summary["good_rejected"]} candidates that win 2 points or more
        {summary["good_rejected"]} were refused, of {summary["bad_accepted"] + summary["bad_rejected"]} that cost more
        than half a point {summary["bad_accepted"]} were accepted; what is served recovers {recovered} of what the
        candidates would give, and changes the overlap by {summary["worst"]:+.1f} points at worst. The judge was chosen
        on the seed 0. *Agreement* is the concordance with the second fit."""
    head = ("drift", "seed", "drifted", "candidate", "verdict", "served", "agreement")
    return blocks(table(head, rows), result.provenance(), prose(text), notes(results, "dense"))


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


def streams(results: Results) -> str:
    """Return the section of the streams."""
    result = results["streams"]
    settings = result["settings"]
    text = [
        f"""Accuracy of all frames; in brackets the points that are lost against the network alone in the worst
        {settings["block_s"] / 60:.0f} minutes, beyond {settings["errors"]:g} standard errors. A fit is *needless* that
        ended more than {settings["reacts_s"] / 60:.0f} minutes after the camera changed. {settings["hours"]:g} hour of
        a camera at {settings["rate"]} frames a second, CIFAR-10 test images with noise of one grey level, seed
        {", ".join(map(str, settings["seeds"]))}. The daemon runs in simulated time with its default configuration, but
        for a drift check each {settings["tick_s"]:g} s. BN-adapt and TENT adapt in batches of {settings["batch"]}.""",
        """In view: *i.i.d.*, every class equally often; *scenes*, a minute each, of a mixture of classes from a
        Dirichlet distribution of concentration 0.1; *single class*, sixteen minutes each; *label shift*, the commonest
        class a hundred times as often as the rarest. Drifts: *abrupt*, the camera of `bench fit` from minute 16;
        *gradual*, the same, growing from minute 8 to 44; *recurring*, sixteen minutes clean and sixteen drifted in
        turn; *two drifts in turn*, from minute 16 the same, and haze with blur, in alternate frames.""",
        """No needless fit came to serve, and clean streams stay as they are. Where a drifted camera shows one class
        alone, no fit helps and none serves. No single ρ undoes two drifts in turn, but a split one does (below).""",
    ]
    return blocks(_stream_table(result), result.provenance(), *map(prose, text), notes(results, "streams"))


def _stream_table(result: Result) -> str:
    rows = []
    for row in result["rows"]:
        cells = [f"{percent(row['accuracy'][m])} ({row['harm'][m]['beyond_noise']:.1f})" for m in METHODS]
        fits = sum(row["recalibrations"].get(name, 0) for name in FITTED)
        drift = DRIFT_NAMES.get(row["drift"], row["drift"])
        alone = percent(row["accuracy"]["factory"])
        rows.append([f"{drift}, {row['view']}", alone, *cells, f"{fits}, {row['false']}", str(row["swaps"])])
    head = ("drift, in view", "network alone", *METHODS, "fits, of them needless", "swaps")
    return table(head, rows)
