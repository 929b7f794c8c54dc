"""The closed label values of the metrics, and what each means. tests/docs compares them with the code."""

from __future__ import annotations

from daemon.states import Result, State

ONLY = "After `recald commission --labels`."

DROP_REASONS = {
    "superseded": "A newer frame of the same sensor arrived before this one was served. Only the newest matters.",
    "inference": "The model failed on this frame with no homogenizer in front of it.",
    "parts": "The message has neither 3 parts (recald) nor 2 (imagezmq).",
    "sensor": "The message names no configured sensor. It counts under the sensor `unknown`.",
    "header": "The header is longer than 4 KiB, is not one JSON object in UTF-8, has a key twice, or has a field that "
    "is missing, of a wrong type or out of bounds.",
    "version": "`v` is not 1.",
    "encoding": "`encoding` is not known.",
    "size": "`step` is less than a row, the payload is not `step` * `height` bytes (NV12: * 3/2), the encoding cannot "
    "have this width or height, a compressed image has another size than the header says, or the frame has more "
    "pixels than `sensors.NAME.max_pixels`.",
    "slow": "Decoding the frame took more than 1 s. Its sensor then rests three times as long.",
    "stale": "The frame is older than `input.max_age`.",
    "future": "The frame was acquired more than 1 s after now.",
    "decode": "The payload begins with no whole JPEG or PNG.",
    "bits": "A value of a 16-bit word is higher than its significant bits allow.",
    "nonfinite": "A float image holds NaN or infinity.",
}

FRAME_REFUSALS = {
    "superseded": "Nothing, if the results are fast enough. Else send fewer frames, or take a faster backend.",
    "inference": "See the daemon's log.",
    "parts": "Send `[sensor/, header, payload]`.",
    "sensor": "Compare the id that the camera sends with `sensors` in the configuration.",
    "header": "Read the message in the log or in `recald status`; compare with the table above.",
    "version": 'Send `"v": 1`.',
    "encoding": "Convert the frame, or name its encoding as below.",
    "size": "Compute `step` and the payload's length again; a raw row may have padding, and `step` counts it. "
    "Set `max_pixels` to what the camera sends.",
    "slow": "Send smaller frames, or JPEG that is not progressive.",
    "stale": "Synchronise the clocks of camera and device; look for a queue between them.",
    "future": "Synchronise the clocks.",
    "decode": "Send the file whole, from its first to its last byte.",
    "bits": "Correct `bits` in the header, in the sensor's configuration or in the model card.",
    "nonfinite": "Repair the camera's conversion; values are 0..1.",
}

SAMPLE_REASONS = {
    "blank": "No structure at all: a covered lens or a black frame. Drift checks still see it.",
    "saturated": "More than 99 % of the values are black or white. Drift checks still see it.",
    "frozen": "Equal to one of the last four frames, bit by bit: the driver or the camera is stuck.",
    "duplicate": "The same scene as the last kept frame, less than 1 s after it.",
}

FAULTY_PARTS = {
    "learning": "From a window of healthy frames nothing was learned: a fault, or a camera that stands still.",
    "keeping": "What was learned of healthy frames could not be written to the disk, read or removed.",
    "read_outs": "What happened to the camera was not read out of its pictures.",
    "page_frame": "The newest frame was not shown on the page.",
    "comparison": "A candidate, or the homogenizer before, was not compared: its file cannot be read.",
    "recall": "An earlier homogenizer was not tried: its file cannot be read.",
    "dossier": "The dossier of a recalibration was not stored.",
    "state": "What serves, or was withdrawn, was not written for the next start. Each try counts, one a second.",
    "control": "A command or an order broke; its answer says so.",
    "gpu": "The GPU did not tell its state. It is asked again after a minute.",
}

WAITS = {
    "approval": "The candidate waits for `recald approve` or `recald reject`.",
    "hold": "The candidate is to serve, and `recald_swaps_held` says who holds it.",
    "turn": "All frames are collected, and the fit waits for another one to end.",
    "classes": "Few classes are in view, and the model is sure of them.",
    "budget": "The fits or swaps of the last 24 hours are used up.",
    "back_off": "The alarm lasts, and the time after a try that led to nothing is not over.",
}

HOLDERS_MEANING = {
    "audit": "The audit log cannot be written.",
    "start": "recald has just started, and has not yet read whether an operator holds it.",
    "operator": "`recald hold`; also after damage to the audit log, which may have had such an order in it.",
    "camera": "`hold` in the header of the newest frame.",
}

ROLLBACK_REASONS = {
    "regress": "On probation the homogenizer before was better, twice in a row.",
    "latency": "On probation a frame took more than twice as long as expected, and 2 ms more.",
    "unproven": "On probation no comparison came for ten minutes, although frames for three did.",
    "error": "The homogenizer failed on a frame, or made the output not finite.",
    "operator": "`recald rollback`.",
}

RESULTS = {
    Result.ACCEPTED: "A fitted candidate was judged better; it goes on to the shadow run.",
    Result.RECALLED: "A homogenizer that served before is right again; it goes on to the shadow run.",
    Result.FACTORY: "The frames are clean without a homogenizer.",
    Result.UNNEEDED: "The frames are clean as they are served.",
    Result.SHADOWED: "It was better, and `recalibrate.mode` is `shadow`.",
    Result.REJECTED: "It was not better.",
    Result.REFUSED: "The operator rejected it, or it lies outside of the envelope.",
    Result.OUTDATED: "Another homogenizer came to serve in the meantime, or the drift was over.",
    Result.FAILED: "Something broke; the log says what.",
    Result.TIMEOUT: "It passed a deadline and was stopped ([deadlines](how-it-decides.md#deadlines)).",
    Result.STOPPED: "recald was stopped in the meantime.",
}
FIT_RESULTS = [result for result in RESULTS if result not in (Result.SHADOWED, Result.STOPPED)]
SWAP_RESULTS = [Result.SHADOWED, Result.REJECTED, Result.REFUSED, Result.OUTDATED, Result.TIMEOUT, Result.STOPPED]

STATES = {
    State.FACTORY: "At rest; no homogenizer serves (the identity).",
    State.COLLECTING: "Frames for a fit are being collected.",
    State.FITTING: "The worker fits a homogenizer.",
    State.JUDGING: "The worker compares the candidate with what serves, on frames that were not fitted to.",
    State.COMPILING: "The worker compiles, checks and stores the candidate.",
    State.SHADOW: "The candidate runs beside what serves, on new frames.",
    State.AWAITING_APPROVAL: "The candidate waits for `recald approve` or `recald reject`.",
    State.PROBATION: "The new homogenizer serves, and is compared with the one before.",
    State.ACTIVE: "At rest; a fitted homogenizer serves.",
    State.ROLLED_BACK: "At rest after a rollback, until the back-off is over.",
    State.FAILED: "At rest after a fit that broke, until the back-off is over.",
    State.INVALID: "At rest after three tries that led to nothing while the alarm lasts: do not rely on the results.",
}

CHECK_RESULTS = {
    "done": "The frames were scored.",
    "outdated": "The frames were scored, and another homogenizer serves by now, or the camera has stopped.",
    "failed": "No score: the worker ended, or a file of the homogenizer that serves is damaged; the log says what.",
    "timeout": "No score within 60 s; the worker was killed.",
}

LABEL_RESULTS = {
    "right": "The network named this class, behind the homogenizer that serves now.",
    "wrong": "It named another class, or none.",
    "unknown": "No frame of this sequence number is among the newest 10,000 answers since the start.",
    "outdated": "The frame was answered behind another homogenizer than the one that serves now.",
}

LABEL_VALUES: dict[tuple[str, str], dict[str, str]] = {
    ("recald_frames_dropped_total", "reason"): DROP_REASONS,
    ("recald_samples_rejected_total", "reason"): SAMPLE_REASONS,
    ("recald_stage_duration_seconds", "stage"): {
        "decode": "Payload to image.",
        "preprocess": "Image to the model's input: resize and channels.",
        "infer": "Normalise, homogenizer and model.",
        "publish": "Result to the socket.",
    },
    ("recald_drift_score", "frames"): {
        "raw": "Frames as the camera sends them.",
        "homogenized": "Frames as the model gets them; the alarm looks at this one.",
    },
    ("recald_accuracy_proxy_ratio", "proxy"): {
        "confidence": "Mean of the largest probability.",
        "certainty": "1 - mean entropy / log(number of classes).",
        "agreement": "Share of frames that get the same class with the homogenizer as without. NaN where none serves.",
        "calibrated_confidence": f"Mean of the largest probability at the temperature of clean ones (Guo 2017). {ONLY}",
        "atc_confidence": f"Share of frames whose confidence is above a threshold, which clean frames pass as often "
        f"as the network is right about them (Garg 2022). {ONLY}",
        "atc_entropy": f"The same with the entropy (Garg 2022). {ONLY}",
        "difference_of_confidences": f"Accuracy on clean frames, less what confidence lost (Guillory 2021). {ONLY}",
    },
    ("recald_estimated_accuracy_ratio", "frames"): {
        "raw": "Frames as the camera sends them: what the accuracy would be without a homogenizer.",
        "homogenized": "Frames as the model gets them.",
    },
    ("recald_estimated_accuracy_ratio", "bound"): {
        "value": "The estimate.",
        "lower": "Lower end of the 90 % interval.",
        "upper": "Upper end of the 90 % interval.",
    },
    ("recald_calibration_state", "state"): {s.value: text for s, text in STATES.items()},
    ("recald_drift_checks_total", "result"): CHECK_RESULTS,
    ("recald_fits_total", "result"): {result.value: RESULTS[result] for result in FIT_RESULTS},
    ("recald_swaps_total", "result"): {"committed": "It serves."} | {r.value: RESULTS[r] for r in SWAP_RESULTS},
    ("recald_rollbacks_total", "reason"): ROLLBACK_REASONS,
    ("recald_swaps_held", "by"): HOLDERS_MEANING,
    ("recald_calibration_waits", "reason"): WAITS,
    ("recald_handled_faults_total", "part"): FAULTY_PARTS,
    ("recald_gpu_throttled", "reason"): {
        "heat": "It is too hot.",
        "power": "It would take more power, or current, than it is allowed to. Usual for a card at full load. "
        "A Jetson: also within 30 s after that.",
        "unknown": "Heat or power; the driver does not say which.",
    },
    ("recald_budget_left", "kind"): {
        "fits": "Of `recalibrate.fits_a_day`.",
        "swaps": "Of `recalibrate.swaps_a_day`.",
    },
    ("recald_labelled_frames_total", "result"): LABEL_RESULTS,
    ("recald_labelled_accuracy_ratio", "bound"): {
        "value": "The share.",
        "lower": "Lower end of its 95 % interval (Wilson 1927).",
        "upper": "Upper end.",
    },
    ("recald_homogenizer_info", "source"): {
        "factory": "No homogenizer; the identity.",
        "fit": "A candidate that was committed.",
        "rollback": "A rollback.",
        "restored": "The one that served before the restart.",
    },
}
