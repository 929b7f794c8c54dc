"""Check a `.pt2` archive before PyTorch reads it: it may only hold what an exported network needs.

`torch.export.load` runs much of what it finds. Symbolic expressions and shape guards are evaluated as Python, names
become part of generated Python code, operators are looked up by name in all of torch, records may be pickles, and
shared libraries under `data/aotinductor/` are loaded. A digest proves which file this is, not that it is harmless.
An archive that passes is packed again, so that PyTorch reads exactly the records that were checked.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pickle import UnpicklingError
from typing import Any

import torch

MAX_ARCHIVE_RECORDS = 100_000
MAX_ARCHIVE_JSON_BYTES = 256 << 20
MAX_ARCHIVE_JSON_LEVELS = 100
MAX_EXPRESSION_CHARACTERS = 2000
MAX_EXPONENT = 16  # in a shape expression

# Records by their place below the archive's root folder.
ARCHIVE_RECORD = re.compile(
    r"models/model\.json|data/(weights|constants)/((weight|tensor)_\d+|model_(weights|constants)_config\.json)"
    r"|data/(weights|constants|sample_inputs)/model\.pt"  # torch 2.8 stores tensors like this, later versions none
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
ARCHIVE_ROOT = re.compile(r"[\w.-]{1,100}")
PYTHON_NAME = re.compile(r"([A-Za-z_]\w{0,500})?", re.ASCII)  # in generated Python code; an argument may have none
PLAIN_TEXT = re.compile(r"[\w.+\- ]{0,500}", re.ASCII)  # any other text that has no meaning of its own
MAX_HISTORY_CHARACTERS = 1 << 20  # of text that says where an operator came from: printed, never run
OPERATOR_NAME = re.compile(
    r"torch\.ops\.(aten|prims|quantized|higher_order|torchvision)\.[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", re.ASCII
)
ARITHMETIC_NAME = re.compile(r"(_operator|math)\.[a-z_]+|torch\.sym_[a-z_]+|torch\._sym_[a-z_]+", re.ASCII)
ARITHMETIC_FUNCTIONS = frozenset(
    "add sub mul neg pow floordiv truediv mod eq ne lt le gt ge and_ or_ not_ getitem pos abs "
    "ceil floor trunc sqrt int float sum max min ite".split()
)

SIZE_SYMBOL = re.compile(r"[a-z]{1,6}\d{1,6}", re.ASCII)  # s0, u1, zuf3
NUMBER_TEXT = re.compile(r"-?[\d.]{1,40}(e-?\d{1,3})?", re.ASCII)  # the argument of Float
EXPRESSION_FUNCTIONS = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv CeilToInt FloorToInt "
    "TruncToInt TruncToFloat RoundToInt IntTrueDiv FloatTrueDiv PowByNatural FloatPow ModularIndexing Where ToFloat "
    "Identity floor ceiling Abs Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan "
    "GreaterThan And Or Not".split()
)
SYMBOL_ASSUMPTIONS = frozenset("positive integer nonnegative real negative zero finite precision".split())
TREE_TYPES = frozenset((None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"))


class UnsafeArchive(ValueError):
    """The archive holds something that no exported network needs; the message names it."""


def checked_archive(data: bytes) -> bytes:
    """Check the archive in `data` and return it packed again. Raises UnsafeArchive, BadZipFile for no archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root, records = _records(archive)
    for name, record in records.items():
        if name.endswith(".json"):
            _check_json(name, record)
        elif name.endswith(".pt") and record:
            _check_tensors(name, record)
    return _pack(root, records)


def _records(archive: zipfile.ZipFile) -> tuple[str, dict[str, bytes]]:
    """Root folder, and content by place below it; every name and size is checked before it is read."""
    entries = archive.infolist()
    roots = {entry.filename.partition("/")[0] for entry in entries}
    if (
        len(entries) > MAX_ARCHIVE_RECORDS
        or len({entry.filename for entry in entries}) < len(entries)
        or len(roots) != 1
    ):
        raise UnsafeArchive("it is not the archive of one program: records are repeated, too many or of several roots")
    (root,) = roots
    places = {entry.filename.removeprefix(f"{root}/"): entry for entry in entries}
    for place, entry in places.items():
        if not ARCHIVE_RECORD.fullmatch(place) or not ARCHIVE_ROOT.fullmatch(root):
            raise UnsafeArchive(f"{_quoted(entry.filename)} is no record of an exported network")
        if entry.compress_type != zipfile.ZIP_STORED or (
            place.endswith(".json") and entry.file_size > MAX_ARCHIVE_JSON_BYTES
        ):
            raise UnsafeArchive(f"{entry.filename} is compressed or too large")
    for needed in ("archive_format", "models/model.json"):
        if needed not in places:
            raise UnsafeArchive("not written by torch.export.save of torch 2.8 or later")
    return root, {place: archive.read(entry) for place, entry in places.items()}


def _pack(root: str, records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for place, record in records.items():
            archive.writestr(f"{root}/{place}", record)
    return buffer.getvalue()


def _check_json(name: str, record: bytes) -> None:
    try:
        document = json.loads(record)
    except RecursionError as error:
        raise UnsafeArchive(f"{name} is nested too deeply") from error
    for path, value in _strings(document, ()):
        check = STRING_CHECKS.get(path[-1] if path else "", _is_text)
        if not check(value):
            raise UnsafeArchive(f"{name}: {'.'.join(map(str, path))} is {_quoted(value)}, which no network needs")
    if name.endswith("_config.json"):
        _check_config(name, document)


def _strings(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string with the keys that lead to it; the keys themselves as strings of their own."""
    if len(path) > MAX_ARCHIVE_JSON_LEVELS:
        raise UnsafeArchive("its JSON is nested too deeply")
    if isinstance(value, dict):
        for key, part in value.items():
            yield (*path, "(key)"), key
            yield from _strings(part, (*path, key))
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part, path)
    elif isinstance(value, str):
        yield path, value


def _check_tensors(name: str, record: bytes) -> None:
    """Refuse a record of torch.save that holds more than tensors: torch.export.load would unpickle it unrestricted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about unusual pickles, which are read or refused
            torch.load(io.BytesIO(record), weights_only=True)
    except UnpicklingError as error:
        raise UnsafeArchive(f"{name} holds more than tensors, which could run code") from error


def _check_config(name: str, document: Any) -> None:
    """Weights and constants are plain tensors: no pickle, no foreign object."""
    config = document.get("config") if isinstance(document, dict) else None
    if not isinstance(config, dict):
        raise UnsafeArchive(f"{name} has no table of tensors")
    for key, payload in config.items():
        if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
            raise UnsafeArchive(f"{name}: {_quoted(key)} is stored as a pickle, which could run code")
        if not re.fullmatch(r"(weight|tensor)_\d+", str(payload.get("path_name"))):
            raise UnsafeArchive(f"{name}: {_quoted(key)} is in {_quoted(payload.get('path_name'))}, which is no tensor")


def _is_text(value: str) -> bool:
    return PLAIN_TEXT.fullmatch(value) is not None


def _is_name(value: str) -> bool:
    return PYTHON_NAME.fullmatch(value) is not None and not _is_dunder(value)


def _is_key(value: str) -> bool:
    return _is_text(value) and not _is_dunder(value)


def _is_dunder(value: str) -> bool:
    return any(part.startswith("__") and part.endswith("__") for part in value.split("."))


def _is_history(value: str) -> bool:
    return len(value) <= MAX_HISTORY_CHARACTERS


def _is_operator(value: str) -> bool:
    """An operator of PyTorch that exists, or arithmetic of shapes; looked up, never called."""
    if ARITHMETIC_NAME.fullmatch(value):
        return value.rpartition(".")[2].removeprefix("sym_").removeprefix("_sym_") in ARITHMETIC_FUNCTIONS
    if not OPERATOR_NAME.fullmatch(value) or "__" in value:
        return False
    found: Any = torch.ops
    for part in value.split(".")[2:]:
        found = getattr(found, part, None)
    return isinstance(found, torch._ops.OpOverload | torch._ops.HigherOrderOperator)


def _is_expression(text: str) -> bool:
    """A shape expression: symbols, numbers, arithmetic and sympy's functions of them."""
    tree = _parsed(text)
    return tree is not None and _all_allowed(tree, _is_expression_node)


def _is_expression_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        keywords = all(k.arg in SYMBOL_ASSUMPTIONS and isinstance(k.value, ast.Constant) for k in node.keywords)
        return isinstance(node.func, ast.Name) and node.func.id in EXPRESSION_FUNCTIONS and keywords
    if isinstance(node, ast.Name):
        return bool(SIZE_SYMBOL.fullmatch(node.id)) or node.id in EXPRESSION_FUNCTIONS
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # sympy would evaluate any other text again
        return bool(SIZE_SYMBOL.fullmatch(node.value) or NUMBER_TEXT.fullmatch(node.value))
    return _is_arithmetic(node)


def _is_guard(text: str) -> bool:
    """A condition on the sizes of the input: L['input'].size()[0] >= 2."""
    tree = _parsed(text)
    return tree is not None and _all_allowed(tree, _is_guard_node)


def _is_guard_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and not node.args and not node.keywords
    if isinstance(node, ast.Attribute):
        return node.attr in ("size", "stride", "storage_offset")
    if isinstance(node, ast.Subscript):
        return True
    if isinstance(node, ast.Name):
        return node.id == "L"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return bool(PYTHON_NAME.fullmatch(node.value))
    return _is_arithmetic(node)


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return (
            isinstance(node.right, ast.Constant)
            and isinstance(node.right.value, int)
            and node.right.value <= MAX_EXPONENT
        )
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float)
    return isinstance(
        node,
        ast.Expression
        | ast.BinOp
        | ast.UnaryOp
        | ast.BoolOp
        | ast.Compare
        | ast.operator
        | ast.unaryop
        | ast.boolop
        | ast.cmpop
        | ast.expr_context
        | ast.keyword,
    )


def _parsed(text: str) -> ast.Expression | None:
    if len(text) > MAX_EXPRESSION_CHARACTERS:
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _all_allowed(tree: ast.AST, allowed: Callable[[ast.AST], bool]) -> bool:
    return all(map(allowed, ast.walk(tree)))


def _is_tree(text: str) -> bool:
    """How inputs and outputs are nested: tuples, lists and dicts, no class of anybody's making."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return all(path[-1] != "type" or value in TREE_TYPES for path, value in _strings(spec, ("spec",))) and all(
        _is_key(value) or value.startswith("[") for path, value in _strings(spec, ("spec",))
    )


def _quoted(value: object) -> str:
    return repr(str(value)[:60])


STRING_CHECKS: dict[str, Callable[[str], bool]] = {
    "(key)": _is_key,
    "expr_str": _is_expression,
    "guards_code": _is_guard,
    "target": _is_operator,
    "as_operator": _is_operator,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    "name": _is_name,
    "forward_arg_names": _is_name,
    "as_name": _is_name,
    "nn_module_stack": _is_history,
    "torch_fn": _is_history,
    "source_fn_stack": _is_history,
    "stack_trace": _is_history,
    "from_node": _is_history,
}
