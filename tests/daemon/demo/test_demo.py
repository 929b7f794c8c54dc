import dataclasses
import io
import json
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import zmq
from places import DATA
from rich.console import Console
from safetensors.torch import load_file, save
from torch import nn

from calibrate.homogenizer import Homogenizer
from daemon.config import load_config
from daemon.demo import material, networks, train
from daemon.demo.camera import Cameras
from daemon.demo.digits import DemoError, Split, make_splits
from daemon.demo.ledger import BEFORE, DRIFTED, RECOVERED, Ledger
from daemon.demo.picture import Row, draw
from daemon.demo.restore import picture_rows
from daemon.demo.service import Daemon, Folder, Metrics, Network, export, free_port, write_config
from daemon.demo.show import Display, SensorView
from daemon.demo.summary import Summary
from daemon.serving.message import decode, parse_frame
from daemon.serving.results import Publisher
from daemon.simulation.drifts import parse_drift
from deploy.files import digest_file
from deploy.model.export import export_model
from deploy.store.artefacts import FACTORY, ArtefactStore

FITTED = "f" * 64


# ---- digits


@pytest.fixture(scope="module")
def splits():
    return make_splits(3, train_renderings=1, test_renderings=2)


def test_the_same_seed_renders_the_same_bytes(splits):
    again = make_splits(3, train_renderings=1, test_renderings=2)
    for one, other in zip(splits, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(make_splits(4, train_renderings=1, test_renderings=2)[1].source, splits[1].source)


def test_no_digit_is_both_trained_on_and_held_out(splits):
    training, held_out = splits
    assert not set(training.source) & set(held_out.source)
    assert len(set(training.source) | set(held_out.source)) == 1797
    assert set(held_out.labels) == set(range(10))


def test_pictures_are_what_a_colour_camera_gives_and_each_is_its_own(splits):
    held_out = splits[1]
    assert held_out.images.dtype == np.uint8 and held_out.images.shape == (2 * 449, 32, 32, 3)
    assert held_out.source[0] == held_out.source[1] and held_out.labels[0] == held_out.labels[1]
    assert not np.array_equal(held_out.images[0], held_out.images[1])
    assert np.abs(held_out.images.mean(axis=(0, 1, 2)) - 127.5).max() < 15  # no colour cast


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DemoError, match=r"recald\[demo\]"):
        make_splits(0, train_renderings=1, test_renderings=1)


# ---- networks


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_the_cifar_networks_have_the_layers_of_the_paper(depth):
    network = getattr(networks, f"cifar_resnet{depth}")()
    layers = list(network.modules())
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == depth - 1
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == depth - 1
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_shortcut_takes_every_second_pixel_and_pads_the_channels_with_zeros():
    block = networks.Block(16, 32, stride=2)
    x = torch.randn(1, 16, 8, 8)
    shortcut = block.shortcut(x)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut[:, :8].any() and not shortcut[:, 24:].any()


@pytest.mark.data
@pytest.mark.parametrize(("depth", "file"), [(20, "resnet20-12fca82f"), (56, "resnet56-4bfd9763")])
def test_published_weights_load_strictly_and_recognise_cifar(depth, file):
    weights, images = DATA / "models" / f"{file}.th", DATA / "cifar10_test.npz"
    if not weights.exists() or not images.exists():
        pytest.skip(f"{DATA} has no CIFAR-10 or no {file}.th; set RECALD_DATA")
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    network = getattr(networks, f"cifar_resnet{depth}")().eval()
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    with np.load(images, allow_pickle=False) as data:
        chosen = data["lossless"]
        shown, labels = data["images"][chosen][:1000], data["labels"][chosen][:1000]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (material.IMAGENET_MEAN, material.IMAGENET_STD))
    batch = (torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        named = torch.cat([network(part).argmax(dim=1) for part in batch.split(250)])
    assert (named.numpy() == labels).mean() >= 0.91


# ---- training


def test_training_depends_on_the_seed_alone(splits, monkeypatch):
    monkeypatch.setattr(train, "EPOCHS", 1)
    few = Split(*(part[:200] for part in splits[0]))
    shares = []
    first = train.train_network(few, 1, shares.append).state_dict()
    torch.rand(5)
    second = train.train_network(few, 1, shares.append).state_dict()
    other = train.train_network(few, 2, shares.append).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])
    assert shares[-1] == 1.0 and sorted(shares[: len(shares) // 3]) == shares[: len(shares) // 3]


def test_the_shipped_statistics_are_those_of_the_clean_pictures(splits):
    network, images = networks.digits_resnet(), splits[0].images[:600]
    train.estimate_statistics(network, images)
    with torch.no_grad():
        features = network.conv1(train.normalise(images))
    torch.testing.assert_close(network.bn1.running_mean, features.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(network.bn1.running_var, features.var(dim=(0, 2, 3)), rtol=0.02, atol=1e-3)


def test_weights_are_kept_where_the_environment_says_and_apart_by_seed(tmp_path):
    assert train.cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "recald"
    assert train.cache_folder({"HOME": "/home/a"}) == Path("/home/a/.cache/recald")
    assert train.weights_path(tmp_path, 0) == train.weights_path(tmp_path, 0) != train.weights_path(tmp_path, 1)


def test_a_network_that_learned_too_little_is_not_kept(splits, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "EPOCHS", 1)
    few = Split(*(part[:128] for part in splits[0]))
    with pytest.raises(DemoError, match="another --seed"):
        train.train_and_keep(tmp_path / "w.safetensors", few, splits[1], 0, lambda done: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_digit_network_is_good_and_the_default_drift_takes_a_third(tmp_path, monkeypatch):
    from daemon.demo.run import DEFAULT_DRIFT

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shown = material.digits(0, Console(file=io.StringIO()))
    network = networks.digits_resnet().eval()
    network.load_state_dict(load_file(shown.network.weights))
    clean = Split(shown.images, shown.labels, shown.labels)
    drift = parse_drift(DEFAULT_DRIFT, 0)
    drifted = clean._replace(images=np.stack([drift(image) for image in clean.images]))
    assert train.accuracy(network, clean) >= 0.97
    assert train.accuracy(network, clean) - train.accuracy(network, drifted) >= 0.30


# ---- accounts


def answer(seq, label, version=FACTORY):
    return {"seq": seq, "label": label, "homogenizer": version, "drift_score": 1.0}


def test_answers_are_counted_in_the_phase_their_picture_belongs_to():
    ledger = Ledger(["front"])
    shown = [(False, FACTORY), (False, FACTORY), (True, FACTORY), (True, FACTORY), (True, FITTED), (False, FITTED)]
    for seq, (drifted, _) in enumerate(shown):
        ledger.shown("front", seq, 7, drifted, now=seq)
    for seq, (_, version) in enumerate(shown):
        ledger.answered("front", answer(seq, 7 if seq != 2 else 1, version), now=seq)
    phases = ledger.read("front", now=6).phases
    assert {phase: (tally.right, tally.answers) for phase, tally in phases.items()} == {
        BEFORE: (3, 3),
        DRIFTED: (1, 2),
        RECOVERED: (1, 1),
    }
    assert ledger.read("front", now=6).rolling == pytest.approx(5 / 6)


def test_the_account_opens_with_the_first_answer():
    ledger = Ledger(["front", "rear"])
    for seq in range(10):
        ledger.shown("front", seq, 0, False, now=seq)
    ledger.answered("front", answer(7, 0), now=10)
    ledger.answered("front", answer(9, 0), now=10)
    ledger.answered("front", answer(3, 0), now=10)
    ledger.answered("front", answer(9, 0), now=10)  # a second answer to the same picture
    reading = ledger.read("front", now=100)
    assert (reading.sent, reading.answered, reading.unanswered) == (3, 2, 1)
    assert ledger.read("rear", now=100).sent == 0


def test_pictures_missing_at_a_swap_are_counted_as_its_loss():
    ledger = Ledger(["front"])
    for seq in range(6):
        ledger.shown("front", seq, 0, True, now=seq / 10)
    for seq, version in ((0, FACTORY), (1, FACTORY), (3, FITTED), (4, FITTED), (5, FACTORY)):
        ledger.answered("front", answer(seq, 0, version), now=seq / 10)
    swaps = ledger.read("front", now=1).swaps
    assert [(swap.version, swap.lost) for swap in swaps] == [(FITTED, 1), (FACTORY, 0)]
    assert ledger.unanswered_around("front", swaps[0].at, 0.2) == 1
    assert ledger.unanswered_around("front", swaps[0].at, 0.05) == 0


def test_a_picture_on_its_way_is_not_yet_unanswered_and_one_not_sent_is_taken_back():
    ledger = Ledger(["front"])
    for seq in range(3):
        ledger.shown("front", seq, 0, False, now=10)
    ledger.answered("front", answer(0, 0), now=10)
    ledger.withdrawn("front", 2)
    assert ledger.read("front", now=10.5).unanswered == 0
    reading = ledger.read("front", now=12)
    assert (reading.sent, reading.unanswered, reading.rate) == (2, 1, 0.0)


def test_the_rate_is_that_of_the_answers():
    ledger = Ledger(["front"])
    for seq in range(60):
        ledger.shown("front", seq, 0, False, now=seq / 30)
        ledger.answered("front", answer(seq, 0), now=seq / 30)
    assert ledger.read("front", now=2.0).rate == pytest.approx(30)


# ---- cameras


class FakeDaemon(threading.Thread):
    """Names each picture by its grey level, which is even in drifted ones; learns from 20 of these to undo it."""

    def __init__(self, context, frames, results):
        super().__init__(daemon=True)
        self.publisher = Publisher(context, results)
        self.frames = context.socket(zmq.SUB)
        self.frames.subscribe(b"")
        self.frames.bind(frames)
        self.seen = {"front": [], "rear": []}  # (seq, grey level)
        self.swallow = ""  # the sensor that gets no answer to its next picture
        self.drifted = 0
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set():
            if self.frames.poll(20):
                self.answer(self.frames.recv_multipart())
        self.frames.close(linger=0)
        self.publisher.close()

    def answer(self, parts):
        frame = parse_frame(parts, sensors=self.seen, now_ns=time.time_ns(), received=0.0, max_age=5)
        level = int(decode(frame)[0, 0, 0])
        self.seen[frame.sensor].append((frame.seq, level))
        if frame.sensor == self.swallow:
            self.swallow = ""
            return
        fitted = frame.sensor == "front" and self.drifted >= 20
        self.drifted += level % 2 == 0
        version, label = (FITTED, 2 * level - 1) if fitted else (FACTORY, level)
        self.publisher.send(frame.sensor, answer(frame.seq, label, version), np.zeros((1, 10), np.float32))


@pytest.fixture
def filmed(context, tmp_path):
    """Two cameras in front of a fake daemon; front drifts to half its light, one picture of rear is swallowed."""
    frames, results = f"ipc://{tmp_path}/frames", f"ipc://{tmp_path}/results"
    fake = FakeDaemon(context, frames, results)
    fake.start()
    ledger = Ledger(["front", "rear"])
    labels = np.arange(31, 231, 20)
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (10, 4, 4, 3))
    options = {"sensors": ["front", "rear"], "frames": frames, "results": results, "fps": 100, "seed": 0}
    with closing(Cameras(context, ledger, images, labels, **options)) as cameras:
        cameras.start()
        wait_until(lambda: min(ledger.read(sensor, 0).answered for sensor in ("front", "rear")) >= 5)
        cameras.drift("front", parse_drift("exposure=-1"))
        fake.swallow = "rear"
        wait_until(lambda: ledger.read("front", 0).phases[RECOVERED].answers >= 30)
        cameras.check()
        cameras.stop()
        yield fake, ledger
    fake.stopping.set()
    fake.join()


def wait_until(reached, seconds=20):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_cameras_know_what_they_showed_and_what_became_of_it(filmed):
    fake, ledger = filmed
    later = time.monotonic() + 10
    front, rear = ledger.read("front", later), ledger.read("rear", later)
    assert {phase: tally.accuracy for phase, tally in front.phases.items()} == {BEFORE: 1, DRIFTED: 0, RECOVERED: 1}
    assert [(swap.version, swap.lost) for swap in front.swaps] == [(FITTED, 0)]
    assert front.unanswered == 0 and front.sent == front.answered
    assert rear.unanswered == 1 and rear.sent == rear.answered + 1
    assert rear.phases[BEFORE].accuracy == 1 and rear.swaps == () and rear.version == FACTORY
    assert len({level for _, level in fake.seen["rear"]}) >= 8  # the pictures take turns, at random
    assert [seq for seq, _ in fake.seen["rear"]] == sorted(seq for seq, _ in fake.seen["rear"])


def test_what_ends_the_cameras_is_raised(context, tmp_path):
    bad = np.zeros((1, 4, 4, 3), np.float32)  # no encoding holds it
    options = {"sensors": ["front"], "frames": f"ipc://{tmp_path}/f", "results": f"ipc://{tmp_path}/r"}
    with closing(Cameras(context, Ledger(["front"]), bad, np.zeros(1), fps=100, seed=0, **options)) as cameras:
        cameras.start()
        with pytest.raises(ValueError, match="rgb8"):
            wait_until(lambda: cameras.check())


# ---- the daemon's side


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A frozen digit network with random weights and real statistics, and the pictures these came from."""
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    images = make_splits(0, train_renderings=1, test_renderings=1)[1].images
    network = train.new_network(0)
    train.estimate_statistics(network, images)
    weights = path.with_name("w.safetensors")
    weights.write_bytes(save(network.state_dict()))
    return Network("daemon.demo.networks:digits_resnet", weights, train.MEAN, train.STD, tuple("0123456789")), path


def test_the_configuration_is_one_the_daemon_takes(tmp_path):
    folder = Folder(tmp_path)
    write_config(folder, ["front", "rear"], 12345, frames=128)
    config = load_config(folder.config)
    assert list(config.sensors) == ["front", "rear"] and config.model.path == folder.model
    assert config.metrics.port == 12345 and config.recalibrate.frames == 128


def test_the_model_is_frozen_by_the_command(model, tmp_path):
    network, _ = model
    export(network, tmp_path / "model.pt2")
    assert len(digest_file(tmp_path / "model.pt2")) == 64
    with pytest.raises(DemoError, match="recald export failed with .*no function 'lenet'"):
        export(network._replace(builder="daemon.demo.networks:lenet"), tmp_path / "model.pt2")


def test_a_daemon_that_does_not_start_is_quoted(tmp_path):
    folder = Folder(tmp_path)
    port = free_port()
    write_config(folder, ["front"], port, frames=128)
    with Daemon(folder.config, folder.log, port) as daemon:
        with pytest.raises(DemoError, match=r"^recald ended with \d+: .*model.pt2"):
            daemon.wait_until_serving()


def test_a_scrape_is_read_by_name_and_label():
    metrics = Metrics(
        "# TYPE recald_frames_dropped counter\n"
        'recald_frames_dropped_total{sensor="front",reason="superseded"} 3\n'
        'recald_frames_dropped_total{sensor="front",reason="stale"} 1\n'
        'recald_frames_dropped_total{sensor="rear",reason="superseded"} 5\n'
        "# TYPE recald_calibration_state gauge\n"
        'recald_calibration_state{sensor="front",recald_calibration_state="factory"} 0\n'
        'recald_calibration_state{sensor="front",recald_calibration_state="fitting"} 1\n'
    )
    assert metrics.total("recald_frames_dropped_total", sensor="front") == 4
    assert metrics.total("recald_frames_dropped_total", sensor="front", reason="superseded") == 3
    assert metrics.total("recald_swaps_total") == 0
    assert metrics.state("front") == "fitting" and metrics.state("rear") == "unknown"


# ---- what is shown


VIEW = SensorView("front", True, 30.0, 0.52, (0.99, 0.5), 2.5, 1.6, "collecting", 0.4, FITTED, 1)


def test_without_a_terminal_events_and_now_and_then_the_state_are_lines_with_times():
    now = [100.0]
    out = io.StringIO()
    with Display("demo", Console(file=out, width=40), lambda: now[0]) as display:
        for second in range(7):
            now[0] = 100.0 + second
            display.update([VIEW])
        display.event("front: drift alarm")
    state = (
        "front: 30.0 frames/s, accuracy 52.0%, drift score 2.50 (alarm at 1.6), collecting 40%, homogenizer ffffffff"
    )
    assert out.getvalue().splitlines() == [f"   0.0 s  {state}", f"   5.0 s  {state}", "   6.0 s  front: drift alarm"]


def test_on_a_terminal_everything_fits_into_80_columns():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    display = Display("demo", console)
    rear = dataclasses.replace(VIEW, sensor="rear", drifted=False, drift_score=None, accuracy=None, progress=0.0)
    display.update([VIEW, rear])
    display.event("front: drift alarm")
    console.print(display.render())
    text = out.getvalue()
    for shown in ("front, drifted", "rear", "52.0%", "█▅", "2.50", "alarm 1.6", "40%", "ffffffff, swaps: 1", "30.0"):
        assert shown in text
    assert "…" not in text and "drift alarm" in text


def test_the_picture_has_a_tile_for_each_image_below_each_other():
    images = np.zeros((3, 32, 32, 3), np.uint8)
    images[1] = (255, 0, 0)
    rows = [Row(title, "50 % right", images, ["cat", "dog", "ship"], [True, False, True]) for title in ("a", "b")]
    picture = cv2.imdecode(np.frombuffer(draw(rows), np.uint8), cv2.IMREAD_COLOR)
    red = (picture == (0, 0, 255)).all(axis=2)  # OpenCV reads BGR
    assert red.sum() == 2 * 128 * 128
    assert len(np.unique(np.nonzero(red)[1])) == 128  # in one column


def test_the_rows_of_the_picture_are_clean_drifted_and_restored(model, tmp_path):
    network, path = model
    export_model(network.builder, network.weights, path, input_shape=(3, 32, 32), mean=network.mean, std=network.std)
    images = make_splits(0, train_renderings=1, test_renderings=1)[1]
    shown = material.Material("digits", images.images, images.labels, network)
    drift = parse_drift("black-level=-51")
    accuracies = {BEFORE: 0.99, DRIFTED: 0.5, RECOVERED: None}
    arguments = (shown, drift, accuracies)
    assert [row.title for row in picture_rows(path, tmp_path, "front", *arguments)] == ["clean", "drifted"]

    undo = Homogenizer(3, 32, 32)
    with torch.no_grad():
        undo.offset += 51 / 255 / train.STD[0]
    store, digest = ArtefactStore(tmp_path), digest_file(path)
    store.point("front", store.put(undo, {"model": digest}, b"compiled", "eager"), digest, now=0.0)
    clean, drifted, restored = picture_rows(path, tmp_path, "front", *arguments)
    assert (clean.note, drifted.note, restored.title) == ("99.0% right", "50.0% right", "restored")
    assert len(clean.images) == 8 and len(set(images.labels[:500])) == 10
    whole = clean.images > 51  # what the drift did not clip
    assert np.abs(restored.images[whole].astype(int) - clean.images[whole]).max() <= 1
    assert (np.abs(drifted.images[whole].astype(int) - clean.images[whole]) == 51).all()


# ---- the verdict


WELL = (99, 100, False, FACTORY)
ILL = (40, 100, True, FACTORY)
CURED = (90, 100, True, FITTED)


def reading(*parts, unanswered=()):
    """What a ledger reads after parts of (right answers, all, drifted, homogenizer)."""
    ledger, seq = Ledger(["x"]), 0
    for right, answers, drifted, version in parts:
        for number in range(answers):
            ledger.shown("x", seq, 1, drifted, now=0)
            if seq not in unanswered:
                ledger.answered("x", answer(seq, int(number < right), version), now=0)
            seq += 1
    return ledger.read("x", now=10)


REAR = reading((9, 10, False, FACTORY))


def summary(**changes):
    given = Summary(
        drifting="front",
        drift="blur=1",
        seed=0,
        readings={"front": reading(WELL, ILL, CURED), "rear": REAR},
        superseded={"front": 0, "rear": 0},
        seconds_to_recover=30.0,
        swap_pause_seconds=2e-6,
        missing_around_swap=0,
        digest_before="a" * 64,
        digest_after="a" * 64,
        exit_code=0,
        stop_seconds=1.0,
        total_seconds=90.0,
    )
    return dataclasses.replace(given, **changes)


def failed(given):
    return [check.promise for check in given.checks() if not check.kept]


def test_a_run_that_kept_every_promise_passes():
    given = summary()
    assert given.passed() and failed(given) == []
    assert given.recovered_share() == pytest.approx((0.9 - 0.4) / (0.99 - 0.4))
    document = json.loads(json.dumps(given.document()))
    assert document["passed"] and document["accuracy"] == {"before": 0.99, "drifted": 0.4, "recovered": 0.9}
    assert document["frames"]["front"] == {"sent": 300, "answered": 300, "unanswered": 0, "superseded": 0}


def with_front(*parts, unanswered=()):
    return {"readings": {"front": reading(*parts, unanswered=unanswered), "rear": REAR}}


def with_rear(*parts):
    return {"readings": {"front": reading(WELL, ILL, CURED), "rear": reading(*parts)}}


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        (with_front(WELL, ILL, (80, 100, True, FITTED)), "lost accuracy"),
        (with_front(WELL, (96, 100, True, FACTORY), (99, 100, True, FITTED)), "lost accuracy"),  # little was lost
        (with_front(WELL, ILL, CURED, unanswered=(200,)), "no frame"),
        (with_rear((9, 10, False, FACTORY), (9, 10, False, FITTED)), "rear kept"),
        ({"digest_after": "b" * 64}, "model file"),
        ({"exit_code": None}, "SIGTERM"),
        ({"exit_code": 75}, "SIGTERM"),
    ],
)
def test_each_broken_promise_fails_by_its_name(changes, promise):
    given = summary(**changes)
    assert not given.passed()
    assert len(failed(given)) == 1 and promise in failed(given)[0]


def test_a_run_without_a_swap_fails():
    given = summary(**with_front(WELL, ILL), seconds_to_recover=None)
    assert [promise.split()[0] for promise in failed(given)] == ["at", "no"]
    out = io.StringIO()
    Console(file=out, width=80).print(given.render())
    assert "FAILED" in out.getvalue() and "there was no swap" in out.getvalue()
