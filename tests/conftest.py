"""Fixtures that several test files share. tests/support/plugins.py has the rules that all tests obey."""

import fcntl
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import plugins
import pytest
import zmq
from places import DATA, SIMULATED_GPU

os.environ["COLUMNS"] = "100"  # argparse and rich fold to it, whatever terminal the tests run in

# These networks are so small that a pool's threads wait longer for each other than they compute. Nothing has imported
# torch yet, and every process that a test starts inherits the setting.
for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

# In these, test after test fits homogenizers, trains networks, builds engines or runs daemons: longer together than
# all other tests that start no process. `make test-fast` leaves them out, like all tests marked `data`.
SLOW = (
    "bench/",
    "calibrate/test_device.py",
    "calibrate/test_fitting.py",
    "daemon/demo/",
    "daemon/operator/test_commission.py",
    "daemon/recalibration/test_state_machine_transitions.py",
    "deploy/backends/gpu/",
    "deploy/backends/test_protocol.py",
    "deploy/model/test_precision.py",
    "process/",
)
TESTS = Path(__file__).parent
# What runs longest, the longest first: a parallel worker that got one of these last would end minutes after the others.
LONGEST = (
    "process/test_daemon_recalibration.py",
    "process/test_daemon_fits.py",
    "process/test_daemon_modes.py",
    "daemon/model/test_engine_build.py",
    "process/test_faults.py",
    "process/test_page.py",
    "process/test_daemon.py",
    "process/test_monitoring.py",
    "process/test_no_telemetry.py",
)

# How long an example takes says something about the machine, and nothing about the code.
hypothesis.settings.register_profile("recald", deadline=None, max_examples=60)
hypothesis.settings.register_profile("fast", deadline=None, max_examples=15)  # of `make test-fast`, for 60
hypothesis.settings.load_profile("recald")


def pytest_configure(config):
    plugins.register(config)


def pytest_ignore_collect(collection_path, config):
    """Import no slow file where slow tests are left out."""
    left_out = "not slow" in config.option.markexpr and collection_path.is_relative_to(TESTS)
    return (left_out and collection_path.relative_to(TESTS).as_posix().startswith(SLOW)) or None


def pytest_collection_modifyitems(items):
    """Mark what is slow, and put the longest files first: parallel workers then end at about the same time."""
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(SLOW) or item.get_closest_marker("data"):
            item.add_marker(pytest.mark.slow)
    long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("process")}
    items.sort(key=lambda item: (_place(item.path), item.path.parent.name != "process", item.path not in long))


def _place(path: Path) -> int:
    name = path.relative_to(TESTS).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.fixture(scope="session")
def recald_data() -> Path:
    """The folder of real images and networks."""
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA}: set RECALD_DATA to the folder that holds cifar10_test.npz")
    return DATA


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    """A ZeroMQ context that fails the test where a socket of it is left open, instead of hanging."""
    context = zmq.Context()
    yield context
    ending = threading.Thread(target=context.term, daemon=True)
    ending.start()
    ending.join(5)
    assert not ending.is_alive(), "a ZeroMQ socket was left open"


@pytest.fixture
def open_peer(context) -> Iterator[Callable[..., zmq.Socket]]:
    """Open sockets of the test's own, connected or bound; they are closed when the test ends."""
    opened: list[zmq.Socket] = []

    def open_peer(kind: int, *, connect: str = "", bind: str = "", **options: object) -> zmq.Socket:
        opened.append(socket := context.socket(kind))
        socket.linger = 0
        socket.rcvtimeo = socket.sndtimeo = 5000
        for name, value in options.items():
            setattr(socket, name, value)
        if connect:
            socket.connect(connect)
        if bind:
            socket.bind(bind)
        return socket

    yield open_peer
    for socket in opened:
        socket.close()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all parallel workers of a run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_model(shared_folder: Path) -> Path:
    """The exported synthetic network, with its card; made once for all workers, not to be changed."""
    path = shared_folder / "model" / "tiny.pt2"
    with (shared_folder / "model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            _export_tiny(path)
    return path


def _export_tiny(path: Path) -> None:
    import synthetic  # both take the second that torch needs

    from deploy.model.export import export_model

    export_model(
        synthetic.BUILDER,
        None,
        path,
        input_shape=synthetic.SHAPE,
        mean=synthetic.MEAN,
        std=synthetic.STD,
        classes=synthetic.CLASSES,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for UNIX sockets, wherever pytest keeps its own."""
    with tempfile.TemporaryDirectory(prefix="recald-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A simulated one, with a simulated TensorRT."""
    monkeypatch.syspath_prepend(SIMULATED_GPU)
    import simulated_cuda

    for name, stand_in in simulated_cuda.STAND_INS.items():
        monkeypatch.setattr(name, stand_in)
    yield simulated_cuda
    for name in ("tensorrt", "simulated_cuda"):
        sys.modules.pop(name, None)
