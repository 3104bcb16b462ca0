"""Bare sockets in the place of peers, for what an honest peer does not do."""

from __future__ import annotations

import numpy as np
import zmq

from dpwa.config.cluster import ClusterConfig
from dpwa.exchange import messages
from dpwa.exchange.slices import CHUNK_BYTES
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from support import DEADLINE_S, VectorModel, step_until


class Peers:
    """Sockets in the place of peers; closed together at the end of the test."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._sockets: list[zmq.Socket] = []

    def dealer(self, zeromq, receive_queue: int = 1000) -> zmq.Socket:
        """A socket that pulls from the first node; messages beyond the queue's length stay in the connection."""

        def connect(made: zmq.Socket) -> None:
            made.setsockopt(zmq.RCVHWM, receive_queue)
            made.connect(f"tcp://127.0.0.1:{zeromq.config.nodes[0].port}")

        return self._made(zmq.DEALER, connect)

    def router(self, port: int) -> zmq.Socket:
        """A socket that serves in the place of a node."""
        return self._made(zmq.ROUTER, lambda made: made.bind(f"tcp://127.0.0.1:{port}"))

    def _made(self, kind: int, address) -> zmq.Socket:
        made = self._context.socket(kind)
        self._sockets.append(made)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        address(made)
        return made

    def close(self) -> None:
        for made in self._sockets:
            made.close()
        self._context.term()


def node_with_absent_peer(zeromq, size=10, **settings) -> tuple[Node, int]:
    """A node that has joined and serves, and the port at which its only peer is missing."""
    settings.setdefault("connect_timeout_ms", 20)
    settings.setdefault("shared_memory", "off")  # the stream is the subject here
    zeromq.config = ClusterConfig.for_localhost(2, ports=free_ports(2), **settings)
    node = zeromq.add("w1", VectorModel(np.arange(float(size))))
    step_until(node, lambda: sum(node.statistics().exchanges.values()) >= 2, "the node serves")
    return node, zeromq.config.nodes[1].port


def pull_of(node: Node, **changed) -> messages.PullRequest:
    fields = {
        "nonce": 1,
        "run": node.config.run_id,
        "node": "w2",
        "incarnation": b"i" * 8,
        "fingerprint": node._model.layout.fingerprint,
        "have_incarnation": bytes(8),
        "have_version": 0,
        "codec": 0,
        "chunk_bytes": CHUNK_BYTES,
        "first": 0,
        "count": 8,
        "shared": False,
        "finished": False,
    }
    return messages.PullRequest(**{**fields, **changed})
