"""hivemind's averaging of one flat model between two processes, timed; run by an interpreter that has hivemind.

Takes one JSON argument: {"size_bytes", "repetitions", "pause_s", "cores": [first, second]}. Prints a JSON list of
seconds as its last line. Needs nothing of dpwa.

Both peers call `step` at the same moment; hivemind has no asker and server. The time is that of the first peer, from
the call to its return with the average in the averager's own tensors, and holds the search for partners.

Must not know: dpwa, the other rivals. Runs in: the main thread of its own process and of one more.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

_STEP_TIMEOUT_S = 60.0
_WARM_UP = 2


def peer(order: dict[str, Any], core: int | None, line: Connection, first: list[str]) -> list[float]:
    """One of the two peers.

    Args:
        order: see above.
        core: to stay on; None for any.
        line: to the other peer.
        first: addresses of the first peer's DHT; empty in the first peer.

    Returns:
        Seconds of each averaging.
    """
    if core is not None:
        os.sched_setaffinity(0, {core})  # before the imports, whose threads inherit it
    import hivemind  # noqa: PLC0415
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    model = torch.full((order["size_bytes"] // 4,), 0.5 if first else 1.5)
    dht = hivemind.DHT(initial_peers=first, start=True)
    if not first:
        line.send([str(address) for address in dht.get_visible_maddrs()])
    averager = hivemind.averaging.DecentralizedAverager(
        [model],
        dht,
        start=True,
        prefix="benchmark",
        target_group_size=2,
        min_matchmaking_time=1.0,
        request_timeout=0.5,
    )
    times = []
    try:
        for repetition in range(_WARM_UP + order["repetitions"]):
            line.send("ready")
            line.recv()
            time.sleep(order["pause_s"])
            start_s = time.perf_counter()
            averager.step(timeout=_STEP_TIMEOUT_S)
            if repetition >= _WARM_UP:
                times.append(time.perf_counter() - start_s)
        line.send("done")
        line.recv()
        with averager.get_tensors() as (average,):
            if not torch.allclose(average, torch.ones(())):
                raise RuntimeError("the two models were to be averaged, but were not")
    finally:
        averager.shutdown()
        dht.shutdown()
    return times


def main() -> None:
    """Start the second peer, be the first."""
    order = json.loads(sys.argv[1])
    # hivemind starts its own processes by fork alone, which a spawned process would not do. Nothing is imported yet.
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    other = context.Process(target=_second, args=(order, there))
    other.start()
    times = peer(order, order["cores"][0], here, [])
    other.join()
    print(json.dumps(times))


def _second(order: dict[str, Any], line: Connection) -> None:
    addresses = line.recv()
    peer(order, order["cores"][1], line, addresses)


if __name__ == "__main__":
    main()
