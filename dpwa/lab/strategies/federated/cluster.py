"""What a cluster file says of fedavg and fedprox, beside its nodes.

Must not know: torch, the training. Runs in: any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpwa.lab.study.settings import Settings

__all__ = ["cluster_settings"]

_METHOD = "dpwa.lab.strategies.federated.rounds:FederatedRounds"

# As many as the server has clients; it would else open a connection for nearly every question.
_LEAST_CONNECTIONS = 6


def cluster_settings(settings: Settings, names: Sequence[str], seed: int) -> dict[str, Any]:
    """The keys of a cluster file but for `run` and `nodes`.

    Args:
        settings: of the training; other keys of a cluster file may stand in its `cluster`.
        names: of all nodes.
        seed: of the cluster.
    """
    return {
        **settings.cluster,
        "method": _METHOD,
        # A client takes the server's model as it is, not its own and a difference, which would be rounded.
        "blend": "absolute",
        # A node that joins is not to take over what its first peer happens to have.
        "interpolation": "constant",
        "constant": {"value": 0.0},
        # A step that joins waits so long; those of the rounds wait for their round.
        "wait_ms": 200,
        # More processes than cores may train at one time: an answer may take a while, and no sign of a dead process.
        "timeout_ms": 10_000,
        "connect_timeout_ms": 2_000,
        # The server itself remembers who is gone. Nobody else may be left out, and be it for a second.
        "flow_control": {"probe_s": 0.01, "probe_max_s": 0.01},
        "max_connections": max(_LEAST_CONNECTIONS, len(names)),
        "seed": seed,
    }
