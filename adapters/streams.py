"""Copies between a GPU and the host while the training goes on: nothing here makes the trainer wait for the GPU.

Events that the GPU itself waits for keep the order. A stream may do its work long after the call: until the event
behind that work, what it reads must not change, and what it writes must not be read.

    to the host     the training's stream:  [gather into staging]a                    [gather]...
                    the stream down:                             waits a [copy]b
                    b: the bytes are there (`ready`); the next gather waits for it

    to the GPU      the stream up:          waits d' [copy]c
                    the training's stream:                  waits c [blend]d
                    c: the host's values may be overwritten; d' is the d of the blend before

Runs in: the trainer's thread; what `to_host` returns may run in any thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Copies", "CudaCopies", "HostMemory", "LateLosses", "PinnedArrays", "copies_for"]

Array = npt.NDArray[Any]

# cudaHostRegisterPortable: pinned for all GPUs of the process.
_PORTABLE = 1

# Losses under way at one time. When a GPU is further behind, some are dropped; only the newest one counts.
_MOST_LOSSES = 16


class HostMemory(NamedTuple):
    """Host memory as the node sees it, and as a GPU can reach it: the same memory where possible."""

    plain: Tensor
    pinned: Tensor

    def part(self, first: int, stop: int) -> HostMemory:
        """Elements `first` to `stop` of a flat memory."""
        plain = self.plain[first:stop]
        return HostMemory(plain, plain if self.pinned is self.plain else self.pinned[first:stop])

    def typed(self, dtype: torch.dtype) -> HostMemory:
        """The same bytes as elements of another type."""
        plain = self.plain.view(dtype)
        return HostMemory(plain, plain if self.pinned is self.plain else self.pinned.view(dtype))

    def fill_plain(self) -> None:
        """After a copy from the GPU has ended."""
        if self.pinned is not self.plain:
            self.plain.copy_(self.pinned)

    def fill_pinned(self) -> None:
        """Before a copy to the GPU begins, and after the one before has ended."""
        if self.pinned is not self.plain:
            self.pinned.copy_(self.plain)


class Copies(Protocol):
    """What moves the tensors of one device: `CudaCopies`, or a stand-in on the CPU in tests."""

    def pin(self, array: Array) -> HostMemory:
        """An array of the host, flat, as memory to copy from and to. The same few arrays come again and again."""

    def staging(self, size: int, dtype: torch.dtype) -> Tensor:
        """Flat memory on the device."""

    def to_host(self, gather: Callable[[], None], moves: Sequence[tuple[Tensor, HostMemory]]) -> Callable[[], None]:
        """Run `gather`, which writes staging memory, and copy that to the host.

        Returns:
            Blocks until the bytes are there, and until the values of the last `to_device` have been read.
        """

    def to_device(self, moves: Sequence[tuple[HostMemory, Tensor]], use: Callable[[], None]) -> None:
        """Copy from the host into staging memory, and run `use`, which reads that."""

    def close(self) -> None:
        """Wait until all copies have ended."""


class PinnedArrays:
    """Makes numpy arrays reachable for the GPUs of this process. Registering takes long, so each is registered once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Array, HostMemory]] = {}
        self._registered: list[int] = []

    def pin(self, array: Array, device: torch.device) -> HostMemory:
        """The array's memory, registered with CUDA, or with a pinned twin where registering is impossible."""
        known = self._known.get(id(array))
        if known is None:
            plain = torch.from_numpy(array).view(-1)
            pinned = plain
            if self._has_registered(plain, device):
                self._registered.append(plain.data_ptr())
            else:
                pinned = torch.empty(plain.shape, dtype=plain.dtype, pin_memory=True)
            # Holding the array keeps its id from being given away.
            known = self._known[id(array)] = (array, HostMemory(plain, pinned))
        return known[1]

    def close(self) -> None:
        """Undo the registrations. No copy may be under way."""
        while self._registered:
            _cudart().cudaHostUnregister(self._registered.pop())
        self._known.clear()

    @staticmethod
    def _has_registered(plain: Tensor, device: torch.device) -> bool:
        with torch.cuda.device(device):
            error = int(_cudart().cudaHostRegister(plain.data_ptr(), plain.nbytes, _PORTABLE))
            if error == 0:
                return True
            # The refusal (memory of another device, a page that is shared with a registered array, a limit) would be
            # raised again by the next kernel that is launched in this thread: let it be one of ours.
            try:
                torch.ones(1, device=device).add_(1)
            except RuntimeError:
                return False
            return False


class CudaCopies:
    """Copies to and from one GPU on two streams of their own. See `Copies` for the methods.

    Args:
        device: the GPU.
        pinned: makes memory of the host reachable; one for all GPUs of a model.
    """

    def __init__(self, device: torch.device, pinned: PinnedArrays) -> None:
        self._device = device
        self._pinned = pinned
        self._down = _new_stream(device)
        self._up = _new_stream(device)
        # The last of their kind; None before the first.
        self._is_down: torch.cuda.Event | None = None
        self._is_up: torch.cuda.Event | None = None
        self._is_used: torch.cuda.Event | None = None

    def pin(self, array: Array) -> HostMemory:
        """See `Copies.pin`."""
        return self._pinned.pin(array, self._device)

    def staging(self, size: int, dtype: torch.dtype) -> Tensor:
        """See `Copies.staging`."""
        made = torch.empty(size, dtype=dtype, device=self._device)
        # It may lie where the training's stream still has work to do on a tensor that was freed; and when it is freed
        # itself, the other streams may still work on it.
        self._is_used = torch.cuda.current_stream(self._device).record_event()
        made.record_stream(self._down)
        made.record_stream(self._up)
        return made

    def to_host(self, gather: Callable[[], None], moves: Sequence[tuple[Tensor, HostMemory]]) -> Callable[[], None]:
        """See `Copies.to_host`."""
        training = torch.cuda.current_stream(self._device)
        if self._is_down is not None:
            training.wait_event(self._is_down)  # the staging memory is still being read
        gather()
        self._down.wait_event(training.record_event())
        with torch.cuda.stream(self._down):
            for staging, host in moves:
                host.pinned.copy_(staging, non_blocking=True)
        # A new one each time: another thread waits for this one while the next is recorded.
        is_down = self._down.record_event(_new_event())
        self._is_down, is_up = is_down, self._is_up

        def ready() -> None:
            is_down.synchronize()
            if is_up is not None:
                is_up.synchronize()
            for _, host in moves:
                host.fill_plain()

        return ready

    def to_device(self, moves: Sequence[tuple[HostMemory, Tensor]], use: Callable[[], None]) -> None:
        """See `Copies.to_device`."""
        training = torch.cuda.current_stream(self._device)
        if self._is_up is not None:
            self._is_up.synchronize()  # has ended long ago: an exchange lies between
        if self._is_used is not None:
            self._up.wait_event(self._is_used)
        for host, _ in moves:
            host.fill_pinned()
        with torch.cuda.stream(self._up):
            for host, staging in moves:
                staging.copy_(host.pinned, non_blocking=True)
        self._is_up = self._up.record_event(_new_event())
        training.wait_event(self._is_up)
        use()
        self._is_used = training.record_event()

    def close(self) -> None:
        """See `Copies.close`."""
        for event in (self._is_down, self._is_up):
            if event is not None:
                event.synchronize()


def copies_for(device: torch.device, pinned: PinnedArrays) -> Copies | None:
    """What moves the tensors of a device; None: they are read and written directly."""
    return CudaCopies(device, pinned) if device.type == "cuda" else None


# torch has no type hints for these.


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _new_event() -> torch.cuda.Event:
    """A thread that waits for it sleeps instead of polling."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class LateLosses:
    """Losses that are read from a GPU when they have arrived, without waiting for them.

    Args:
        send: starts copying a loss to the host; returns a function that says whether it has arrived, and where it does.
    """

    def __init__(self, send: Callable[[Tensor], tuple[Callable[[], bool], Tensor]] | None = None) -> None:
        self._send = send or _send_loss
        self._coming: deque[tuple[Callable[[], bool], Tensor]] = deque()

    def exchange(self, loss: Tensor) -> float | None:
        """Send the loss of this step and return the newest earlier one that has arrived; None: none has."""
        newest = None
        while self._coming and self._coming[0][0]():
            newest = float(self._coming.popleft()[1])
        if len(self._coming) < _MOST_LOSSES:
            self._coming.append(self._send(loss))
        return newest

    def close(self) -> None:
        """Forget the losses that have not arrived."""
        self._coming.clear()


def _send_loss(loss: Tensor) -> tuple[Callable[[], bool], Tensor]:
    there = torch.empty((), dtype=torch.float64, pin_memory=True)
    there.copy_(loss.detach().reshape(()).to(torch.float64), non_blocking=True)
    return torch.cuda.current_stream(loss.device).record_event().query, there
