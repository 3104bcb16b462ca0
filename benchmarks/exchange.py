"""How long one exchange takes, from request to blended, beside the memory limit and rivals, in one run.

    python benchmarks/exchange.py --quick
    python benchmarks/exchange.py --json exchange.json
    python benchmarks/exchange.py --hivemind ~/hivemind/bin/python     also hivemind's averaging

Two worker processes, each on a core of its own, exchange a flat float32 model. In every round each rival gets a block
of repetitions, so that a slow moment of the machine meets all of them. One thread computes in each process, as in a
node on one core.

    lerp             in-process `a.lerp_(b, 0.5)`: what reading and blending in memory costs at least
    raw_tcp          a plain socket over loopback, then lerp
    gloo_send        torch.distributed send/recv, then lerp
    gloo_all_reduce  torch.distributed all_reduce of both models, then halved
    shared_memory, ipc, tcp, curve   dpwa, float32
    fp16, bf16, int8                 dpwa over tcp, with that codec

Ratios called `..._over_limit` compare times (lower is better), all others speeds (higher is better). Linux only.

Must not know: how a rival works (`exchange_worker`, `exchange_dpwa`). Runs in: the parent's main thread.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq
from exchange_job import Job, Times
from measure import Ratio, Result, arguments, cores, ratio, spread
from workers import Workers

from dpwa.launch.ports import free_ports

SIZES_MB = (6.65, 44.7, 497.0)
RIVALS = (
    "lerp", "raw_tcp", "gloo_send", "gloo_all_reduce",
    "shared_memory", "ipc", "tcp", "curve", "fp16", "bf16", "int8",
)  # fmt: skip

_PAUSE_S = 0.01
_WARM_UP = 6
_HIVEMIND_TIMEOUT_S = 600.0

# What the project wants to reach, for the two larger sizes: (name, above, below, times or speeds, key, aim).
_RATIOS: tuple[tuple[str, str, str, str, str, dict[str, float]], ...] = (
    ("shared_memory_over_limit", "shared_memory", "lerp", "time", "blended_s", {"at_most": 2.5}),
    ("tcp_over_raw_tcp", "tcp", "raw_tcp", "speed", "received_s", {"at_least": 0.9}),
    ("tcp_over_raw_tcp_blended", "tcp", "raw_tcp", "speed", "blended_s", {}),
    ("tcp_over_gloo", "tcp", "gloo_send", "speed", "blended_s", {"at_least": 1.0}),
    ("shared_memory_over_gloo", "shared_memory", "gloo_send", "speed", "blended_s", {"at_least": 2.0}),
    ("curve_over_tcp", "curve", "tcp", "speed", "received_s", {"at_least": 0.3}),
    ("fp16_over_tcp", "fp16", "tcp", "speed", "blended_s", {}),
    ("bf16_over_tcp", "bf16", "tcp", "speed", "blended_s", {}),
    ("int8_over_tcp", "int8", "tcp", "speed", "blended_s", {}),
    ("shared_memory_over_hivemind", "shared_memory", "hivemind", "speed", "blended_s", {}),
)
_AIMED_FROM_MB = 40.0

Measured = dict[str, list[Times]]


def main() -> None:
    """Measure and report."""
    parser = arguments("Times one exchange by each transport and codec, beside the memory limit and rivals.")
    parser.add_argument("--sizes", type=float, nargs="+", metavar="MB", help="sizes of the model in MB")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME", help="only these")
    parser.add_argument("--repetitions", type=int, help="of each rival and size (default: 24)")
    parser.add_argument("--rounds", type=int, help="in how many blocks (default: 4)")
    parser.add_argument("--unpinned", action="store_true", help="let the kernel place all processes")
    parser.add_argument("--hivemind", metavar="PYTHON", help="an interpreter that can import hivemind")
    given = parser.parse_args()
    sizes = given.sizes or ([0.4] if given.quick else list(SIZES_MB))
    repetitions = given.repetitions or (3 if given.quick else 24)
    rounds = min(repetitions, given.rounds or (1 if given.quick else 4))
    result = Result("exchange", settings={"pinned": not given.unpinned, "rounds": rounds})
    places: list[int | None] = [None, None] if given.unpinned else list(cores(2))
    ask, serve = multiprocessing.get_context("spawn").Pipe()
    with Workers("exchange_worker:work", [(ask, "ask", places[0]), (serve, "serve", places[1])]) as workers:
        ask.close()  # the workers have them; a copy here would keep one from seeing the other end
        serve.close()
        for size_mb in sizes:
            measured: Measured = {}
            for number in range(rounds):
                count = repetitions * (number + 1) // rounds - repetitions * number // rounds
                for rival in given.rivals:
                    measured.setdefault(rival, []).extend(_block(workers, rival, size_mb, count))
                if given.hivemind:
                    found = hivemind_times(given.hivemind, _size_bytes(size_mb), count, places)
                    measured.setdefault("hivemind", []).extend(found)
            _report(result, size_mb, measured)
    result.finish(given.json)


def _size_bytes(size_mb: float) -> int:
    """Bytes of a float32 model of about so many MB (10^6 bytes)."""
    return int(size_mb * 1e6) // 4 * 4


def _block(workers: Workers, rival: str, size_mb: float, repetitions: int) -> list[Times]:
    with _settings(rival) as settings:
        workers.tell(Job(rival, _size_bytes(size_mb), _WARM_UP, repetitions, _PAUSE_S, settings))
        asked, _ = workers.hear()
    times: list[Times] = asked
    return times


@contextlib.contextmanager
def _settings(rival: str) -> Any:
    """Addresses and keys that both sides of dpwa need; fresh ones, so that no block meets traces of another."""
    names = ("w1", "w2")
    with tempfile.TemporaryDirectory(prefix="dpwa-bench-") as folder:
        yield {
            "ports": free_ports(2),
            "ipc": {name: f"ipc://{folder}/{name}" for name in names},
            "curve": {name: zmq.curve_keypair() for name in names} if rival == "curve" else {},
        }


def hivemind_times(python: str, size_bytes: int, repetitions: int, places: Sequence[int | None]) -> list[Times]:
    """Hivemind's averaging of two peers, by an interpreter of its own.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    script = Path(__file__).with_name("exchange_hivemind.py")
    order = {"size_bytes": size_bytes, "repetitions": repetitions, "pause_s": _PAUSE_S, "cores": list(places)}
    output = subprocess.run(
        [python, str(script), json.dumps(order)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_HIVEMIND_TIMEOUT_S,
    ).stdout
    return [{"blended_s": seconds} for seconds in json.loads(output.splitlines()[-1])]


def _report(result: Result, size_mb: float, measured: Measured) -> None:
    size_bytes = _size_bytes(size_mb)
    for rival, times in measured.items():
        row: dict[str, Any] = {"size_mb": size_mb, "by": rival, "repetitions": len(times)}
        for key, column in (("blended_s", "blended_ms"), ("received_s", "received_ms"), ("publish_s", "publish_ms")):
            samples = _samples(times, key)
            row[column] = spread(samples).scaled(1e3) if samples else None
        row["gb_per_s"] = size_bytes / spread(_samples(times, "blended_s")).median / 1e9
        result.rows.append(row)
    for name, above, below, kind, key, aim in _RATIOS:
        if above in measured and below in measured:
            made = _ratio(measured, size_bytes, (above, below), kind, key, aim if size_mb >= _AIMED_FROM_MB else {})
            result.add_ratio(name, f"{size_mb:g} MB", made)


def _ratio(
    measured: Measured, size_bytes: int, names: tuple[str, str], kind: str, key: str, aim: dict[str, float]
) -> Ratio:
    above, below = (_samples(measured[name], key) for name in names)
    what = f"to {key.removesuffix('_s')}"
    if kind == "speed":
        above, below = ([size_bytes / seconds / 1e9 for seconds in samples] for samples in (above, below))
        unit = "GB/s"
    else:
        above, below = ([seconds * 1e3 for seconds in samples] for samples in (above, below))
        unit = "ms"
    return ratio((f"{names[0]} {what}", above), (f"{names[1]} {what}", below), unit, **aim)


def _samples(times: Sequence[Times], key: str) -> list[float]:
    return [found[key] for found in times if key in found]


if __name__ == "__main__":
    main()
