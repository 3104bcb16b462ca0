"""The keys of a cluster as files: each node's secret one, and the list of who may connect with which public one.

    keys/allowed.yaml    w1: [PUBLIC KEY], w2: [...]: the same on every machine; no secret
    keys/w1.key          the secret key of w1; mode 0600, and on no machine but its own

The nodes that one `dpwa launch` starts get such a folder in their run folder, for as long as they run: on a machine
with several users anybody can connect to a port, and pose as a node that has just died.

A node has up to two keys on the list while it changes from one to the other: peers let it in with either, and try both
when they connect to it. The list is read again when it has changed, so that no peer is restarted for it.

Must not know: sockets, messages. Runs in: the trainer's thread and the launcher's; the list is also asked by the Rx and
the Tx thread.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
import zmq

from dpwa.errors import ConfigError
from dpwa.transport.secret_files import read_secret, write_secret

__all__ = [
    "ALLOWED_FILE",
    "KeyFolder",
    "make_keys",
    "own_keys",
    "remove_own_keys",
    "rotate_key",
    "run_keys",
    "run_keys_folder",
]

ALLOWED_FILE = "allowed.yaml"
_RUN_KEYS = "keys"  # in a run folder

_KEY_CHARS = 40  # a key of 32 bytes in Z85, ZeroMQ's text form (rfc.zeromq.org/spec/32)
_MOST_KEYS = 2
_MOST_LIST_BYTES = 1 << 20

# The list is looked at again no more often than that: somebody who knocks at the port must not cost a file each time.
_BETWEEN_LOOKS_S = 0.5

_HEADER = """\
# Who may connect, and with which public key; made by `dpwa keys`. The same on every machine, and no secret.
# A node that changes its key has two for a while, the newer one first.
"""


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
        self._allowed, self._names, self._seen = _read(self._path)
        self._next_look_s = time.monotonic() + _BETWEEN_LOOKS_S
        missing = [name for name in (node, *peers) if name not in self._allowed]
        if missing:
            raise ConfigError(
                f"{self._path}: has no key of {', '.join(missing[:8])}; run `dpwa keys init CLUSTER.yaml` again, and "
                f"copy the list to every machine"
            )
        path = _secret_path(folder, node)
        found = read_secret(path, _KEY_CHARS + 1, f"make it by `dpwa keys init`, or copy it to this machine ({path})")
        if found is None:
            raise ConfigError(f"{path}: this node's secret key is not there; copy it here, or run `dpwa keys init`")
        self.secret = found.strip()
        try:
            self.public = zmq.curve_public(self.secret)
        except (ValueError, zmq.ZMQError):
            raise ConfigError(f"{path}: expected a secret key of {_KEY_CHARS} characters") from None
        if self.public not in self._allowed[node]:
            raise ConfigError(f"{path}: does not belong to any key of {node} in {self._path}")

    def __repr__(self) -> str:
        return f"KeyFolder({str(self._path.parent)!r})"

    def name_of(self, public: bytes) -> str | None:
        """Whose key this is; None if it is nobody's who may connect. Safe in any thread."""
        self._look_again()
        return self._names.get(public)

    def server_key(self, peer: str) -> bytes:
        """The public key to expect of a peer, or at an address `host:port`, where any of the list may be: each in turn.

        Safe in any thread.

        Raises:
            ConfigError: the peer is not on the list.
        """
        self._look_again()
        if ":" in peer:  # no name of a node has a colon
            keys = tuple(key for name, own in sorted(self._allowed.items()) if name != self._node for key in own)
        else:
            keys = self._allowed.get(peer, ())
        if not keys:
            raise ConfigError(f"{self._path}: has no key of {peer}")
        return keys[self._turns.get(peer, 0) % len(keys)]

    def failed(self, peer: str) -> None:
        """A connection to a peer was not made: if there is another key to expect, it is the next one's turn."""
        self._turns[peer] = self._turns.get(peer, 0) + 1

    def _look_again(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            if now_s < self._next_look_s:
                return
            self._next_look_s = now_s + _BETWEEN_LOOKS_S
        try:
            if _stamp(self._path) == self._seen:
                return
            allowed, names, seen = _read(self._path)
        except ConfigError:
            return  # half a file: whoever copies it is not done yet, and the list in memory holds
        # Who is gone from the list gets in no more; peers of the cluster file keep their last keys for connecting to.
        self._allowed, self._names, self._seen = {**self._allowed, **allowed}, names, seen


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
    allowed = _read(folder / ALLOWED_FILE)[0] if (folder / ALLOWED_FILE).exists() else {}
    new = [node for node in nodes if node not in allowed]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror})") from error
    for node in new:
        allowed[node] = (_make_key(folder, node),)
    _write_list(folder, allowed)
    return new


def run_keys_folder(run_dir: Path | None) -> Path | None:
    """Where the keys of a run are that one `dpwa launch` has started; None if it has none."""
    folder = None if run_dir is None else run_dir / _RUN_KEYS
    return folder if folder is not None and (folder / ALLOWED_FILE).exists() else None


@contextmanager
def run_keys(run_dir: Path, nodes: Sequence[str], is_used: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Keys for a run, in its folder, for as long as its nodes run; those that a killed launcher has left serve again.

    Args:
        run_dir: the run folder.
        nodes: their names.
        is_used: whether others work with the keys at the end: nodes of another launch, that have joined.

    Raises:
        ConfigError: they cannot be written.
    """
    folder = run_dir / _RUN_KEYS
    try:
        make_keys(folder, nodes)
    except ConfigError as error:
        raise ConfigError(f"run folder {run_dir}: {error}; name another with --run-dir") from error
    try:
        yield
    finally:
        if not is_used():
            shutil.rmtree(folder, ignore_errors=True)


def own_keys(run_dir: Path, node: str, secret: bytes, allowed: Mapping[str, bytes]) -> Path:
    """Keys for a run of which each node has made its own: one node's part of the run folder's keys.

    Nodes of one run folder do this side by side, with the same list; what a former life has left is replaced.

    Args:
        run_dir: the run folder.
        node: the node.
        secret: its secret key.
        allowed: every node's public key.

    Returns:
        The folder with the keys.

    Raises:
        ConfigError: they cannot be written.
    """
    folder = run_dir / _RUN_KEYS
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _secret_path(folder, node).unlink(missing_ok=True)
        write_secret(_secret_path(folder, node), secret + b"\n")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
    _write_list(folder, {name: (key,) for name, key in allowed.items()}, draft_of=node)
    return folder


def remove_own_keys(folder: Path, node: str, pid: int) -> None:
    """Remove a node's part of a run's keys, and the list with the last of them; nothing in a forked child.

    Args:
        folder: that `own_keys` has returned.
        node: the node.
        pid: of the process that has made them.
    """
    if os.getpid() != pid:
        return
    with suppress(OSError):
        _secret_path(folder, node).unlink(missing_ok=True)
        if not any(folder.glob("*.key")):
            shutil.rmtree(folder, ignore_errors=True)


def rotate_key(folder: Path, node: str, *, finish: bool = False) -> None:
    """Change a node's key: first both are allowed, and when the node runs with the new one, `finish` ends the old one.

    Raises:
        ConfigError: the node is not on the list, is in the middle of a change, or is not.
    """
    path = folder / ALLOWED_FILE
    allowed = _read(path)[0]
    keys = allowed.get(node)
    if keys is None:
        raise ConfigError(f"{path}: has no node {node}; it has {', '.join(sorted(allowed)[:8])}")
    if finish:
        if len(keys) == 1:
            raise ConfigError(f"{path}: {node} has one key already, so there is nothing to finish")
        allowed[node] = keys[:1]
        _old_path(folder, node).unlink(missing_ok=True)
    else:
        if len(keys) == _MOST_KEYS:
            raise ConfigError(
                f"{path}: {node} has two keys already; when it runs with the new one: dpwa keys rotate {node} --finish"
            )
        try:
            os.replace(_secret_path(folder, node), _old_path(folder, node))
        except OSError as error:
            path = _secret_path(folder, node)
            raise ConfigError(f"{path}: cannot be replaced ({error.strerror}); do it where this key is") from error
        allowed[node] = (_make_key(folder, node), *keys)
    _write_list(folder, allowed)


def _make_key(folder: Path, node: str) -> bytes:
    path = _secret_path(folder, node)
    public, secret = zmq.curve_keypair()
    try:
        write_secret(path, secret + b"\n")
    except FileExistsError:
        raise ConfigError(
            f"{path} is there, and {folder / ALLOWED_FILE} has no key of {node}; put the list back, or remove the key"
        ) from None
    return public


def _secret_path(folder: Path, node: str) -> Path:
    return folder / f"{node}.key"


def _old_path(folder: Path, node: str) -> Path:
    return folder / f"{node}.old.key"


def _write_list(folder: Path, allowed: Mapping[str, Sequence[bytes]], draft_of: str = "") -> None:
    values = {name: [key.decode("ascii") for key in keys] for name, keys in allowed.items()}
    draft = folder / f"{ALLOWED_FILE}{draft_of}.new"
    try:
        draft.write_text(_HEADER + yaml.safe_dump(values, width=120), encoding="utf-8")
        os.replace(draft, folder / ALLOWED_FILE)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    return status.st_mtime_ns, status.st_size


def _read(path: Path) -> tuple[dict[str, tuple[bytes, ...]], dict[bytes, str], tuple[int, int]]:
    """The list by name, the same by key, and what tells whether the file has changed."""
    if not path.exists():
        raise ConfigError(f"{path}: the list of keys is not there; make it by `dpwa keys init CLUSTER.yaml`")
    seen = _stamp(path)
    if seen[1] > _MOST_LIST_BYTES:
        raise ConfigError(f"{path}: expected at most {_MOST_LIST_BYTES} bytes, got {seen[1]}")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({str(error).partition(chr(10))[0]})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected names of nodes with lists of keys, got {type(found).__name__}")
    allowed = {str(name): _keys(path, name, keys) for name, keys in found.items()}
    names = {key: name for name, keys in allowed.items() for key in keys}
    if len(names) != sum(map(len, allowed.values())):
        raise ConfigError(f"{path}: two nodes have the same key; each needs its own")
    return allowed, names, seen


def _keys(path: Path, name: object, keys: object) -> tuple[bytes, ...]:
    if not (isinstance(keys, list) and 1 <= len(keys) <= _MOST_KEYS):
        raise ConfigError(f"{path}: {name}: expected one or two keys in a list")
    for key in keys:
        if not (isinstance(key, str) and len(key) == _KEY_CHARS and key.isascii()):
            raise ConfigError(f"{path}: {name}: expected public keys of {_KEY_CHARS} characters")
    return tuple(key.encode("ascii") for key in keys)
