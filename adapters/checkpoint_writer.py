"""Copies what a checkpoint keeps, and writes it in a thread of its own.

The copy is one piece of memory per tensor, made by the first checkpoint and used again by all others: writing begins
when it is complete, and the next copy begins when that is written. So there are never two at once. Tensors on a GPU
are copied to pinned memory by the training's own stream, so that the next step cannot change what is being copied, and
no memory of the GPU is needed; the writing thread waits for that, and the trainer does not.

Must not know: what the tensors are, nodes. Runs in: `begin` in the trainer's thread, `_write` in the thread
`dpwa-checkpoint-NAME`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoint_files import write_checkpoint
from .plain_state import Plain

__all__ = ["Copied", "Writer", "Written"]


class Copied(NamedTuple):
    """A copy of tensors, whose values are there when `wait` has returned.

    Attributes:
        tensors: by name, on the CPU, contiguous.
        wait: blocks until the GPUs have copied theirs; None if there are none.
    """

    tensors: dict[str, Tensor]
    wait: Callable[[], None] | None


class Written(NamedTuple):
    """How the writing of a checkpoint ended.

    Attributes:
        step: training steps in it.
        size_bytes: of the file.
        duration_s: that it took.
        error: why there is none; None if there is.
    """

    step: int
    size_bytes: int
    duration_s: float
    error: Exception | None


class Writer:
    """Writes the checkpoints of one node.

    Args:
        node: its name.
        folder: of its checkpoints.
        keep: how many stay.
        ended: called in the writing thread after each.
    """

    def __init__(self, node: str, folder: Path, *, keep: int, ended: Callable[[Written], None]) -> None:
        self._folder = folder
        self._keep = keep
        self._ended = ended
        self._held: dict[str, Tensor] = {}
        self._jobs: queue.SimpleQueue[tuple[int, Plain, Copied] | None] = (
            queue.SimpleQueue()
        )  # one at most, and the end
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name=f"dpwa-checkpoint-{node}", daemon=True)

    @property
    def is_busy(self) -> bool:
        """Whether the copy is still being written."""
        return not self._idle.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is being written; False if that takes longer."""
        return self._idle.wait(timeout_s)

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> Copied:
        """Copy tensors as they are now. Not while the writer is busy."""
        held = {name: self._place_for(name, tensor) for name, tensor in tensors.items()}
        self._held = held
        here = [name for name, tensor in tensors.items() if tensor.device.type != "cuda"]
        if here:
            torch._foreach_copy_([held[name] for name in here], [tensors[name] for name in here])
        events = []
        for device in {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}:
            for name, tensor in tensors.items():
                if tensor.device == device:
                    held[name].copy_(tensor, non_blocking=True)
            made = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            events.append(torch.cuda.current_stream(device).record_event(made))

        def wait() -> None:
            for event in events:
                event.synchronize()

        return Copied(dict(held), wait if events else None)

    def _place_for(self, name: str, tensor: Tensor) -> Tensor:
        known = self._held.get(name)
        if known is not None and known.shape == tensor.shape and known.dtype is tensor.dtype:
            return known
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")

    def begin(self, step: int, plain: Plain, copied: Copied) -> None:
        """Have a checkpoint written. Not while the writer is busy; never waits."""
        self._idle.clear()
        if self._thread.ident is None:
            self._thread.start()
        self._jobs.put((step, plain, copied))

    def close(self, timeout_s: float) -> bool:
        """Write what has been begun, and end the thread; False if that takes longer."""
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._held = {}
        return not self._thread.is_alive()

    # --- In the writing thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._did_next():
            pass

    def _did_next(self) -> bool:
        """A function, so that an idle thread holds no copy."""
        job = self._jobs.get()
        if job is None:
            return False
        try:
            self._ended(self._write(*job))
        finally:
            self._idle.set()
        return True

    def _write(self, step: int, plain: Plain, copied: Copied) -> Written:
        began_s = time.monotonic()
        size_bytes, failure = 0, None
        try:
            if copied.wait is not None:
                copied.wait()
            _, size_bytes = write_checkpoint(self._folder, plain, copied.tensors, keep=self._keep)
        except (OSError, MemoryError, RuntimeError, ValueError) as error:  # of the disk, of the GPU, of a number
            failure = error
        return Written(step, size_bytes, time.monotonic() - began_s, failure)
