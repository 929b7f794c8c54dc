"""The row of one camera: its drift, its accuracy, its frames, and what recald did about it."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboard.parts import (
    BLUE,
    CAMERA,
    DEVICE,
    GREEN,
    GREY,
    RED,
    YELLOW,
    About,
    coloured,
    drawn,
    heat,
    lines,
    newest,
    number,
    quantile,
    query,
    rate,
    series,
    stacked,
    timeline,
)

HOT_SCORE = 12.0  # standard errors; the colours of the layers end here, above what the demo's drift shows
EVIDENCE_LINE = 2.75  # calibrate.baseline.run_length.ALLOWANCE
STATE = "recald_calibration_state"
LINE = {"fill": "dash", "dash": [8, 6]}  # Grafana's lineStyle of what is no measurement


def camera() -> list[Any]:
    """Return the panels of the row."""
    return [
        _states(),
        _versions(),
        _score(),
        _layers(),
        _camera_drift(),
        _content(),
        _accuracy(),
        _proxies(),
        _outcomes(),
        _not_kept(),
        _predicted(),
        _waits(),
        _age(),
        _latency(),
        _fits(),
        _budget(),
        _serving_for(),
        _waiting_for(),
    ]


def _states() -> Any:
    text = "The state of recalibration, the drift alarm, and times with few classes in view, while each lasts."
    state = query(f"{series(STATE, *CAMERA)} == 1", "{{state}}")
    alarm = query(f"{series('recald_drift_alarm', *CAMERA)} == 1", "drift alarm")
    shift = query(f"{series('recald_narrow_view', *CAMERA)} == 1", "few classes in view")
    panel = coloured(timeline(About("State", text, "none"), state, alarm, shift), (None, GREEN))
    return drawn(drawn(panel, "drift alarm", color=RED), "invalid", color=RED)


def _versions() -> Any:
    text = "Which homogenizer serves, by the first letters of its hash, and how it came to serve."
    info = series("recald_homogenizer_info", *CAMERA)
    short = f'label_replace({info}, "short", "$1", "version", "(.{{1,12}}).*") == 1'
    return coloured(timeline(About("Homogenizer", text, "none"), query(short, "{{short}} ({{source}})")), (None, BLUE))


def _score() -> Any:
    text = (
        "Distance of the frames from the training data, in standard errors: as the camera sends them (raw) and as the "
        "model gets them (homogenized). About 1 is clean. Above the line for drift.hold: alarm, until a baseline is "
        "learned."
    )
    shown = ("raw", "homogenized")  # the last one is drawn on top: without a homogenizer both are the same
    scores = (query(series("recald_drift_score", *CAMERA, f'frames="{frames}"'), frames) for frames in shown)
    line = query(series("recald_drift_threshold", *DEVICE), "alarm line")
    panel = lines(About("Drift score", text, "none"), *scores, line).min(0)
    panel = drawn(drawn(panel, "alarm line", color=RED, lineStyle=LINE), "raw", color=GREY)
    return drawn(panel, "homogenized", color=BLUE)


def _camera_drift() -> Any:
    text = (
        "What happened to the camera: standard deviations above healthy frames of like content, whatever is in view. "
        "Above the line: evidence of a drift; the evidence at 1 is the alarm. Nothing until a baseline is learned."
    )
    name = "recald_sensor_drift_deviations"
    drifts = (query(series(name, *CAMERA, f'frames="{frames}"'), frames) for frames in ("raw", "homogenized"))
    evidence = query(series("recald_drift_evidence_ratio", *CAMERA), "evidence")
    learned = query(series("recald_baseline_progress_ratio", *CAMERA), "baseline learned")
    line = query(f"0 * {series('recald_drift_evidence_ratio', *CAMERA)} + {EVIDENCE_LINE:g}", "evidence line")
    panel = lines(About("Camera drift", text, "none"), *drifts, evidence, learned, line)
    panel = drawn(drawn(panel, "evidence line", color=RED, lineStyle=LINE), "raw", color=GREY)
    panel = drawn(drawn(panel, "evidence", color=RED), "baseline learned", color=GREEN)
    return drawn(panel, "homogenized", color=BLUE)


def _content() -> Any:
    text = (
        "What the camera looks at: how far the frames' content is from the usual mixture. Above 1: more unusual than "
        "199 of 200 healthy windows of all kinds of content. It raises no alarm."
    )
    score = query(series("recald_content_shift_score", *CAMERA, 'frames="raw"'), "content shift")
    return drawn(lines(About("Content", text, "none"), score).min(0), "content shift", color=BLUE)


def _layers() -> Any:
    text = (
        "Drift score of each layer, as the model gets the frames. High in all: the camera has drifted. High in the "
        "last ones alone: few classes are in view."
    )
    score = query(series("recald_layer_drift_score", *CAMERA), "{{layer}}")
    return heat(About("Layers", text, "none"), HOT_SCORE, score)


def _accuracy() -> Any:
    text = (
        "Accuracy estimated without labels; the true one lies between the bounds in 90 % of cases. `without` is what "
        "it would be without a homogenizer; `labelled` counts frames of known class. Only after `recald commission "
        "--labels`; nothing while few classes are in view."
    )
    name = "recald_estimated_accuracy_ratio"
    served = (query(series(name, *CAMERA, 'frames="homogenized"', f'bound="{b}"'), b) for b in ("upper", "lower"))
    value = query(series(name, *CAMERA, 'frames="homogenized"', 'bound="value"'), "estimate")
    raw = query(series(name, *CAMERA, 'frames="raw"', 'bound="value"'), "without")
    labelled = query(series("recald_labelled_accuracy_ratio", *CAMERA, 'bound="value"'), "labelled")
    panel = lines(About("Estimated accuracy", text, "percentunit"), *served, value, raw, labelled).min(0).max(1)
    panel = drawn(panel, "upper", color=GREEN, lineWidth=0, fillBelowTo="lower", fillOpacity=20)
    panel = drawn(drawn(panel, "lower", color=GREEN, lineWidth=0), "estimate", color=GREEN)
    return drawn(drawn(panel, "without", color=GREY, lineStyle=LINE), "labelled", color=BLUE)


def _proxies() -> Any:
    text = "What the network's outputs say of its accuracy. Compare each with its own past, not with another."
    proxy = query(series("recald_accuracy_proxy_ratio", *CAMERA), "{{proxy}}")
    return lines(About("Accuracy proxies", text, "percentunit"), proxy).min(0).max(1)


def _outcomes() -> Any:
    text = "Frames a second: answered, refused or superseded by reason, and lost before they arrived."
    answered = query(rate("recald_frames_processed_total", *CAMERA), "answered")
    dropped = query(f"{rate('recald_frames_dropped_total', *CAMERA)} > 0", "{{reason}}")
    lost = query(rate("recald_frames_missed_total", *CAMERA), "lost on the way")
    return drawn(stacked(About("Frames by outcome", text, "reqps"), answered, dropped, lost), "answered", color=GREEN)


def _not_kept() -> Any:
    text = "Answered frames a second that no fit may use, by reason. Many: a covered, stuck or standing camera."
    rejected = query(rate("recald_samples_rejected_total", *CAMERA), "{{reason}}")
    return stacked(About("Frames not kept for fits", text, "reqps"), rejected)


def _predicted() -> Any:
    text = "Frames a second by the class that the model named: the ten most frequent. One alone: look at the scene."
    named = query(f"topk(10, {rate('recald_predicted_frames_total', *CAMERA)})", "{{label}}")
    return stacked(About("Predicted labels", text, "reqps"), named)


def _waits() -> Any:
    text = (
        "What a recalibration that is wanted waits for, and who lets no new homogenizer serve. Nothing: nothing is "
        "wanted, or all goes on."
    )
    waits = query(f"{series('recald_calibration_waits', *CAMERA)} == 1", "waits: {{reason}}")
    held = query(f"{series('recald_swaps_held', *CAMERA)} == 1", "held by {{by}}")
    return coloured(timeline(About("Waits and holds", text, "none"), waits, held), (None, YELLOW))


def _age() -> Any:
    text = (
        "Seconds from acquisition to the start of processing. High: frames wait, or clocks differ. At most 1 s is told."
    )
    shares = (query(quantile(s, "recald_frame_age_seconds", *CAMERA), f"{s:.0%}") for s in (0.5, 0.95, 0.99))
    return lines(About("Age of frames", text, "s"), *shares).min(0)


def _latency() -> Any:
    text = (
        "95 % of the frames took at most so long in a stage, and from acquisition to the published result (end to end)."
    )
    stage = query(quantile(0.95, "recald_stage_duration_seconds", *CAMERA, by="stage"), "{{stage}}")
    whole = query(quantile(0.95, "recald_end_to_end_seconds", *CAMERA), "end to end")
    return drawn(lines(About("Latency by stage", text, "s"), stage, whole).min(0), "end to end", color=RED)


def _fits() -> Any:
    text = (
        "Recalibrations, candidates and rollbacks within the last hour, by result. Points name the homogenizer, where "
        "Prometheus stores exemplars."
    )
    results = (
        ("recald_fits_total", "fit {{result}}"),
        ("recald_swaps_total", "candidate {{result}}"),
        ("recald_rollbacks_total", "rollback {{reason}}"),
    )
    counts = (
        query(f"increase({series(name, *CAMERA)}[1h]) > 0", legend).exemplar(name != "recald_rollbacks_total")
        for name, legend in results
    )
    return lines(About("Recalibrations in one hour", text, "none"), *counts).min(0)


def _budget() -> Any:
    text = "Fits and swaps that are left of the budget of 24 hours."
    left = newest(series("recald_budget_left", *CAMERA), "{{kind}}")
    return coloured(number(About("Budget left", text, "none", width=4), left), (None, RED), (1, GREEN))


def _serving_for() -> Any:
    text = "For how long the present homogenizer has served, restarts included."
    age = newest(series("recald_homogenizer_age_seconds", *CAMERA), "serves for")
    return number(About("Age of the homogenizer", text, "s", width=4), age)


def _waiting_for() -> Any:
    text = "For how long the present state has lasted, such as a candidate's waiting for approval."
    age = series("recald_calibration_state_age_seconds", *CAMERA)
    named = f"{age} * on (job, instance, sensor) group_right () ({series(STATE, *CAMERA)} == 1)"
    return number(About("State lasts for", text, "s", width=4), newest(named, "{{state}}"))
