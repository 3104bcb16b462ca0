"""`train`: nodes of dpwa as actors of Ray, for scripts that live there.

    import ray
    from dpwa.engines.ray import train

    ray.init("auto")
    results = train(function, nodes=16, gpus_per_node=1)

Each node calls the function in a process of its own, in a place that Ray gives it; within it `attach(model, optimizer)`
or an adapter knows which node it is. Ray shows what they print. `dpwa launch --engine ray` is the same for a command.

Must not know: models, what the function does. Runs in: the caller's thread; `_Node` in the main thread of its actor.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from dpwa._version import __version__
from dpwa.engines.closers import close_all
from dpwa.engines.placed import given_settings, may_move, moved, placed_config
from dpwa.engines.ray_hand import Hand
from dpwa.engines.ray_places import START_TIMEOUT_S, PlaceLost, Places, needs_ray
from dpwa.engines.room import Need, card_problems
from dpwa.errors import ConfigError, DpwaError
from dpwa.transport.run_keys import own_keys, remove_own_keys

if TYPE_CHECKING:
    from dpwa.config.cluster import ClusterConfig

__all__ = ["NodesFailed", "train"]

_KEYS = "keys"
_Result = TypeVar("_Result")


class NodesFailed(DpwaError):
    """Nodes have failed, and were not started again.

    Attributes:
        results: what the others have returned, by name.
        failures: why, by name.
    """

    def __init__(self, results: Mapping[str, Any], failures: Mapping[str, str]) -> None:
        self.results, self.failures = dict(results), dict(failures)
        told = "; ".join(f"{name}: {why}" for name, why in failures.items())
        super().__init__(f"{len(failures)} of {len(failures) + len(results)} nodes have failed: {told}")


def train(
    function: Callable[[], _Result],
    *,
    nodes: int,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    cpus_per_node: float = 1.0,
    gpus_per_node: float = 0.0,
    on_failure: Literal["continue", "restart"] = "continue",
    max_restarts: int = 5,
    run_dir: str | os.PathLike[str] | None = None,
    wait_s: float = 30.0,
) -> dict[str, _Result]:
    """Calls a function once in each node, and waits for all.

    Args:
        function: without arguments; it and what it returns travel as Ray pickles them. It is called anew in a node that
            is started again, and with `checkpoint:` in the settings goes on from there, if the run folder is on a disk
            that all machines share, or the node is on the same machine.
        nodes: how many.
        config: settings, as in a cluster file without `nodes`: a file, or its keys and values. None: the defaults.
        cpus_per_node: that Ray counts for each.
        gpus_per_node: that each has for itself.
        on_failure: what becomes of a node that raises, dies, or loses its machine.
        max_restarts: with "restart": how often each.
        run_dir: the run folder; relative: in the current folder of each machine's Ray. None: a new one under `runs`.
        wait_s: how long Ray may take to have room for all.

    Returns:
        What each node has returned, by name, in the order of the ranks: w1, w2 ...

    Raises:
        ConfigError: Ray is not installed, or settings or machines cannot be used.
        DpwaError: there is no room.
        NodesFailed: some nodes failed for good; the others were waited for.
    """
    ray = needs_ray()
    if on_failure not in ("continue", "restart"):
        raise ConfigError(f'on_failure: expected "continue" or "restart", got {on_failure!r}')
    if not ray.is_initialized():
        ray.init("auto")
    source = config if config is None or isinstance(config, Mapping) else Path(config)
    need = Need(nodes, cpus_per_node, gpus_per_node)
    places = Places(need, wait_s, print)
    try:
        run = _Run(places, source, function, None if run_dir is None else str(run_dir), on_failure)
        run.start([f"w{number + 1}" for number in range(nodes)])
        return run.results(max_restarts if on_failure == "restart" else 0)
    finally:
        places.close()


@dataclass(frozen=True)
class _Part:
    """What a node is told.

    Attributes:
        name: of the node.
        config: the cluster file's text.
        environment: for it.
        run_dir: the run folder.
        secret: the node's key; empty for none.
        allowed: the public key of each node.
    """

    name: str
    config: str
    environment: Mapping[str, str]
    run_dir: str
    secret: bytes = b""
    allowed: Mapping[str, bytes] = field(default_factory=dict)


class _Node(Hand):
    """One life of one node."""

    def live(self, part: _Part, function: Callable[[], _Result]) -> _Result:
        """Call the function, as that node."""
        self.let_go_of_port()
        folder = Path(part.run_dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"config-{part.name}.yaml"
        file.write_text(part.config, encoding="utf-8")
        keys = own_keys(folder, part.name, part.secret, part.allowed) if part.secret else None
        os.environ.update(part.environment, DPWA_CONFIG=str(file), DPWA_RUN_DIR=str(folder), DPWA_NODE=part.name)
        with ExitStack() as undo:
            if keys is not None:
                undo.callback(remove_own_keys, keys, part.name, os.getpid())
            # This process lives on: peers would wait for its node, and Ray ends it without a word.
            undo.callback(close_all)
            return function()


class _Run(Generic[_Result]):
    """All lives of all nodes."""

    def __init__(
        self,
        places: Places,
        source: Path | Mapping[str, Any] | None,
        function: Callable[[], _Result],
        run_dir: str | None,
        on_failure: str,
    ) -> None:
        self._on_failure = on_failure
        self._places = places
        self._source = source
        self._function = function
        self._run_dir = run_dir
        self._launch_id = secrets.token_hex(8)
        self._ray = needs_ray()
        self._actors: dict[str, Any] = {}
        self._addresses: dict[str, tuple[str, int]] = {}
        self._secrets: dict[str, tuple[bytes, bytes]] = {}
        self._running: dict[Any, str] = {}

    def start(self, names: list[str]) -> None:
        """All nodes."""
        import zmq  # noqa: PLC0415 - for its keys alone

        values = given_settings(self._source)
        self._actors = {name: self._places.actor(place, _Node) for place, name in enumerate(names)}
        asked = {name: actor.card.remote("") for name, actor in self._actors.items()}
        try:
            cards = {name: self._places.ask(card, START_TIMEOUT_S) for name, card in asked.items()}
        except (PlaceLost, TimeoutError) as error:
            raise DpwaError(f"Ray has not started the nodes: {error}") from error
        problems = card_problems(cards, __version__)
        if problems:
            raise ConfigError(problems)
        self._addresses = {name: (card["host"], card["port"]) for name, card in cards.items()}
        if not (values.get("keys") or values.get("insecure")):
            self._secrets = {name: zmq.curve_keypair() for name in names}
        self._config = placed_config(self._source, self._addresses, keys=_KEYS if self._secrets else None)
        self._run_dir = self._run_dir or f"runs/{self._config.run}-{time.strftime('%Y%m%d-%H%M%S')}"
        for name in names:
            self._begin(name, is_again=False)

    def _begin(self, name: str, *, is_again: bool) -> None:
        config: ClusterConfig = moved(self._config, self._addresses) if is_again else self._config
        if self._secrets:
            config = config.model_copy(update={"keys": _KEYS})  # beside the copy of the file, in each run folder
        names = list(self._addresses)
        environment = {
            "DPWA_RANK": str(names.index(name)),
            "DPWA_WORLD_SIZE": str(len(names)),
            "DPWA_ON_FAILURE": self._on_failure,
            "DPWA_LAUNCH_ID": "" if is_again else self._launch_id,
        }
        public = {other: pair[0] for other, pair in self._secrets.items()}
        secret = self._secrets[name][1] if self._secrets else b""
        part = _Part(name, config.to_yaml(), environment, str(self._run_dir), secret, public)
        self._running[self._actors[name].live.remote(part, self._function)] = name

    def results(self, max_restarts: int) -> dict[str, _Result]:
        """Wait for all; see `train`."""
        names = list(self._addresses)
        left = dict.fromkeys(names, max_restarts)
        found: dict[str, _Result] = {}
        failures: dict[str, str] = {}
        while self._running:
            (ended,), _ = self._ray.wait(list(self._running))
            name = self._running.pop(ended)
            try:
                found[name] = self._ray.get(ended)
            except self._ray.exceptions.RayError as error:
                why = _last_line(error)
                if left[name] == 0 or not self._start_again(name):
                    failures[name] = why
                    self._places.end(self._actors[name])  # whatever it holds: peers would wait for a node in it
                left[name] -= 1
        if failures:
            raise NodesFailed({name: found[name] for name in names if name in found}, failures)
        return {name: found[name] for name in names}

    def _start_again(self, name: str) -> bool:
        """In a new process, in the node's place; whether there is one, in which the others find it."""
        self._places.end(self._actors[name])
        actor = self._places.actor(list(self._addresses).index(name), _Node)
        try:
            card = self._places.ask(actor.card.remote(""), START_TIMEOUT_S)
        except (PlaceLost, TimeoutError):
            self._places.end(actor)
            return False
        address = (card["host"], card["port"])
        if not may_move(self._config):
            if address[0] != self._addresses[name][0]:
                self._places.end(actor)
                return False
            address = self._addresses[name]
        self._actors[name], self._addresses[name] = actor, address
        self._begin(name, is_again=True)
        return True


def _last_line(error: Exception) -> str:
    """What was raised in a node, without the stack, which Ray has shown."""
    return str(error).strip().rpartition("\n")[2].strip()[:300]
