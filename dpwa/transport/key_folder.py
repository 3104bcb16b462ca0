"""The keys of a cluster as files: each node's secret one, and the list of who may connect with which public one.

    keys/allowed.yaml    w1: [PUBLIC KEY], w2: [...]: the same on every machine; no secret
    keys/w1.key          the secret key of w1; mode 0600, and on no machine but its own
    keys/w9.cert         of a node that is not on the list: its certificate, by a signer that is

A node has up to two keys on the list while it changes from one to the other: peers let it in with either, and try both
when they connect to it. The list is read again when it has changed, so that no peer is restarted for it.

Must not know: sockets, messages. Runs in: the trainer's thread and the launcher's; the list is also asked by the Rx and
the Tx thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import zmq

from dpwa.errors import ConfigError
from dpwa.transport import signing
from dpwa.transport.allowed_list import KEY_CHARS, MOST_KEYS, WORDS, AllowedList, changing_list, read_list, write_list
from dpwa.transport.allowed_list import stamp as _stamp
from dpwa.transport.certificate import MAX_TEXT_BYTES, from_text
from dpwa.transport.certified import Certified
from dpwa.transport.key_files import ALLOWED_FILE, CERTIFICATE_SUFFIX, certificate_path, secret_path
from dpwa.transport.secret_files import read_secret, write_secret

__all__ = [
    "KeyFolder",
    "make_key",
    "make_keys",
    "rotate_key",
]

_logger = logging.getLogger("dpwa")

# The list is looked at again no more often than that: somebody who knocks at the port must not cost a file each time.
_BETWEEN_LOOKS_S = 0.5

_MOST_CERTIFICATES = 4096  # files of one folder

# A list that cannot be read is being copied, or damaged: after so many looks it is the latter.
_LOOKS_AT_HALF_A_LIST = 6


class KeyFolder:
    """The keys that one node works with.

    Args:
        folder: with the files.
        node: the node.
        peers: names of the others, each of which must be on the list.

    Attributes:
        public: this node's public key.
        secret: its secret key.

    Raises:
        ConfigError: a file is missing, damaged, or can be read by others, or the list does not fit.
    """

    def __init__(self, folder: Path, node: str, peers: Iterable[str]) -> None:
        self._path = folder / ALLOWED_FILE
        self._node = node
        self._lock = threading.Lock()
        self._turns: dict[str, int] = {}
        self.certified = Certified(node)
        """Who may connect that is not on the list."""
        allowed, self._seen = read_list(self._path)
        self._seen_certificates = 0
        self._unread_looks = 0
        self._allowed: dict[str, tuple[bytes, ...]] = {}
        self._names: dict[bytes, str] = {}
        self.public = b""
        self._next_look_s = time.monotonic() + _BETWEEN_LOOKS_S
        if allowed.signers:
            signing.require(f"{self._path}: a list with `signers`")
        self._go_by(allowed)
        path = secret_path(folder, node)
        found = read_secret(path, KEY_CHARS + 1, f"make it by `dpwa keys init`, or copy it to this machine ({path})")
        self._require(allowed, peers)
        if found is None:
            raise ConfigError(f"{path}: this node's secret key is not there; copy it here, or run `dpwa keys init`")
        self.secret = found.strip()
        try:
            self.public = zmq.curve_public(self.secret)
        except (ValueError, zmq.ZMQError):
            raise ConfigError(f"{path}: expected a secret key of {KEY_CHARS} characters") from None
        if self.public not in self._keys_of(node):
            raise ConfigError(f"{path}: does not belong to any key of {node} in {self._path.parent}")
        self._show_own()

    def _require(self, allowed: AllowedList, peers: Iterable[str]) -> None:
        """Have this node know its own key and those of the peers."""
        unknown = [name for name in (self._node, *peers) if self._keys_of(name) == ()]
        if not unknown:
            return
        revoked = [name for name in unknown if name in allowed.revoked]
        if revoked:
            raise ConfigError(f"{self._path}: {revoked[0]} is revoked; run it under another name, or not at all")
        path = certificate_path(self._path.parent, self._node)
        if unknown[0] == self._node and path.exists():
            raise ConfigError(f"{path}: {self._why_not(path)}; have the owner of the cluster make it anew")
        raise ConfigError(
            f"{self._path}: has no key of {', '.join(unknown[:8])}; run `dpwa keys init CLUSTER.yaml` again, and "
            f"copy the list to every machine"
            + (", or have it invited by `dpwa keys invite CLUSTER.yaml NODE`" if allowed.signers else "")
        )

    def _why_not(self, path: Path) -> str:
        data = _certificate(path)
        if data is None:
            return "is no certificate"
        return self.certified.take(data, name=self._node) or "does not count"

    def __repr__(self) -> str:
        return f"KeyFolder({str(self._path.parent)!r})"

    def name_of(self, public: bytes) -> str | None:
        """Whose key this is; None if it is nobody's who may connect. Safe in any thread."""
        self._look_again()
        return self._names.get(public) or self.certified.name_of(public)

    def server_key(self, peer: str) -> bytes:
        """The public key to expect of a peer, or at an address `host:port`, where any may be: each in turn.

        Safe in any thread.

        Raises:
            ConfigError: there is none.
        """
        self._look_again()
        keys = self._keys_of(peer)
        if not keys:
            raise ConfigError(f"{self._path}: has no key of {peer}, and nobody has shown a certificate of it")
        return keys[self._turns.get(peer, 0) % len(keys)]

    def _keys_of(self, peer: str) -> tuple[bytes, ...]:
        if ":" in peer:  # no name of a node has a colon
            listed = (key for name, own in sorted(self._allowed.items()) if name != self._node for key in own)
            return (*listed, *(key for key in self.certified.keys if key != self.public))
        certified = self.certified.key_of(peer)  # None for who is on the list; and what was on it once counts less
        return self._allowed.get(peer, ()) if certified is None else (certified,)

    def failed(self, peer: str) -> None:
        """A connection to a peer was not made: if there is another key to expect, it is the next one's turn."""
        self._turns[peer] = self._turns.get(peer, 0) + 1

    def _look_again(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return
        with self._lock:
            if now_s < self._next_look_s:
                return
            self._next_look_s = now_s + _BETWEEN_LOOKS_S
        try:
            if (seen := _stamp(self._path)) != self._seen:
                allowed, seen = read_list(self._path)
                self._go_by(allowed)
                self._seen, self._unread_looks = seen, 0
            elif self.certified.takes_guests:
                self._read_certificates()
        except ConfigError as error:  # half a file: whoever copies it is not done yet, and the list in memory holds
            self._unread_looks += 1
            if self._unread_looks == _LOOKS_AT_HALF_A_LIST:
                _logger.warning("%s; this node goes by the list that it has read before", error)

    def _go_by(self, allowed: AllowedList) -> None:
        """Take a list. Who is gone from it gets in no more; peers keep their last keys for connecting to."""
        if allowed.signers:
            signing.require(f"{self._path}: a list with `signers`")
        kept = {name: keys for name, keys in self._allowed.items() if name not in allowed.revoked}
        kept = {name: tuple(key for key in keys if key.decode() not in allowed.revoked) for name, keys in kept.items()}
        self._allowed, self._names = {**kept, **allowed.keys}, allowed.names
        self.certified.go_by(allowed.signers, frozenset(allowed.keys), frozenset(allowed.revoked))
        self._seen_certificates = 0
        if allowed.signers:
            self._read_certificates()

    def _read_certificates(self) -> None:
        """Take the certificates in the folder, if one has come or changed."""
        folder = self._path.parent
        try:
            if (seen := folder.stat().st_mtime_ns) == self._seen_certificates:
                return
            paths = sorted(folder.glob(f"*{CERTIFICATE_SUFFIX}"))[:_MOST_CERTIFICATES]
        except OSError:
            return
        self._seen_certificates = seen
        for path in paths:
            data = _certificate(path)
            if data is not None:
                self.certified.take(data)
        self._show_own()

    def _show_own(self) -> None:
        """Show the certificate of this node's key from now on, if there is one that counts."""
        if self.certified.key_of(self._node) == self.public:
            self.certified.own = self.certified.certificate_of(self._node)


def make_keys(folder: Path, nodes: Sequence[str]) -> list[str]:
    """Make a key for each node that has none, and put it on the list.

    Args:
        folder: made if it is not there, for this user alone.
        nodes: their names.

    Returns:
        The nodes that have a new key.

    Raises:
        ConfigError: a file cannot be read or written, or a secret is there whose public key is not on the list.
    """
    for node in nodes:
        if node in WORDS:
            raise ConfigError(f"{node}: a node with a key cannot have this name, which is a word of {ALLOWED_FILE}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror})") from error
    with changing_list(folder):
        found = read_list(folder / ALLOWED_FILE)[0] if (folder / ALLOWED_FILE).exists() else AllowedList()
        revoked = [node for node in nodes if node in found.revoked]
        if revoked:
            advice = "take it out of the cluster file, or out of `revoked`"
            raise ConfigError(f"{folder / ALLOWED_FILE}: {revoked[0]} is revoked; {advice}")
        new = [node for node in nodes if node not in found.keys]
        made = {node: (make_key(folder, node),) for node in new}
        write_list(folder, replace(found, keys={**found.keys, **made}))
    return new


def rotate_key(folder: Path, node: str, *, finish: bool = False) -> None:
    """Change a node's key: first both are allowed, and when the node runs with the new one, `finish` ends the old one.

    Raises:
        ConfigError: the node is not on the list, is in the middle of a change, or is not.
    """
    with changing_list(folder):
        _rotate_key(folder, node, finish=finish)


def _rotate_key(folder: Path, node: str, *, finish: bool) -> None:
    path = folder / ALLOWED_FILE
    found = read_list(path)[0]
    allowed = dict(found.keys)
    keys = allowed.get(node)
    if keys is None:
        raise ConfigError(f"{path}: has no node {node}; it has {', '.join(sorted(allowed)[:8])}")
    if finish:
        if len(keys) == 1:
            raise ConfigError(f"{path}: {node} has one key already, so there is nothing to finish")
        allowed[node] = keys[:1]
        _old_path(folder, node).unlink(missing_ok=True)
    else:
        if len(keys) == MOST_KEYS:
            raise ConfigError(
                f"{path}: {node} has two keys already; when it runs with the new one: dpwa keys rotate {node} --finish"
            )
        try:
            os.replace(secret_path(folder, node), _old_path(folder, node))
        except OSError as error:
            path = secret_path(folder, node)
            raise ConfigError(f"{path}: cannot be replaced ({error.strerror}); do it where this key is") from error
        allowed[node] = (make_key(folder, node), *keys)
    write_list(folder, replace(found, keys=allowed))


def make_key(folder: Path, node: str) -> bytes:
    """Write a new secret key, and return its public half.

    Raises:
        ConfigError: there is one that nobody knows the public half of, or it cannot be written.
    """
    path = secret_path(folder, node)
    public, secret = zmq.curve_keypair()
    try:
        write_secret(path, secret + b"\n")
    except FileExistsError:
        raise ConfigError(
            f"{path} is there, and {folder / ALLOWED_FILE} has no key of {node}; put the list back, or remove the key"
        ) from None
    return public


def _old_path(folder: Path, node: str) -> Path:
    return folder / f"{node}.old.key"


def _certificate(path: Path) -> bytes | None:
    """What stands in such a file, if it can be read as a certificate."""
    try:
        with path.open("rb") as file:
            return from_text(file.read(MAX_TEXT_BYTES).decode("ascii")).to_bytes()
    except (OSError, ValueError):
        return None
