"""Clean frames are measured once; the file is whole or refused, the model never touched, and all can be undone."""

from __future__ import annotations

import copy
import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from drift_check_job import OBSERVE
from running import copied_model, recald, recald_here, write_config
from synthetic import drifted, images, labelled, normalised, trained_network

import daemon.operator.commissioning.commission
import deploy.model.commissioned
from calibrate import FitError, Limits, fit, measure_clean, tap
from calibrate.scoring.scorer import Scorer
from calibrate.source.commissioned import MIN_CLEAN_FRAMES, CleanData
from daemon.cli import main
from daemon.exit_codes import EX_CONFIG
from daemon.operator.commissioning.commission import _measure
from daemon.worker.context import WorkerContext
from daemon.worker.fit_job import FitJob
from daemon.worker.fitter import Fitter
from daemon.worker.observe_job import observe
from deploy.files import digest_file
from deploy.model.card import card_path
from deploy.model.commissioned import clean_data_path, load_clean_data, remove_clean_data, save_clean_data
from deploy.model.frozen import FrozenModel, load_frozen
from deploy.model.program import ModelError
from deploy.store.artefacts import ArtefactStore

COUNT = MIN_CLEAN_FRAMES
MEASURED: dict[str, CleanData] = {}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return copied_model(tiny_model, tmp_path)


def measured(frozen: FrozenModel, pictures: np.ndarray) -> CleanData:
    """Measure the pictures, once for all tests: all models here are the same."""
    key = hashlib.sha256(frozen.digest.encode() + pictures.tobytes()).hexdigest()
    if key not in MEASURED:
        frames = normalised(pictures)
        with torch.no_grad():
            answers = frozen.module(frames).argmax(1) if frozen.class_count else None
        MEASURED[key] = measure_clean(tap(frozen.module), frames, answers)
    return copy.deepcopy(MEASURED[key])


def commission_model(model: Path, pictures: np.ndarray) -> FrozenModel:
    frozen = load_frozen(model)
    save_clean_data(frozen, measured(frozen, pictures).tensors(), len(pictures))
    return load_frozen(model)


def kept(frozen: FrozenModel) -> CleanData | None:
    return load_clean_data(frozen, tap(frozen.module))


def equal(one: CleanData, other: CleanData) -> bool:
    """But for the last bits: how libraries sum depends on where in memory the numbers lie."""
    one, other = one.tensors(), other.tensors()
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], rtol=1e-3, atol=1e-4) for k in one)


def stored(model: Path) -> Path:
    named = load_frozen(model).card.commissioned
    assert named is not None
    return clean_data_path(model, named.sha256)


# ---- measuring


def test_statistics_are_those_of_the_frames_and_not_of_their_augmentation():
    taps, frames = tap(trained_network()), normalised(images(300, seed=3))
    clean = measure_clean(taps, frames)
    with torch.no_grad():
        features = taps(frames).features
    for feature, mean, variance in zip(features, clean.statistics.means, clean.statistics.variances, strict=True):
        torch.testing.assert_close(mean, feature.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(variance, feature.var((0, 2, 3), unbiased=False), rtol=1e-3, atol=1e-4)
    assert not clean.statistics.shipped
    torch.testing.assert_close(clean.source.mean, frames.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_frames_that_cannot_be_measured_are_refused():
    taps, frames = tap(trained_network()), normalised(images(COUNT, seed=3))
    broken = frames.clone()
    broken[3, 0, 5, 5] = torch.nan
    cases = [(frames[:-1], "too few"), (broken, "not finite"), (frames[:1].expand(COUNT, -1, -1, -1), "the same image")]
    for bad, said in cases:
        with pytest.raises(FitError, match=said):
            measure_clean(taps, bad)


# ---- keeping


def test_what_is_written_is_read_back_and_the_model_is_unchanged(model):
    before, frozen = model.read_bytes(), load_frozen(model)
    assert kept(frozen) is None
    clean = measured(frozen, images(COUNT, seed=3))
    save_clean_data(frozen, clean.tensors(), COUNT)
    again = load_frozen(model)
    assert equal(kept(again), clean)
    assert kept(again).statistics.names == tap(again.module).names
    assert again.card.commissioned.frames == COUNT
    assert model.read_bytes() == before and again.digest == frozen.digest


def test_removing_leaves_nothing_behind(model):
    card = card_path(model).read_bytes()
    remove_clean_data(commission_model(model, images(COUNT, seed=3)))
    assert card_path(model).read_bytes() == card
    assert sorted(model.parent.iterdir()) == sorted([model, card_path(model)])


def test_measuring_again_replaces_the_file(model):
    commission_model(model, images(COUNT, seed=3))
    first = stored(model)
    second = commission_model(model, images(COUNT, seed=4))
    assert not first.exists() and stored(model).exists()
    assert equal(kept(second), measured(second, images(COUNT, seed=4)))


@pytest.mark.parametrize("writes", [0, 1])
def test_a_kill_at_any_write_leaves_what_was_there(model, monkeypatch, writes):
    before = kept(commission_model(model, images(COUNT, seed=3)))
    done, write = [], deploy.model.commissioned.write_atomically

    def killed(path, data):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(write(path, data))

    monkeypatch.setattr(deploy.model.commissioned, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        commission_model(model, images(COUNT, seed=4))
    assert equal(kept(load_frozen(model)), before)


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("kind", ["missing", "truncated", "a flipped bit"])
def test_a_damaged_file_is_refused_and_can_be_done_without(model, kind):
    frozen = commission_model(model, images(COUNT, seed=3))
    damage(stored(model), kind)
    with pytest.raises(ModelError, match=r"\.safetensors: .*recald commission"):
        kept(frozen)
    remove_clean_data(frozen)
    assert kept(load_frozen(model)) is None


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, safetensors.torch.save({"mean.0": torch.zeros(3)})])
def test_a_file_of_something_else_is_refused_even_if_the_card_names_it(model, data):
    commission_model(model, images(COUNT, seed=3))
    path, digest = stored(model), hashlib.sha256(data).hexdigest()
    clean_data_path(model, digest).write_bytes(data)
    card_path(model).write_text(card_path(model).read_text().replace(digest_file(path), digest))
    with pytest.raises(ModelError, match="holds no measurements|of another model"):
        kept(load_frozen(model))


def test_values_that_are_not_finite_are_refused(model):
    frozen = load_frozen(model)
    broken = measured(frozen, images(COUNT, seed=3)).tensors()
    broken["mean.1"] = torch.full_like(broken["mean.1"], torch.nan)
    save_clean_data(frozen, broken, COUNT)
    with pytest.raises(ModelError, match="not all values are finite"):
        kept(load_frozen(model))


def test_measurements_of_another_shape_are_refused(model):
    frozen = load_frozen(model)
    whole = measured(frozen, images(COUNT, seed=3)).tensors()
    for name, value in whole.items():
        save_clean_data(frozen, whole | {name: torch.cat([value.flatten(), value.flatten()])}, COUNT)
        other = "class.counts" if name == "class.numbers" else name  # there is a count for each number
        with pytest.raises(ModelError, match=f"{other} is missing or of another shape"):
            kept(load_frozen(model))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("bits: 16", "bits: 12", "input.bits was 16 and is 12"),
        ("inverted: false", "inverted: true", "input.inverted was False and is True"),
        ("- 0.25", "- 0.125", "normalisation.std was [0.25, 0.25, 0.25] and is [0.125, 0.25, 0.25]"),
    ],
)
def test_measurements_by_another_reading_of_frames_are_refused(model, old, new, said):
    frozen = commission_model(model, images(COUNT, seed=3))
    card_path(model).write_text(card_path(model).read_text().replace(old, new, 1))
    with pytest.raises(ModelError, match=re.escape(f"tiny.yaml: changed since clean frames were measured: {said}: ")):
        kept(load_frozen(model))
    remove_clean_data(frozen)
    assert kept(load_frozen(model)) is None


def test_a_measurement_of_an_earlier_version_that_says_less_is_read(model):
    card = commission_model(model, images(COUNT, seed=3)).card
    less = {"frames": card.commissioned.frames, "sha256": card.commissioned.sha256}
    card_path(model).write_text(yaml.safe_dump(card.model_dump() | {"commissioned": less}))
    assert kept(load_frozen(model)) is not None


def test_a_baseline_of_an_earlier_format_is_told_and_does_without(model, caplog):
    frozen = load_frozen(model)
    clean = measured(frozen, images(COUNT, seed=2))
    save_clean_data(frozen, clean.tensors() | {"baseline.centre": torch.zeros(3)}, COUNT)
    assert kept(load_frozen(model)).frames == COUNT
    assert "an earlier recald commissioned its baseline, which is not used: commission again" in caplog.text


def test_files_that_no_card_names_go_with_the_next_exchange(model):
    stray, other = model.with_name("tiny.clean-0123456789ab.safetensors"), model.with_name("tiny.safetensors")
    for path in (stray, other):
        path.write_bytes(b"")
    frozen = commission_model(model, images(COUNT, seed=3))
    assert sorted(model.parent.iterdir()) == sorted([model, card_path(model), stored(model), other])
    save_clean_data(frozen, kept(frozen).tensors(), COUNT + 1)
    assert load_frozen(model).card.commissioned.frames == COUNT + 1 and stored(model).exists()


def test_a_model_exchanged_meanwhile_keeps_its_card(model):
    frozen = load_frozen(model)
    exchanged = card_path(model).read_text().replace(frozen.digest, "a" * 64)
    card_path(model).write_text(exchanged)
    with pytest.raises(ModelError, match="exchanged meanwhile"):
        save_clean_data(frozen, measured(frozen, images(COUNT, seed=3)).tensors(), COUNT)
    assert card_path(model).read_text() == exchanged


# ---- using


def test_the_worker_measures_and_fits_by_it(model, tmp_path, monkeypatch):
    """Commissioned on what would otherwise be a drift, that is what is clean, and the rest is fitted to it."""
    frozen = commission_model(model, drifted(images(512, seed=3)))
    worker = WorkerContext(frozen, "eager", ArtefactStore(tmp_path / "state"))
    job = dict(OBSERVE)
    assert observe(worker, job, drifted(images(64, seed=5)))["raw"] < 1
    assert observe(worker, job, images(64, seed=5))["raw"] > 2
    results = []
    monkeypatch.setattr("daemon.worker.fit_device.fit", lambda *a, **k: results.append(fit(*a, **k)) or results[-1])
    job |= {"job": "recalibrate", "recall": False, "seed": 0, "trigger": "operator", "until": 0, "withdrawn": []}
    job["corrections"] = []
    job |= {"refused": {}, "keep": {"frames": 0, "mib": 1}}
    FitJob(worker, job, images(256, seed=6), lambda message: None).run()
    restored = results[0].homogenizer(normalised(images(64, seed=5)))
    true = normalised(drifted(images(64, seed=5)))
    assert (restored - true).abs().mean() < 0.3 * (normalised(images(64, seed=5)) - true).abs().mean()


def test_a_sensor_with_a_stated_mix_is_measured_and_fitted_by_it(model, tmp_path):
    pictures, labels = labelled(600, seed=3)
    frozen = commission_model(model, pictures)
    mix = {2: 1.0}
    worker = WorkerContext(frozen, "eager", ArtefactStore(tmp_path / "state"), class_mixes={"front": mix})
    shown, classes = labelled(600, seed=5)
    few = shown[classes == 2][:64]
    assert observe(worker, OBSERVE | {"sensor": "front"}, few)["raw"] < 0.6
    assert observe(worker, OBSERVE | {"sensor": "rear"}, few)["raw"] > 1.2

    stated, plain = (worker.scorer_of(sensor).clean for sensor in ("front", "rear"))
    assert Fitter(worker, "front", few, print)._clean is stated and Fitter(worker, "rear", few, print)._clean is plain
    job = OBSERVE | {"recall": False, "seed": 0, "trigger": "drift", "until": 0.0, "refused": {}, "corrections": []}
    judges = {s: FitJob(worker, job | {"sensor": s}, few, print)._scorer.clean for s in ("front", "rear")}
    assert judges["front"] is stated and judges["rear"] is plain
    front, rear = (worker.provenance(sensor)["reference"] for sensor in ("front", "rear"))
    assert front["class_mix"] == {"2": 1.0} and rear["class_mix"] == {}
    assert front["source"] == rear["source"] == "commissioned" and front["digest"] != rear["digest"]


def test_labels_that_are_given_name_the_classes(model, tmp_path):
    """Without them the network's own answers do."""
    pictures, _ = labelled(400, seed=3)
    given = np.arange(400) % 2  # not what the network says
    np.savez(tmp_path / "clean.npz", images=pictures, labels=given)
    frozen = load_frozen(model)
    frames = normalised(pictures)
    assert _measure(frozen, frames, given)[0].classes.statistics.counts.tolist() == [200, 200]
    own = _measure(frozen, frames, None)[0].classes
    with torch.no_grad():
        assert own.statistics.counts.tolist() == frozen.module(frames).argmax(1).bincount().tolist()


# ---- the command


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    path = tmp_path / "clean.npz"
    np.savez(path, images=images(400, seed=3))
    return path


def test_the_command_measures_and_undoes(model, photos):
    before, card = model.read_bytes(), card_path(model).read_bytes()
    done = recald("commission", "--model", model, "--frames", photos, "--count", "300")
    assert done.returncode == 0, done.stderr
    first, second, third, last = done.stdout.splitlines()
    assert first == f"{model}: commissioned on 300 frames; the model is unchanged, sha256 {digest_file(model)}"
    assert second.startswith("their drift score by the statistics shipped in the model is 0.")
    assert third.startswith("no baseline is learned from fewer than 512 frames")
    assert last == "restart recald where it serves this model"
    clean = kept(load_frozen(model))
    spread = np.arange(300) * 400 // 300
    assert equal(clean, measured(load_frozen(model), images(400, seed=3)[spread]))
    done = recald_here("commission", "--model", model, "--remove")
    assert (done.returncode, model.read_bytes(), card_path(model).read_bytes()) == (0, before, card)


def test_a_folder_of_larger_pictures_is_taken_as_the_camera_would_be(model, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(images(COUNT + 44, seed=3)):
        large = cv2.resize(image, (48, 48), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"{number:04d}.png"), cv2.cvtColor(large, cv2.COLOR_RGB2BGR))
    daemon.operator.commissioning.commission.commission(model, folder, COUNT)
    spread = np.arange(COUNT) * (COUNT + 44) // COUNT
    assert equal(kept(load_frozen(model)), measured(load_frozen(model), images(COUNT + 44, seed=3)[spread]))


def test_values_mean_what_the_card_says(model, tmp_path):
    """Pictures of an inverted detector of 12 bits, of which frames will come that mean the same."""
    pictures = images(COUNT, seed=3)
    inverted = 4095 - np.rint(pictures * (4095 / 255)).astype(np.uint16)
    np.savez(tmp_path / "detector.npz", images=inverted)
    card = card_path(model).read_text().replace("bits: 16", "bits: 12").replace("inverted: false", "inverted: true")
    card_path(model).write_text(card)
    daemon.operator.commissioning.commission.commission(model, tmp_path / "detector.npz", COUNT)
    assert equal(kept(load_frozen(model)), measured(load_frozen(model), pictures))


@pytest.mark.parametrize("wrong", ["drifted", "normalisation"])
def test_frames_that_score_as_drifted_are_not_taken_as_clean_unless_forced(model, tmp_path, wrong, capfd):
    pictures = images(COUNT, seed=3)
    if wrong == "normalisation":
        card_path(model).write_text(card_path(model).read_text().replace("- 0.25", "- 0.1"))
    np.savez(tmp_path / "photos.npz", images=drifted(pictures) if wrong == "drifted" else pictures)
    command = ["commission", "--model", str(model), "--frames", str(tmp_path / "photos.npz")]
    before = {path: path.read_bytes() for path in model.parent.iterdir()}
    assert main(command) == EX_CONFIG
    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(r"photos.npz: their drift score .* is \d+\.\d\d, clean frames have up to 1.6: .*--force", line)
    assert {path: path.read_bytes() for path in model.parent.iterdir()} == before
    assert main([*command, "--force"]) == 0
    assert load_frozen(model).card.commissioned.frames == COUNT


def test_the_score_is_that_of_windows_and_not_of_all_frames_at_once():
    """Pictures sorted by brightness, as of a night and a day: a window of neighbours would show one of them."""
    pictures = normalised(images(512, seed=3))
    scorer = Scorer.of(tap(trained_network()), tuple(pictures.shape[1:]), Limits.of([0.5] * 3, [0.25] * 3))
    order = pictures.mean((1, 2, 3)).argsort()
    assert daemon.operator.commissioning.commission.window_score(scorer, pictures[order]) < 1.6
    assert scorer.measure(pictures[order][:64]).drift.score > 1.6


@pytest.mark.parametrize("count", ["255", "0", "-1"])
def test_too_few_pictures_are_refused_in_one_line(model, photos, count, capfd):
    card = card_path(model).read_bytes()
    code = main(["commission", "--model", str(model), "--frames", str(photos), "--count", count])
    (line,) = capfd.readouterr().err.splitlines()
    assert code == EX_CONFIG
    assert f"--count {count}: too few" in line
    assert card_path(model).read_bytes() == card


def test_the_daemon_does_not_start_on_a_damaged_file(model, tmp_path):
    commission_model(model, images(COUNT, seed=3))
    path = stored(model)
    damage(path, "truncated")
    done = recald_here("run", "--config", write_config(tmp_path, model))
    assert done.returncode == EX_CONFIG
    assert f"{path}: is not the file that the model card names" in done.stderr.splitlines()[-1]
