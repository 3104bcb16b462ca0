"""Which certificates count: of nodes that are on no list, and have a certificate by a signer that is.

Each node verifies each certificate itself, whoever gave it: the node that it is of, a member, or a file. A name that is
on the list is the list's alone. Of one name, the certificate that was issued last holds, so that an old key that was
replaced, or stolen, cannot be used again where the new one is known.

A certificate ends at a date. This is the one place where the wall clock decides something.

Must not know: sockets, files. Runs in: the Rx and the Tx thread, and the trainer's at the start; a lock keeps changes
apart, and who asks takes none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from zmq.utils import z85

from dpwa.config.keys import MAX_NODES
from dpwa.transport import signing
from dpwa.transport.certificate import Certificate, read_certificate

__all__ = ["Certified"]

_logger = logging.getLogger("dpwa")

_OTHER_SIGNER = "is signed with another key than that of this cluster"

# Refusals that are told; an owner has to look at the first ones anyway.
_MOST_TOLD = 64


class Certified:
    """The certificates that one node knows. Keys are in ZeroMQ's text form.

    Args:
        node: this node.
        now_s: the wall clock, in Unix seconds.

    Attributes:
        own: this node's certificate, to be shown to others; empty: it has none, or needs none.
    """

    def __init__(self, node: str, now_s: Callable[[], float] = time.time) -> None:
        self.own = b""
        self._told: set[tuple[str, str]] = set()
        self._node = node
        self._now_s = now_s
        self._lock = threading.Lock()
        self._signers: tuple[bytes, ...] = ()
        self._listed: Collection[str] = ()
        self._revoked: Collection[str] = ()
        self._by_name: dict[str, Certificate] = {}
        self._by_key: dict[bytes, Certificate] = {}

    @property
    def takes_guests(self) -> bool:
        """Whether somebody whose key is not known may show a certificate."""
        return bool(self._signers)

    @property
    def keys(self) -> list[bytes]:
        """The public keys of all."""
        return [key for key in list(self._by_key) if self.name_of(key) is not None]

    def go_by(self, signers: tuple[bytes, ...], listed: Collection[str], revoked: Collection[str]) -> None:
        """The list has changed: what does not count by it any more is forgotten.

        Args:
            signers: Ed25519 public keys, 32 bytes each.
            listed: names that have keys on the list.
            revoked: names, and keys as text, that do not count.
        """
        with self._lock:
            self._signers, self._listed, self._revoked = signers, listed, revoked
            for certificate in list(self._by_name.values()):
                if certificate.signer not in signers or self._why_not(certificate):
                    self._drop(certificate)

    def name_of(self, key: bytes) -> str | None:
        """Whose key this is by a certificate that counts now."""
        found = self._by_key.get(key)
        return None if found is None or found.until < self._now_s() else found.name

    def key_of(self, name: str) -> bytes | None:
        """The key of a node by a certificate that counts now."""
        found = self._by_name.get(name)
        return None if found is None or found.until < self._now_s() else z85.encode(found.key)

    def certificate_of(self, name: str) -> bytes:
        """What others need to know the key of a node; empty if there is nothing that counts now."""
        found = self._by_name.get(name)
        return b"" if found is None or found.until < self._now_s() else found.to_bytes()

    def take(self, data: bytes, *, key: bytes | None = None, name: str | None = None) -> str:
        """Take a certificate that somebody gave, if it counts.

        Args:
            data: the certificate.
            key: whose holder gave it: it must be of that key; None: of any.
            name: whose it must be; None: anybody's.

        Returns:
            Why it does not count; empty: it does.
        """
        try:
            given = read_certificate(data)
        except ValueError as error:
            return str(error)
        if key is not None and z85.encode(given.key) != key:
            return "is of another key"
        if name is not None and given.name != name:
            return "is of another node"
        if given == self._by_name.get(given.name):
            return self._why_not(given)
        if given.signer not in self._signers:
            return _OTHER_SIGNER
        why = self._why_not(given)
        if why and key is None:
            return why  # nobody is told, so that it does not matter whether the signature is right
        if not signing.is_signed(given.signer, given.signed_part, given.signature):
            return "has a wrong signature"
        with self._lock:
            is_by_signer = given.signer in self._signers  # the list may have changed meanwhile
            why = (self._why_not(given) or self._put(given)) if is_by_signer else _OTHER_SIGNER
        if why and key is not None and (given.name, why) not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add((given.name, why))  # the signature is right: no stranger can fill a log with names
            _logger.warning(
                "node %s: a certificate of %s %s: it is not let in (told once)", self._node, given.name, why
            )
        return why

    def _why_not(self, given: Certificate) -> str:
        if given.until < self._now_s():
            return f"ended on {given.end}"
        if given.name in self._revoked or z85.encode(given.key).decode("ascii") in self._revoked:
            return "is revoked"
        if given.name in self._listed:
            return "is of a name whose keys are on the list"
        return ""

    def _put(self, given: Certificate) -> str:
        known = self._by_name.get(given.name)
        if known is not None and known.key != given.key and known.issued >= given.issued:
            return "is older than another one of that name"
        if known is not None and known.issued > given.issued:
            return self._why_not(known)  # its holder has a newer one of the same key already
        holder = self._by_key.get(z85.encode(given.key))
        if holder is not None and holder.name != given.name:
            return "is of a key that another node has"
        if known is None and len(self._by_name) >= MAX_NODES:
            for each in [each for each in self._by_name.values() if each.until < self._now_s()]:
                self._drop(each)
            if len(self._by_name) >= MAX_NODES:
                return f"is one too many: at most {MAX_NODES} can be known"
        self._by_name[given.name] = given
        self._by_key[z85.encode(given.key)] = given  # in one step where it replaces one: others look meanwhile
        if known is not None and known.key != given.key:
            del self._by_key[z85.encode(known.key)]
        return ""

    def _drop(self, certificate: Certificate) -> None:
        self._by_name.pop(certificate.name, None)
        self._by_key.pop(z85.encode(certificate.key), None)
