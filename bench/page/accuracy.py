"""Sections of docs/results.md about accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.page.result import Result, blocks, find, notes, percent, prose, table, with_worst
from bench.paper.measure import PUBLISHED_RATE
from bench.paper.published import PUBLISHED
from bench.paper.tables import markdown

Results = Mapping[str, Result]

MODES = {"shipped": "", "commissioned": ", statistics of clean frames measured once"}
DRIFT_KINDS = {"paper": "perturbation of the paper", "camera": "drift of a camera", "none": "no drift"}
FIT_FILES = ("fit", "fit-resnet56")
DRIFT_FILES = ("drifts", "drifts-x-rays")
CORRUPTION_FILES = ("corruptions", "corruptions-light")
NETWORK_NAMES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
PAPER_CLEAN, PAPER_ROW = ("cifar10", "baseline", "CLEAN"), ("cifar10", "unsupervised", "NN ALL")
PAPER_BATCHES = 4  # of 128 frames in each epoch of the paper's procedure
NEAR_CLEAN = 2.0  # points
CORRUPTION_COLUMNS = ("nothing", "batch statistics", "TENT", "oracle", "fitted", "verdict", "served")
EXAMPLES = (  # of single drifts: text, data, drift, strength
    ("defocus of 1.2 px", "defocus", "strong"),
    ("two stops too dark", "underexposure", "strong"),
    ("gamma 2.2", "gamma", "strong"),
    ("JPEG at quality 50", "jpeg", "mild"),
)


def demo(results: Results) -> str:
    """Return the section of the demo."""
    result = results["demo"]
    cells = [percent(100 * accuracy) for accuracy in result["accuracy"].values()]
    frames = result["frames"].values()
    sent, answered = (sum(camera[key] for camera in frames) for key in ("sent", "answered"))
    text = prose(
        f"""One run with handwritten digits and the drift `{result["settings"]["drift"]}` of one of two cameras;
        {percent(100 * result["recovered_share"])} of the lost accuracy came back. The fitted ρ served
        {result["seconds_to_recover"]:.0f} s after the drift began, and {answered:,} of {sent:,} frames were answered.
        The pictures of this run are at the top of the [README](../README.md)."""
    )
    return blocks(table(("before", "drifted", "recovered"), [cells]), result.provenance(), text)


def fits(results: Results) -> str:
    """Return the section of fits on ResNet-20 and ResNet-56."""
    rows = []
    for name in FIT_FILES:
        if name not in results:
            continue
        for summary in results[name]["summary"]:
            network, kind = summary["network"], summary["drifts"]
            what = f"{NETWORK_NAMES[network]}, {DRIFT_KINDS[kind]}{MODES[summary['mode']]}"
            clean = results[name]["clean"][network]
            restored = with_worst(summary["restored"], summary["restored_worst"])
            verified = with_worst(summary["verified"], summary["verified_worst"])
            numbers = [
                str(summary["count"]),
                percent(clean["model"]),
                percent(summary["distorted"]),
                restored,
                verified,
            ]
            rows.append([what, *numbers, f"{summary['seconds']:.0f}", f"{summary['passes']:.0f}"])
            rows[-1].append(results[name].measured())
    head = ("CIFAR-10", "runs", "clean", "drifted", "restored (worst)", "second network (worst)", "s", "passes")
    return blocks(table((*head, "measured"), rows), _about_fits(results), notes(results, "fit"))


def _about_fits(results: Results) -> str:
    fit = results["fit"]
    settings, shipped = fit["settings"], [row for row in fit["rows"] if row["mode"] == "shipped"]
    drifted = find(fit["summary"], network="resnet20", mode="shipped", drifts="paper")
    none = find(fit["summary"], network="resnet20", mode="shipped", drifts="none")
    most = max(row["passes"] for row in shipped)
    paper_clean, paper = PUBLISHED[PAPER_CLEAN], PUBLISHED[PAPER_ROW]
    epochs = results["paper"]["settings"]["epochs"] if "paper" in results else 100
    return "\n\n".join(
        map(
            prose,
            (
                f"""A published network and {settings["frames"]} unlabelled frames; accuracy on
                {settings["test_images"]:,} test images. The second network judges the same restored images; the fit
                never saw it. A pass is a forward and backward pass of 128 frames: {drifted["passes"]:.0f} on average
                and at most {most:.0f} for ResNet-20 with the statistics shipped in the model. On clean frames a fit
                changes the accuracy by {abs(none["restored"] - none["distorted"]):.1f} points. The paper reports
                {percent(paper.acc_val or 0)} of {percent(paper_clean.acc_val or 0)} on its network, after
                {PAPER_BATCHES * epochs} passes.""",
                """*Statistics measured once* are those of `recald commission`, on clean images that no fit and no test
                used. ResNet-20 was measured with both cores to itself, ResNet-56 with one thread next to other
                benches, so that its seconds are longer than they need to be; it was also measured before ρ was applied
                in blocks and before other starts of the tone curve were tried, which changes no accuracy of a drifted
                camera.""",
            ),
        )
    )


def curve(results: Results) -> str:
    """Return the section about the number of frames."""
    result = results["curve"]
    rows = []
    for summary in result["summary"]:
        restored = with_worst(summary["restored"], summary["restored_worst"])
        rows.append([f"{summary['frames']:,}", restored, percent(summary["verified"]), percent(summary["none"])])
    runs = len([row for row in result["rows"] if row["frames"] == result["summary"][0]["frames"]]) - 1
    text = prose(
        f"""ResNet-20 and the shipped statistics; means of {runs} perturbations, whose accuracy is
        {percent(result["summary"][0]["distorted"])} without a fit and {percent(result["clean"])} without the drift.
        The descent takes {result["settings"]["fit"]["stages"][-1][0]} frames at most; more frames only sharpen what it
        starts from. Measured with one thread next to other benches, before ρ was applied in blocks and before other
        starts of the tone curve were tried."""
    )
    head = ("frames", "restored (worst)", "second network", "fit to clean frames")
    return blocks(table(head, rows), result.provenance(), text)


def peers(results: Results) -> str:
    """Return the section about other methods."""
    result = results["peers"]
    paper, camera = result["summary"]["paper"], result["summary"]["camera"]
    rows = []
    for method, numbers in paper.items():
        changed = f"{numbers['changed_values_mean']:,.0f}"
        means = [percent(group[method]["accuracy_mean"]) for group in (paper, camera)]
        others = [percent(numbers[f"{key}_mean"]) for key in ("single", "sorted", "back_to_clean")]
        rows.append([method, result["needs"][method], changed, *means, *others])
    settings, recald = result["settings"], paper["recald"]
    head = (
        "method",
        "needs",
        "values changed in the model",
        "perturbation",
        "camera",
        "one at a time",
        "sorted",
        "back",
    )
    cameras = len({row["drift"] for row in result["rows"] if row["drift"].startswith("camera")})
    draws = len({row["drift"] for row in result["rows"]}) - cameras
    text = [
        f"""ResNet-20 ({result["model"]["values"]:,} values), the same images and drifts for all methods; means over
        {draws} perturbations and {cameras} cameras. The last three columns are for the perturbation: *one at a time*
        is the first {settings["single_frames"]} frames without batches; *sorted* is the stream sorted by class, and
        methods that adapt before they serve saw {settings["frames"]} frames of three classes only; *back* is the
        accuracy on clean images after the stream, by the same instance, which is not told that the drift is over.""",
        f"""BN-adapt takes the BatchNorm statistics of the batch (Nado et al. 2020), batches of {settings["batch"]};
        with the prior they are blended with the shipped ones, which count as 16 images (Schneider et al. 2020). TENT
        minimises the entropy online, Adam 1e-3 (Wang et al. 2021). Histogram matching maps each channel. Colour
        matching maps mean and covariance (Reinhard et al. 2001; Pitie & Kokaram 2007). Both need statistics of
        {settings["source_frames"]:,} clean images; recald needs nothing but the model.""",
        f"""Fitted while only three of ten classes are in view, recald still reaches
        {percent(recald["sorted_mean"])} (perturbation) and {percent(camera["recald"]["sorted_mean"])} (camera) of the
        stream of all classes. If the camera silently becomes clean again, the fitted ρ is wrong
        ({percent(recald["back_to_clean_mean"])}). The drift score is then
        {recald["drift_ratio_mean"]:.1f} times that of clean frames, which raises the alarm, and the daemon serves
        without ρ. Measured with one thread next to other benches, before ρ was applied in blocks.""",
    ]
    return blocks(table(head, rows), result.provenance(), *map(prose, text), notes(results, "peers"))


def cameras(results: Results) -> str:
    """Return the section about a real change of camera."""
    result = results["cameras"]
    rows = [
        [
            row["method"],
            percent(row["accuracy"]),
            f"{percent(row['balanced'])} ({row['balanced_low']:.1f} to {row['balanced_high']:.1f})",
            f"{percent(row['served_balanced'])}, {row['accepted']} of {row['runs']} fits" if "runs" in row else "",
        ]
        for row in result["rows"]
    ]
    settings, clean = result["settings"], result["clean"]
    head = ("method", "accuracy", "balanced accuracy (95 % interval)", "as served")
    text = [
        f"""Five kinds of white blood cells, {settings["frames"]} frames of another laboratory's microscope, stain and
        camera, and another mix of classes; at home the same network has {percent(clean["accuracy"])}. The balanced
        accuracy is the mean over the classes; a class with fewer than five frames is left out. The intervals come from
        resampled frames. Each of recald's fits sees half of the frames in one of
        {len(result["seeds"]["order"])} orders and is judged on the others, without labels; its accuracy is that on all
        frames. *As served*: where the judge refuses a fit, the camera stays as it is.""",
        f"""*Commissioned*: statistics of {settings["clean_frames"]:,} clean frames of the own camera, each class as
        often as the others. *Mix stated* is `sensors.NAME.class_mix`: the usual differential count of blood, or the
        shares that somebody counted. BN-adapt has all frames in one batch; it and TENT change the model (as in *Other
        methods*), histogram and colour matching need clean frames, too.""",
    ]
    return blocks(table(head, rows), result.provenance(), *map(prose, text), notes(results, "cameras"))


def mixes(results: Results) -> str:
    """Return the section about a drift with another mix of classes."""
    result = results["mixes"]
    numbers = ("clean", "drifted", "shipped", "commissioned", "stated")
    rows = [
        [row["data"], row["drift"], percent(100 * row["largest"]), *(percent(row[key]) for key in numbers)]
        for row in result["rows"]
    ]
    settings, near = result["settings"], sum(row["stated"] >= row["clean"] - NEAR_CLEAN for row in result["rows"])
    worst = min(result["rows"], key=lambda row: row["stated"] - row["clean"])
    head = ("data", "drift", "largest class", *numbers)
    missed = f"{worst['data']} behind {worst['drift']}, misses it by {worst['clean'] - worst['stated']:.1f}"
    text = f"""Balanced accuracy on test images of all classes. The camera drifts, and its {settings["frames"]} frames
        show the classes in a random mix; *largest class* is its greatest share. Fits to *shipped* statistics, to
        *commissioned* ones of at most {settings["clean_frames"]:,} clean frames, and to these in the *stated* mix
        (`sensors.NAME.class_mix`): {near} of {len(rows)} of the last come within {NEAR_CLEAN:g} points of the clean
        accuracy; the worst, {missed}. No judge decides here. A network's threshold between two classes need not be
        where it is best for both: a fit that does not know the mix moves it, now and then for the better (X-rays)."""
    return blocks(table(head, rows), result.provenance(), prose(text), notes(results, "mixes"))


def corruptions(results: Results) -> str:
    """Return the section about CIFAR-10-C."""
    files = [results[name] for name in CORRUPTION_FILES if name in results]
    settings, parts = files[0]["settings"], []
    rows = [row for file in files for row in file["rows"]]
    summary = {data: summary for file in files for data, summary in file["summary"].items()}
    for file in files:
        for data, summarised in file["summary"].items():
            own = [row for row in file["rows"] if row["data"] == data]
            named = [(row["corruption"], row) for row in own]
            named += [(f"**mean, {group}**", means) for group, means in summarised["means"].items()]
            cells = [[name, *(_corruption_cell(row.get(key)) for key in CORRUPTION_COLUMNS)] for name, row in named]
            parts += [f"#### {data}", table(("corruption", *CORRUPTION_COLUMNS), cells), file.provenance()]
    worst = min(summary, key=lambda data: summary[data]["worst_gain"])
    text = [
        f"""Severity 5, with the constants for 32x32 pixels and random numbers of our own; {settings["test_images"]:,}
        test images. Clean accuracy: {
            ", ".join(
                f"{data} {percent(next(row['clean'] for row in rows if row['data'] == data))}" for data in summary
            )
        }. Batch statistics and TENT adapt the model to the test stream in batches of {settings["batch"]}
        frames of all classes; recald has seen {settings["frames"]} others, as in the daemon, and leaves the model as
        it is. *Oracle*: a linear map by least squares to the clean images, behind replaced pixels where that is
        better. *Fitted*: whatever the judge says; *served*: what it lets serve, else the camera as it is.""",
        f"""*Of a camera* are those that a linear map, a tone curve or the replacement of pixels can undo:
        {", ".join(settings["of_a_camera"])}. The largest loss to what the judge let serve:
        {summary[worst]["worst_gain"]:+.1f} points ({worst}, {summary[worst]["worst_gain_at"]}).""",
    ]
    return blocks(*parts, *map(prose, text), notes(results, "corruptions"))


def _corruption_cell(value: Any) -> str:
    return percent(value) if isinstance(value, float) else value or "-"


def drifts(results: Results) -> str:
    """Return the section about single drifts."""
    files = [results[name] for name in DRIFT_FILES if name in results]
    result, rows = files[0], []
    for file in files:
        for name, part in file["summary"].items():
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in part["verdicts"].items())
            accuracies = [percent(part[key]) for key in ("clean", "drifted_mean", "served_mean")]
            worst = f"{part['worst_gain']:+.1f} ({part['worst_gain_at']})"
            rows.append([name, *accuracies, worst, verdicts, file.measured()])
    examples = "; ".join(_example(result, *example) for example in EXAMPLES)
    text = [
        f"""Each of 16 kinds of drift at three strengths, and none, on CIFAR-10 (ResNet-20), on traffic signs (GTSRB,
        with a ResNet-20 that the bench trains) and, without colours, on X-rays of the chest (with a small network that
        the bench trains). As in the daemon, {result["settings"]["judge_frames"]} drifted frames
        decide whether a fit is needed and judge the candidate; {result["settings"]["fit_frames"]} others are fitted
        to. Gains are in points. The verdict is *unneeded* where the frames look clean.""",
        f"""On CIFAR-10: {examples}. JPEG is not undone, nor is strong temporal noise, where the judge keeps the camera
        as it is.""",
        """Measured with one thread next to other benches, and before the judge asked that the network be more confident
        about the frames. Rows that it accepted at little or no gain may be refused now (CIFAR-10: cross-talk,
        overexposure, mild underexposure, vignetting, mild white balance; traffic signs: dead pixels, JPEG,
        overexposure).""",
    ]
    head = ("data", "clean", "drifted", "served", "worst gain", "verdicts", "measured")
    return blocks(table(head, rows), *map(prose, text), *map(_areas, files))


def _areas(file: Result) -> str:
    """Return a table of what was fitted for a network of two classes: its areas under the ROC curve; "" without one."""
    rows = [row for row in file["rows"] if row.get("candidate_auc") is not None]
    if not rows:
        return ""
    numbers = ("drifted", "candidate", "drifted_auc", "candidate_auc")
    cells = [[f"{r['drift']}, {r['strength']}", *(percent(r[key]) for key in numbers), r["verdict"]] for r in rows]
    head = ("drift", "drifted", "fitted", "area under the ROC curve, drifted", "fitted", "verdict")
    text = f"""{rows[0]["data"]}: every drift that was fitted to; clean {percent(rows[0]["clean"])}, area
        {percent(rows[0]["clean_auc"])}. The area does not depend on where the threshold between the classes lies."""
    return blocks(prose(text), table(head, cells))


def _example(result: Result, text: str, drift: str, strength: str) -> str:
    row = find(result["rows"], data="CIFAR-10", drift=drift, strength=strength)
    return f"{text}: {percent(row['drifted'])} to {percent(row['served'])}"


def paper(results: Results) -> str:
    """Return the section of the paper's tables."""
    result = results["paper"]
    settings, summary = result["settings"], result["summary"]
    text = [
        f"""The paper's ρ always matches statistics of {settings["source_images"]:,} source images. Ours matches those
        shipped in the model in the unsupervised rows NN and NN ALL, where it needs nothing else, and the collected
        ones elsewhere. CIFAR-10 has the perturbation's strength κ = {settings["kappa"]["cifar10"]}, MNIST
        κ = {settings["kappa"]["mnist"]} with two small networks that the bench trains once. acc is the accuracy on the
        {settings["frames"]} images that ρ was fitted to, acc val that on {settings["validation_images"]:,} test images,
        acc ver that of a second network on these; SSIM in %, PSNR in dB, l2 the error of ρ∘δ on unit images, a ratio.
        The tables hold what two cores had time for: the column draws says how many perturbations each row saw, and s
        are seconds with one thread next to other benches. *Published* numbers are from other networks.""",
        f"""The paper's procedure runs at the rate {settings["rate"]:g}. The published rate is {PUBLISHED_RATE:g}, which
        recovers less here, so the comparison is to the paper's ρ at its best. It stays far below the paper's own
        numbers, and not all reasons are known. {_behind(summary)}""",
    ]
    tables = [
        markdown(summary, dataset, setting).replace("### ", "#### ").rstrip()
        for dataset, setting in sorted({(s["dataset"], s["setting"]) for s in summary if s["setting"] != "baseline"})
    ]
    return blocks(result.provenance(), *map(prose, text), notes(results, "paper"), *tables)


def _behind(summary: list[dict[str, Any]]) -> str:
    """Name the rows in which ours is behind the paper's ρ."""
    behind = []
    for ours in (s for s in summary if s["rho"] == "ours"):
        key = {name: ours[name] for name in ("dataset", "setting", "row")}
        theirs = [s for s in summary if s["rho"] == "paper" and key.items() <= s.items()]
        if theirs and theirs[0]["acc_val_mean"] > ours["acc_val_mean"]:
            accuracies = f"{percent(ours['acc_val_mean'])} against {percent(theirs[0]['acc_val_mean'])}"
            behind.append(f"{key['dataset']}, {key['setting']} {key['row']} ({accuracies})")
    return f"Ours is behind the paper's ρ in: {'; '.join(behind)}." if behind else ""
