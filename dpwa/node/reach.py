"""Whether the other nodes can reach this one, as far as it can tell by itself: nobody but they can know.

Where everybody may ask everybody, a node is asked about as often as it asks. If its peers answer and train, and none of
them has ever asked it, its address is wrong, or a firewall stands before its port. A peer that tries in vain says so
in its own log: see `Exchanger`.

Must not know: sockets, what is in a request. Runs in: the trainer's thread.
"""

from __future__ import annotations

from collections.abc import Callable

from dpwa.config.cluster import ClusterConfig
from dpwa.config.topology import TopologyOptions
from dpwa.exchange.membership import Membership

__all__ = ["Reach"]

# With so many asks to be expected, that there is none by chance is out of the question, also if the peers exchange a
# few times more slowly than this node.
_EXPECTED = 30
_LEAST_S = 10.0


class Reach:
    """Looks whether anybody asks one node.

    Args:
        config: the cluster.
        name: the node.
        membership: knows how far the peers are, and whether one has asked.
        exchanges_per_step: how often a node asks.
        monotonic_s: the clock.
    """

    def __init__(
        self,
        config: ClusterConfig,
        name: str,
        membership: Membership,
        exchanges_per_step: Callable[[], float],
        monotonic_s: Callable[[], float],
    ) -> None:
        node = config.node(name)
        self._address = node.address
        self._membership = membership
        self._exchanges_per_step = exchanges_per_step
        self._monotonic_s = monotonic_s
        # With a topology perhaps nobody hears it; on loopback there is nothing in the way.
        self._is_over = node.is_private or config.topology != TopologyOptions()
        self._began_s: float | None = None
        self._first_steps: dict[str, int] = {}
        self._answers = 0

    def met(self, peer: str) -> str | None:
        """An exchange with a peer has ended; a doubt in words, once, if there is one."""
        if self._is_over:
            return None
        said = self._membership[peer]
        if said.incarnation is None:
            return None
        if self._membership.is_asked:
            self._is_over = True
            return None
        now_s = self._monotonic_s()
        self._began_s = now_s if self._began_s is None else self._began_s
        self._answers += 1
        self._first_steps.setdefault(peer, said.step)
        if self._answers < _EXPECTED or now_s - self._began_s < _LEAST_S or self._expected() < _EXPECTED:
            return None
        self._is_over = True
        return (
            f"peers answer it, and none has asked it in {now_s - self._began_s:.0f} s: can they reach {self._address}? "
            "Open the port, or write the host and port at which they can (and `bind` for where it listens); where "
            "nothing leads to it, write serve: false (told once; docs/launching.md)"
        )

    def _expected(self) -> float:
        """How often the peers have asked this node by now, if each of their steps asked somebody as this node's do."""
        steps = sum(max(0, self._membership[peer].step - first) for peer, first in self._first_steps.items())
        return steps * self._exchanges_per_step() / max(1, len(self._membership.peers))
