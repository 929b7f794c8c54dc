"""A fit is accepted only when a second one, to other frames, leads to the same answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import SHAPE, drifted, images
from torch import Tensor

from calibrate import FitError, fit
from calibrate.fitting import FitResult
from calibrate.homogenizer import Homogenizer
from calibrate.judge import FIT_BAND_RATIO, split_frames
from calibrate.search.best_start import CORRECTIONS
from daemon.config import RecalibrateConfig
from daemon.worker.context import WorkerContext
from daemon.worker.fit_job import FIT_SHARES, FitJob
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.dossier import Dossier
from deploy.store.dossier_archive import DossierArchive

DARK = drifted(images(128, seed=5), light=0.5)
SEED = 3
JOB = {"job": "recalibrate", "sensor": "front", "active": FACTORY, "withdrawn": [], "trigger": "drift", "recall": False}
JOB |= {"band": 1.6, "until": 12.5, "seed": SEED, "refused": {}, "keep": {"frames": 0, "mib": 1}}
JOB |= {"corrections": CORRECTIONS}

Fit = Callable[..., FitResult]


class Recalibration:
    """One job from its beginning to its end: the fits that it made, what it told meanwhile, and its answer."""

    def __init__(
        self, folder: Path, model: Path, second: Fit = fit, pictures: np.ndarray = DARK, **changes: Any
    ) -> None:
        """second: what fits the second time. pictures: oldest first. changes: of the job."""
        self.worker = WorkerContext(load_frozen(model), "eager", ArtefactStore(folder))
        self.fits: list[tuple[Tensor, int]] = []  # the frames and the seed of each
        self.results: list[FitResult] = []
        self.told: list[dict[str, Any]] = []
        self._told_before: list[int] = []  # how much of it before each fit
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "daemon.worker.fit_device.fit", lambda *given, **options: self._fit(second, *given, **options)
            )
            self.answer = FitJob(self.worker, JOB | changes, pictures, self.told.append).run()

    def _fit(self, second: Fit, model: Any, frames: Tensor, **options: Any) -> FitResult:
        self.fits.append((frames, options["seed"]))
        self._told_before.append(len(self.told))
        result = (second if len(self.fits) == 2 else fit)(model, frames, **options)
        self.results.append(result)
        return result

    @property
    def dossier(self) -> Dossier:
        archive = DossierArchive(self.worker.store.root)
        return archive.read(archive.path("front", self.answer["dossier"])).dossier

    def frames(self, part: Tensor) -> Tensor:
        return self.worker.frames(DARK[part.numpy()])

    def ratios(self, number: int) -> list[float]:
        """The progress that this fit has told, the first or the second."""
        end = [*self._told_before[1:], None][number]
        told = self.told[self._told_before[number] : end]
        return [message["ratio"] for message in told if message["stage"] == "fitting"]

    def stored(self) -> list[Path]:
        return list(self.worker.store.root.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def accepted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recalibration:
    return Recalibration(tmp_path_factory.mktemp("state"), tiny_model)


@pytest.fixture(scope="module")
def refused_by_score(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recalibration:
    return Recalibration(tmp_path_factory.mktemp("state"), tiny_model, band=0.01)


# ---- the fits


def test_a_candidate_that_passes_by_its_score_is_fitted_again_to_other_frames(accepted):
    (first, seed), (second, other_seed) = accepted.fits
    parts = split_frames(len(DARK))
    assert torch.equal(first, accepted.frames(parts.fitted)) and len(first) == 64
    assert torch.equal(second, accepted.frames(parts.replicated)) and len(second) == 32
    assert seed == SEED != other_seed
    assert (accepted.answer["result"], accepted.answer["reason"]) == ("accepted", "better than every champion")


def test_a_fit_tries_the_corrections_of_its_job(tiny_model, tmp_path, monkeypatch):
    tried = []

    def noting(model, frames, **options):
        tried.append(options["corrections"])
        return fit(model, frames, **options)

    monkeypatch.setattr("daemon.worker.fit_device.fit", noting)
    worker = WorkerContext(load_frozen(tiny_model), "eager", ArtefactStore(tmp_path))
    FitJob(worker, JOB | {"corrections": ["shading"]}, DARK, print).run()
    assert tried == [["shading"]] * 2


def test_what_serves_is_the_first_fit(accepted):
    """It has twice as many frames as the second."""
    stored = accepted.worker.store.get(accepted.answer["version"], accepted.worker.frozen.digest).homogenizer
    first, second = (result.homogenizer for result in accepted.results)
    assert torch.equal(stored.bias, first.bias) and not torch.equal(stored.bias, second.bias)
    assert len(accepted.stored()) == 1


def test_where_the_score_refuses_there_is_no_second_fit(refused_by_score):
    assert refused_by_score.answer["result"] == "rejected"
    assert [seed for _, seed in refused_by_score.fits] == [SEED]
    assert set(refused_by_score.dossier.verdict.evidence) == {"factory", "candidate"}
    assert {criterion.name for criterion in refused_by_score.dossier.verdict.criteria} == {"band", "score"}
    (band,) = (found for found in refused_by_score.dossier.verdict.criteria if found.name == "band")
    assert band.limit == pytest.approx(0.01 * FIT_BAND_RATIO)


# ---- the progress


def test_the_progress_rises_over_both_fits(accepted, refused_by_score):
    first, second = accepted.ratios(0), accepted.ratios(1)
    assert len(first) > 10 < len(second), "each step is told"
    assert first + second == sorted(first + second)
    (begin, middle), (same_middle, end) = FIT_SHARES["fit"], FIT_SHARES["replicate"]
    assert (begin, middle, end) == (0, same_middle, 1)
    assert 0 <= first[0] < 0.1 and 0.8 * middle < first[-1] <= middle
    assert middle <= second[0] < middle + 0.1 and 0.9 < second[-1] <= 1
    assert refused_by_score.ratios(0)[-1] <= middle, "nobody knows yet that this is the end"


def test_the_stages_come_in_their_order(accepted):
    stages = [message["stage"] for message in accepted.told]
    assert list(dict.fromkeys(stages)) == ["fitting", "judging", "compiling"]
    assert stages == sorted(stages, key=["fitting", "judging", "compiling"].index)


def test_the_time_that_is_told_is_that_of_both_fits(accepted):
    told = sum(message.get("fit_seconds", 0) for message in accepted.told)
    assert told >= sum(result.seconds for result in accepted.results)


def test_the_time_of_a_fit_is_told_where_its_score_refuses_it(refused_by_score):
    assert [message["fit_seconds"] for message in refused_by_score.told if "fit_seconds" in message]


# ---- the dossier


def test_the_dossier_has_the_evidence_of_the_second_fit_and_the_criteria(accepted):
    told = accepted.dossier
    assert set(told.all_evidence) == {"factory", "candidate", "replicate"}
    assert all(len(evidence.layers) == len(told.layers) for evidence in told.all_evidence.values())
    assert told.all_evidence["replicate"].score != told.all_evidence["candidate"].score
    criteria = {(criterion.name, criterion.against): criterion for criterion in told.verdict.criteria}
    names = [("band", "band"), ("score", "factory"), ("repeatability", "replicate"), ("agreement", "factory")]
    assert list(criteria) == names and all(criterion.met for criterion in criteria.values())
    assert all(criteria[name].value > criteria[name].limit for name in names[2:])


def test_the_dossier_tells_the_frames_and_the_history_of_the_first_fit(accepted):
    told = accepted.dossier
    assert (told.frames.fitted, told.frames.held_out) == (64, 32)
    assert told.fit.history == accepted.results[0].history


def test_the_time_of_the_second_fit_is_a_stage_of_its_own(accepted, refused_by_score):
    stages = [stage for stage, _ in accepted.dossier.seconds]
    assert stages[0] == "incumbents" and stages[-3:] == ["second fit", "judging", "compiling"]
    seconds = dict(accepted.dossier.seconds)
    assert seconds["second fit"] >= accepted.results[1].seconds > seconds["judging"]
    assert "second fit" not in dict(refused_by_score.dossier.seconds)


# ---- a second fit that goes another way


def wrong_place(*given: Any, **options: Any) -> FitResult:
    """A fit that ends where every frame shows the same."""
    homogenizer = Homogenizer(*SHAPE)
    with torch.no_grad():
        homogenizer.bias -= 5
    return replace(fit(*given, **options), homogenizer=homogenizer)


def not_finite(*given: Any, **options: Any) -> FitResult:
    homogenizer = Homogenizer(*SHAPE)
    with torch.no_grad():
        homogenizer.bias += torch.nan
    return replace(fit(*given, **options), homogenizer=homogenizer)


@pytest.mark.parametrize("second", [wrong_place, not_finite])
def test_a_candidate_that_a_second_fit_does_not_repeat_is_rejected_and_not_stored(tmp_path, tiny_model, second):
    rejected = Recalibration(tmp_path, tiny_model, second)
    assert rejected.answer["result"] == "rejected" and "version" not in rejected.answer
    assert "a second fit, to other frames, gives other answers" in rejected.answer["reason"]
    assert rejected.stored() == []
    told = rejected.dossier
    assert told.reason == told.verdict.reason and told.candidate is None
    unmet = [criterion.name for criterion in told.verdict.criteria if not criterion.met]
    assert unmet[0] == "repeatability" and set(unmet) <= {"repeatability", "agreement"}
    assert set(told.all_evidence) == {"factory", "candidate", "replicate"}


def test_a_second_fit_that_fails_lets_nothing_serve(tmp_path, tiny_model):
    def fail(*_: Any, **__: Any) -> FitResult:
        raise FitError("the loss is not finite")

    failed = Recalibration(tmp_path, tiny_model, fail)
    assert (failed.answer["result"], failed.answer["reason"]) == ("failed", "FitError: the loss is not finite")
    assert failed.stored() == []
    assert failed.dossier.verdict is None and set(failed.dossier.evidence) == {"factory"}


def test_a_drift_that_costs_no_answer_needs_no_repair(tmp_path, tiny_model):
    """The network names every corner without the candidate as it does with the second fit."""
    refused = Recalibration(tmp_path, tiny_model, pictures=drifted(images(128, seed=5)))
    assert refused.answer["result"] == "unneeded" and refused.stored() == []
    reason = "a second fit agrees with it no more than with factory (+1.0 standard errors)"
    assert refused.answer["reason"] == f"there is nothing to repair: {reason}"


def test_the_fewest_frames_that_the_configuration_allows_are_enough(tmp_path, tiny_model):
    (least,) = (rule.ge for rule in RecalibrateConfig.model_fields["frames"].metadata if hasattr(rule, "ge"))
    pictures = drifted(images(least, seed=5), light=0.5)
    assert Recalibration(tmp_path, tiny_model, pictures=pictures).answer["result"] == "accepted"
