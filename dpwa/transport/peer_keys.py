"""The asking side's keys: whom to expect at a peer's address, and what this node shows of itself.

Must not know: sockets, addresses. Runs in: the Tx thread.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from dpwa.errors import ConfigError
from dpwa.exchange.messages import Message, Present, Vouch, Vouched

if TYPE_CHECKING:
    from dpwa.transport.sockets import Curve

__all__ = ["PeerKeys"]

# Numbers of questions about certificates; those of exchanges are far below.
_FIRST_NONCE: Final = 1 << 52


class PeerKeys:
    """The keys of one node's peers.

    Args:
        curve: what is known of keys; None: links are not encrypted.
        node: this node.
    """

    def __init__(self, curve: Curve | None, node: str) -> None:
        self._curve = curve
        self._node = node
        self._nonce = _FIRST_NONCE + secrets.randbits(32)

    def are_known(self, peer: str) -> bool:
        """Whether there is a key to expect of a peer, or none is needed."""
        try:
            return self._curve is None or bool(self._curve.server_key(peer))
        except ConfigError:
            return False

    def question(self, peer: str) -> Vouch | None:
        """What to ask a member about a peer whose key is not known; None: nothing that it says could help."""
        if self._curve is None or not self._curve.certified.takes_guests or self.are_known(peer):
            return None
        self._nonce += 1
        return Vouch(self._nonce, self._node, peer)

    def take(self, peer: str, answer: Message) -> None:
        """Take what a member has answered to that, if it counts."""
        if self._curve is not None and isinstance(answer, Vouched) and answer.certificate:
            self._curve.certified.take(answer.certificate, name=peer)

    @property
    def to_show(self) -> Present | None:
        """What this node shows first over each connection; None: its key is on the list, or needs to be on none."""
        own = b"" if self._curve is None else self._curve.certified.own
        return Present(0, own) if own else None

    @property
    def doubt(self) -> str:
        """What may be the reason where a peer does not let this node in."""
        words = "; or this node's certificate does not count there: revoked, or by another signer"
        return words if self.to_show is not None else ""
