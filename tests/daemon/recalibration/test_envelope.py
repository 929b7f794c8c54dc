"""The envelope admits what is inside, and refuses what is outside and every file that cannot be used."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from envelopes import envelope_of, sign
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import SYSTEMD

from calibrate.homogenizer import Homogenizer
from calibrate.judge import MIN_SCORE_DROP_SHARE
from calibrate.scoring.extent import Extent, Range
from calibrate.split import SplitHomogenizer
from daemon.config import Config, ConfigError, load_config
from daemon.recalibration.envelope import HomogenizerLimits, OutsideEnvelope, load_envelope, open_envelope
from deploy.model.document import DocumentError

EXAMPLE = SYSTEMD / "envelope.yaml"
CONFIG = {
    "version": 1,
    "model": {"path": "model.pt2"},
    "sensors": {"front": {}},
    "input": {"bind": ["ipc:///run/recald/frames"]},
    "output": {"bind": "tcp://127.0.0.1:5556"},
}
DISTANCES = ("curve", "offset", "kernel", "bias", "black")
SPANS = ("slope", "gain", "shading", "jacobian")
ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "envelope.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def configured(folder: Path, envelope: dict[str, Any], **sections: dict[str, Any]) -> Config:
    """A configuration with an envelope beside it."""
    written(folder, yaml.safe_dump({"version": 1} | envelope))
    path = folder / "recald.yaml"
    recalibrate = {"envelope": "envelope.yaml"} | sections.pop("recalibrate", {})
    path.write_text(yaml.safe_dump(CONFIG | {"recalibrate": recalibrate} | sections))
    return load_config(path)


def stored(homogenizer: Homogenizer | SplitHomogenizer) -> Any:
    return SimpleNamespace(version="f" * 64, homogenizer=homogenizer)


IDENTITY = Extent.of(Homogenizer(3, 16, 16))


def extent(**measured: Any) -> Extent:
    return replace(IDENTITY, **measured)


# ---- the bounds


def test_the_example_is_read_and_holds_the_identity_and_the_configuration_as_it_comes(tmp_path):
    envelope = load_envelope(EXAMPLE)
    for side in (8, 32, 224):
        assert envelope.admit(stored(made := Homogenizer(3, side, side))) is made
    assert open_envelope(configured(tmp_path, yaml.safe_load(EXAMPLE.read_text()))) is not None


def test_every_bound_is_in_the_example_or_said_to_be_left_out():
    given_there = yaml.safe_load(EXAMPLE.read_text())
    assert list(given_there["homogenizer"]) == list(HomogenizerLimits.model_fields) == list(vars(extent()))
    model = load_envelope(EXAMPLE).document
    for name in ("evidence", "operation"):
        assert set(given_there[name]) == set(type(getattr(model, name)).model_fields)


@given(st.sampled_from(DISTANCES), st.floats(0, 10), st.floats(0, 10))
def test_a_distance_is_inside_up_to_its_bound_and_not_beyond(name, bound, distance):
    broken = list(HomogenizerLimits(**{name: bound}).violations(extent(**{name: distance})))
    assert bool(broken) == (distance > bound)
    assert all(problem.startswith(f"{name} ") and f"at most {bound:.6g}" in problem for problem in broken)


@given(st.sampled_from(SPANS), st.floats(-1, 1), st.floats(1, 10), st.floats(-2, 12), st.floats(0, 12))
def test_a_span_is_inside_from_its_least_to_its_most_and_not_beyond(name, least, most, low, wider):
    bounds = HomogenizerLimits(**{name: {"least": least, "most": most}})
    broken = list(bounds.violations(extent(**{name: Range(low, low + wider)})))
    assert len(broken) == (low < least) + (low + wider > most)


def with_defect_step(step: float) -> Homogenizer:
    homogenizer = Homogenizer(3, 8, 8, defects=True).requires_grad_(False)
    homogenizer.defect_step[1] = step
    return homogenizer


def with_shading(gain: float, black: float) -> Homogenizer:
    homogenizer = Homogenizer(3, 8, 8, shading=True).requires_grad_(False)
    homogenizer.gain[0, 0, 0, 7] = gain
    homogenizer.black[2] = black
    return homogenizer


@pytest.mark.parametrize("step", [-1.0, 0.0, 0.4, float("nan")])
def test_pixels_are_replaced_from_the_least_step_on(tmp_path, step):
    envelope = load_envelope(written(tmp_path, "version: 1\nhomogenizer: {defect_step: 0.5}"))
    for admitted in (with_defect_step(0.5), Homogenizer(3, 8, 8)):
        assert envelope.admit(stored(admitted)) is admitted
    with pytest.raises(OutsideEnvelope, match=f"defect_step {step:.6g}, at least 0.5 is allowed"):
        envelope.admit(stored(with_defect_step(step)))


@pytest.mark.parametrize("newer", [with_defect_step(1.0), with_shading(1.5, -2.0), with_shading(0.9, 0.0)])
def test_an_envelope_of_before_admits_no_newer_part(tmp_path, newer):
    envelope = load_envelope(written(tmp_path, "version: 1\nhomogenizer: {curve: 2}"))
    assert envelope.admit(stored(plain := Homogenizer(3, 8, 8))) is plain
    with pytest.raises(OutsideEnvelope, match=r"(defect_step|shading\.(most|least)) "):
        envelope.admit(stored(newer))


@pytest.mark.parametrize(
    ("limits", "corrections"),
    [
        ({}, []),
        ({"defect_step": 0.5}, ["defects"]),
        ({"shading": {"most": 5}}, ["shading"]),
        ({"shading": {}, "defect_step": 0}, ["defects", "shading"]),
    ],
)
def test_fits_try_what_the_envelope_allows(limits, corrections):
    assert HomogenizerLimits.model_validate(limits).corrections == corrections


@pytest.mark.parametrize("beyond", [with_shading(1.0, 1e9), with_shading(0.5, 1e3), with_shading(1.0001, -1e6)])
def test_what_counts_as_black_is_bounded(beyond):
    """Where the gain is not 1, black is added to each value."""
    with pytest.raises(OutsideEnvelope, match=r"black 1e\+0[369], at most 4 is allowed|black 1000"):
        load_envelope(EXAMPLE).admit(stored(beyond))


@given(st.sampled_from((*DISTANCES, *SPANS)))
def test_what_is_not_a_number_is_outside(name):
    nan = float("nan")
    bounds = HomogenizerLimits(**{name: 1.0 if name in DISTANCES else {"least": 0.0, "most": 2.0}})
    assert list(bounds.violations(extent(**{name: nan if name in DISTANCES else Range(nan, nan)})))


@given(seed=st.integers(0, 10_000), strength=st.floats(0, 0.5), limit=st.floats(0.05, 0.5))
@ONE_FILE
def test_any_homogenizer_beyond_a_bound_is_refused_and_any_inside_admitted(seed, strength, limit):
    """By its parameters and what it does, apart from how extents are measured."""
    generator = torch.Generator().manual_seed(seed)
    homogenizer = Homogenizer(1, 8, 8, 1).requires_grad_(False)
    for parameter in homogenizer.parameters():
        parameter += strength * (2 * torch.rand(parameter.shape, generator=generator) - 1)
    values = homogenizer.state_dict()
    inside = (
        values["offset"].abs().max() <= limit
        and values["bias"].abs().max() <= limit
        and values["curve"].abs().max() <= limit
        and abs(float(values["kernel"]) - 1) <= limit
    )
    envelope = envelope_of(**dict.fromkeys(DISTANCES, limit))
    if inside:
        assert envelope.admit(stored(homogenizer)) is homogenizer
    else:
        with pytest.raises(OutsideEnvelope):
            envelope.admit(stored(homogenizer))


def test_a_refusal_names_the_homogenizer_each_bound_and_what_it_has_there():
    homogenizer = Homogenizer(3, 8, 8, 3).requires_grad_(False)
    homogenizer.kernel *= 3
    homogenizer.curve -= 1
    with pytest.raises(OutsideEnvelope) as caught:
        envelope_of(kernel=1, slope={"least": 0.1}, gain={"most": 2}).admit(stored(homogenizer))
    assert str(caught.value) == (
        "homogenizer ffffffffffff is outside of envelope.yaml: kernel 2, at most 1 is allowed; "
        "slope.least 0, at least 0.1 is allowed; gain.most 3, at most 2 is allowed"
    )


@pytest.mark.parametrize("place", [0, 1])
def test_both_branches_of_a_split_homogenizer_must_be_inside(place):
    branches = [Homogenizer(3, 8, 8), Homogenizer(3, 8, 8)]
    split = SplitHomogenizer.of(torch.zeros(13), *branches)
    assert envelope_of(bias=0.5).admit(stored(split)) is split
    with torch.no_grad():
        branches[place].bias[1] = 0.75
    with pytest.raises(OutsideEnvelope, match=r"bias 0\.75, at most 0\.5 is allowed$"):
        envelope_of(bias=0.5).admit(stored(SplitHomogenizer.of(torch.zeros(13), *branches)))


# ---- the file


def test_the_digest_is_that_of_the_bytes(tmp_path):
    path = written(tmp_path, "version: 1\r\n# comment\n")
    assert load_envelope(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version: 1\nhomogeniser: {}", "2: homogeniser: unknown key; did you mean 'homogenizer'?"),
        ("version: 1\nhomogenizer:\n  gian: {}", "3: homogenizer.gian: unknown key; did you mean 'gain'?"),
        ("homogenizer: {}", "1: version: required, but missing"),
        ("version: 2", "1: version: 2 cannot be used: write 1"),
        ("version: 1\nhomogenizer: {slope: {least: 1.5}}", "2: homogenizer.slope.least: .* write 1 or less"),
        ("version: 1\nhomogenizer: {gain: {most: .9}}", "2: homogenizer.gain.most: .* write 1 or more"),
        ("version: 1\nhomogenizer: {bias: .inf}", "2: homogenizer.bias: .* finite"),
        ("version: 1\noperation: {modes: [automatic]}", "2: operation.modes.0: 'automatic' .* or autonomous"),
        ("version: 1\noperation: {modes: []}", "2: operation.modes: .* write 1 or more"),
        ("version: 1\nevidence: {collect: 2 weeks}", "2: evidence.collect: '2 weeks' is not a duration"),
    ],
)
def test_a_mistake_is_reported_with_its_line(tmp_path, text, problem):
    path = written(tmp_path, text)
    with pytest.raises(DocumentError, match=f"^{path}:{problem}"):
        load_envelope(path)


KEYS = ("version", "homogenizer", "evidence", "operation", "slope", "most", "frames", "modes", "x\n\x1b")
NEARLY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
).map(lambda content: yaml.safe_dump(content).encode())


@given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | NEARLY)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_envelope_or_problems_of_a_line_each(tmp_path, data):
    path = written(tmp_path, data)
    try:
        load_envelope(path)
    except DocumentError as error:
        assert error.problems and all(problem.startswith(str(path)) for problem in error.problems)
        assert len(str(error).splitlines()) == len(error.problems)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(DocumentError, match="envelope.yaml: cannot be read: No such file"):
        load_envelope(tmp_path / "envelope.yaml")


def test_what_was_verified_is_what_is_parsed(tmp_path, monkeypatch):
    """Another file in its place in between changes nothing."""
    path = written(tmp_path, good := b"version: 1\nhomogenizer: {bias: 1}\n")
    key, read_bytes = sign(path), Path.read_bytes

    def exchanged_after(self: Path) -> bytes:
        data = read_bytes(self)
        path.write_bytes(b"version: 1\n")
        return data

    monkeypatch.setattr(Path, "read_bytes", exchanged_after)
    envelope = load_envelope(path, key)
    assert envelope.signed and envelope.document.homogenizer.bias == 1
    assert envelope.digest == hashlib.sha256(good).hexdigest()


# ---- the configuration


def test_without_an_envelope_there_is_none(tmp_path):
    config = configured(tmp_path, {}, recalibrate={"envelope": None})
    assert open_envelope(config) is None


def test_an_envelope_is_found_beside_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    config = configured(tmp_path, {"operation": {"modes": ["autonomous"]}})
    envelope = open_envelope(config)
    assert envelope is not None and envelope.path == tmp_path / "envelope.yaml" and not envelope.signed


def test_a_key_without_an_envelope_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="envelope_key is of no use without envelope"):
        configured(tmp_path, {}, recalibrate={"envelope": None, "envelope_key": "key.pub"})


WIDER = [  # what the envelope says, what the configuration says, and how it is told
    ({"evidence": {"frames": 256}}, {"frames": 255}, "evidence.frames is at least 256, recalibrate.frames is 255"),
    ({"evidence": {"held_out": 65}}, {"frames": 256}, "at least 65, of recalibrate.frames 256 the judge gets 64"),
    ({"evidence": {"held_out": 33}}, {"frames": 130}, "at least 33, of recalibrate.frames 130 the judge gets 32"),
    ({"evidence": {"collect": "1m"}}, {"collect": "59s"}, "at least 60, recalibrate.collect is 59"),
    ({"evidence": {"margin": 0.3}}, {}, f"at least 0.3, this release of recald has {MIN_SCORE_DROP_SHARE}"),
    ({"evidence": {"shadow": "5s"}}, {"shadow": 4.9}, "at least 5, recalibrate.shadow is 4.9"),
    ({"evidence": {"probation": "1m"}}, {"probation": 0}, "at least 60, recalibrate.probation is 0"),
    ({"operation": {"fits_a_day": 4}}, {"fits_a_day": 5}, "at most 4, recalibrate.fits_a_day is 5"),
    ({"operation": {"swaps_a_day": 4}}, {"swaps_a_day": 5}, "at most 4, recalibrate.swaps_a_day is 5"),
    ({"operation": {"modes": ["locked", "shadow"]}}, {}, "has locked, shadow, recalibrate.mode is autonomous"),
]


@pytest.mark.parametrize(("envelope", "recalibrate", "told"), WIDER, ids=[told for *_, told in WIDER])
def test_a_configuration_that_allows_more_is_a_mistake(tmp_path, envelope, recalibrate, told):
    config = configured(tmp_path, envelope, recalibrate=recalibrate)
    with pytest.raises(ConfigError) as caught:
        open_envelope(config)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path}/envelope.yaml: ") and told in line and line.endswith(": change one of them")


def test_a_clean_band_that_is_wider_is_a_mistake(tmp_path):
    config = configured(tmp_path, {"evidence": {"threshold": 1.5}})
    with pytest.raises(ConfigError, match=r"evidence.threshold is at most 1.5, drift.threshold is 1.6"):
        open_envelope(config)


def test_all_violations_are_reported_at_once(tmp_path):
    config = configured(tmp_path, {"evidence": {"frames": 600, "collect": "1h"}, "operation": {"modes": ["locked"]}})
    with pytest.raises(ConfigError) as caught:
        open_envelope(config)
    assert len(caught.value.problems) == 3


def test_a_configuration_at_the_bounds_is_inside(tmp_path):
    evidence = {"frames": 512, "held_out": 128, "collect": 120, "margin": MIN_SCORE_DROP_SHARE, "threshold": 1.6}
    operation = {"modes": ["autonomous"], "fits_a_day": 48, "swaps_a_day": 24}
    envelope = open_envelope(configured(tmp_path, {"evidence": evidence, "operation": operation}))
    assert envelope is not None and envelope.limits_budget
