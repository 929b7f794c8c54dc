import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from daemon.client import EndpointError
from daemon.serving.message import decode, parse_frame
from daemon.simulation.camera import SIMULATED_ENCODINGS, open_camera, paced, publish, wait_for_reader
from daemon.simulation.drifts import DRIFT_KINDS, SimulationError, parse_drift

pictures = arrays(np.uint8, (5, 6, 3))


def strengths(name):
    kind = DRIFT_KINDS[name]
    numbers = st.floats(kind.low, kind.high).map(lambda value: value + 0.0)
    return st.tuples(numbers, numbers, numbers) if kind.per_channel else st.tuples(numbers)


def texts():
    """Any valid drift as a user may write it: some of the names, in any order."""

    def written(name):
        return strengths(name).map(lambda values: f"{name}={':'.join(map(repr, values))}")

    names = st.lists(st.sampled_from(sorted(DRIFT_KINDS)), unique=True)
    return names.flatmap(lambda chosen: st.tuples(*map(written, chosen))).map(",".join)


# ---- drifts


@given(texts())
def test_a_drift_is_written_as_it_is_read(text):
    drift = parse_drift(text)
    assert parse_drift(str(drift)) == drift


@given(text=texts(), image=pictures, seed=st.integers(0, 2**32))
def test_a_drifted_picture_is_one_a_camera_could_take_and_the_same_each_time(text, image, seed):
    before = image.copy()
    drifted = parse_drift(text, seed)(image, 3)
    assert drifted.dtype == np.uint8 and drifted.shape == image.shape
    assert np.array_equal(drifted, parse_drift(text, seed)(image, 3))
    assert np.array_equal(image, before)


@given(text=texts(), image=pictures)
def test_the_order_in_the_text_does_not_matter(text, image):
    backwards = ",".join(reversed(text.split(",")))
    assert np.array_equal(parse_drift(text)(image), parse_drift(backwards)(image))


@given(pictures)
def test_no_strength_is_no_drift(image):
    neutral = "blur=0,exposure=0,cross-talk=0,fixed-pattern=0,temporal-noise=0,black-level=0,gain=1,gamma=1"
    assert np.array_equal(parse_drift(neutral)(image), image)
    assert np.array_equal(parse_drift("")(image), image)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fog=1", "choose from haze, motion-blur, blur, vignetting, exposure"),
        ("blur", "'' is not a number; write blur=NUMBER in pixels sigma"),
        ("blur=much", "'much' is not a number"),
        ("blur=nan", "not within 0 to 20"),
        ("blur=-1", "not within 0 to 20"),
        ("exposure=inf", "not within -8 to 8"),
        ("gain=1:-1:1", "not within 0.01 to 100"),
        ("blur=1:1:1", "holds 3 numbers"),
        ("gain=1:1", "write gain=NUMBER or RED:GREEN:BLUE in factor"),
        ("blur=1,blur=2", "blur is given twice"),
    ],
)
def test_a_drift_that_cannot_be_is_refused_with_the_way_out(text, message):
    with pytest.raises(SimulationError) as caught:
        parse_drift(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def grey(level, shape=(32, 32, 3)):
    return np.full(shape, level, np.uint8)


def test_a_stop_is_twice_the_light_and_white_is_the_end():
    assert (parse_drift("exposure=-1")(grey(100)) == 50).all()
    assert (parse_drift("exposure=1")(grey(100)) == 200).all()
    assert (parse_drift("exposure=2")(grey(100)) == 255).all()


def test_cross_talk_spreads_a_colour_and_leaves_grey_alone():
    drift = parse_drift("cross-talk=0.2")
    assert (drift(grey(77)) == 77).all()
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    assert (drift(red) == [160, 20, 20]).all()


def test_a_fixed_pattern_stays_has_its_strength_and_comes_from_the_seed():
    first, later = (parse_drift("fixed-pattern=12", 1)(grey(128), frame).astype(float) for frame in (0, 9))
    assert np.array_equal(first, later)
    assert first.std(axis=(0, 1)) == pytest.approx([12, 12, 12], rel=0.1)
    assert abs(np.corrcoef(first[..., 0].ravel(), first[..., 1].ravel())[0, 1]) < 0.1
    assert not np.array_equal(first, parse_drift("fixed-pattern=12", 2)(grey(128)))


def test_temporal_noise_is_new_in_each_frame():
    drift = parse_drift("temporal-noise=5")
    assert not np.array_equal(drift(grey(128), 0), drift(grey(128), 1))
    assert drift(grey(128), 0).std() == pytest.approx(5, rel=0.1)


def test_blur_spreads_a_point_by_sigma_and_keeps_its_light():
    point = np.zeros((33, 33, 3), np.float32)
    point[16, 16] = 10_000
    spread = DRIFT_KINDS["blur"].apply(point, (1.5,), 0, 0)[..., 0]
    offsets = np.arange(33) - 16
    assert spread.sum() == pytest.approx(10_000, rel=1e-3)
    assert np.sqrt((spread.sum(axis=0) * offsets**2).sum() / spread.sum()) == pytest.approx(1.5, rel=0.02)


def test_gain_black_level_and_gamma_act_on_each_channel():
    assert (parse_drift("gain=0.5:1:2")(grey(100)) == [50, 100, 200]).all()
    assert (parse_drift("black-level=10:0:-10")(grey(100)) == [110, 100, 90]).all()
    assert (parse_drift("black-level=7")(grey(100)) == 107).all()
    assert (parse_drift("gamma=2")(grey(51)) == 10).all()  # 255 * 0.2 ** 2
    assert (parse_drift("gamma=2")(grey(255)) == 255).all()


# ---- latency_monitor


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        return False


def test_delays_do_not_add_up():
    clock = Clock()
    times = []
    for _ in paced(10, clock.wait, frames=50, monotonic=clock.monotonic):
        times.append(clock.now)
        clock.now += 0.03  # what a frame costs
    assert times == pytest.approx([100 + 0.1 * n for n in range(50)])


def test_missed_ticks_are_left_out_and_the_schedule_is_kept():
    clock = Clock()
    times = []
    for number in paced(10, clock.wait, frames=5, monotonic=clock.monotonic):
        times.append(round(clock.now, 6))
        if number == 1:
            clock.now += 0.35
    assert times == pytest.approx([100, 100.1, 100.45, 100.5, 100.6])


def test_the_schedule_ends_when_wait_says_stop():
    assert list(paced(10, lambda seconds: True)) == []


# ---- the camera


def received(socket, sensors=("front",)):
    parts = socket.recv_multipart()
    return parse_frame(parts, sensors=sensors, now_ns=time.time_ns(), received=0.0, max_age=5)


@pytest.fixture
def camera(context, open_peer, tmp_path):
    """A camera and a daemon's end, connected: make(pattern) -> (camera socket, receiving socket)."""
    opened = []

    def make(pattern="pub"):
        endpoint = f"ipc://{tmp_path}/{pattern}"
        if pattern == "pub":
            receiver = open_peer(zmq.SUB, bind=endpoint, subscribe=b"", rcvhwm=1000)
        else:
            receiver = open_peer(zmq.PULL, bind=endpoint)
        opened.append(sender := open_camera(context, endpoint, pattern=pattern))
        deadline = time.monotonic() + 5
        while not wait_for_reader(sender, 0.01):
            assert time.monotonic() < deadline
            receiver.poll(10)  # a SUB subscribes at a new peer only while it is in use
        return sender, receiver

    yield make
    for socket in opened:
        socket.close(linger=0)


def never(seconds):
    time.sleep(min(seconds, 0.002))
    return False


@pytest.mark.parametrize("pattern", ["pub", "push"])
def test_every_frame_arrives_with_number_and_time(camera, pattern):
    sender, receiver = camera(pattern)
    images = np.stack([grey(10, (4, 5, 3)), grey(20, (4, 5, 3))])
    assert publish(sender, "front", images, fps=500, wait=never, frames=3) == 3
    frames = [received(receiver) for _ in range(3)]
    assert [frame.seq for frame in frames] == [0, 1, 2]
    assert [decode(frame)[0, 0, 0] for frame in frames] == [10, 20, 10]
    assert frames[0].timestamp < frames[1].timestamp < frames[2].timestamp <= time.time_ns()


def test_the_drift_sets_in_after_its_time(camera):
    sender, receiver = camera()
    clock = Clock()
    options = {"wait": clock.wait, "monotonic": clock.monotonic, "frames": 4}
    publish(sender, "front", grey(100, (1, 4, 5, 3)), fps=1, drift=parse_drift("exposure=-1"), after=2, **options)
    assert [decode(received(receiver))[0, 0, 0] for _ in range(4)] == [100, 100, 50, 50]


@pytest.mark.parametrize("encoding", SIMULATED_ENCODINGS)
def test_every_encoding_can_be_decoded_again(camera, encoding):
    sender, receiver = camera()
    publish(sender, "front", grey(100, (1, 16, 16, 3)), fps=100, wait=never, frames=1, encoding=encoding)
    frame = received(receiver)
    assert frame.encoding == encoding
    unit = 257 if encoding == "mono16" else 1
    assert np.abs(decode(frame) / unit - 100).max() <= 2


@pytest.mark.parametrize(("encoding", "unit"), [("mono16", 1), ("png", 1), ("rgb8", 257), ("mono8", 257)])
def test_pictures_of_16_bits_are_sent_in_the_depth_that_the_encoding_has(camera, encoding, unit):
    sender, receiver = camera()
    deep = np.full((1, 16, 16, 3), 25_701, np.uint16)
    publish(sender, "front", deep, fps=100, wait=never, frames=1, encoding=encoding)
    assert np.unique(decode(received(receiver))) == [25_701 if unit == 1 else 100]


def test_a_drift_keeps_the_depth_of_the_picture():
    deep = np.full((4, 4, 3), 25_701, np.uint16)
    darker = parse_drift("exposure=-1")(deep)
    assert darker.dtype == np.uint16 and np.abs(darker.astype(int) - 12_850).max() <= 1
    assert (parse_drift("exposure=4")(deep) == 65_535).all()


def test_without_a_daemon_nothing_blocks_and_nothing_counts_as_sent(context, tmp_path):
    with open_camera(context, f"ipc://{tmp_path}/nobody", pattern="push") as sender:
        assert not wait_for_reader(sender, 0.05)
        assert publish(sender, "front", grey(0, (1, 4, 4, 3)), fps=500, wait=never, frames=20) == 0


def test_an_endpoint_that_is_none_is_named(context):
    with pytest.raises(EndpointError, match="tcp://nowhere"):
        open_camera(context, "tcp://nowhere")


# ---- the command


def simulate(*arguments):
    command = [sys.executable, "-m", "daemon", "simulate", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


@pytest.fixture
def images(tmp_path):
    np.savez(tmp_path / "set.npz", images=grey(100, (2, 4, 4, 3)))
    return tmp_path / "set.npz"


def test_the_command_sends_what_it_is_asked_to(open_peer, tmp_path, images):
    endpoint = f"ipc://{tmp_path}/frames"
    receiver = open_peer(zmq.SUB, bind=endpoint, subscribe=b"", rcvtimeo=60_000)
    drift = ("--drift", "exposure=-1", "--sensor", "rear")
    with simulate("--images", images, "--endpoint", endpoint, "--frames", 3, "--fps", 100, *drift) as process:
        frames = [received(receiver, ("rear",)) for _ in range(3)]
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, "3 frames sent\n", "")
    assert [decode(frame)[0, 0, 0] for frame in frames] == [50, 50, 50]


def test_the_command_goes_on_until_it_is_stopped(open_peer, tmp_path, images):
    endpoint = f"ipc://{tmp_path}/frames"
    receiver = open_peer(zmq.SUB, connect=endpoint, subscribe=b"", rcvtimeo=60_000)
    with simulate("--images", images, "--endpoint", endpoint, "--bind", "--fps", 100) as process:
        received(receiver)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith(" frames sent\n")


def test_the_command_says_in_one_line_what_is_wrong(images):
    with simulate("--images", images, "--drift", "fog=1") as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert error.splitlines() == [error.strip()] and "drift 'fog' is not known; choose from haze" in error


def test_a_published_frame_that_nobody_subscribes_to_does_not_count_as_sent(context, open_peer, tmp_path):
    endpoint = f"ipc://{tmp_path}/frames"
    other = open_peer(zmq.SUB, bind=endpoint, subscribe=b"rear/")
    with open_camera(context, endpoint) as sender:
        while not wait_for_reader(sender, 0.01):
            other.poll(10)
        assert publish(sender, "front", grey(1, (1, 4, 4, 3)), fps=500, wait=never, frames=5) == 0
