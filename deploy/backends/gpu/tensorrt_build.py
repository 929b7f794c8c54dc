"""From ONNX to an engine, by NVIDIA's own parser and builder: TensorRT 10 and 11, and TensorRT for RTX."""

from __future__ import annotations

from typing import Any

from deploy.backends.gpu.tensorrt_library import Library, listener
from deploy.model.program import ModelError, first_line


def build_engine(library: Library, model: bytes) -> bytes:
    """An engine for an ONNX model whose shapes are all fixed, in the precisions that the model names, without TF32.

    Raises ModelError, which names the operator where it is one that the parser does not know.
    """
    heard = listener(library)
    builder = library.api.Builder(heard)
    network = parse(library, builder, model)
    engine = builder.build_serialized_network(network, _config(library, builder))
    if engine is None:
        raise ModelError(f"{library.name} cannot build it: {next(iter(heard.errors), 'it gives no reason')}")
    return bytes(engine)


def parse(library: Library, builder: Any, model: bytes) -> Any:
    """NVIDIA's definition of the network. Raises ModelError."""
    network = builder.create_network(_strong_typing(library))
    parser = library.api.OnnxParser(network, builder.logger)
    if not parser.parse(model):
        raise ModelError(f"{library.name} cannot read it: {_problem(parser)}")
    return network


def _strong_typing(library: Library) -> int:
    """The precision of every layer shall be the one in the model, not the one that happens to be fastest.

    TensorRT 10 must be told; from 11 on all networks are so, and the flag may be gone.
    """
    flag = getattr(library.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _config(library: Library, builder: Any) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(library.api.BuilderFlag.TF32)  # on by default: float32 with a mantissa of ten bits
    return config


def _problem(parser: Any) -> str:
    """The parser's last error in one line; its description is often the condition that did not hold."""
    error = parser.get_error(parser.num_errors - 1)
    operator = f"operator {error.node_operator()} ({error.node_name()}), " if error.node_operator() else ""
    return f"{operator}{error.code().name}: {first_line(RuntimeError(error.desc()))}"
