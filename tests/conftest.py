"""Fixtures that several test files share."""

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import zmq
from places import DATA, SIMULATED_GPU

DATA_OUTCOMES = pytest.StashKey[dict[str, str]]()  # of the tests that read real data, by test

os.environ["COLUMNS"] = "100"  # argparse and rich fold to it, whatever terminal the tests run in

# How long an example takes says something about the machine, and nothing about the code.
hypothesis.settings.register_profile("recald", deadline=None)
hypothesis.settings.load_profile("recald")


def pytest_configure(config):
    config.stash[DATA_OUTCOMES] = {}
    config.pluginmanager.register(DataWatch(config), "data-watch")


class DataWatch:
    """Fails a run in CI that has the real data and did not test with it: a silent skip would prove nothing."""

    def __init__(self, config):
        self._outcomes = config.stash[DATA_OUTCOMES]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        report = yield
        report.reads_data = item.get_closest_marker("data") is not None  # comes back from parallel workers, too
        return report

    def pytest_runtest_logreport(self, report):
        if report.reads_data and (report.when == "call" or report.skipped):
            self._outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self, session):
        terminal = session.config.pluginmanager.get_plugin("terminalreporter")  # None in a parallel worker
        option = session.config.option
        whole = not (option.markexpr or option.keyword or option.file_or_dir)
        if "CI" in os.environ and DATA.is_dir() and terminal and whole and (said := unread(self._outcomes)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            terminal.write_line(said, red=True)


def unread(outcomes: dict[str, str]) -> str:
    """What speaks against the real data having been read, "" for nothing."""
    skipped = [test for test, outcome in outcomes.items() if outcome == "skipped"]
    if not outcomes:
        return f"{DATA} is there, and no test that reads it ran"
    return f"{DATA} is there, and these tests did not read it: {', '.join(skipped)}" if skipped else ""


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
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported synthetic network, with its card; not to be changed."""
    import synthetic  # both take the second that torch needs

    from deploy.model.export import export_model

    path = tmp_path_factory.mktemp("model") / "tiny.pt2"
    export_model(
        synthetic.FACTORY,
        None,
        path,
        input_shape=synthetic.SHAPE,
        mean=synthetic.MEAN,
        std=synthetic.STD,
        classes=synthetic.CLASSES,
    )
    return path


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
