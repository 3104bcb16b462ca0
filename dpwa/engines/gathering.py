"""Makes a cluster of the processes that an engine has started: each tells where it is, and all know the same nodes.

The nodes are w1, w2 ... by rank; processes that share a model are one of them. On one host they use loopback. Where the
config names no keys, each makes a pair for this start, and tells its public key with its address: who takes part then
is who was told of at the start.

Must not know: which engine it is, models, torch. Runs in: the trainer's thread, before training.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from dpwa._version import __version__
from dpwa.config import hosts, yaml_file
from dpwa.config.cluster import FIRST_PORT
from dpwa.engines.boards import MAX_CARD_BYTES, Board
from dpwa.engines.environment import Start
from dpwa.engines.parts import part_folder
from dpwa.errors import ConfigError
from dpwa.transport.run_keys import own_keys, own_keys_folder, remove_own_keys

__all__ = ["GATHER_TIMEOUT_S", "Gathered", "gather", "node_name", "own_host", "values_in"]

GATHER_TIMEOUT_S = 300.0
"""How long the processes of a start wait for each other."""

_PORTS = range(FIRST_PORT, FIRST_PORT + 9000)
_TRIES = 200


class Card(NamedTuple):
    """What a process tells of itself.

    Attributes:
        version: of dpwa.
        place: the same for processes that share a loopback interface.
        host: where others reach it from outside.
        port: held for its node.
        public: its key for this start, in Z85.
        options: a hash of the config's settings.
        run_dir: where the first process would have the run folder.
        number: random.
        first: rank of the first of the processes that are one node together; its own, where it is one by itself.
        part: which part of a sharded model it exchanges, from 0; 0 as well where models are whole.
    """

    version: str
    place: str
    host: str
    port: int
    public: str
    options: str
    run_dir: str
    number: str
    first: int
    part: int


@dataclass(frozen=True)
class Gathered:
    """The cluster, as it was found.

    Attributes:
        settings: what of a cluster file was found here: `nodes`, and `keys` where that takes a folder.
        name: of this node.
        run_dir: the run folder.
        launch_id: the same for all processes of this start, and for no other start.
    """

    settings: dict[str, Any]
    name: str
    run_dir: Path
    launch_id: str


def node_name(rank: int) -> str:
    """The name of a node that no file names."""
    return f"w{rank + 1}"


def gather(
    start: Start,
    board: Board,
    values: Mapping[str, Any],
    *,
    first: int | None = None,
    part: int = 0,
    run_dir: Path,
    host: str,
    timeout_s: float = GATHER_TIMEOUT_S,
) -> Gathered:
    """Tell the others where this process is, and hear where they are.

    Args:
        start: of this process.
        board: where all tell.
        values: the keys of a cluster file without `nodes`.
        first: rank of the first of the processes that are one node with this one; None: this one is a node by itself.
        part: which part of a sharded model this process exchanges; its cluster is of those with that part.
        run_dir: the run folder, as the first process would have it.
        host: name or address by which other hosts reach this one.
        timeout_s: how long the others are waited for.

    Raises:
        ConfigError: some were not heard of, or do not fit together; the message names them.
    """
    public, secret = zmq.curve_keypair()
    options = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
    first = start.rank if first is None else first
    with _held_port() as port:
        said_dir = str(run_dir) if start.rank == 0 else ""
        number = os.urandom(8).hex()
        own = Card(__version__, _place(), host, port, public.decode(), options, said_dir, number, first, part)
        cards = [_read(rank, card) for rank, card in enumerate(board.exchange(_written(own), timeout_s))]
    _check(start, cards)
    is_one_host = len({card.place for card in cards}) == 1
    found = _nodes_of(part, cards)
    nodes = [
        {"name": name, "host": "127.0.0.1" if is_one_host else cards[rank].host, "port": cards[rank].port}
        for name, rank in found.items()
    ]
    name = node_name([rank for rank, card in enumerate(cards) if card.first == rank].index(first))
    folder = Path(cards[0].run_dir)
    settings: dict[str, Any] = {"nodes": nodes}
    if not (values.get("keys") or values.get("insecure")):
        keys = own_keys_folder(part_folder(folder, part))
        if found[name] == start.rank:  # whose process exchanges
            publics = {node: cards[rank].public.encode() for node, rank in found.items()}
            keys = own_keys(part_folder(folder, part), name, secret, publics)
            atexit.register(remove_own_keys, keys, name, os.getpid())
        if not is_one_host:
            settings["keys"] = str(keys)
    launch_id = hashlib.sha256("".join(card.number for card in cards).encode()).hexdigest()[:16]
    return Gathered(settings, name, folder, launch_id)


def values_in(path: Path) -> dict[str, Any]:
    """The keys and values of a cluster file, of which `nodes` may be missing; nothing is checked yet.

    Raises:
        ConfigError: it cannot be read as YAML.
    """
    return yaml_file.read(path).values


def own_host(start: Start, given: str | None, towards: tuple[str, int] | None) -> str:
    """By what name or address other hosts reach this one, as far as it can be known here.

    Args:
        start: of this process.
        given: what the user says; None: nothing.
        towards: an address of another host of the start; None: none is known.
    """
    if given:
        return given
    for known in (start.host, socket.gethostname()):
        if known and _is_elsewhere_too(known):
            return known
    # Without one, an address for documents of either kind: the default route's.
    ways = [towards] if towards else [("192.0.2.1", 9), ("2001:db8::1", 9)]
    return next(filter(None, (_address_towards(*way) for way in ways)), "127.0.0.1")


def _is_elsewhere_too(host: str) -> bool:
    """Whether a name has an address that is not loopback. Debian gives a host's own name one on its own machine."""
    if hosts.problem_with(host) is not None:
        return False
    with suppress(OSError, UnicodeError):
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return bool(found) and not any(hosts.is_loopback(str(address)) for address in found)
    return False


def _address_towards(host: str, port: int) -> str:
    """The address by which this host sends to another one; empty if there is no way."""
    with suppress(OSError, UnicodeError):
        number = hosts.number_of(host) if hosts.needs_resolving(host) else hosts.address_key(host)
        with socket.socket(socket.AF_INET6 if ":" in number else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((number, port))  # nothing is sent
            return str(probe.getsockname()[0])
    return ""


def _place() -> str:
    """Names the loopback interface of this process: the machine since it was started, and the network namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts = [
            Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            str(os.stat("/proc/self/ns/net").st_ino),
        ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _held_port() -> Iterator[int]:
    """A free port, which no other process is given meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as held:
        for port in random.SystemRandom().sample(_PORTS, _TRIES):
            with suppress(OSError):
                held.bind(("", port))
                break
        else:
            raise ConfigError(f"no free port was found from {_PORTS[0]} to {_PORTS[-1]}; end programs that hold ports")
        yield port


def _written(card: Card) -> bytes:
    written = json.dumps(card, separators=(",", ":")).encode()
    if len(written) > MAX_CARD_BYTES:
        raise ConfigError(
            f"run folder {card.run_dir}: its path is too long by {len(written) - MAX_CARD_BYTES} bytes to be told to "
            "the others; set DPWA_RUN_DIR to a shorter one"
        )
    return written


def _read(rank: int, written: bytes) -> Card:
    try:
        found = json.loads(written[: MAX_CARD_BYTES + 1])
        card = Card(*found)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"process {rank}: what it tells of itself cannot be read ({error})") from error
    numbers = {Card._fields.index(field) for field in ("port", "first", "part")}
    is_right = all(type(value) is (int if place in numbers else str) for place, value in enumerate(card))
    if not (is_right and 1 <= card.port <= 65535 and len(card.public) == 40 and card.public.isascii()):
        raise ConfigError(f"process {rank}: what it tells of itself makes no sense; do all run this version of dpwa?")
    return card


def _nodes_of(part: int, cards: Sequence[Card]) -> dict[str, int]:
    """By node: rank of the process that exchanges a part of its model."""
    held = {(card.first, card.part): rank for rank, card in reversed(list(enumerate(cards)))}
    firsts = [rank for rank, card in enumerate(cards) if card.first == rank]
    return {node_name(number): held[first, part] for number, first in enumerate(firsts)}


def _check(start: Start, cards: Sequence[Card]) -> None:
    first = cards[0]
    for rank, card in enumerate(cards):
        if not (0 <= card.first < len(cards) and cards[card.first].first == card.first):
            raise ConfigError(
                f"process {rank} says that it is one node with process {card.first}, which says otherwise; all that "
                "share a model must have the same DistributedDataParallel, and the same `island` in their settings"
            )
        if card.version != first.version:
            raise ConfigError(
                f"process {rank} on {card.host} has dpwa {card.version}, and process 0 on {first.host} has "
                f"{first.version}; install the same on all hosts"
            )
        if card.options != first.options:
            raise ConfigError(
                f"process {rank} on {card.host} has other settings than process 0 on {first.host}; give all of them "
                "the same cluster file"
            )
    parts = {first: {card.part for card in cards if card.first == first} for first in {card.first for card in cards}}
    if len({frozenset(held) for held in parts.values()}) > 1:
        counts = ", ".join(f"{len(held)} in that of process {first}" for first, held in sorted(parts.items()))
        raise ConfigError(
            f"the model is sharded over other numbers of processes in each node ({counts}); expected the same in all"
        )
    if len({card.place for card in cards}) > 1:
        for rank, card in enumerate(cards):
            if hosts.is_loopback(card.host) or hosts.problem_with(card.host) is not None:
                raise ConfigError(
                    f'process {rank}: its host says that it is reached at "{card.host}", and others are on other '
                    "hosts; set DPWA_HOST there to a name or address that they can reach"
                )
    if not first.run_dir:
        raise ConfigError(f"the first process of {start.engine} names no run folder")
