"""The judge as the daemon's worker asks it: by the drift score, and by a second fit on the answers to all frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from calibrate.judge import FIT_BAND_RATIO, Evidence, Verdict, collect_evidence, judge_evidence
from calibrate.scoring.scorer import Scorer


def judge_fit(
    scorer: Scorer,
    candidate: nn.Module,
    second: nn.Module,
    factory: Evidence,
    frames: Tensor,
    held_out: Tensor,
    band: float,
) -> Verdict:
    """Judge a candidate beside factory, whose evidence is of the held-out frames.

    frames: all that were collected, (N, C, H, W). second: fitted to others of them. band: highest clean score.
    """
    band *= FIT_BAND_RATIO
    evidence = collect_evidence(scorer, candidate, held_out)
    against: Mapping[str, Evidence] = {"factory": factory}
    by_score = judge_evidence(evidence, against, band)
    if not by_score.accepted:
        return by_score
    replicate = collect_evidence(scorer, second, held_out)
    shown = ((evidence, candidate), (factory, None), (replicate, second))
    answered = [replace(found, answers=scorer.answers(frames, module)) for found, module in shown]
    return judge_evidence(answered[0], {"factory": answered[1]}, band, answered[2])
