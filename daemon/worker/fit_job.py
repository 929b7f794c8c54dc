"""A recalibration in the worker: recall an earlier homogenizer, or fit, judge, compile, check and store a new one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibrate.judge import (
    FIT_BAND_RATIO,
    Evidence,
    Verdict,
    collect_champions,
    collect_evidence,
    judge_evidence,
    needs_no_fit,
    needs_no_homogenizer,
    split_frames,
)
from calibrate.split import AnyHomogenizer, SplitHomogenizer
from calibrate.validation import FitError
from daemon.states import Result
from daemon.worker.context import WorkerContext, clean_band
from daemon.worker.dossier_builder import DossierBuilder, describe_fits, encode_examples
from daemon.worker.fitter import Fitter, Proposal, Propose, Share
from deploy.backends.protocol import ParityError, same_backend_version
from deploy.model.program import ModelError
from deploy.store.artefacts import FACTORY, StoreError
from deploy.store.compiled import compile_proven
from deploy.store.golden import describe_golden, pick_golden
from deploy.store.retention import newest_versions, retain

PARITY_FRAMES = 8  # held-out frames on which the compiled homogenizer must equal the eager one
FIT_SHARES = {
    "fit": Share(0.0, 0.65),
    "replicate": Share(0.65, 1.0),
}  # of the progress; the replicate has half as many frames
MAX_RECALLS = 4  # earlier homogenizers of a sensor that one recalibration tries, newest first
MAX_STORED_PER_SENSOR = 50  # homogenizers on the disk, each about 1 MB at 224x224
JOB_ERRORS = (FitError, ParityError, ModelError, StoreError, ValueError, RuntimeError, OSError)  # they fail a job only

log = logging.getLogger(__name__)
Send = Callable[[dict[str, Any]], None]


def failure(job: dict[str, Any], error: Exception) -> dict[str, Any]:
    """Log the error that ended a job, and return the job's answer."""
    log.exception("%s failed", job["job"], exc_info=error)
    return {"result": Result.FAILED.value, "reason": f"{type(error).__name__}: {error}"}


class FitJob:
    """One recalibration of one sensor. `run` does it; `send` takes the progress messages.

    images: (N, h, w, C), oldest first. Blocks of them are held out from the fit and judge, and others are for a second
    fit, the replicate. A recall fits nothing, so all its frames judge.
    """

    def __init__(self, context: WorkerContext, job: dict[str, Any], images: np.ndarray, send: Send):
        self._context, self._job, self._send = context, job, send
        self._images = images
        self._scorer = context.scorer_of(job["sensor"])

        def report(ratio: float) -> None:
            send({"stage": "fitting", "ratio": ratio})

        self._fitter = Fitter(context, job["sensor"], images, report, job["corrections"])
        self._parts = split_frames(len(images))
        self._held_out_images = images if job["recall"] else images[self._parts.held_out.numpy()]
        self._dossier = DossierBuilder(job, context.provenance(job["sensor"]))
        self._dossier.add_held_out(self._held_out_images)

    def run(self) -> dict[str, Any]:
        """Recalibrate and store a dossier. Returns {"result", "reason", "version" (if any), "dossier" (digest)}.

        Raises ConnectionError when the daemon is gone.
        """
        try:
            answer = self._recalibrate()
        except ConnectionError:  # an OSError, but nobody is left to receive the failure
            raise
        except JOB_ERRORS as error:
            answer = failure(self._job, error)
        if answer["result"] == Result.UNKNOWN:  # a recall that found nothing; the fit that follows has its own dossier
            return answer | {"dossier": None}
        return answer | {"dossier": self._store_dossier(answer)}

    def _recalibrate(self) -> dict[str, Any]:
        context, band, recall = self._context, self._job["band"], self._job["recall"]
        held_out = context.frames(self._held_out_images)
        active = context.homogenizer(self._job["active"])
        against = collect_champions(self._scorer, active, held_out)
        self._dossier.add_champions(against)
        if needs_no_fit(against, band) and not recall:
            return _answer(Result.UNNEEDED, "the frames as served are within the clean band")
        if active is not None and needs_no_homogenizer(against, band):
            return _answer(Result.FACTORY, "the frames are clean again without a homogenizer", version=FACTORY)
        recalled = self._try_recalls(held_out, against)
        if recalled is not None:
            return recalled
        if recall:
            return _answer(Result.UNKNOWN, "no earlier homogenizer suits these frames")
        return self._fit_and_judge(held_out, against)

    def _try_recalls(self, held_out: Tensor, against: Mapping[str, Evidence]) -> dict[str, Any] | None:
        """Look for an earlier homogenizer that suits the frames, as at nightfall: that costs no fit."""
        context = self._context
        excluded = (self._job["active"], *self._job["withdrawn"])
        versions = newest_versions(context.store, self._job["sensor"], context.frozen.digest, MAX_STORED_PER_SENSOR)
        for version in [version for version in versions if version not in excluded][:MAX_RECALLS]:
            try:
                artefact = context.store.get(version, context.frozen.digest)
            except StoreError as error:
                log.warning("an earlier homogenizer is not tried: %s", error)
                context.faults.append("recall")
                continue
            if artefact.compiled is None or not same_backend_version(context.backend, artefact.manifest):
                continue  # its compiled form may not run here; a fit is more certain
            evidence = collect_evidence(self._scorer, artefact.homogenizer, held_out)
            verdict = judge_evidence(evidence, against, clean_band(evidence, self._job["band"]))
            self._dossier.add_recall(version, verdict)
            if verdict.accepted:
                self._dossier.add_verdict(artefact.homogenizer, verdict)
                return _answer(Result.RECALLED, f"an earlier one is {verdict.reason}", version=version)
        return None

    def _fit_and_judge(self, held_out: Tensor, against: Mapping[str, Evidence]) -> dict[str, Any]:
        """Fit one homogenizer. Where the frames are of two cameras in turn, try one for each of them before."""
        found = self._try_split(held_out, against)
        proposal, verdict = found or self._propose(self._fitter.fit, held_out, against)
        if verdict.finds_nothing_to_repair:
            return _answer(Result.UNNEEDED, f"there is nothing to repair: {verdict.reason}")
        if not verdict.accepted:
            return _answer(Result.REJECTED, verdict.reason)
        return self._compile(proposal, verdict, held_out)

    def _try_split(self, held_out: Tensor, against: Mapping[str, Evidence]) -> tuple[Proposal, Verdict] | None:
        """Return an accepted split homogenizer; None for one camera, for a refusal, or if there are no classes."""
        parts = self._parts
        if against[FACTORY].proxy is None or not self._fitter.sees_two_cameras(parts.fitted, parts.replicated):
            return None
        proposal, verdict = self._propose(self._fitter.fit_split, held_out, against)
        if verdict.accepted:
            return proposal, verdict
        self._dossier.add_refused_split(verdict)
        return None

    def _propose(self, fit: Propose, held_out: Tensor, against: Mapping[str, Evidence]) -> tuple[Proposal, Verdict]:
        proposal = fit(self._parts.fitted, self._job["seed"], FIT_SHARES["fit"])
        self._dossier.add_fit(proposal.fits, proposal.device)
        verdict = self._judge(proposal, fit, held_out, against)
        self._dossier.add_verdict(proposal.homogenizer, verdict)
        return proposal, verdict

    def _judge(self, proposal: Proposal, fit: Propose, held_out: Tensor, against: Mapping[str, Evidence]) -> Verdict:
        """Judge by the drift score, and a candidate that passes by a second fit, too."""
        scorer, band, candidate = self._scorer, FIT_BAND_RATIO * self._job["band"], proposal.homogenizer
        evidence = collect_evidence(scorer, candidate, held_out)
        by_score = judge_evidence(evidence, against, band)
        if not by_score.accepted:
            self._send({"stage": "judging", "ratio": 0.0, "fit_seconds": proposal.seconds})
            return by_score
        second = fit(self._parts.replicated, self._job["seed"] + 1, FIT_SHARES["replicate"])
        self._dossier.add_second_fit(second.fits)
        self._send({"stage": "judging", "ratio": 0.0, "fit_seconds": proposal.seconds + second.seconds})
        replicate = collect_evidence(scorer, second.homogenizer, held_out)
        homogenizers = {FACTORY: None, "active": self._context.homogenizer(self._job["active"])}
        champions = {name: self._with_all_answers(shown, homogenizers[name]) for name, shown in against.items()}
        return judge_evidence(
            self._with_all_answers(evidence, candidate),
            champions,
            band,
            self._with_all_answers(replicate, second.homogenizer),
            self._taken_by_second(candidate),
        )

    def _taken_by_second(self, candidate: AnyHomogenizer) -> Tensor | None:
        """Return which of all frames the second branch of a split candidate takes, (N,) bool; None for another one."""
        if not isinstance(candidate, SplitHomogenizer):
            return None
        return torch.cat([candidate.takes_second(frames) for frames in self._fitter.chunks()])

    def _with_all_answers(self, evidence: Evidence, homogenizer: nn.Module | None) -> Evidence:
        """Return the evidence with the network's answers to all frames: they decide more surely than a quarter of them.

        Both fits know some of the frames, no champion does. But no fit knows labels, and it fits statistics of the
        whole, so its answers to single frames that it knows are no better than to others.
        """
        answers = [self._scorer.answers(frames, homogenizer) for frames in self._fitter.chunks()]
        return replace(evidence, answers=torch.cat(answers))

    def _compile(self, proposal: Proposal, verdict: Verdict, held_out: Tensor) -> dict[str, Any]:
        """Compile and store an accepted candidate, and answer with its version."""
        self._send({"stage": "compiling", "ratio": 0.0})
        started = time.perf_counter()
        manifest = self._manifest(proposal) | {"verdict": verdict.as_dict()}
        manifest["golden"] = describe_golden(self._context.frames(pick_golden(self._images)).numpy())
        version = self._compile_and_store(proposal.homogenizer, held_out[:PARITY_FRAMES], manifest)
        compile_seconds = time.perf_counter() - started
        self._dossier.end_stage("compiling")
        return _answer(Result.ACCEPTED, verdict.reason, version=version, compile_seconds=compile_seconds)

    def _compile_and_store(self, candidate: AnyHomogenizer, golden: Tensor, manifest: dict[str, Any]) -> str:
        """Compile, check and store the candidate, and remove the sensor's oldest ones; returns its version."""
        backend, store = self._context.backend, self._context.store
        compiled = compile_proven(backend, candidate, golden, store.root)
        version = store.put(candidate, manifest, compiled, backend.name)
        retain(store, self._job["sensor"], MAX_STORED_PER_SENSOR, protected=(self._job["active"], version))
        return version

    def _manifest(self, proposal: Proposal) -> dict[str, Any]:
        """Return what is stored beside the weights; the keys are a file format."""
        job, fits = self._job, proposal.fits
        fit = {"start": describe_fits(fits)["start"], "steps": sum(fitted.steps for fitted in fits)}
        return {
            "sensor": job["sensor"],
            "model": self._context.frozen.digest,
            "parent": job["active"],
            "trigger": job["trigger"],
            "seed": job["seed"],
            "frames": {"count": len(self._images), "until": job["until"]},
            "fit": fit | {"seconds": proposal.seconds, "device": proposal.device},
            "versions": self._context.versions,
        }

    def _store_dossier(self, answer: dict[str, Any]) -> str | None:
        """Store the dossier and return its digest; None when the disk refuses it, which must not cost the answer."""
        keep = self._job["keep"]
        try:
            frames = encode_examples(self._held_out_images, keep["frames"])
            return self._context.archive.put(self._dossier.build(answer), frames, keep["mib"] * 2**20)
        except (OSError, ValueError) as error:
            log.warning("this recalibration has no dossier: %s", error)
            self._context.faults.append("dossier")
            return None


def _answer(result: Result, reason: str, **more: Any) -> dict[str, Any]:
    return {"result": result.value, "reason": reason, **more}
