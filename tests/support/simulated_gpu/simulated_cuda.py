"""Simulate a GPU on the processor: the part of `torch.cuda` that recald uses, each step as late as a GPU may do it.

Work on a stream waits until somebody synchronises. Device memory starts as NaN. A graph replays the captured operators
on the captured memory. So code that forgets to wait, to copy or to keep a tensor reads wrong numbers here, as on a GPU.
The simulation says nothing about speed or kernels.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAME = "a simulated GPU"
CAPABILITY, MULTIPROCESSORS = (8, 7), 16

_current = threading.local()
_streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
_lock = threading.RLock()
_copy = torch.Tensor.copy_


class Stream:
    def __init__(self, priority: int = 0) -> None:
        self.cuda_stream = id(self)
        self._work: deque[Callable[[], Any]] = deque()
        _streams[self.cuda_stream] = self

    def put(self, work: Callable[[], Any]) -> None:
        self._work.append(work)

    def synchronize(self) -> None:
        with _lock, torch.no_grad():
            while self._work:
                self._work.popleft()()


DEFAULT = Stream()


def by_handle(handle: int) -> Stream:
    return _streams[handle]


class Graph:
    """The captured operators, and the tensors they read and write."""

    def __init__(self) -> None:
        self._recorder = _Recorder()

    def capture_begin(self, capture_error_mode: str) -> None:
        assert getattr(_current, "stream", None) is not None, "capture needs a stream that is not the default one"
        self._recorder.__enter__()

    def capture_end(self) -> None:
        self._recorder.__exit__(None, None, None)

    def replay(self) -> None:
        _current.stream.put(self._recorder.replay)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        self._calls.append((function, args, kwargs or {}, output))
        return output

    def replay(self) -> None:
        for function, args, kwargs, output in self._calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(output), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    _copy(old, new)


class _InOrder(TorchDispatchMode):
    """Makes an operator on a stream see the work that was put there before."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._stream.synchronize()
        return function(*args, **(kwargs or {}))


@contextmanager
def stream(used: Stream) -> Iterator[None]:
    before, _current.stream = getattr(_current, "stream", None), used
    try:
        with _InOrder(used):
            yield
    finally:
        _current.stream = before


def synchronize() -> None:
    for each in list(_streams.values()):
        each.synchronize()


def current_stream() -> Stream:
    return getattr(_current, "stream", None) or DEFAULT


def _copy_later(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    used = getattr(_current, "stream", None)
    if not non_blocking or used is None:
        return _copy(self, source)
    used.put(lambda: _copy(self, source))
    return self


def _allocate(*size: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> torch.Tensor:
    if device != "cuda":
        return torch.empty(*size, device=device, **options)
    return torch.empty(*size, **options).fill_(torch.nan)


def _zeros(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
    return torch.zeros(*size, device=None if device == "cuda" else device, **options)


class _Patched:
    """A module in which some names are replaced."""

    def __init__(self, module: Any, **replacements: Any):
        self._module = module
        vars(self).update(replacements)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


CUDA = _Patched(
    torch.cuda,
    is_available=lambda: True,
    get_device_name=lambda: NAME,
    get_device_capability=lambda: CAPABILITY,
    current_device=lambda: 0,
    get_device_properties=lambda device: SimpleNamespace(multi_processor_count=MULTIPROCESSORS),
    current_stream=current_stream,
    synchronize=synchronize,
    Stream=Stream,
    stream=stream,
    CUDAGraph=Graph,
    mem_get_info=lambda: (2**30, 2**31),
)
TORCH = _Patched(torch, cuda=CUDA, empty=_allocate, zeros=_zeros, compile=lambda module, **_: module)
USERS = (
    "protocol",
    "gpu.cuda",
    "gpu.device",
    "gpu.runner",
    "gpu.tensorrt_engine",
)  # modules in deploy.backends that use the GPU
STAND_INS: dict[str, Any] = {f"deploy.backends.{name}.torch": TORCH for name in USERS} | {
    "deploy.backends.gpu.cuda.move_to_device_pass": lambda program, device: program,
    "torch.Tensor.copy_": _copy_later,
    "torch.Tensor.cuda": torch.Tensor.clone,
}
BENCH_USERS = ("ceilings", "engines", "swap")  # modules in bench.gpu, which a daemon does not import
BENCH_STAND_INS: dict[str, Any] = {f"bench.gpu.{name}.torch": TORCH for name in BENCH_USERS} | {
    "bench.gpu.engines.move_to_device_pass": lambda program, device: program,
}
