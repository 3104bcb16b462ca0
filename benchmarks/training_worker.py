"""A training script in one process, timed block by block, without dpwa, with it, or under DistributedDataParallel.

Must not know: the statistics. Runs in: a worker's main thread, which is the trainer's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
import torch.distributed
from measure import pin
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training_job import Block, Timed

import dpwa.adapters.pytorch as adapter
from dpwa import mend_torchvision
from dpwa.examples.digits.model import digits_network
from dpwa.examples.fashion_mnist.model import fashion_network
from dpwa.snapshot.layout import Buffer
from dpwa.snapshot.staging import Values

_CLASSES = 10

# A node starts with finding its peer; timing begins when this many exchanges have been made.
_FIRST_EXCHANGES = 3
_LEARNING_RATE = 0.01


def _resnet18() -> nn.Module:
    mend_torchvision()
    from torchvision.models import resnet18  # noqa: PLC0415 - after it has been mended

    network: nn.Module = resnet18(num_classes=_CLASSES)
    return network


# Makes the network, and the shape of one image.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "fashion": (fashion_network, (1, 28, 28)),
    "digits": (digits_network, (1, 8, 8)),
    "resnet18": (_resnet18, (3, 32, 32)),
}


@dataclass
class _Parts:
    """Seconds of the trainer's thread inside dpwa; `cpu_s` is the processor time of all of them."""

    publish_s: float = 0.0
    apply_s: float = 0.0
    step_s: float = 0.0
    cpu_s: float = 0.0


class _Script:
    """The training script itself.

    Args:
        network: name in NETWORKS.
        batch: samples per step.
        seed: of the data; the first weights are the same for all.
        pause_s: added to every step.
    """

    def __init__(self, network: str, batch: int, seed: int, pause_s: float) -> None:
        self._made_from = (network, batch, seed, pause_s)
        make, shape = NETWORKS[network]
        torch.manual_seed(0)
        self.model = make()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=_LEARNING_RATE, momentum=0.9)
        torch.manual_seed(seed + 1)
        self._images = torch.randn(batch, *shape)
        self._labels = torch.randint(0, _CLASSES, (batch,))
        self._loss = nn.CrossEntropyLoss()
        self._pause_s = pause_s

    def again(self) -> _Script:
        """The same script from its start."""
        return _Script(*self._made_from)

    def step(self, model: nn.Module) -> torch.Tensor:
        """One training step; the loss of it."""
        if self._pause_s:
            time.sleep(self._pause_s)
        loss: torch.Tensor = self._loss(model(self._images), self._labels)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss


def train(line: Connection, network: str, batch: int, core: int | None, rank: int, pause_s: float = 0.0) -> None:
    """Train the blocks that the parent orders, until the pipe breaks.

    After its timed steps a worker goes on until the parent says that all have made theirs, so that none is timed beside
    idle neighbours.
    """
    pin(core)
    torch.set_num_threads(1)
    os.chdir(tempfile.gettempdir())  # nothing of a run lands in the checkout
    script = _Script(network, batch, rank, pause_s)
    while True:
        block: Block = line.recv()
        with _MODES[block.together](script, block, rank) as (step, parts, blended):
            timed = _timed_steps(block, step, parts, blended)
            line.send(timed)
            if block.together != "ddp":  # there, all make equally many steps anyway
                while not line.poll():
                    step()
            line.recv()
        line.send("ended")


def _timed_steps(block: Block, step: Callable[[], None], parts: _Parts, blended: Callable[[], int]) -> Timed:
    for _ in range(block.warm_up):
        step()
    if block.together == "dpwa":
        while blended() < _FIRST_EXCHANGES:
            step()
    before = dataclasses.replace(parts)
    blends, steps = blended(), 0
    start_s = time.perf_counter()
    while steps < block.steps or (block.seconds and time.perf_counter() - start_s < block.seconds):
        step()
        steps += 1
    elapsed_s = time.perf_counter() - start_s
    publish_s, apply_s = parts.publish_s - before.publish_s, parts.apply_s - before.apply_s
    rest_s = parts.step_s - before.step_s - publish_s - apply_s
    cpu_s = parts.cpu_s - before.cpu_s
    return Timed(
        steps, elapsed_s, publish_s / steps, apply_s / steps, rest_s / steps, blended() - blends, cpu_s / steps
    )


# --- How to train together ------------------------------------------------------------------------------------------

_Opened = tuple[Callable[[], None], _Parts, Callable[[], int]]


@contextlib.contextmanager
def _alone(script: _Script, _block: Block, _rank: int) -> Iterator[_Opened]:
    def step() -> None:
        script.step(script.model)

    yield step, _Parts(), int


@contextlib.contextmanager
def _with_dpwa(script: _Script, block: Block, rank: int) -> Iterator[_Opened]:
    parts = _Parts()
    with tempfile.TemporaryDirectory(prefix="dpwa-bench-") as folder, _timing_the_model(parts):
        os.environ["DPWA_RUN_DIR"] = folder
        with adapter.DpwaPyTorchAdapter(script.model, f"w{rank + 1}", block.config) as node:

            def step() -> None:
                loss = script.step(script.model)
                start_s, start_cpu_s = time.perf_counter(), time.thread_time()
                node.step(loss)
                parts.cpu_s += time.thread_time() - start_cpu_s
                parts.step_s += time.perf_counter() - start_s

            yield step, parts, lambda: node.statistics().blended


@contextlib.contextmanager
def _timing_the_model(parts: _Parts) -> Iterator[None]:
    """Have the adapter use a model that notes how long it is copied and blended: about a microsecond per step."""
    plain = adapter.TorchModel

    class Timing(plain):  # type: ignore[misc, valid-type]
        """The adapter's own model with a watch."""

        def copy_into(self, buffer: Buffer) -> Callable[[], None] | None:
            """See `dpwa.node.Model`."""
            start_s = time.perf_counter()
            ready: Callable[[], None] | None = super().copy_into(buffer)
            parts.publish_s += time.perf_counter() - start_s
            return ready

        def blend(self, values: Sequence[Values], factor: float) -> None:
            """See `dpwa.node.Model`."""
            start_s = time.perf_counter()
            super().blend(values, factor)
            parts.apply_s += time.perf_counter() - start_s

    adapter.TorchModel = Timing
    try:
        yield
    finally:
        adapter.TorchModel = plain


@contextlib.contextmanager
def _with_ddp(script: _Script, block: Block, rank: int) -> Iterator[_Opened]:
    if block.config is None:
        raise ValueError("DistributedDataParallel needs the cluster's ports")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{block.config.nodes[0].port}",
        rank=rank,
        world_size=len(block.config.nodes),
    )
    try:
        # A model of its own: DistributedDataParallel leaves hooks behind in the one that it wraps.
        own = script.again()
        model = DistributedDataParallel(own.model)

        def step() -> None:
            own.step(model)

        yield step, _Parts(), int
    finally:
        torch.distributed.destroy_process_group()


_MODES = {"alone": _alone, "dpwa": _with_dpwa, "ddp": _with_ddp}
