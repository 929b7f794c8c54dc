"""torch-tensorrt as builder. A stand-in has the signatures of its versions, since its import needs a GPU."""

from __future__ import annotations

import inspect
import logging
import socket
import stat
import sys
import warnings
from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from calibrate.homogenizer import Homogenizer
from deploy.backends.gpu.backend import ENGINE_KEY, unpack_engine
from deploy.backends.gpu.tensorrt import TensorRtBackend, TensorRtRtxBackend
from deploy.backends.gpu.tensorrt_library import TensorRtLibrary
from deploy.backends.gpu.torch_tensorrt_build import build_with_torch_tensorrt, load_torch_tensorrt
from deploy.model.program import ModelError

EXAMPLE = torch.zeros(1, 3, 8, 10)
WEIGHTS = ["curve", "offset", "kernel", "bias"]
NAMES = "arg_input_binding_names"

# What convert_exported_program_to_serialized_trt_engine of each generation has a parameter for, as far as it matters.
OLDEST = {
    "disable_tf32",
    "enabled_precisions",
    "immutable_weights",
    "min_block_size",
    "require_full_compilation",
    "timing_cache_path",
    "use_explicit_typing",
    "use_python_runtime",
}
CACHING = {"cache_built_engines", "reuse_cached_engines"}
WEAK_TYPING = {"enabled_precisions", "use_explicit_typing"}
GENERATIONS = {
    "2.8.0": OLDEST,
    "2.9.0": OLDEST | CACHING,
    "2.12.1": OLDEST | CACHING,
    "2.13.0": (OLDEST | CACHING) - WEAK_TYPING,
    "2.14.0": (OLDEST | CACHING | {NAMES}) - WEAK_TYPING,
}
NO_SETTINGS = {NAMES}  # parameters of the function that are no field of CompilationSettings
EVERY_GENERATION = pytest.mark.parametrize("version", GENERATIONS)
ALWAYS = {"disable_tf32": True, "immutable_weights": True, "require_full_compilation": True, "min_block_size": 1}
NO_CACHE = dict.fromkeys(CACHING, False)


class Convert:
    """Returns as engine the names that the real function would give the inputs. Ignores every unknown keyword."""

    def __init__(self, keywords: set[str]):
        parameters = [inspect.Parameter("exported_program", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        parameters += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in ["arg_inputs", *sorted(keywords)]]
        self.__signature__ = inspect.Signature(
            [*parameters, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]
        )
        self.calls: list[dict[str, Any]] = []
        self.meanwhile: Callable[[torch.export.ExportedProgram], Any] = lambda program: None

    def __call__(self, exported_program: torch.export.ExportedProgram, **given: Any) -> Any:
        self.calls.append(given)
        answer = self.meanwhile(exported_program)
        placeholders = exported_program.run_decompositions({}).module().graph.find_nodes(op="placeholder")
        names = given[NAMES] if NAMES in self.__signature__.parameters else [node.target for node in placeholders]
        return ",".join(names).encode() if answer is None else answer


def stand_in(version: str = "2.13.0", keywords: set[str] | None = None, settings: set[str] | None = None) -> Any:
    keywords = GENERATIONS[version] if keywords is None else keywords
    dynamo = SimpleNamespace(
        convert_exported_program_to_serialized_trt_engine=Convert(keywords),
        CompilationSettings=make_dataclass(
            "CompilationSettings", keywords - NO_SETTINGS if settings is None else settings
        ),
    )
    return SimpleNamespace(__version__=version, dynamo=dynamo)


def convert_of(library: Any) -> Convert:
    return library.dynamo.convert_exported_program_to_serialized_trt_engine


class Network(nn.Module):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.flip(3).relu()


def program(module: nn.Module | None = None) -> torch.export.ExportedProgram:
    return torch.export.export((module or Network()).eval(), (EXAMPLE,))


def reasons(library: Any, inputs: tuple[str, ...] = ("frames",)) -> str:
    """Build a network that is refused; returns the reason after the builder's name, which is one line."""
    with pytest.raises(ModelError, match=f"^torch-tensorrt {library.__version__} cannot build it: ") as caught:
        build_with_torch_tensorrt(library, program(), inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value).partition("cannot build it: ")[2]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning or worse; torch.export traces itself below that."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def backend_with(monkeypatch) -> Callable[[Any], TensorRtBackend]:
    """The backend over a TensorRT that is not there, whose parser makes an engine of the ONNX model itself."""
    library = TensorRtLibrary("TensorRT", SimpleNamespace(__version__="10.13.0"))
    monkeypatch.setattr(TensorRtBackend, "_load_library", staticmethod(lambda: library))
    monkeypatch.setattr("deploy.backends.gpu.tensorrt.build_engine", lambda library, model: b"parsed:" + model)

    def backend_with(torch_tensorrt: Any) -> TensorRtBackend:
        monkeypatch.setattr(TensorRtBackend, "_load_torch_tensorrt", staticmethod(lambda: torch_tensorrt))
        return TensorRtBackend()

    return backend_with


def engine_of(backend: TensorRtBackend, module: nn.Module) -> bytes:
    return unpack_engine(backend.compile(module, EXAMPLE))[ENGINE_KEY].numpy().tobytes()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package `torch_tensorrt` of this text where Python finds it first."""

    def install(text: str) -> Path:
        package = tmp_path / "torch_tensorrt"
        package.mkdir()
        (package / "__init__.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("torch_tensorrt", None)
        return tmp_path

    yield install
    sys.modules.pop("torch_tensorrt", None)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.8.0", ALWAYS | {"use_explicit_typing": True}),
        ("2.9.0", ALWAYS | {"use_explicit_typing": True} | NO_CACHE),
        ("2.12.1", ALWAYS | {"use_explicit_typing": True} | NO_CACHE),
        ("2.13.0", ALWAYS | NO_CACHE),
        ("2.14.0", ALWAYS | NO_CACHE | {NAMES: ("frames",)}),
    ],
)
def test_each_generation_gets_the_keywords_it_knows(version, expected):
    library = stand_in(version)
    assert build_with_torch_tensorrt(library, program(), ["frames"]) == b"frames"
    (given,) = convert_of(library).calls
    assert {name: value for name, value in given.items() if name not in ("arg_inputs", "timing_cache_path")} == expected
    assert given.keys() <= convert_of(library).__signature__.parameters.keys()


@pytest.mark.parametrize("keyword", [*ALWAYS, "timing_cache_path", "use_explicit_typing"])
@pytest.mark.parametrize("where", ["keywords", "settings"])
def test_a_version_that_would_ignore_a_required_keyword_is_not_used(keyword, where):
    """Some keywords are ignored silently. Others are still parameters, but nothing reads them."""
    library = stand_in("2.9.0", **{where: GENERATIONS["2.9.0"] - {keyword}})
    assert reasons(library) == f"this version would ignore {keyword}"
    assert convert_of(library).calls == []


@EVERY_GENERATION
def test_a_homogenizers_weights_are_inputs_by_their_names(backend_with, version):
    library = stand_in(version)
    assert engine_of(backend_with(library), Homogenizer(3, 8, 10)) == b"frames,curve,offset,kernel,bias"
    (given,) = convert_of(library).calls
    weights = Homogenizer(3, 8, 10)
    shapes = [EXAMPLE.shape, *(getattr(weights, name).shape for name in WEIGHTS)]
    assert [tensor.shape for tensor in given["arg_inputs"]] == shapes


@EVERY_GENERATION
def test_an_input_has_the_name_that_was_asked_for_or_there_is_no_engine(version):
    library = stand_in(version)
    if NAMES in GENERATIONS[version]:
        assert build_with_torch_tensorrt(library, program(), ["images"]) == b"images"
    else:
        assert reasons(library, inputs=("images",)) == "the inputs would be named frames"
        assert convert_of(library).calls == []


def test_kernel_timings_go_to_a_private_file_that_is_deleted():
    library, seen = stand_in(), []

    def look(_: Any) -> None:
        folder = Path(convert_of(library).calls[-1]["timing_cache_path"]).parent
        seen.append((folder, stat.S_IMODE(folder.stat().st_mode), list(folder.iterdir())))

    convert_of(library).meanwhile = look
    for _ in range(2):
        build_with_torch_tensorrt(library, program(), ["frames"])
    (first, *facts), (second, *_) = seen
    assert facts == [0o700, []] and first != second and not first.exists()


def as_up_to_2_12(_: Any) -> None:
    """The cause is logged. Then the missing result raises another error."""
    try:
        raise RuntimeError("Conversion of function aten::bernoulli not supported!\n\nWhile executing %bernoulli")
    except RuntimeError:
        logging.getLogger("torch_tensorrt.dynamo._compiler").error(
            "module GraphModule(\n  not convertible", exc_info=True
        )
    raise UnboundLocalError("cannot access local variable 'interpreter_result'")


def as_since_2_13(_: Any) -> None:
    try:
        raise RuntimeError("Conversion of function aten::bernoulli not supported!\n\nWhile executing %bernoulli")
    except RuntimeError as error:
        logging.getLogger("torch_tensorrt.dynamo._compiler").error(
            "module GraphModule(\n  not convertible", exc_info=True
        )
        raise RuntimeError("Conversion of module GraphModule(\n  not convertible") from error


def as_tensorrt_does(_: Any) -> None:
    logging.getLogger("torch_tensorrt [TensorRT Conversion Context]").error("Error Code 10: no kernel for node x\n")
    raise AssertionError


def as_cuda_does(_: Any) -> None:
    raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (as_up_to_2_12, "Conversion of function aten::bernoulli not supported!"),
        (as_since_2_13, "Conversion of function aten::bernoulli not supported!"),
        (as_tensorrt_does, "Error Code 10: no kernel for node x"),
        (as_cuda_does, "CUDA error: out of memory"),
        (lambda _: 0, "it returned int, not an engine"),
        (lambda _: b"", "it returned bytes, not an engine"),
    ],
)
def test_a_refusal_names_its_cause_in_one_line(failure, reason, capfd, caplog):
    library = stand_in()
    convert_of(library).meanwhile = failure
    assert reasons(library) == reason
    assert capfd.readouterr() == ("", "") and warned(caplog) == []


def test_what_it_prints_warns_and_logs_is_suppressed_during_the_build_only(capfd, caplog):
    logger = logging.getLogger("torch_tensorrt.dynamo")

    def speak(_: Any) -> None:
        print("AttributeError: IAlgorithmSelector")
        warnings.warn("Interpretation will fail", stacklevel=1)
        logger.warning("Remaining GPU memory may not be enough")

    library = stand_in()
    convert_of(library).meanwhile = speak
    build_with_torch_tensorrt(library, program(), ["frames"])
    assert capfd.readouterr() == ("", "") and warned(caplog) == []
    logger.warning("heard again")
    print("seen again")
    assert logging.getLogger("torch_tensorrt").handlers == []
    assert warned(caplog) == ["heard again"] and capfd.readouterr().out == "seen again\n"


def test_a_network_that_it_refuses_is_built_by_the_parser_with_a_warning(backend_with, caplog):
    """The parser gets the unchanged network, although torch-tensorrt lowers its own copy in place."""
    library = stand_in()

    def spoil(given: torch.export.ExportedProgram) -> None:
        (flip,) = (node for node in given.graph.nodes if "flip" in node.name)
        flip.replace_all_uses_with(flip.args[0])
        given.graph.erase_node(flip)
        as_since_2_13(given)

    convert_of(library).meanwhile = spoil
    without = engine_of(backend_with(None), Network())
    assert b"parsed:" in without and not warned(caplog)
    assert engine_of(backend_with(library), Network()) == without
    assert warned(caplog) == [
        "torch-tensorrt 2.13.0 cannot build it: Conversion of function aten::bernoulli not supported!; "
        "the ONNX parser is used instead"
    ]


def test_the_parser_is_left_alone_where_torch_tensorrt_takes_the_network(backend_with, monkeypatch, caplog):
    monkeypatch.delattr("deploy.backends.gpu.tensorrt.build_engine")
    assert engine_of(backend_with(stand_in()), Network()) == b"frames" and warned(caplog) == []


def test_the_version_names_the_builder(backend_with):
    assert (
        backend_with(stand_in("2.9.0"))
        .version()
        .startswith(f"TensorRT 10.13.0, built by torch-tensorrt 2.9.0, torch {torch.__version__}, ")
    )
    assert (
        backend_with(None)
        .version()
        .startswith(f"TensorRT 10.13.0, built by its ONNX parser, torch {torch.__version__}, ")
    )


def test_tensorrt_for_rtx_is_never_built_by_torch_tensorrt(install, backend_with, monkeypatch):
    """torch-tensorrt is for one of the two libraries, and this one is for TensorRT."""
    install("raise SystemExit('imported')")
    library = TensorRtLibrary("TensorRT-RTX", SimpleNamespace(__version__="1.7"))
    monkeypatch.setattr(TensorRtRtxBackend, "_load_library", staticmethod(lambda: library))
    backend = TensorRtRtxBackend()
    assert engine_of(backend, Network()).startswith(b"parsed:")
    assert backend.version().startswith("TensorRT-RTX 1.7, built by its ONNX parser, ")


def test_where_it_is_not_installed_nothing_is_logged(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    assert load_torch_tensorrt() is None and warned(caplog) == []


def test_an_installed_one_is_loaded_without_output(install, capfd, caplog):
    install(
        "import logging, warnings\n"
        "__version__ = '2.13.0'\n"
        "print('hello')\n"
        "warnings.warn('no torchvision')\n"
        "logging.captureWarnings(True)\n"
        "logging.getLogger('torch_tensorrt.dynamo').warning('no modelopt')\n"
    )
    shown = warnings.showwarning
    assert load_torch_tensorrt().__version__ == "2.13.0"
    assert capfd.readouterr() == ("", "") and warned(caplog) == []
    assert warnings.showwarning is shown, "the process's warnings go where they went before"


def test_one_that_breaks_when_it_is_imported_leaves_the_parser(install, backend_with, monkeypatch, capfd, caplog):
    """Without its libraries, and without a GPU, the real one prints and raises what is no ImportError."""
    install("print('import error')\nraise Exception('Could not find libnvinfer.so.11\\nmake sure it is there')\n")
    without = engine_of(backend_with(None), Network())
    monkeypatch.setattr(TensorRtBackend, "_load_torch_tensorrt", staticmethod(load_torch_tensorrt))
    backend = TensorRtBackend()
    assert engine_of(backend, Network()) == without
    assert "built by its ONNX parser" in backend.version()
    assert warned(caplog) == ["torch-tensorrt is installed but cannot be imported: Could not find libnvinfer.so.11"]
    assert capfd.readouterr() == ("", "")


def test_the_one_for_rtx_is_not_even_imported(install):
    """It would put TensorRT-RTX in the place of the module `tensorrt`."""
    folder = install("raise SystemExit('imported')")
    (folder / "torch_tensorrt_rtx-2.13.0.dist-info").mkdir()
    (folder / "torch_tensorrt_rtx-2.13.0.dist-info" / "METADATA").write_text(
        "Name: torch-tensorrt-rtx\nVersion: 2.13.0\n"
    )
    assert load_torch_tensorrt() is None


def test_no_socket_is_opened(install, backend_with, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise SystemExit("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    install("__version__ = '2.13.0'\n")
    assert load_torch_tensorrt() is not None
    backend = backend_with(stand_in())
    assert engine_of(backend, Homogenizer(3, 8, 10)).startswith(b"frames,") and backend.version()
