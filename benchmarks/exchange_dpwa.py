"""dpwa's two sides in `exchange.py`: two real nodes, driven through `dpwa.Node`.

A peer serves its newest snapshot at once only if that is at most half of its training step old, and the asking node
copies its model before it asks. Neither the wait nor the copy is to be measured, so the two sides take turns: the
asker's `update_send` copies its model; the server makes one step, which publishes anew; then the clock starts, the node
asks, and `update_wait` returns when the peer's model has been blended. A step of the server thus lasts as long as a
repetition with its pause, and its snapshot is a fraction of a millisecond old when it is asked. The cost of the asker's
copy is reported separately, as `publish_s`. `received_s` is the end of the pull, in which dpwa has already made the
differences and looked for values that are not finite.

Must not know: the other rivals. Runs in: the main thread of each worker.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from exchange_job import Job, Times

from dpwa.config.cluster import ClusterConfig
from dpwa.methods.exchange import ExchangeResult, Outcome
from dpwa.node.node import Node
from dpwa.snapshot.layout import Buffer, Layout, TensorSpec
from dpwa.snapshot.staging import Values
from dpwa.transport.client import ZmqClient
from dpwa.transport.interface import Ends
from dpwa.transport.sockets import CurveKeys, Links
from dpwa.transport.zeromq import ZmqTransport

# Settings of the cluster file by rival.
DPWA_RIVALS: Mapping[str, Mapping[str, str]] = {
    "shared_memory": {"codec": "raw", "shared_memory": "auto"},
    "ipc": {"codec": "raw", "shared_memory": "off"},
    "tcp": {"codec": "raw", "shared_memory": "off"},
    "curve": {"codec": "raw", "shared_memory": "off"},
    "fp16": {"codec": "fp16", "shared_memory": "off"},
    "bf16": {"codec": "bf16", "shared_memory": "off"},
    "int8": {"codec": "int8", "shared_memory": "off"},
}

_TIMEOUT_MS = 60_000
_JOIN_TRIES = 50


class FlatModel:
    """One float32 vector, blended by torch in the trainer's thread.

    Args:
        size_bytes: of the vector.
        value: of every element at first.
    """

    def __init__(self, size_bytes: int, value: float) -> None:
        self.vector = torch.full((size_bytes // 4,), value)
        self.layout = Layout([TensorSpec("vector", tuple(self.vector.shape), "float32")])
        self.copied: Callable[[], None] = lambda: None
        """Called at the end of every copy."""

    def copy_into(self, buffer: Buffer) -> None:
        """See `dpwa.node.Model`."""
        torch.from_numpy(buffer.view(np.float32)).copy_(self.vector)
        self.copied()

    def blend(self, values: Sequence[Values], factor: float) -> None:
        """See `dpwa.node.Model`."""
        (only,) = values
        there = torch.from_numpy(only.array)
        if only.is_difference:
            self.vector.add_(there, alpha=factor)
        else:
            self.vector.lerp_(there, factor)


@contextlib.contextmanager
def ask_dpwa(job: Job, peer: Connection) -> Iterator[Callable[[], Times]]:
    """The asking node."""
    model = FlatModel(job.size_bytes, 0.5)
    received = _StopWatch()
    node, transport = _node(job, "w1", model, pull_probability=1.0)
    times: Times = {}
    begun_s = 0.0

    def own_copy_is_made() -> None:
        times["publish_s"] = time.perf_counter() - begun_s
        peer.send("publish")
        peer.recv()
        times["asked_s"] = time.perf_counter()

    def exchange() -> ExchangeResult | None:
        nonlocal begun_s
        transport.last = None
        begun_s = time.perf_counter()
        node.update_send()
        node.update_wait()
        times["ended_s"] = time.perf_counter()
        return transport.last

    def once() -> Times:
        _check_way(job, exchange())
        return {
            "received_s": received.ended_s - times["asked_s"],
            "blended_s": times["ended_s"] - times["asked_s"],
            "publish_s": times["publish_s"],
        }

    with contextlib.ExitStack() as held:
        held.callback(node.close)
        held.enter_context(received.on(ZmqClient, "pull"))
        node.start()
        peer.recv()  # the server has joined
        model.copied = own_copy_is_made
        try:
            # The server publishes for the first time after it was asked for the first time.
            for _ in range(_JOIN_TRIES):
                exchange()
                if node.statistics().blended:
                    break
            yield once
        finally:
            peer.send("end")


def serve_dpwa(job: Job, peer: Connection) -> None:
    """The serving node: publishes when the asker says so, and serves by itself, until the asker has enough."""
    node, _ = _node(job, "w2", FlatModel(job.size_bytes, 1.5), pull_probability=0.0)
    with contextlib.closing(node):
        node.start()
        # A node serves after it has asked a peer, or all of them in vain; here there is one.
        for _ in range(_JOIN_TRIES):
            node.step()
            if node.statistics().exchanges:
                break
        peer.send("joined")
        while peer.recv() == "publish":
            node.step()
            peer.send("published")


def _node(job: Job, name: str, model: FlatModel, *, pull_probability: float) -> tuple[Node, _Watched]:
    config = ClusterConfig.for_localhost(
        2,
        ports=job.settings["ports"],
        run="benchmark",
        timeout_ms=_TIMEOUT_MS,
        wait_ms=_TIMEOUT_MS,
        pull_probability=pull_probability,
        **DPWA_RIVALS[job.rival],
    )
    made: list[_Watched] = []

    def make(wiring: Ends) -> _Watched:
        made.append(_Watched(config, name, wiring, links=_links(job, name)))
        return made[0]

    return Node(config, name, model, make_transport=make), made[0]


class _Watched(ZmqTransport):
    """dpwa's own transport; keeps the last exchange, so that it can be checked which way it went."""

    last: ExchangeResult | None = None

    def take(self, wait_s: float) -> ExchangeResult | None:
        """See `Transport.take`."""
        taken = super().take(wait_s)
        self.last = taken or self.last
        return taken


def _links(job: Job, name: str) -> Links:
    if job.rival == "ipc":
        paths: dict[str, str] = job.settings["ipc"]
        return Links(listen=paths[name], peers={other: path for other, path in paths.items() if other != name})
    if job.rival == "curve":
        keys: dict[str, tuple[bytes, bytes]] = job.settings["curve"]
        public, secret = keys[name]
        return Links(curve=CurveKeys(public, secret, {other: pair[0] for other, pair in keys.items() if other != name}))
    return Links()


def _check_way(job: Job, result: ExchangeResult | None) -> None:
    """A fall-back to another way would be measured under the wrong name."""
    if result is None or result.outcome is not Outcome.BLENDED:
        raise RuntimeError(f"{job.rival}: a repetition was to blend, got {result and result.outcome}")
    went = (result.is_shared, result.codec.name.lower(), result.share)
    expected = (job.rival == "shared_memory", DPWA_RIVALS[job.rival]["codec"], 1.0)
    if went != expected:
        raise RuntimeError(f"{job.rival}: expected (shared, codec, share) {expected}, got {went}; {result.note}")


class _StopWatch:
    """Notes when a method of a class last returned: what dpwa itself has no reason to report."""

    def __init__(self) -> None:
        self.ended_s = 0.0

    @contextlib.contextmanager
    def on(self, owner: type[Any], name: str) -> Iterator[None]:
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            finally:
                self.ended_s = time.perf_counter()

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, method)
