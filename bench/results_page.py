"""Generate docs/results.md and the headline figures from bench/results/*.json: `python -m bench.results_page`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bench.benches import BENCHES, claim
from bench.page.accuracy import cameras, corruptions, curve, demo, drifts, fits, mixes, paper, peers
from bench.page.decisions import dense, judge, proxy, readouts, streams
from bench.page.result import Result, find, load, percent, prose, table, with_worst
from bench.page.runtime import attack, gpu, handover, intake, latency, overhead, precision, speed, swap
from bench.page.watching import drift, watch
from bench.provenance import ROOT

FOLDER, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "results.md"

# Heading, sections by the name of their bench.
PARTS = {
    "Accuracy": {"demo": demo, "fit": fits, "curve": curve, "peers": peers, "cameras": cameras}
    | {"mixes": mixes, "corruptions": corruptions}
    | {"drifts": drifts, "paper": paper},
    "Decisions": {"judge": judge, "proxy": proxy, "readouts": readouts, "drift": drift, "dense": dense}
    | {"streams": streams},
    "Time and memory": {
        **{"latency": latency, "handover": handover, "watch": watch, "attack": attack, "swap": swap},
        **{"intake": intake, "overhead": overhead, "speed": speed, "precision": precision, "gpu": gpu},
    },
}
TITLES = {
    "demo": "The demo",
    "fit": "A fit without labels",
    "curve": "How many frames a fit needs",
    "peers": "Other methods",
    "cameras": "Another laboratory's camera",
    "mixes": "Another mix of classes",
    "corruptions": "The corruptions of CIFAR-10-C",
    "drifts": "One drift at a time",
    "paper": "The tables of the paper",
    "judge": "The judge",
    "proxy": "The accuracy estimate",
    "readouts": "What drifted",
    "drift": "The drift alarm",
    "dense": "A network that is no classifier",
    "streams": "Hours of a camera",
    "latency": "Latency",
    "handover": "Frames that go to a fit",
    "watch": "Drift checks of large frames",
    "attack": "Senders that mean harm",
    "swap": "Swaps",
    "intake": "Receiving frames",
    "overhead": "Overhead of the homogenizer",
    "speed": "Speed of a fit",
    "precision": "float16 and bfloat16",
    "gpu": "On an NVIDIA GPU",
}


def render(folder: Path) -> str:
    """Return docs/results.md, from the results in `folder`."""
    results = load(folder)
    blocks = ["# Results", _introduction()]
    for heading, sections in PARTS.items():
        blocks.append(f"## {heading}")
        for name, section in sections.items():
            blocks += [f"### {TITLES[name]}", prose(f"Claim (`python -m bench {name}`): {claim(name)}")]
            blocks.append(section(results) if name in results else prose("There is no result of this bench yet."))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _introduction() -> str:
    return prose(
        """Every figure on this page comes from a file in `bench/results/`. Each table says when and at which commit it
        was measured; a row that says so itself comes from another file. *Code has changed since* means that today's
        code is not the measured code, or that the file does not say what it was: only a new run tells whether the
        figures still hold. Reworded comments do not count as a change of the code, renamed identifiers do. Accuracies
        are shares of test images, a gain or loss of accuracy is in points (percent of the test images). How to measure
        again, and what each key of a file means, is in [bench/README.md](../bench/README.md)."""
    )


def headline(results: Mapping[str, Result]) -> str:
    """Return the headline figures for the README, at most 12 lines; a result that is missing is left out."""
    shown = [(text, figures, results[name]) for name, text, figures in HEADLINES if name in results]
    rows = [(text, figures(result), result.measured()) for text, figures, result in shown]
    machines = "; ".join(dict.fromkeys(result.machine for _, _, result in shown))
    where = f"Measured on {machines}. All figures, and how they were measured: [Results](docs/results.md)."
    return table(("what", "result", "measured"), rows) + f"\n\n{where}"


def _demo(result: Result) -> str:
    return ", ".join(percent(100 * accuracy) for accuracy in result["accuracy"].values())


def _recovery(result: Result, network: str, drifts: str) -> str:
    summary = find(result["summary"], network=network, mode="shipped", drifts=drifts)
    clean = percent(result["clean"][network]["model"])
    recovered = with_worst(summary["restored"], summary["restored_worst"])
    runs = f"mean of {summary['count']} (worst)"
    return f"{percent(summary['distorted'])} drifted, {recovered} recovered, {runs}, of {clean}"


def _lost(result: Result) -> str:
    frames = [result[part]["frames"] for part in ("series", "beside")]
    lost, sent = (sum(counts[key] for counts in frames) for key in ("lost", "sent"))
    return f"{lost} of {sent:,}, {result['series']['ordered']:,} swaps"


def _pause(result: Result) -> str:
    exchange, waited = (result["series"]["pauses"][key]["p99_ms"] for key in ("exchange", "kept_waiting"))
    return f"{exchange:.2f} ms, {waited:.1f} ms with all that follows it"


def _overhead(result: Result) -> str:
    row = find(result["rows"], backend="onnx")
    times = f"{row['homogenizer']['p50_ms']:.1f} of {row['network']['p50_ms']:.0f} ms"
    return f"{percent(100 * row['share'])} ({times}, one CPU thread)"


def _peers(result: Result) -> str:
    methods = result["summary"]["paper"]
    names = ("nothing", "BN-adapt", "TENT", "colour matching", "recald")
    return ", ".join(f"{name} {percent(methods[name]['accuracy_mean'])}" for name in names)


def _cameras(result: Result) -> str:
    wanted = ("nothing", "BN-adapt", "TENT", "recald", "recald, commissioned, usual mix stated")
    rows = [find(result["rows"], method=method) for method in wanted]
    return ", ".join(f"{row['method']} {percent(row['balanced'])}" for row in rows)


def _corruptions(result: Result) -> str:
    means = result["summary"]["CIFAR-10"]["means"]["of a camera"]
    named = {"nothing": "nothing", "batch statistics": "BN-adapt", "TENT": "TENT", "served": "recald, as served"}
    return ", ".join(f"{text} {percent(means[name])}" for name, text in named.items())


Figures = Callable[[Result], str]
HEADLINES: tuple[tuple[str, str, Figures], ...] = (  # file, text, figures
    ("demo", "demo: accuracy before the drift, drifted, recovered", _demo),
    ("fit", "CIFAR-10, perturbation of the paper", partial(_recovery, network="resnet20", drifts="paper")),
    ("fit", "CIFAR-10, drift of a camera", partial(_recovery, network="resnet20", drifts="camera")),
    ("cameras", "blood cells, another laboratory's camera (balanced accuracy)", _cameras),
    ("corruptions", "CIFAR-10-C, ResNet-20, severity 5: mean of 8 corruptions that a camera can undo", _corruptions),
    ("swap", "frames lost during swaps and fits", _lost),
    ("swap", "pause of a swap, 99th percentile", _pause),
    ("overhead", "time of ρ, next to a network of ResNet-50's size", _overhead),
    ("peers", "other methods, perturbation of the paper", _peers),
)


def main() -> None:
    """Write docs/results.md, and print the headline figures."""
    assert set(TITLES) == set(BENCHES)
    PAGE.write_text(render(FOLDER))
    print(headline(load(FOLDER)))


if __name__ == "__main__":
    main()
