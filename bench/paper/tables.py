"""Tables of finished experiments next to the published numbers of Willis & Oala (2021), and the restored images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.paper.datasets import ROWS
from bench.paper.experiments import IMAGES_OF_DRAW, METRICS, RHOS, Experiment, State
from bench.paper.published import PUBLISHED
from bench.paper.runner import Runner
from daemon.demo.picture import PictureRow
from daemon.images import read_npz

BASELINES = ("CLEAN", "DISTORTED")
COLUMNS = ("row", "ρ", "acc", "acc val", "acc ver", "PSNR", "SSIM", "l2", "draws", "s")


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return by row the mean and standard deviation of every metric, over the perturbations that did not fail."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["piece"].rpartition("/")[0], []).append(record)
    return [_summary(name, group) for name, group in groups.items()]


def _summary(name: str, group: list[dict[str, Any]]) -> dict[str, Any]:
    dataset, setting, row, rho = name.split("/")
    done = [record for record in group if "error" not in record]
    summary: dict[str, Any] = {"dataset": dataset, "setting": setting, "row": row, "rho": rho}
    summary |= {"draws": len(done), "failed": len(group) - len(done)}
    for metric in (*METRICS, "seconds") if done else ():
        values = [record[metric] for record in done]
        summary[f"{metric}_mean"] = float(np.mean(values))
        summary[f"{metric}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return summary


def body(summary: Sequence[dict[str, Any]], dataset: str, setting: str) -> list[list[str]]:
    """Return the lines of a table by COLUMNS: the baselines, then for each row published and measured numbers."""
    of = {(s["setting"], s["row"], s["rho"]): s for s in summary if s["dataset"] == dataset}
    lines = []
    for group, row in _names(setting):
        measured = [(rho, of[group, row, rho]) for rho in ("none", *RHOS) if (group, row, rho) in of]
        published = PUBLISHED.get((dataset, group, row))
        if measured and published:
            cells = [_cell(getattr(published, metric), None) for metric in METRICS]
            lines.append([row, "published", *cells, "", ""])
        lines += [_line(row, rho, numbers) for rho, numbers in measured]
    return lines


def sources(summary: Sequence[dict[str, Any]], dataset: str, setting: str) -> str:
    """Return the sources of the published numbers of a table, each after its rows."""
    measured = {(s["setting"], s["row"]) for s in summary if s["dataset"] == dataset}
    rows: dict[str, list[str]] = {}
    for group, row in _names(setting):
        published = PUBLISHED.get((dataset, group, row))
        if published and (group, row) in measured:
            rows.setdefault(published.source, []).append(row)
    return "; ".join(f"{', '.join(names)}: {source}" for source, names in rows.items())


def _names(setting: str) -> list[tuple[str, str]]:
    return [*(("baseline", row) for row in BASELINES), *((setting, row) for row in ROWS[setting])]


def _line(row: str, rho: str, numbers: dict[str, Any]) -> list[str]:
    cells = [_cell(numbers.get(f"{metric}_mean"), numbers.get(f"{metric}_sd")) for metric in METRICS]
    draws = str(numbers["draws"]) + (f" ({numbers['failed']} failed)" if numbers["failed"] else "")
    return [row, rho, *cells, draws, _cell(numbers.get("seconds_mean"), None)]


def _cell(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def markdown(summary: Sequence[dict[str, Any]], dataset: str, setting: str) -> str:
    """Return the table below a heading, and the sources of its published numbers."""
    lines = [COLUMNS, ["---", "---", *["---:"] * (len(COLUMNS) - 2)], *body(summary, dataset, setting)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    published = sources(summary, dataset, setting)
    return f"### {dataset}, {setting}\n\n{table}\n" + (f"\nPublished: {published}.\n" if published else "")


def figure(experiments: Sequence[Experiment], state: State, runner: Runner) -> Iterator[PictureRow]:
    """Yield a line of images for every experiment of the first perturbation that has images."""
    for experiment in experiments:
        path = state.images(experiment)
        if experiment.draw != IMAGES_OF_DRAW or not path.exists():
            continue
        arrays, data_set = read_npz(path), runner.data_set(experiment.dataset)
        note = experiment.dataset if experiment.setting == "baseline" else f"{experiment.setting}, {experiment.rho}"
        note = "CC, " * experiment.row.endswith(" CC") + note  # in the note, since the column of titles is narrow
        names = [data_set.classes[label] for label in arrays["label"]]
        right = arrays["label"] == data_set.validation.labels[: len(names)].numpy()
        yield PictureRow(experiment.row.removesuffix(" CC"), note, arrays["images"], names, right.tolist())
