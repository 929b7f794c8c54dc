"""Fixtures that several test files share, and three rules about all tests: see the plugins below."""

import fcntl
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import zmq
from places import DATA, SIMULATED_GPU
from processes import ProcessGuard, starts_process

DATA_OUTCOMES = pytest.StashKey[dict[str, str]]()  # of the tests that read real data, by test

os.environ["COLUMNS"] = "100"  # argparse and rich fold to it, whatever terminal the tests run in

# These networks are so small that a pool's threads wait longer for each other than they compute. Nothing has imported
# torch yet, and every process that a test starts inherits the setting.
for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

# How long an example takes says something about the machine, and nothing about the code.
hypothesis.settings.register_profile("recald", deadline=None)
hypothesis.settings.load_profile("recald")


def pytest_configure(config):
    config.stash[DATA_OUTCOMES] = {}
    config.pluginmanager.register(DataWatch(config), "data-watch")
    config.pluginmanager.register(ProcessWatch(), "process-watch")
    if find_spec("torch") is None:
        config.pluginmanager.register(WithoutTorch(), "without-torch")


def pytest_collection_modifyitems(items):
    """Put the files with long tests first: parallel workers then end at about the same time."""
    long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("process")}
    items.sort(key=lambda item: item.path not in long)


class ProcessWatch:
    """Marks the tests that start processes, and fails any other test that starts one."""

    def __init__(self):
        self._guard = ProcessGuard()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            if isinstance(item, pytest.Function) and starts_process(item):
                item.add_marker(pytest.mark.process)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        return (yield from self._watched(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        return (yield from self._watched(item))

    def _watched(self, item):
        if item.get_closest_marker("process"):
            return (yield)
        try:
            with self._guard.forbidding():
                result = yield
        finally:
            started = self._guard.started()
        if started:
            pytest.fail(f"this test starts a process, so it needs the marker `process`: {started}")
        return result


class WithoutTorch:
    """Leaves out what needs torch where it is not installed, and says how much that was; see .ci/py310."""

    REASON = "needs torch, which is not installed"

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        report = yield
        if report.failed and "No module named 'torch'" in str(report.longrepr):
            report.outcome, report.longrepr = "skipped", (str(collector.path), None, self.REASON)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.excinfo and isinstance(call.excinfo.value, ImportError) and call.excinfo.value.name == "torch":
            report.outcome, report.longrepr = "skipped", (str(item.path), None, self.REASON)
        return report

    def pytest_terminal_summary(self, terminalreporter):
        skipped = [r for r in terminalreporter.stats.get("skipped", []) if self.REASON in str(r.longrepr)]
        files = {report.fspath for report in skipped if isinstance(report, pytest.CollectReport)}
        left_out = f"{len(files)} test files and {len(skipped) - len(files)} tests"
        terminalreporter.write_line(f"left out, since torch is not installed: {left_out}")


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
        if "CI" in os.environ and DATA.is_dir() and terminal and whole and (message := unread(self._outcomes)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            terminal.write_line(message, red=True)


def unread(outcomes: dict[str, str]) -> str:
    """Return why the run does not prove that the real data was tested with, "" if it does."""
    skipped = [test for test, outcome in outcomes.items() if outcome == "skipped"]
    if not outcomes:
        return f"{DATA} exists, and no test that reads it ran"
    return f"{DATA} exists, and these tests did not read it: {', '.join(skipped)}" if skipped else ""


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
