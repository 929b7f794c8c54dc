"""The page of `recald report`: one recalibration as a single HTML file, which loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from calibrate.homogenizer import apply_tone_curve
from daemon import __version__
from daemon.operator.report import wording
from daemon.operator.report.audit_excerpt import AuditExcerpt
from daemon.operator.report.charts import WIDE_CHART, Chart, Series, chart
from daemon.operator.report.pictures import gallery, kernel_picture
from deploy.store.artefacts import ArtefactStore
from deploy.store.dossier import STARTS_SEPARATOR, Dossier, EvidenceRecord, HomogenizerRecord
from deploy.store.dossier_archive import DossierArchive, StoredDossier

# Name and CSS class.
CHANNEL_STYLES = {1: [("grey", "grey")], 3: [("red", "red"), ("green", "green"), ("blue", "blue")]}  # by their number
EVIDENCE_STYLES = {
    "factory": ("without ρ", "before"),
    "active": ("with the ρ that served", "served"),
    "candidate": ("with the candidate", "after"),
    "replicate": ("with a second fit", "second"),
}
MAX_RECORDS_AFTER = 60  # of what followed a fit
MAX_LAYER_TICKS = 12  # below a chart
MAX_STARTS = 8  # of those that were tried, the best
TONE_POINTS = 52  # grey levels at which a tone curve is drawn


def render(
    stored: StoredDossier, audit: AuditExcerpt, archive: DossierArchive, store: ArtefactStore, now: float
) -> str:
    """Return the page about one recalibration. now: the time it is made, s since the epoch."""
    dossier, fit = stored.dossier, audit.fit_record(stored.digest)
    after = audit.after(fit, dossier.candidate) if fit else []
    criteria = dossier.verdict.criteria if dossier.verdict else []
    template = _environment().get_template("page.html")
    return template.render(
        dossier=dossier,
        digest=stored.digest,
        path=stored.path,
        fit=fit,
        outcome=wording.outcome(dossier, after, fit),
        mode=wording.mode_text(audit.mode(fit) if fit else None),
        before=audit.before(fit) if fit else [],
        after=after[:MAX_RECORDS_AFTER],
        more=max(0, len(after) - MAX_RECORDS_AFTER),
        problems=audit.problems,
        criteria=[wording.criterion_row(criterion) for criterion in criteria],
        evidence=[(EVIDENCE_STYLES[name][0], measured) for name, measured in _evidence(dossier)],
        layers=_layer_chart(dossier),
        losses=_loss_chart(dossier),
        starts=_best_starts(dossier),
        chosen_starts=dossier.fit.start.split(STARTS_SEPARATOR) if dossier.fit else [],
        effects=_effects(dossier),
        channels=[name for name, _ in _channel_styles(dossier.frames.shape[2])],
        gallery=gallery(stored, archive, store),
        wording=wording,
        now=now,
        release=__version__,
    )


class Effect(NamedTuple):
    """What ρ, or a branch of it, does to a frame, with its charts and the pictures of its kernels."""

    title: str
    record: HomogenizerRecord
    tones: Chart | None
    responses: Chart | None
    kernels: list[str]


def _effects(dossier: Dossier) -> list[Effect]:
    records = [dossier.extents, *dossier.other_extents] if dossier.extents else []
    titles = wording.effect_titles(len(records))
    return [
        Effect(
            title,
            record,
            _tone_chart(dossier, record),
            _response_chart(record),
            [kernel_picture(kernel) for kernel in record.kernels],
        )
        for title, record in zip(titles, records, strict=True)
    ]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("daemon.operator.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["source_hash"] = _source_hash
    return environment


def _source_hash(style: str) -> str:
    """Return the hash by which a content security policy allows this style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"


def _evidence(dossier: Dossier) -> list[tuple[str, EvidenceRecord]]:
    """Return the evidence in the order of the page's columns."""
    return [(name, dossier.all_evidence[name]) for name in EVIDENCE_STYLES if name in dossier.all_evidence]


def _layer_chart(dossier: Dossier) -> Chart | None:
    series: dict[str, tuple[str, Series]] = {}
    for name, measured in _evidence(dossier):
        label, kind = EVIDENCE_STYLES[name]
        series[label] = (kind, measured.layers)
    numbers = [float(number) for number in range(1, len(dossier.layers) + 1)]
    step = -(-len(numbers) // MAX_LAYER_TICKS) or 1
    return chart(
        "Drift score by layer",
        numbers,
        series,
        width=WIDE_CHART,
        x_label="BatchNorm layer, from the input on",
        y_label="drift score",
        x_ticks={number: f"{number:.0f}" for number in numbers[::step]},
        marks={1.0: "clean, about 1", dossier.band: f"end of the clean band, {dossier.band:g}"},
    )


def _loss_chart(dossier: Dossier) -> Chart | None:
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


def _best_starts(dossier: Dossier) -> list[tuple[str, float]]:
    """Return the names of the best starts, and their objectives."""
    losses = dossier.fit.start_losses if dossier.fit else {}
    finite = [(name, loss) for name, loss in losses.items() if loss is not None]
    return sorted(finite, key=lambda start: start[1])[:MAX_STARTS]


def _tone_chart(dossier: Dossier, effect: HomogenizerRecord) -> Chart | None:
    """Draw the tone curves alone, from grey level to grey level."""
    levels = [255 * n / (TONE_POINTS - 1) for n in range(TONE_POINTS)]
    curves = [_tone_curve(levels, effect, dossier, channel) for channel in range(len(effect.curve))]
    return _grey_level_chart("Tone curve", levels, curves)


def _tone_curve(levels: list[float], effect: HomogenizerRecord, dossier: Dossier, channel: int) -> list[float | None]:
    mean, std = dossier.normalisation.mean[channel], dossier.normalisation.std[channel]
    values = (torch.tensor(levels).view(1, 1, 1, -1) / 255 - mean) / std
    curve = torch.tensor([[stretch or 0.0 for stretch in effect.curve[channel]]])
    bent: list[float | None] = ((apply_tone_curve(values, curve) * std + mean) * 255).flatten().tolist()
    return bent


def _response_chart(effect: HomogenizerRecord) -> Chart | None:
    curves = [[row[channel] for row in effect.response] for channel in range(len(effect.curve))]
    return _grey_level_chart("All of ρ, on an even grey frame", effect.levels, curves)


def _grey_level_chart(title: str, levels: list[float], curves: list[list[float | None]]) -> Chart | None:
    values = [value for curve in curves for value in curve if value is not None]
    series: dict[str, tuple[str, Series]] = {"unchanged": ("plain", levels)}
    for (name, kind), curve in zip(_channel_styles(len(curves)), curves, strict=True):
        series[name] = (kind, curve)
    return chart(
        title,
        levels,
        series,
        x_label="grey level in",
        y_label="grey level out",
        x_ticks={float(level): str(level) for level in (0, 64, 128, 192, 255)},
        bounds=(min([0.0, *values]), max([255.0, *values])),
    )


def _channel_styles(count: int) -> Sequence[tuple[str, str]]:
    """Return the name and the CSS class of each channel."""
    return CHANNEL_STYLES.get(count) or [(f"channel {number}", "grey") for number in range(1, count + 1)]
