"""What a cluster file for fedavg and fedprox contains besides its nodes.

Must not know: torch. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpwa.lab.study.settings import Settings

__all__ = ["cluster_settings"]

_METHOD = "dpwa.lab.strategies.federated.rounds:FederatedRounds"

# At least as many as clients: otherwise the server would open a new connection for nearly every request.
_LEAST_CONNECTIONS = 6


def cluster_settings(settings: Settings, names: Sequence[str], seed: int) -> dict[str, Any]:
    """The keys of a cluster file, except `run` and `nodes`.

    Args:
        settings: of the trial; its `cluster` may hold other keys of a cluster file.
        names: of all nodes.
        seed: of the cluster.
    """
    return {
        # The server takes the mean of what clients send, however far it is from its own model.
        "guard": "finite",
        **settings.cluster,
        "method": _METHOD,
        # A client takes the server's model itself, not its own model plus a difference, which would be rounded.
        "blend": "absolute",
        # A node that joins must not adopt the model of its first peer.
        "interpolation": "constant",
        "constant": {"value": 0.0},
        # For the step that joins; the steps of the rounds wait for their round.
        "wait_ms": 200,
        # With more processes than cores, an answer may take long without meaning that the process is dead.
        "timeout_ms": 10_000,
        "connect_timeout_ms": 2_000,
        # The server itself remembers which clients are gone. No other client may be left out, not even for a second.
        "flow_control": {"probe_s": 0.01, "probe_max_s": 0.01},
        "max_connections": max(_LEAST_CONNECTIONS, len(names)),
        "seed": seed,
    }
