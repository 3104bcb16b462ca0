"""What is fuzzed: each function takes any bytes, and raises only if dpwa did something that it must never do.

A wrong error would leave them, and fuzzing, tests and people see it. `SEEDS` has examples of each format to begin with.
"""

from __future__ import annotations

from pathlib import Path

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError, RemoteProtocolError
from dpwa.exchange.messages import MAX_HEADER_BYTES, Chunk, Done, More, PullRequest, Settle
from dpwa.transport.wire import decode, encode

_SAMPLES = Path(__file__).parents[2] / "samples"

_NAMELESS = bytes(8)


def wire(data: bytes) -> None:
    """A header frame becomes a message that is written as it was read, or a `RemoteProtocolError` in one line."""
    try:
        message = decode(data, "w1")
    except RemoteProtocolError as error:
        _can_be_shown([str(error)])
        return
    again = encode(message)
    assert len(again) <= MAX_HEADER_BYTES
    assert repr(decode(again, "w1")) == repr(message)  # NaN is a legal loss, and equal to nothing


def cluster_file(data: bytes) -> None:
    """A cluster file becomes a config that is written as it was read, or a `ConfigError` whose lines can be shown."""
    text = data.decode("utf-8", errors="replace")
    try:
        config = ClusterConfig.from_text(text)
    except ConfigError as error:
        _can_be_shown([line for problem in error.problems for line in problem.splitlines()])
        return
    assert ClusterConfig.from_text(config.to_yaml()) == config


def _can_be_shown(lines: list[str]) -> None:
    assert lines
    assert all(line.replace("\t", " ").isprintable() and len(line) < 2000 for line in lines), lines


TARGETS = {"wire": wire, "cluster_file": cluster_file}

SEEDS = {
    "wire": [
        encode(message)
        for message in (
            PullRequest(
                1, "run", "w2", _NAMELESS, bytes(16), _NAMELESS, 0, 0, 262144, 0, 4, shared=True, finished=False
            ),
            Settle(3, "run", "w2", _NAMELESS, bytes(16), gives_up=True, finished=False),
            More(4, 16, 4),
            Chunk(5, 1, 0),
            Done(6),
        )
    ],
    "cluster_file": [path.read_bytes() for path in sorted(_SAMPLES.glob("*.yaml"))],
}
