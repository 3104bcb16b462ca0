"""The two processes of `exchange.py`: one asks, one serves, by each of the rivals in turn.

A rival has two sides. Each is a context manager that gives a function to be called once per repetition: the asker's
returns its times, the server's does its part and returns. Everything that can be made once is made before.

Must not know: the statistics. Runs in: the main thread of each of the two workers.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
import torch.distributed
from exchange_dpwa import DPWA_RIVALS, ask_dpwa, serve_dpwa
from exchange_job import Job, Side, Times
from measure import pin

_GLOO_TIMEOUT_S = 60.0
FACTOR = 0.5


def work(parent: Connection, peer: Connection, side: Side, core: int | None) -> None:
    """Make the jobs that the parent sends, until the pipe breaks.

    Args:
        parent: jobs in, lists of times out (an empty list from the server).
        peer: pipe to the other worker, for what a rival has to agree about.
        side: which of the two this is.
        core: to stay on; None for any.
    """
    pin(core)
    torch.set_num_threads(1)
    while True:
        job: Job = parent.recv()
        gc.collect()  # nodes of former blocks hold gigabytes in cycles, which Python counts as a few objects
        if job.rival in DPWA_RIVALS and side == "serve":
            serve_dpwa(job, peer)
            parent.send([])
            continue
        with open_side(job, side, peer) as once:
            for _ in range(job.warm_up):
                once()
            times = []
            for _ in range(job.repetitions):
                # The same for all: caches and the scheduler find the same situation, and dpwa's server gets an idea
                # of how long its steps are.
                time.sleep(job.pause_s)
                times.append(once())
        parent.send([found for found in times if found])


@contextlib.contextmanager
def open_side(job: Job, side: Side, peer: Connection) -> Iterator[Callable[[], Times]]:
    """One side of the job's rival, ready for repetitions."""
    opened = ask_dpwa if job.rival in DPWA_RIVALS else _SIDES[job.rival][side]
    with opened(job, peer) as once:
        yield once


def fresh_model(job: Job) -> torch.Tensor:
    """A flat model; every page of it is written, so that none is faulted in while the clock runs."""
    return torch.full((job.size_bytes // 4,), 0.5)


# --- The memory limit ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ask_lerp(job: Job, _peer: Connection) -> Iterator[Callable[[], Times]]:
    model, other = fresh_model(job), fresh_model(job)

    def once() -> Times:
        start_s = time.perf_counter()
        model.lerp_(other, FACTOR)
        return {"blended_s": time.perf_counter() - start_s}

    yield once


@contextlib.contextmanager
def _serve_nothing(_job: Job, _peer: Connection) -> Iterator[Callable[[], Times]]:
    yield dict


# --- A plain socket -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ask_raw_tcp(job: Job, peer: Connection) -> Iterator[Callable[[], Times]]:
    model, received = fresh_model(job), fresh_model(job)
    into = memoryview(received.numpy()).cast("B")
    with socket.create_connection(("127.0.0.1", peer.recv()), timeout=_GLOO_TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def once() -> Times:
            start_s = time.perf_counter()
            connection.sendall(b"?")
            filled = 0
            while filled < len(into):
                size = connection.recv_into(into[filled:])
                if size == 0:
                    raise ConnectionError("the serving worker hung up")
                filled += size
            received_s = time.perf_counter()
            model.lerp_(received, FACTOR)
            return {"received_s": received_s - start_s, "blended_s": time.perf_counter() - start_s}

        yield once


@contextlib.contextmanager
def _serve_raw_tcp(job: Job, peer: Connection) -> Iterator[Callable[[], Times]]:
    body = memoryview(fresh_model(job).numpy()).cast("B")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(_GLOO_TIMEOUT_S)
        peer.send(listening.getsockname()[1])
        connection, _ = listening.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def once() -> Times:
                if connection.recv(1) != b"?":
                    raise ConnectionError("the asking worker hung up")
                connection.sendall(body)
                return {}

            yield once


# --- gloo ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gloo:
    """The group of the two workers; rank 0 asks."""

    rank: int

    @contextlib.contextmanager
    def joined(self, peer: Connection) -> Iterator[torch.Tensor]:
        """In the group; gives a tensor of one element for the request."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if self.rank == 1:
            store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            peer.send(store.port)
        else:
            store = torch.distributed.TCPStore("127.0.0.1", peer.recv(), is_master=False)
        torch.distributed.init_process_group("gloo", store=store, rank=self.rank, world_size=2)
        try:
            yield torch.zeros(1)
        finally:
            # The store must outlive both members of the group.
            peer.send("done")
            peer.recv()
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _ask_gloo_send(job: Job, peer: Connection) -> Iterator[Callable[[], Times]]:
    model, received = fresh_model(job), fresh_model(job)
    with _Gloo(0).joined(peer) as request:

        def once() -> Times:
            start_s = time.perf_counter()
            torch.distributed.send(request, 1)
            torch.distributed.recv(received, 1)
            received_s = time.perf_counter()
            model.lerp_(received, FACTOR)
            return {"received_s": received_s - start_s, "blended_s": time.perf_counter() - start_s}

        yield once


@contextlib.contextmanager
def _serve_gloo_send(job: Job, peer: Connection) -> Iterator[Callable[[], Times]]:
    model = fresh_model(job)
    with _Gloo(1).joined(peer) as request:

        def once() -> Times:
            torch.distributed.recv(request, 0)
            torch.distributed.send(model, 0)
            return {}

        yield once


@contextlib.contextmanager
def _ask_gloo_all_reduce(job: Job, peer: Connection) -> Iterator[Callable[[], Times]]:
    model = fresh_model(job)
    with _Gloo(0).joined(peer) as request:

        def once() -> Times:
            start_s = time.perf_counter()
            torch.distributed.send(request, 1)
            torch.distributed.all_reduce(model)
            model.mul_(FACTOR)
            return {"blended_s": time.perf_counter() - start_s}

        yield once


@contextlib.contextmanager
def _serve_gloo_all_reduce(job: Job, peer: Connection) -> Iterator[Callable[[], Times]]:
    model = fresh_model(job)
    with _Gloo(1).joined(peer) as request:

        def once() -> Times:
            torch.distributed.recv(request, 0)
            torch.distributed.all_reduce(model)
            model.mul_(FACTOR)
            return {}

        yield once


_SIDES: dict[str, dict[Side, Callable[[Job, Connection], AbstractContextManager[Callable[[], Times]]]]] = {
    "lerp": {"ask": _ask_lerp, "serve": _serve_nothing},
    "raw_tcp": {"ask": _ask_raw_tcp, "serve": _serve_raw_tcp},
    "gloo_send": {"ask": _ask_gloo_send, "serve": _serve_gloo_send},
    "gloo_all_reduce": {"ask": _ask_gloo_all_reduce, "serve": _serve_gloo_all_reduce},
}
