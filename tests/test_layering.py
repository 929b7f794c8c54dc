"""Imports go one way, between packages, rooms and files; a library is imported in its place; a name means one thing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Set

import pytest
from places import ROOT
from sources import (
    FILES,
    PACKAGES,
    circle,
    imported,
    imported_files,
    libraries,
    room,
    room_imports,
    shared_names,
    tree,
)

# Which packages a package may import besides itself.
DIRECTIONS: dict[str, set[str]] = {
    "calibrate": set(),
    "deploy": {"calibrate"},
    "daemon": {"calibrate", "deploy"},
    "bench": {"calibrate", "deploy", "daemon"},
}

# Who may import a library that is not everybody's: files, or rooms ending in "/".
LIBRARIES = {
    "onnx": {"deploy/backends/onnx_export.py"},
    "onnxruntime": {"deploy/backends/onnx.py"},
    "yaml": {"deploy/model/card.py", "deploy/model/document.py", "daemon/demo/"},
    "pydantic": {
        "deploy/model/",
        "deploy/store/",
        "daemon/config.py",
        "daemon/settings/",
        "daemon/recalibration/envelope.py",
    },
    "cryptography": {"deploy/audit/signature.py"},
    "pydantic_core": {"deploy/model/"},
    "safetensors": {"deploy/backends/", "deploy/model/", "deploy/store/", "daemon/demo/", "bench/"},
    "sklearn": {"daemon/demo/"},
    "scipy": {"bench/proxy.py", "bench/drift/"},
    "psutil": {"bench/watch.py"},
    "cv2": {"daemon/", "bench/"},
    "zmq": {"daemon/", "bench/"},
    "rich": {"daemon/", "bench/"},
    "jinja2": {"daemon/operator/report/"},
    "grafana_foundation_sdk": {"deploy/monitoring/dashboard/"},
    "matplotlib": {"bench/dashboard/"},
    "prometheus_client": {"daemon/", "bench/intake/readers.py", "bench/streams/daemon.py"},
}
# They need not be installed, so they are imported by name, when a backend that needs them is opened.
OPTIONAL = {
    "tensorrt": {"deploy/backends/gpu/"},
    "tensorrt_rtx": {"deploy/backends/gpu/"},
    "torch_tensorrt": {"deploy/backends/gpu/"},
    "imagezmq": {"bench/intake/"},
    "pynvml": {"daemon/monitoring/gpu_nvml.py"},
    "river": {"bench/drift/"},
}
PRIVATE_TO_DAEMON = {"zmq", "prometheus_client", "cv2", "rich"}
CLOCKS = {"time", "datetime"}
FILES_AND_PROCESSES = {
    "os",
    "io",
    "pathlib",
    "socket",
    "subprocess",
    "multiprocessing",
    "threading",
    "json",
    "tempfile",
}

# All that deploy takes from the method: ρ itself, how a model's BatchNorm layers are read, what was measured of clean
# frames, and the errors' base.
TAKEN_BY_DEPLOY = {
    "calibrate.baseline.baseline.BASELINE_PREFIX",
    "calibrate.baseline.baseline.Baseline",
    "calibrate.baseline.frames.MAX_CHANNELS",
    "calibrate.errors.RecaldError",
    "calibrate.estimate.estimator.AccuracyEstimator",
    "calibrate.features.overwrites.overwrites_values",
    "calibrate.features.taps.NoBatchNorm",
    "calibrate.features.taps.Taps",
    "calibrate.features.taps.is_batchnorm",
    "calibrate.features.taps.tap",
    "calibrate.homogenizer.Homogenizer",
    "calibrate.readouts.picture_statistics.PictureStatistics",
    "calibrate.source.commissioned.CleanData",
    "calibrate.split.AnyHomogenizer",
    "calibrate.split.SplitHomogenizer",
    "calibrate.split.rebuild",
}

# Names that may be defined in several files, and why.
SHARED = {
    "log": "each module's logger",
    "_MODULE_BY_NAME": "the table behind a package's public names",
    "_NAMES_BY_MODULE": "the table behind a package's public names",
}

# What `recald --help` and `recald status` must not import: each costs 0.1 s to 2 s on a PC, far more on a device.
SLOW = {"torch", "cv2", "zmq", "numpy", "rich", "pydantic", "onnxruntime"}
SLOW_FOR_STATUS = {"torch", "cv2", "numpy", "onnxruntime"}


def of(package: str) -> list[str]:
    return [file for file in FILES if file.startswith(f"{package}/")]


def package(file: str) -> str:
    return file.split("/")[0]


def offenders(files: Iterable[str], wrong: Callable[[str], Set[str]]) -> dict[str, list[str]]:
    """Return what is wrong with each file that something is wrong with."""
    return {file: sorted(found) for file in files if (found := wrong(file))}


def misplaced(found: set[str], places: dict[str, set[str]], file: str) -> set[str]:
    """Return the libraries of the table that a file imports outside of their places."""
    return {name for name in found & places.keys() if not any(_within(file, place) for place in places[name])}


def _within(file: str, place: str) -> bool:
    return file == place or (place.endswith("/") and file.startswith(place))


def imported_by_name(file: str) -> set[str]:
    """Return the modules that a file looks for or imports by `find_spec` and `import_module`."""
    calls = (n for n in ast.walk(tree(file)) if isinstance(n, ast.Call) and n.args)
    found = {call.args[0] for call in calls if ast.unparse(call.func).endswith(("find_spec", "import_module"))}
    return {argument.value for argument in found if isinstance(argument, ast.Constant)}


# ---- packages


def test_every_package_was_looked_at():
    assert all(of(package) for package in PACKAGES)
    assert "torch" in libraries("calibrate/fitting.py") and "deploy" in libraries("daemon/worker/main.py")
    assert offenders(["daemon/cli.py", "daemon/loop.py"], lambda file: libraries(file) & {"zmq"}) == {
        "daemon/loop.py": ["zmq"]
    }


def test_packages_are_imported_in_one_direction():
    def wrong(file: str) -> set[str]:
        return (libraries(file) & {*PACKAGES, "tests"}) - DIRECTIONS[package(file)] - {package(file)}

    assert offenders(FILES, wrong) == {}


def test_no_test_is_imported():
    assert offenders(FILES, lambda file: libraries(file) & {"tests", "pytest", "hypothesis", "synthetic"}) == {}


def test_deployment_takes_from_the_method_what_is_listed():
    taken = {name for file in of("deploy") for name in imported(file) if name.startswith("calibrate.")}
    modules = {name.rpartition(".")[0] for name in taken}
    assert {name for name in taken if name not in modules} == TAKEN_BY_DEPLOY


def test_the_method_needs_torch_alone():
    allowed = {"torch", "calibrate", "__future__", *sys.stdlib_module_names}
    assert offenders(of("calibrate"), lambda file: libraries(file) - allowed) == {}


def test_the_method_knows_no_clocks_files_sockets_or_processes():
    assert offenders(of("calibrate"), lambda file: libraries(file) & (CLOCKS | FILES_AND_PROCESSES)) == {}


def test_deployment_knows_nothing_of_frames_origin():
    assert offenders(of("deploy"), lambda file: libraries(file) & PRIVATE_TO_DAEMON) == {}


# ---- rooms and files


def test_no_two_rooms_import_each_other():
    graph = room_imports()
    assert not [(one, other) for one in graph for other in graph[one] if one < other and one in graph[other]]


def test_imports_between_rooms_lead_back_to_none():
    assert circle(room_imports()) == []


def test_imports_between_files_lead_back_to_none():
    assert circle({file: imported_files(file) for file in FILES}) == []


def test_a_circle_would_be_found():
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]})[0] in ("b", "c")
    assert (room("daemon/worker/main.py"), room("daemon/loop.py")) == ("daemon/worker/", "daemon/loop.py")
    assert "daemon/worker/" in room_imports()["daemon/recalibration/"]
    assert "calibrate/fitting.py" in imported_files("daemon/worker/fitter.py")


# ---- libraries


def test_libraries_are_imported_in_their_places():
    known = {*PACKAGES, *LIBRARIES, "torch", "numpy", "__future__", *sys.stdlib_module_names}
    assert offenders(FILES, lambda file: misplaced(libraries(file), LIBRARIES, file)) == {}
    assert offenders(FILES, lambda file: misplaced(imported_by_name(file), OPTIONAL, file)) == {}
    assert offenders(FILES, lambda file: libraries(file) - known) == {}


@pytest.mark.parametrize(("library", "places"), LIBRARIES.items(), ids=LIBRARIES)
def test_every_place_is_used(library, places):
    for place in places:
        assert any(library in libraries(file) for file in FILES if _within(file, place)), place


def test_nothing_unpickles_without_restriction():
    assert offenders(FILES, lambda file: libraries(file) & {"dill", "joblib", "shelve", "marshal", "cPickle"}) == {}
    assert offenders(FILES, lambda file: imported(file) & {"pickle.load", "pickle.loads", "pickle.Unpickler"}) == {}
    for file in FILES:
        for call in (n for n in ast.walk(tree(file)) if isinstance(n, ast.Call)):
            if ast.unparse(call.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(call), file


# ---- names


def test_a_class_or_constant_is_defined_in_one_file_alone():
    found = shared_names()
    assert {name: files for name, files in found.items() if name not in SHARED} == {}
    assert not SHARED.keys() - found.keys(), "an exception that nothing needs any more"


# ---- what a short command costs


def test_help_and_status_import_nothing_slow():
    """In processes of their own; status asks a daemon that is not there, which takes all of its imports."""
    for arguments, slow in (
        (["--help"], SLOW),
        (["status"], SLOW_FOR_STATUS),
        (["status", "--config", "/dev/null"], SLOW_FOR_STATUS),
    ):
        assert not imported_by(*arguments) & slow, arguments


def imported_by(*arguments: str) -> set[str]:
    """Return the modules that a command has imported by its end."""
    code = f"""
import json, sys
from daemon.cli import main
try:
    main({list(arguments)!r})
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))
