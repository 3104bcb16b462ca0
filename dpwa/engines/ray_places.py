"""Places for nodes on the machines of a Ray cluster: reserved together, and held as long as this object is.

A place is a bundle of one placement group, spread over the machines. When a machine is lost, Ray finds another one for
its bundles, as soon as there is room; whoever needs a place then asks for a new actor in it.

Must not know: what runs in a place, the config. Runs in: any thread; each call waits.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from dpwa.engines.room import Machine, Need, what_is_missing
from dpwa.errors import ConfigError, DpwaError

__all__ = ["START_TIMEOUT_S", "PlaceLost", "Places", "connect", "needs_ray"]

START_TIMEOUT_S = 180.0
"""How long a process may take to start in a place that it has: Ray starts a Python for it."""

_POLL_S = 0.5
_REACH_TIMEOUT_S = 10.0
_SAYS_AFTER_S = 3.0


class PlaceLost(Exception):
    """What was in a place is gone."""


def needs_ray() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        import sys  # noqa: PLC0415

        raise ConfigError(
            f"the package ray is not installed; install it with: {sys.executable} -m pip install 'dpwa[ray]'"
        ) from error
    return ray


def connect(address: str) -> None:
    """Be a driver of a Ray cluster that runs.

    Args:
        address: host:port of its head; "auto": of the one that this machine belongs to.

    Raises:
        ConfigError: there is none.
    """
    ray = needs_ray()
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: this is Ray's client, by which addresses and output do not travel; run dpwa on a "
            "machine of the cluster, such as its head, or by `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if host:
        try:  # Ray would try for a long time
            socket.create_connection((host.strip("[]"), int(port)), _REACH_TIMEOUT_S).close()
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(_no_cluster(address, str(error))) from error
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, OSError, ValueError, RuntimeError, AssertionError) as error:
        first = str(error).strip().partition("\n")[0][:300]
        raise ConfigError(_no_cluster(address, first)) from error


def _no_cluster(address: str, why: str) -> str:
    return (
        f"no Ray cluster is reached at {address} ({why}); start one with `ray start --head`, and the others with "
        "`ray start --address HEAD:6379`, or write --address HOST:PORT"
    )


class Places:
    """So many places, held until `close`.

    Args:
        need: of the nodes.
        wait_s: how long Ray may take to have room, as where it starts machines on demand.
        say: is told what is waited for.

    Raises:
        DpwaError: there is no room for all.
    """

    def __init__(self, need: Need, wait_s: float, say: Callable[[str], None]) -> None:
        from ray.util.placement_group import placement_group  # noqa: PLC0415

        self._ray = needs_ray()
        self._gone = (self._ray.exceptions.RayError, RuntimeError, OSError)
        """What Ray raises when it is gone itself."""
        self._need = need
        self._wait_s = wait_s
        self._group = placement_group([need.bundle] * need.count, strategy="SPREAD")
        with ExitStack() as undo:
            undo.callback(self.close)
            self._wait(say)
            undo.pop_all()

    def _wait(self, say: Callable[[str], None]) -> None:
        begin_s, has_said = time.monotonic(), False
        while not self._group.wait(_POLL_S):
            waited_s = time.monotonic() - begin_s
            missing = self.missing(self._need.count)
            if waited_s >= self._wait_s:
                why = missing or "its machines are too full at this moment"
                raise DpwaError(
                    f"Ray has not found places for {self._need.count} nodes within {self._wait_s:g} s: {why}; add "
                    "machines or resources, ask for fewer --nodes, or wait longer with --wait SECONDS"
                )
            if missing and not has_said and waited_s >= min(_SAYS_AFTER_S, self._wait_s / 2):
                has_said = True
                say(f"{missing}; waiting for that, {self._wait_s:g} s at most (--wait)")

    def missing(self, count: int) -> str:
        """Why there is no room for so many nodes now, in words; empty if there is."""
        from ray._private.state import (  # noqa: PLC0415 - nothing public says what a machine has left
            available_resources_per_node,
        )

        free = available_resources_per_node()
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        machines = [Machine(_name_of(node, alive), node["Resources"], free.get(node["NodeID"], {})) for node in alive]
        return what_is_missing(machines, replace(self._need, count=count))

    def actor(self, place: int, kind: type, *arguments: Any, threads: int = 1) -> Any:
        """A new actor in a place; it may take a while to be there.

        Args:
            place: its number, from 0.
            kind: its class.
            arguments: of its constructor.
            threads: how many of its methods run at one time.
        """
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: PLC0415

        bundle = self._need.bundle
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=place)
        options: dict[str, Any] = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0)}
        if threads > 1:
            options["max_concurrency"] = threads
        return self._ray.remote(kind).options(scheduling_strategy=strategy, **options).remote(*arguments)

    def ask(self, answer: Any, timeout_s: float | None = None) -> Any:
        """What an actor has answered.

        Args:
            answer: that a call of its method has given.
            timeout_s: how long to wait; None: for as long as the actor lives.

        Raises:
            PlaceLost: the actor is gone.
            TimeoutError: it has not answered yet.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer, timeout=timeout_s)
        except errors.GetTimeoutError as error:
            raise TimeoutError(str(error)) from error
        except errors.RayError as error:
            raise PlaceLost(str(error).strip().partition("\n")[0][:300]) from error

    def end(self, actor: Any) -> None:
        """Have an actor end at once."""
        with suppress(*self._gone):
            self._ray.kill(actor)

    def has_machine(self, machine: str, within_s: float) -> bool:
        """Whether Ray takes a machine for alive.

        Args:
            machine: its id of Ray.
            within_s: for how long, from now on, it may find out that it is not.
        """
        end_s = time.monotonic() + within_s
        while any(node["NodeID"] == machine and node["Alive"] for node in self._ray.nodes()):
            if time.monotonic() >= end_s:
                return True
            time.sleep(_POLL_S)
        return False

    def close(self) -> None:
        """Give the places back; what is in them ends."""
        from ray.util.placement_group import remove_placement_group  # noqa: PLC0415

        with suppress(*self._gone):
            remove_placement_group(self._group)


def _name_of(node: dict[str, Any], alive: list[dict[str, Any]]) -> str:
    """Its address; where several share one, with a part of its id."""
    address = str(node["NodeManagerAddress"])
    same = [other for other in alive if other["NodeManagerAddress"] == address]
    return address if len(same) == 1 else f"{address}/{str(node['NodeID'])[:6]}"
