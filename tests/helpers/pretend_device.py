"""A device that no machine need have: tensors that say that they are on it, compute on the CPU, and obey its rules.

What a device refuses is refused: operands on two devices, ``.numpy()``, a data type that it has not. What takes time on
a real one is counted, with the line that asked for it: kernels that are launched, copies and answers that the host
waits for. What goes wrong there only now and then goes wrong here each time: a copy that the host does not wait for
leaves NaN until its event is waited for, work on one stream may not read what another one has not finished, and memory
that a copy still reads must be marked with ``record_stream``. Speed, the device's own rounding and its real memory are
nothing that this can tell.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch._dynamo  # dispatch modes import it, and it looks at the functions that are replaced below
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST = torch.device("cpu")
_OURS = ("/gpu_probes/", "/activation_store/", "/probesweep/")

# Answers that Python needs.
_ANSWERS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__format__", "__repr__")
# Operations whose result has a size that only the device knows, or that look at an error code.
_WAITS = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal", "isin")
_WAITS += ("_linalg_check_errors", "_local_scalar_dense")
# Not a kernel each: memory, and what only makes a tensor of a number.
_NO_KERNEL = ("empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "lift_fresh", "scalar_tensor")
_NO_KERNEL += ("new_empty_strided", "_local_scalar_dense", "_unsafe_view", "_reshape_alias", "resize_", "set_")


class RaceError(AssertionError):
    """Work that may read what is not there yet."""


class PretendTensor(Tensor):
    """A tensor on the pretend device."""

    device_of_all: ClassVar[PretendDevice | None] = None
    # Where and when it was written last.
    stream: PretendStream
    moment: int

    def record_stream(self, stream: PretendStream) -> None:
        """Keep the memory until the stream has done what it has so far."""
        self.is_kept = True

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert cls.device_of_all is not None, "the pretend device is gone"
        return cls.device_of_all.call(func, args, kwargs or {})


class PretendStream:
    """Work in the order in which it was handed over, done at once, except for copies that nobody waits for."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.moment = 0
        self.seen: dict[PretendStream, int] = {}
        self.copies: list[Callable[[], None]] = []

    def wait_stream(self, other: PretendStream) -> None:
        """Begin nothing more before the other has done what it has so far."""
        self.seen[other] = other.moment
        for stream, moment in other.seen.items():
            self.seen[stream] = max(moment, self.seen.get(stream, 0))

    def wait_event(self, event: PretendEvent) -> None:
        """Begin nothing more before an event."""
        self.seen[event.stream] = max(event.moment, self.seen.get(event.stream, 0))

    def record_event(self) -> PretendEvent:
        """Mark what there is so far."""
        event = PretendEvent()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Wait for everything."""
        while self.copies:
            self.copies.pop(0)()


class PretendEvent:
    """A mark in a stream."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.stream, self.moment, self.n_copies = PretendStream(), 0, 0

    def record(self, stream: PretendStream) -> None:
        """Mark what the stream has been given so far."""
        self.stream, self.moment = stream, stream.moment
        self.copies = list(stream.copies)

    def synchronize(self) -> None:
        """Wait for it."""
        for copy in self.copies:
            if copy in self.stream.copies:
                self.stream.copies.remove(copy)
                copy()


@dataclass
class Counts:
    """What was asked of the device, by the line that asked."""

    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)


class PretendDevice:
    """The device.

    Parameters
    ----------
    kind : str
        "cuda" or "mps".
    total_nbytes : int
        Of its memory, as it says.
    largest_nbytes : int, optional
        A tensor that is larger raises ``torch.OutOfMemoryError``.
    """

    def __init__(self, kind: str, *, total_nbytes: int = 2**36, largest_nbytes: int | None = None) -> None:
        self.device = torch.device(kind, 0)
        self.total_nbytes, self.largest_nbytes = total_nbytes, largest_nbytes
        self.counts = Counts()
        self._default = PretendStream()
        self._local = threading.local()
        self._pinned: set[int] = set()
        self._lock = threading.Lock()

    # Streams

    @property
    def current(self) -> PretendStream:
        """The stream that this thread hands its work to."""
        return getattr(self._local, "stream", self._default)

    def set_stream(self, stream: PretendStream) -> None:
        """Hand this thread's work to another stream."""
        self._local.stream = stream

    @contextmanager
    def on_stream(self, stream: PretendStream) -> Iterator[None]:
        """Hand work to another stream for a while."""
        before = self.current
        self.set_stream(stream)
        try:
            yield
        finally:
            self.set_stream(before)

    # Operations

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of torch, on whatever devices its operands are."""
        name = func.__name__
        with torch._C.DisableTorchFunction():
            if name == "__get__":
                return self._attribute(func, args)
            if name == "__set__":
                return func(*_plain(args))
            operands = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            ours = [one for one in operands if isinstance(one, PretendTensor)]
            wanted = self._wanted(name, args, kwargs)
            if not ours and wanted != self.device:
                return self._on_host(func, args, kwargs)
            for one in ours:
                self._check_race(one, name)
            if name in ("numpy", "__array__"):
                raise TypeError(f"can't convert {self.device} device type tensor to numpy")
            if name == "_has_compatible_shallow_copy_type":
                return len(ours) == len(operands)
            if name in _ANSWERS:
                self._count(self.counts.waits, name)
                return func(*_plain(args), **_plain(kwargs))
            if name in ("copy_", "to", "cpu", "cuda", "type_as", "__setitem__", "fill_"):
                return self._copy(name, func, args, kwargs, wanted)
            if wanted == self.device and name in ("tensor", "as_tensor", "asarray", "new_tensor"):
                self._count(self.counts.uploads, name)
            elif name == "__getitem__":
                self._check_index(args[1], of=args[0])
            elif wanted is None and any(one.dim() for one in operands if not isinstance(one, PretendTensor)):
                raise RuntimeError(
                    f"{name}: expected all tensors to be on the same device, but found {self.device} and cpu"
                )
            there = wanted in (None, self.device)
            return self._run(func, args, kwargs, there=there)

    def _attribute(self, func: Any, args: tuple[Any, ...]) -> Any:
        name, tensor = func.__self__.__name__, args[0]
        if not isinstance(tensor, PretendTensor):
            return func(*args)
        if name == "device":
            return self.device
        if name in ("is_cuda", "is_mps", "is_cpu"):
            return name == f"is_{self.device.type}"
        value = func(*_plain(args))
        return self._placed(value) if isinstance(value, Tensor) else value

    def _on_host(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pinned = bool(kwargs.get("pin_memory")) or func.__name__ == "pin_memory"
        if not pinned:
            return func(*args, **kwargs)
        made = args[0].clone() if func.__name__ == "pin_memory" else func(*args, **{**kwargs, "pin_memory": False})
        self._pinned.add(made.untyped_storage().data_ptr())
        return made

    def _wanted(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
        """The device that a call names; None: that of its operands."""
        named = kwargs.get("device")
        if name == "cpu":
            return HOST
        if name == "cuda":
            return self.device
        if name == "to":
            for one in (*args[1:], kwargs.get("other")):
                if isinstance(one, Tensor):
                    return self.device if isinstance(one, PretendTensor) else HOST
                if isinstance(one, (str, torch.device)):
                    named = one
        if name == "type_as":
            return self.device if isinstance(args[1], PretendTensor) else HOST
        if named is None:
            return None
        device = torch.device(named)
        return self.device if device.type == self.device.type else device

    def _copy(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wanted: torch.device | None,
    ) -> Any:
        """Move values between the devices, or within one."""
        if name in ("copy_", "__setitem__", "fill_"):
            into, source = args[0], args[-1]
            if name == "__setitem__":
                self._check_index(args[1], of=into, assigns=source)
            if isinstance(into, PretendTensor):
                if isinstance(source, Tensor) and not isinstance(source, PretendTensor) and source.dim():
                    self._upload(name, source, kwargs)
                return self._run(func, args, kwargs, there=True)
            if not kwargs.get("non_blocking") or into.untyped_storage().data_ptr() not in self._pinned:
                self._count(self.counts.waits, name)
                func(*_plain(args), **_plain(kwargs))
                return into
            return self._copy_later(into, source)
        source = args[0]
        leaves = isinstance(source, PretendTensor) and wanted not in (None, self.device)
        arrives = not isinstance(source, PretendTensor) and wanted == self.device
        if leaves:
            self._count(self.counts.waits, name)
        elif arrives:
            self._upload(name, source, kwargs)
        if name == "cuda":
            func, args, kwargs = Tensor.to, (source, HOST), {}
        there = wanted in (None, self.device) if isinstance(source, PretendTensor) else True
        moved = self._run(func, args, kwargs, there=there)
        if leaves or arrives:
            # Devices share no memory.
            plain = _plain(moved).clone()
            return self._placed(plain) if there else plain
        return moved

    def _copy_later(self, into: Tensor, source: PretendTensor) -> Tensor:
        """Copy to the host without waiting: nothing is there before an event behind it has been waited for."""
        values, alive, state = _plain(source), weakref.ref(source), source.__dict__
        if into.is_floating_point():
            into.fill_(torch.nan)

        def copy() -> None:
            if alive() is None and not state.get("is_kept"):
                raise RaceError("memory was freed while a copy still read it; record_stream was not called")
            into.copy_(values)

        stream = self.current
        stream.moment += 1
        stream.copies.append(copy)
        return into

    def _upload(self, name: str, source: Tensor, kwargs: dict[str, Any]) -> None:
        if not kwargs.get("non_blocking") or source.untyped_storage().data_ptr() not in self._pinned:
            self._count(self.counts.uploads, name)

    def _check_index(self, index: Any, of: Tensor, assigns: Any = None) -> None:
        """Count what an index costs: one on the host is copied, a mask has to be counted first."""
        for one in index if isinstance(index, tuple) else (index,):
            if isinstance(one, PretendTensor) and not isinstance(of, PretendTensor):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            if isinstance(one, PretendTensor):
                is_mask = one.dtype in (torch.bool, torch.uint8)
                # A mask that takes one number is filled in without being counted.
                fills = assigns is not None and (not isinstance(assigns, Tensor) or assigns.numel() == 1)
                if is_mask and not fills:
                    self._count(self.counts.waits, "a mask as index")
            elif not isinstance(one, (int, slice, bool, type(None), type(...))) and not (
                isinstance(one, Tensor) and not one.dim()
            ):
                self._count(self.counts.uploads, "an index on the host")

    def _run(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], *, there: bool) -> Any:
        """Compute on the CPU, count what the device would do, and place the result."""
        twins: dict[int, tuple[Tensor, PretendTensor]] = {}

        def plain(one: Any) -> Any:
            if isinstance(one, PretendTensor):
                twin = _plain(one)
                twins[id(twin)] = twin, one
                return twin
            return HOST if self._is_ours(one) else one

        def placed(one: Any) -> Any:
            # What was written in place stays the object that it was.
            if id(one) in twins:
                return self._written(twins[id(one)][1])
            return self._placed(one) if isinstance(one, Tensor) else one

        plain_args, plain_kwargs = tree_map(plain, (tuple(args), kwargs))
        with _Counting(self):
            out = func(*plain_args, **plain_kwargs)
        if func.__name__ == "__setitem__":
            self._written(args[0])
        return tree_map(placed, out) if there else out

    def _is_ours(self, one: Any) -> bool:
        if isinstance(one, torch.device):
            return one.type == self.device.type
        return isinstance(one, str) and one.split(":")[0] == self.device.type

    def _placed(self, plain: Tensor) -> PretendTensor:
        """A tensor of the CPU, said to be on the device."""
        self._check_type(plain.dtype)
        if self.largest_nbytes is not None and plain.numel() * plain.element_size() > self.largest_nbytes:
            raise torch.OutOfMemoryError(f"{self.device} has no room for {tuple(plain.shape)}")
        placed = Tensor._make_subclass(PretendTensor, plain, plain.requires_grad)
        return self._written(placed)

    def _check_type(self, dtype: torch.dtype) -> None:
        if self.device.type == "mps" and dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")

    def _written(self, tensor: PretendTensor) -> PretendTensor:
        stream = self.current
        tensor.stream, tensor.moment = stream, stream.moment
        return tensor

    def _check_race(self, tensor: PretendTensor, name: str) -> None:
        stream = self.current
        written = getattr(tensor, "stream", stream)
        if written is not stream and stream.seen.get(written, -1) < tensor.moment:
            raise RaceError(f"{name} reads what another stream may still be writing, at {_asking()}")

    def launched(self, name: str) -> None:
        """Count a kernel."""
        with self._lock:
            self.current.moment += 1
        self._count(self.counts.kernels, name)

    def _count(self, counter: Counter[str], name: str) -> None:
        with self._lock:
            counter[f"{name} at {_asking()}"] += 1


class _Counting(TorchDispatchMode):
    """Counts what one call comes down to."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            # In inference mode what is made of other operations comes whole.
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func.overloadpacket.__name__
        if name in _WAITS:
            self._device._count(self._device.counts.waits, name)
        if name not in _NO_KERNEL and not func.is_view:
            self._device.launched(name)
        return func(*args, **kwargs)


class _Everywhere(TorchFunctionMode):
    """Shows every call of a thread to the device, also those that make tensors."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._device.call(func, args, kwargs or {})


def _plain(values: Any) -> Any:
    """The same without the pretence."""
    return tree_map(lambda one: Tensor.as_subclass(one, Tensor) if isinstance(one, PretendTensor) else one, values)


def _asking() -> str:
    """The line of this project that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if any(part in name for part in _OURS) and "/tests/" not in name:
            return f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@contextmanager
def pretended(device: PretendDevice) -> Iterator[PretendDevice]:
    """Let torch have this device, in all threads that start from now on."""
    run = threading.Thread.run

    def run_on_device(thread: threading.Thread) -> None:
        with _Everywhere(device):
            run(thread)

    kind = device.device.type
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "run", run_on_device)
        patch.setattr(PretendTensor, "device_of_all", device)
        if kind == "mps":
            patch.setattr(torch.backends.mps, "is_available", lambda: True)
        else:
            for name, value in _cuda(device).items():
                patch.setattr(torch.cuda, name, value)
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Everywhere(device):
                yield device
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _cuda(device: PretendDevice) -> dict[str, Any]:
    """What stands for the functions of `torch.cuda`."""
    nothing: Callable[..., None] = lambda *_args, **_kwargs: None  # noqa: E731
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "a pretend device",
        "mem_get_info": lambda *_: (device.total_nbytes, device.total_nbytes),
        "set_device": nothing,
        "empty_cache": nothing,
        "synchronize": nothing,
        "Stream": PretendStream,
        "Event": PretendEvent,
        "current_stream": lambda *_: device.current,
        "default_stream": lambda *_: device._default,
        "set_stream": device.set_stream,
        "stream": device.on_stream,
    }
