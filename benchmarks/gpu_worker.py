"""A training script on a GPU in one process, timed block by block, without dpwa and with it.

Must not know: the statistics. Runs in: a worker's main thread, which is the trainer's; `ready` of a copy in dpwa's
publish thread.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from gpu_job import GpuBlock, GpuJob, GpuTimed
from gpu_networks import CASES, TINY

import dpwa.adapters.pytorch as adapter
from dpwa.observe.bounded_file import read_records
from dpwa.snapshot.layout import Buffer
from dpwa.snapshot.staging import Values

# A node starts with finding its peer; timing begins when this many exchanges have been made.
_FIRST_EXCHANGES = 3
_LEARNING_RATE = 1e-4


class Script:
    """The training script itself: bfloat16 autocast and a fused AdamW, as one would train on a GPU."""

    def __init__(self, job: GpuJob) -> None:
        case = (TINY if job.tiny else CASES)[job.case]
        self.device = torch.device("cpu")
        if job.device == "cuda":
            self.device = torch.device("cuda", job.rank % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        torch.manual_seed(0)
        self.model = case.make().to(self.device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=_LEARNING_RATE, fused=True)
        torch.manual_seed(job.rank + 1)
        self._inputs, self._targets = case.make_data(job.batch or case.batch, self.device)
        self._loss = case.loss

    def step(self) -> torch.Tensor:
        """One training step; its loss, which nobody has waited for."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self._loss(self.model(self._inputs), self._targets)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def wait(self) -> None:
        """Until the GPU has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def mark(self) -> torch.cuda.Event | None:
        """A moment on the training's stream; None without a GPU."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Watch:
    """What the parts of dpwa in the trainer's thread and on its stream took."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.on = False
        self.host_s: dict[str, list[float]] = {"publish": [], "apply": []}
        self.ready_s: list[float] = []
        self._marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {"publish": [], "apply": []}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part."""
        first, start_s = self._script.mark(), time.perf_counter()
        yield
        host_s, last = time.perf_counter() - start_s, self._script.mark()
        if self.on:
            self.host_s[name].append(host_s)
            if first is not None and last is not None:
                self._marks[name].append((first, last))

    def gpu_s(self, name: str) -> list[float]:
        """What a part took on the training's stream, from the end of what was queued before it; waits for the GPU."""
        self._script.wait()
        return [first.elapsed_time(last) / 1e3 for first, last in self._marks[name]]

    def timed_model(self) -> type:
        """The adapter's own model with this watch."""
        watch = self

        class Timing(adapter.TorchModel):  # type: ignore[misc]
            def copy_into(self, buffer: Buffer) -> Callable[[], None] | None:
                with watch.part("publish"):
                    ready = super().copy_into(buffer)
                if ready is None:
                    return None
                start_s = time.perf_counter()

                def timed_ready() -> None:
                    ready()
                    if watch.on:
                        watch.ready_s.append(time.perf_counter() - start_s)

                return timed_ready

            def blend(self, values: Sequence[Values], factor: float) -> None:
                with watch.part("apply"):
                    super().blend(values, factor)

        return Timing


def train(line: Connection, job: GpuJob) -> None:
    """Train the blocks that the parent orders, until the pipe breaks.

    After its timed steps a worker goes on until the parent says that all have made theirs, so that none is timed beside
    idle neighbours.
    """
    os.chdir(tempfile.gettempdir())  # nothing of a run lands in the checkout
    script = Script(job)
    while True:
        block: GpuBlock = line.recv()
        if block.config is None:
            timed = _timed(script, block, script.step, int)
            _go_on(line, script.step)
        else:
            timed = _train_with_dpwa(line, script, block, f"w{job.rank + 1}")
        line.send(timed)


def _go_on(line: Connection, step: Callable[[], object]) -> None:
    line.send("made the timed steps")
    while not line.poll():
        step()
    line.recv()


def _train_with_dpwa(line: Connection, script: Script, block: GpuBlock, name: str) -> GpuTimed:
    watch = Watch(script)
    plain = adapter.TorchModel
    with tempfile.TemporaryDirectory(prefix="dpwa-bench-") as folder:
        os.environ["DPWA_RUN_DIR"] = folder
        adapter.TorchModel = watch.timed_model()  # type: ignore[misc]
        try:
            node = adapter.DpwaPyTorchAdapter(script.model, name, block.config)
        finally:
            adapter.TorchModel = plain  # type: ignore[misc]
        with node:

            def step() -> None:
                node.step(script.step())

            timed = _timed(script, block, step, lambda: node.statistics().blended, watch)
            _go_on(line, step)
        return replace(
            timed,
            publish_host_s=watch.host_s["publish"],
            publish_gpu_s=watch.gpu_s("publish"),
            ready_s=watch.ready_s,
            apply_host_s=watch.host_s["apply"],
            apply_gpu_s=watch.gpu_s("apply"),
            exchange_s=_exchange_durations_s(Path(folder, "nodes", name, "events.jsonl")),
            model_mb=node._tensors.layout.total_bytes / 1e6,  # noqa: SLF001
        )


def _timed(
    script: Script,
    block: GpuBlock,
    step: Callable[[], object],
    blended: Callable[[], int],
    watch: Watch | None = None,
) -> GpuTimed:
    for _ in range(block.warm_up):
        step()
    while watch is not None and blended() < _FIRST_EXCHANGES:
        step()
        script.wait()  # or thousands of steps would be queued before the peer is there
    script.wait()
    blends = blended()
    if watch is not None:
        watch.on = True
    start_s = time.perf_counter()
    for _ in range(block.steps):
        step()
    script.wait()
    elapsed_s = time.perf_counter() - start_s
    if watch is not None:
        watch.on = False
    return GpuTimed(block.steps, elapsed_s, blended() - blends)


def _exchange_durations_s(events: Path) -> list[float]:
    """Of the exchanges that were blended; the node has been closed, so that its journal is complete."""
    return [event["duration_s"] for event in read_records(events) if event.get("outcome") == "blended"]
