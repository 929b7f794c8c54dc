"""The states of a sensor's recalibration, and the results of a recalibration."""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """Values of the metric recald_calibration_state, of `recald status` and of result messages."""

    FACTORY = "factory"  # at rest, the identity serves
    COLLECTING = "collecting"
    FITTING = "fitting"
    JUDGING = "judging"
    COMPILING = "compiling"
    SHADOW = "shadow"  # a proven candidate runs beside the active homogenizer
    AWAITING_APPROVAL = "awaiting_approval"
    PROBATION = "probation"  # a new homogenizer serves and is compared with the one before
    ACTIVE = "active"  # at rest, a fitted homogenizer serves
    ROLLED_BACK = "rolled_back"  # at rest, until the back-off is over
    FAILED = "failed"  # at rest after a fit that broke, until the back-off is over
    INVALID = "invalid"  # at rest, and the results cannot be relied on

    __str__ = str.__str__  # the value, in f-strings of every Python version


# What an operator's hold means: the same sentence in the answer to the order, in `recald status` and in the help.
HOLD_MEANING = "no new homogenizer serves; the way back, to the one before or to none, stays open"

AT_REST = (State.FACTORY, State.ACTIVE, State.ROLLED_BACK, State.FAILED, State.INVALID)
IN_WORK = (State.FITTING, State.JUDGING, State.COMPILING)  # a worker is busy with a recalibration
WITH_CANDIDATE = (State.SHADOW, State.AWAITING_APPROVAL)  # a proven candidate does not serve yet


class Result(str, Enum):
    """How a recalibration ended: label values of the metric recald_fits_total, and words of the audit log."""

    ACCEPTED = "accepted"  # a fitted candidate was judged better
    RECALLED = "recalled"  # an earlier homogenizer of this sensor was judged better
    FACTORY = "factory"  # the frames are clean without a homogenizer
    UNNEEDED = "unneeded"  # the frames are clean as they are served, or a second fit finds nothing to repair
    UNKNOWN = "unknown"  # no earlier homogenizer suits the newest frames; a fit follows
    SHADOWED = "shadowed"  # judged better, and recalibrate.mode lets nothing serve
    REJECTED = "rejected"  # by the judge, or by the shadow run
    REFUSED = "refused"  # by the operator, or by the envelope
    OUTDATED = "outdated"  # another homogenizer came to serve in the meantime
    FAILED = "failed"  # an error ended it
    TIMEOUT = "timeout"  # it passed a deadline

    STOPPED = "stopped"  # recald was stopped while it ran

    __str__ = str.__str__


WITH_VERSION = (Result.ACCEPTED, Result.RECALLED, Result.FACTORY)  # the result names a homogenizer that may serve
