"""Guests: connections with keys that nobody knows yet, let in to show a certificate and for nothing else.

ZeroMQ lets a key in or not before anything is read, and its handshake has no place for a certificate. So where the list
names a signer, a few unknown keys per second are let in. Each message is marked with the key of its connection. The
first of a guest must be its certificate: one small message, looked at before anything is decoded. Anything else ends
the connection, and so do a certificate that does not count, and silence (`connection_rules.py`).

Whose a key is, is looked up for each message: a certificate that ends, and a key that is taken off the list, ends the
requests over connections that stand.

Must not know: sockets. Runs in: the Rx thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dpwa.errors import RemoteProtocolError
from dpwa.transport.wire import decode_present

if TYPE_CHECKING:
    from dpwa.transport.sockets import Curve

__all__ = ["Guests"]

# To verify a signature takes a tenth of a millisecond, or three on a slow core: at this pace, 0.3 % of it. So many
# guests can be silent at one time: these, and those of the seconds until the first ones are shown out.
_GUESTS_PER_S = 10.0
_MOST_AT_ONCE = 32


class Guests:
    """Says whose the messages of encrypted connections are.

    Args:
        curve: whose keys are known.
        monotonic_s: a clock.
    """

    def __init__(self, curve: Curve, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._curve = curve
        self._monotonic_s = monotonic_s
        self._room = float(_MOST_AT_ONCE)
        self._since_s = monotonic_s()

    def user_id(self, public: bytes) -> str | None:
        """What ZeroMQ marks the messages of a connection with: its key; None: it is not let in."""
        if self._curve.name_of(public) is None and not self._has_room_for_a_guest():
            return None
        return public.decode("ascii")

    def speaker(self, user_id: str) -> str | None:
        """Who sends messages with this mark; None: a guest, who must show a certificate first."""
        return self._curve.name_of(user_id.encode("ascii"))

    def present(self, user_id: str, header: bytes) -> bool:
        """Read a message of a guest; True if it was a certificate of its key that counts."""
        try:
            message = decode_present(header, "?")
        except RemoteProtocolError:
            return False
        return not self._curve.certified.take(message.certificate, key=user_id.encode("ascii"))

    def renew(self, user_id: str, certificate: bytes) -> None:
        """Take a certificate that a node shows whose key is known: it may be a newer one."""
        certified, key = self._curve.certified, user_id.encode("ascii")
        name = certified.name_of(key)
        if name is not None and certified.certificate_of(name) != certificate and self._take_room():
            certified.take(certificate, key=key)

    def _has_room_for_a_guest(self) -> bool:
        return self._curve.certified.takes_guests and self._take_room()

    def _take_room(self) -> bool:
        now_s = self._monotonic_s()
        self._room = min(_MOST_AT_ONCE, self._room + _GUESTS_PER_S * (now_s - self._since_s))
        self._since_s = now_s
        if self._room < 1.0:
            return False
        self._room -= 1.0
        return True
