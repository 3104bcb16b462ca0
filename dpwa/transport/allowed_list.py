"""The list `allowed.yaml`: who may connect with which public key, who may sign others' keys, and who may not at all.

    w1: [PUBLIC KEY]
    w2: [NEW PUBLIC KEY, OLD PUBLIC KEY]
    signers: [ed25519:PUBLIC HALF]
    revoked: [w7, PUBLIC KEY]

Must not know: sockets, secrets, what follows from the list. Runs in: any thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from zmq.utils import z85

from dpwa.errors import ConfigError
from dpwa.transport.key_files import ALLOWED_FILE

__all__ = ["KEY_CHARS", "MOST_KEYS", "WORDS", "AllowedList", "changing_list", "read_list", "stamp", "write_list"]


KEY_CHARS = 40
"""A key of 32 bytes in Z85, ZeroMQ's text form (rfc.zeromq.org/spec/32)."""

MOST_KEYS = 2
"""Of one node, while it changes its key; and of signers, while theirs is changed."""

SIGNERS, REVOKED = "signers", "revoked"
WORDS = (SIGNERS, REVOKED)
"""What stands among the names of nodes, and can be none."""

_SIGNER_PREFIX = "ed25519:"
_MOST_REVOKED = 4096
_MOST_LIST_BYTES = 1 << 20

_HEADER = """\
# Who may connect, and with which public key; made by `dpwa keys`. The same on every machine, and no secret.
# A node that changes its key has two for a while, the newer one first.
"""
_ABOUT_SIGNERS = """\
# Whoever has a certificate that was signed with the secret half of one of `signers` may connect, too.
"""


@dataclass(frozen=True)
class AllowedList:
    """What the list says.

    Attributes:
        keys: public keys by node, the newest first; without those that are revoked.
        signers: Ed25519 public keys, 32 bytes each.
        revoked: names of nodes, and public keys as text.
    """

    keys: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    signers: tuple[bytes, ...] = ()
    revoked: tuple[str, ...] = ()

    @property
    def names(self) -> dict[bytes, str]:
        """Whose each key is."""
        return {key: name for name, keys in self.keys.items() for key in keys}


def stamp(path: Path) -> tuple[int, int]:
    """What tells whether the list has changed.

    Raises:
        ConfigError: there is none.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    return status.st_mtime_ns, status.st_size


def read_list(path: Path) -> tuple[AllowedList, tuple[int, int]]:
    """The list, and the stamp of what was read.

    Raises:
        ConfigError: it is missing, or damaged.
    """
    if not path.exists():
        raise ConfigError(f"{path}: the list of keys is not there; make it by `dpwa keys init CLUSTER.yaml`")
    seen = stamp(path)
    if seen[1] > _MOST_LIST_BYTES:
        raise ConfigError(f"{path}: expected at most {_MOST_LIST_BYTES} bytes, got {seen[1]}")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({str(error).partition(chr(10))[0]})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected names of nodes with lists of keys, got {type(found).__name__}")
    signers = _signers(path, found.pop(SIGNERS, []))
    revoked = _revoked(path, found.pop(REVOKED, []))
    given = {str(name): _keys(path, name, keys) for name, keys in found.items()}
    if len({key for keys in given.values() for key in keys}) != sum(map(len, given.values())):
        raise ConfigError(f"{path}: two nodes have the same key; each needs its own")
    left = {name: tuple(key for key in keys if key.decode("ascii") not in revoked) for name, keys in given.items()}
    allowed = {name: keys for name, keys in left.items() if keys and name not in revoked}
    return AllowedList(allowed, signers, revoked), seen


@contextlib.contextmanager
def changing_list(folder: Path) -> Iterator[None]:
    """For whoever reads the list, changes it and writes it back: one at a time, so that no change is lost.

    Waits for the others, whose time is that of a few files. Where there is no folder, reading says so.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_list(folder: Path, allowed: AllowedList) -> None:
    """Write the list, all of it or nothing.

    Raises:
        ConfigError: it cannot be written.
    """
    values = {name: [key.decode("ascii") for key in keys] for name, keys in allowed.keys.items()}
    text = _HEADER + (yaml.safe_dump(values, width=120) if values or not (allowed.signers or allowed.revoked) else "")
    if allowed.signers:
        signers = [_SIGNER_PREFIX + z85.encode(key).decode("ascii") for key in allowed.signers]
        text += _ABOUT_SIGNERS + yaml.safe_dump({SIGNERS: signers}, width=120)
    if allowed.revoked:
        text += yaml.safe_dump({REVOKED: list(allowed.revoked)}, width=120)
    # Nodes that make their own keys write it side by side.
    draft = folder / f"{ALLOWED_FILE}.{os.getpid()}-{threading.get_ident()}.new"
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, folder / ALLOWED_FILE)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error


def _keys(path: Path, name: object, keys: object) -> tuple[bytes, ...]:
    if not (isinstance(keys, list) and 1 <= len(keys) <= MOST_KEYS):
        raise ConfigError(f"{path}: {name}: expected one or two keys in a list")
    for key in keys:
        if not (isinstance(key, str) and len(key) == KEY_CHARS and key.isascii()):
            raise ConfigError(f"{path}: {name}: expected public keys of {KEY_CHARS} characters")
    return tuple(key.encode("ascii") for key in keys)


def _signers(path: Path, given: object) -> tuple[bytes, ...]:
    if not (isinstance(given, list) and len(given) <= MOST_KEYS):
        raise ConfigError(f"{path}: {SIGNERS}: expected at most two in a list")
    return tuple(_signer(path, each) for each in given)


def _signer(path: Path, given: object) -> bytes:
    text = given.removeprefix(_SIGNER_PREFIX) if isinstance(given, str) else ""
    if len(text) == KEY_CHARS and text != given:
        with contextlib.suppress(KeyError, ValueError, struct.error):
            return bytes(z85.decode(text))
    raise ConfigError(
        f"{path}: {SIGNERS}: expected {_SIGNER_PREFIX} and {KEY_CHARS} characters, as `dpwa keys` writes it"
    )


def _revoked(path: Path, given: object) -> tuple[str, ...]:
    if not (isinstance(given, list) and len(given) <= _MOST_REVOKED and all(isinstance(each, str) for each in given)):
        raise ConfigError(f"{path}: {REVOKED}: expected names of nodes, or public keys, in a list")
    return tuple(given)
