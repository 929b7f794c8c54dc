"""Imports go one way, calibrate <- deploy <- daemon, and a library for one purpose is imported in one place."""

import ast
import sys

import pytest
from places import ROOT

ROOMS = ("calibrate", "deploy", "daemon", "bench")
FILES = {str(path.relative_to(ROOT)): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}

# Who may import a library that is not everybody's: files, or rooms ending in "/".
LIBRARIES = {
    "onnx": {"deploy/backends/onnx_export.py"},
    "onnxruntime": {"deploy/backends/onnx.py"},
    "yaml": {"deploy/model/card.py", "deploy/model/document.py", "daemon/demo/"},
    "pydantic": {"deploy/", "daemon/config.py", "daemon/recalibration/envelope.py"},
    "cryptography": {"deploy/audit/signature.py"},
    "pydantic_core": {"deploy/model/document.py"},
    "safetensors": {"deploy/", "daemon/demo/", "bench/"},
    "sklearn": {"daemon/demo/"},
    "cv2": {"daemon/", "bench/"},
    "zmq": {"daemon/", "bench/"},
    "rich": {"daemon/", "bench/"},
    "jinja2": {"daemon/report/"},
    "prometheus_client": {"daemon/", "bench/intake/readers.py", "bench/streams/daemon.py"},
}
PRIVATE_TO_DAEMON = ("zmq", "prometheus_client", "cv2", "rich")


def imported(tree: ast.AST) -> set[str]:
    """Full names of the modules that are imported anywhere in a file, `from a import b` as a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return names


def packages(file: str) -> set[str]:
    """What a file imports, by top-level name, without the standard library."""
    names = imported(ast.parse(FILES[file].read_text()))
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"__future__"}


def of(room: str) -> list[str]:
    return [file for file in FILES if file.startswith(f"{room}/")]


def allowed(file: str, library: str) -> bool:
    return any(file == place or (place.endswith("/") and file.startswith(place)) for place in LIBRARIES[library])


def test_every_room_was_looked_at():
    assert all(of(room) for room in ROOMS)
    assert "torch" in packages("calibrate/fitting.py") and "deploy" in packages("daemon/worker/main.py")


@pytest.mark.parametrize("file", of("calibrate"))
def test_the_method_needs_torch_alone(file):
    assert packages(file) <= {"torch", "calibrate"}


@pytest.mark.parametrize("file", of("calibrate"))
def test_the_method_knows_no_files_sockets_or_processes(file):
    names = {name.partition(".")[0] for name in imported(ast.parse(FILES[file].read_text()))}
    assert not names & {"os", "io", "pathlib", "socket", "subprocess", "multiprocessing", "threading", "json"}


@pytest.mark.parametrize("file", of("deploy"))
def test_deployment_knows_nothing_of_the_daemon(file):
    assert not packages(file) & {"daemon", "bench", *PRIVATE_TO_DAEMON}


def test_deployment_takes_only_the_homogenizer_from_the_method():
    taken = {name for file in of("deploy") for name in imported(ast.parse(FILES[file].read_text()))}
    assert {n for n in taken if n.startswith("calibrate")} == {
        "calibrate.homogenizer",
        "calibrate.homogenizer.Homogenizer",
    }


@pytest.mark.parametrize("file", of("daemon"))
def test_the_daemon_does_not_need_the_bench(file):
    assert "bench" not in packages(file)


@pytest.mark.parametrize("file", FILES)
def test_no_test_is_imported(file):
    assert not packages(file) & {"tests", "pytest", "hypothesis", "synthetic"}


@pytest.mark.parametrize("file", FILES)
def test_libraries_are_imported_in_their_places(file):
    misplaced = {p for p in packages(file) & LIBRARIES.keys() if not allowed(file, p)}
    assert not misplaced
    assert packages(file) <= {*ROOMS, *LIBRARIES, "torch", "numpy"}


@pytest.mark.parametrize(("library", "places"), LIBRARIES.items(), ids=LIBRARIES)
def test_every_place_is_used(library, places):
    for place in places:
        assert any(library in packages(file) for file in FILES if file == place or file.startswith(place))


@pytest.mark.parametrize("file", FILES)
def test_nothing_unpickles_without_restriction(file):
    tree = ast.parse(FILES[file].read_text())
    assert not {n for n in imported(tree) if n.split(".")[0] in ("dill", "joblib", "shelve", "marshal", "cPickle")}
    assert imported(tree) & {"pickle.load", "pickle.loads", "pickle.Unpickler"} == set()
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(call)
