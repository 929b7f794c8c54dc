"""The page: a dossier and what the audit log tells of it, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from calibrate.homogenizer import bend
from daemon import __version__
from daemon.operator.report import words
from daemon.operator.report.charts import WIDE, Chart, Series, chart
from daemon.operator.report.chronicle import MOST_AFTER, Chronicle
from daemon.operator.report.pictures import gallery, kernel_picture
from deploy.store.artefacts import ArtefactStore
from deploy.store.dossier import Dossier, Evidence, Extents
from deploy.store.dossier_archive import DossierArchive, Filed

COLOURS = {1: [("grey", "grey")], 3: [(name, name) for name in ("red", "green", "blue")]}  # name and class
MEASURED = {
    "factory": ("without ρ", "before"),
    "active": ("with the ρ that served", "served"),
    "candidate": ("with the candidate", "after"),
}
MOST_NAMED = 12  # layers whose names fit below a chart
MOST_STARTS = 8  # that are shown of all that were tried
TONE_POINTS = 52  # grey levels at which a tone curve is drawn


def render(filed: Filed, chronicle: Chronicle, archive: DossierArchive, store: ArtefactStore, now: float) -> str:
    """The page about one recalibration; now: s since the epoch, when it is made."""
    dossier, fit = filed.dossier, chronicle.fit(filed.digest)
    after = chronicle.after(fit, dossier.candidate) if fit else []
    template = _environment().get_template("page.html")
    return template.render(
        dossier=dossier,
        digest=filed.digest,
        path=filed.path,
        fit=fit,
        outcome=words.outcome(dossier, after, fit),
        decided_by=words.decided_by(chronicle.mode(fit) if fit else None),
        before=chronicle.before(fit) if fit else [],
        after=after[:MOST_AFTER],
        more=max(0, len(after) - MOST_AFTER),
        problems=chronicle.problems,
        asked=[words.asked(criterion) for criterion in dossier.verdict.criteria] if dossier.verdict else [],
        measured=[(MEASURED[name][0], one) for name, one in _measured(dossier)],
        layers=_layers(dossier),
        losses=_losses(dossier),
        starts=_starts(dossier),
        tones=_tones(dossier),
        answers=_answers(dossier.extents) if dossier.extents else None,
        kernels=[kernel_picture(kernel) for kernel in dossier.extents.kernels] if dossier.extents else [],
        channels=[name for name, _ in _channels(dossier.frames.shape[2])],
        gallery=gallery(filed, archive, store),
        words=words,
        now=now,
        release=__version__,
    )


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("daemon.operator.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["source_hash"] = _source_hash
    return made


def _source_hash(style: str) -> str:
    """What the content security policy allows a style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"


def _measured(dossier: Dossier) -> list[tuple[str, Evidence]]:
    return [(name, dossier.measured[name]) for name in MEASURED if name in dossier.measured]


def _layers(dossier: Dossier) -> Chart | None:
    names = dossier.layers
    series = {MEASURED[n][0]: (MEASURED[n][1], one.layers) for n, one in _measured(dossier)}
    every = 1 if len(names) <= MOST_NAMED else -(-len(names) // MOST_NAMED)
    numbers = [float(number) for number in range(1, len(names) + 1)]
    return chart(
        "Drift score by layer",
        numbers,
        series,
        width=WIDE,
        x_label="BatchNorm layer, from the input on",
        y_label="drift score",
        x_ticks={number: f"{number:.0f}" for number in numbers[::every]},
        marks={1.0: "clean, about 1", dossier.band: f"end of the clean band, {dossier.band:g}"},
    )


def _losses(dossier: Dossier) -> Chart | None:
    if dossier.fit is None:
        return None
    history = dossier.fit.history
    return chart(
        "Objective",
        [float(step) for step in range(1, len(history) + 1)],
        {"objective": ("after", history)},
        x_label="evaluation of the objective",
        y_label="nats",
    )


def _starts(dossier: Dossier) -> list[tuple[str, float]]:
    """The best closed forms that were tried, and their objectives."""
    tried = dossier.fit.start_losses if dossier.fit else {}
    finite = [(name, loss) for name, loss in tried.items() if loss is not None]
    return sorted(finite, key=lambda one: one[1])[:MOST_STARTS]


def _tones(dossier: Dossier) -> Chart | None:
    """The tone curves alone, grey levels to grey levels."""
    extents, levels = dossier.extents, [255 * n / (TONE_POINTS - 1) for n in range(TONE_POINTS)]
    if extents is None:
        return None
    curves = [_bent(levels, extents, dossier, channel) for channel in range(len(extents.curve))]
    return _of_levels("Tone curve", levels, curves)


def _bent(levels: list[float], extents: Extents, dossier: Dossier, channel: int) -> list[float | None]:
    mean, std = dossier.normalisation.mean[channel], dossier.normalisation.std[channel]
    values = (torch.tensor(levels).view(1, 1, 1, -1) / 255 - mean) / std
    curve = torch.tensor([[stretch or 0.0 for stretch in extents.curve[channel]]])
    bent: list[float | None] = ((bend(values, curve) * std + mean) * 255).flatten().tolist()
    return bent


def _answers(extents: Extents) -> Chart | None:
    channels = range(len(extents.curve))
    return _of_levels(
        "All of ρ, on an even grey frame", extents.levels, [[row[c] for row in extents.response] for c in channels]
    )


def _of_levels(title: str, levels: list[float], curves: list[list[float | None]]) -> Chart | None:
    named = {name: (kind, curve) for (name, kind), curve in zip(_channels(len(curves)), curves, strict=True)}
    found = [value for curve in curves for value in curve if value is not None]
    bounds = (min(0.0, *found), max(255.0, *found)) if found else (0.0, 255.0)
    series: dict[str, tuple[str, Series]] = {"unchanged": ("plain", levels), **named}
    ticks = {float(level): str(level) for level in (0, 64, 128, 192, 255)}
    return chart(title, levels, series, x_label="grey level in", y_label="grey level out", x_ticks=ticks, bounds=bounds)


def _channels(count: int) -> Sequence[tuple[str, str]]:
    """Name and class of each channel."""
    return COLOURS.get(count) or [(f"channel {number}", "grey") for number in range(1, count + 1)]
