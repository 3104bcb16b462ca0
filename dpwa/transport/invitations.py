"""The owner's side of certificates: the signing key of a cluster, and what is signed with it.

    keys/cluster.signing-key    secret, mode 0600; stays where the owner has it, and no node reads it
    keys/w9.key, keys/w9.cert   for the machine of a node that is invited

Must not know: sockets, nodes that run. Runs in: the command line.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

from dpwa.config.sections import NAME_PATTERN
from dpwa.errors import ConfigError
from dpwa.transport import signing
from dpwa.transport.allowed_list import KEY_CHARS, MOST_KEYS, WORDS, AllowedList, changing_list, read_list, write_list
from dpwa.transport.certificate import MAX_TEXT_BYTES, Certificate, from_text, to_text
from dpwa.transport.key_files import ALLOWED_FILE, certificate_path, secret_path
from dpwa.transport.key_folder import make_key
from dpwa.transport.secret_files import read_secret, write_secret

__all__ = ["SIGNING_FILE", "Invitation", "Signer", "invite", "make_signer", "revoke"]

SIGNING_FILE = "cluster.signing-key"

_DAY_S = 24 * 3600


class Signer(NamedTuple):
    """What `make_signer` has done.

    Attributes:
        is_new: the signing key was made; otherwise it was there.
        others: other signers on the list, whose certificates count as well.
    """

    is_new: bool
    others: int


class Invitation(NamedTuple):
    """What `invite` has made.

    Attributes:
        certificate: of the node.
        is_new: its key was made; otherwise the certificate is for the key that it has.
    """

    certificate: Certificate
    is_new: bool


def make_signer(folder: Path) -> Signer:
    """Make the signing key of a cluster, unless it is there, and put its public half on the list.

    Args:
        folder: of the keys, with a list.

    Raises:
        ConfigError: PyNaCl is not installed, a file cannot be read or written, or the list has two signers already.
    """
    with changing_list(folder):
        allowed = read_list(folder / ALLOWED_FILE)[0]
        key = _signing_key(folder)
        is_new = key is None
        if key is None:
            if len(allowed.signers) == MOST_KEYS:
                raise ConfigError(
                    f"{folder / ALLOWED_FILE}: has two signers already; take out the one that is to go first"
                )
            key = signing.make_signing_key()
            write_secret(folder / SIGNING_FILE, z85.encode(key) + b"\n")
        public = signing.public_half(key)
        others = tuple(each for each in allowed.signers if each != public)
        write_list(folder, replace(allowed, signers=(public, *others)))
    return Signer(is_new, len(others))


def invite(folder: Path, node: str, *, days: int, now_s: float, new_key: bool = False) -> Invitation:
    """Sign a certificate for a node: for the key that it has, or a new one.

    Args:
        folder: of the keys, with the signing key.
        node: its name.
        days: for how long the certificate counts.
        now_s: the wall clock, in Unix seconds.
        new_key: in place of the one that it has.

    Raises:
        ConfigError: the node needs none or may have none, or a file is missing or cannot be written.
    """
    allowed = read_list(folder / ALLOWED_FILE)[0]
    _require_guest(folder, allowed, node)
    signing_key = _signing_key(folder)
    if signing_key is None:
        raise ConfigError(
            f"{folder / SIGNING_FILE}: the signing key of the cluster is not there; make it by "
            f"`dpwa keys init CLUSTER.yaml --signer`, or invite where it is"
        )
    signer = signing.public_half(signing_key)
    if signer not in allowed.signers:
        raise ConfigError(
            f"{folder / SIGNING_FILE}: its public half is not among the signers of {folder / ALLOWED_FILE}; "
            f"put it there by `dpwa keys init CLUSTER.yaml --signer`"
        )
    before = _certificate_before(folder, node)
    if new_key:
        secret_path(folder, node).unlink(missing_ok=True)
    public = None if new_key else _public_key(folder, node, before)
    is_new = public is None
    # Of two certificates the one that was issued later holds, so that no two are of the same second.
    issued = int(now_s) if before is None else max(int(now_s), before.issued + 1)
    key = z85.decode(public or make_key(folder, node))
    draft = Certificate(signer, node, key, issued, issued + days * _DAY_S)
    certificate = draft._replace(signature=signing.sign(signing_key, draft.signed_part))
    path = certificate_path(folder, node)
    try:
        new = path.with_name(f"{path.name}.new")
        new.write_text(to_text(certificate), encoding="ascii")
        os.replace(new, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
    return Invitation(certificate, is_new)


def revoke(folder: Path, name: str) -> None:
    """Have nobody let a node in any more, by the list or by a certificate.

    Raises:
        ConfigError: a file cannot be read or written, or the name is none.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{name}: expected the name of a node")
    with changing_list(folder):
        allowed = read_list(folder / ALLOWED_FILE)[0]
        keys = {node: own for node, own in allowed.keys.items() if node != name}
        revoked = allowed.revoked if name in allowed.revoked else (*allowed.revoked, name)
        write_list(folder, replace(allowed, keys=keys, revoked=revoked))
    certificate_path(folder, name).unlink(missing_ok=True)


def _require_guest(folder: Path, allowed: AllowedList, node: str) -> None:
    path = folder / ALLOWED_FILE
    if not re.fullmatch(NAME_PATTERN, node) or node in WORDS:
        raise ConfigError(f"{node}: expected a name of letters, digits, _, . and -, which is no word of {ALLOWED_FILE}")
    if node in allowed.keys:
        raise ConfigError(f"{path}: {node} is on the list and needs no invitation; invite a node by another name")
    if node in allowed.revoked:
        raise ConfigError(f"{path}: {node} is revoked; invite a node by another name, or take it out of `revoked`")


def _signing_key(folder: Path) -> bytes | None:
    path = folder / SIGNING_FILE
    found = read_secret(path, KEY_CHARS + 1, "put back the one that `dpwa keys init --signer` has made")
    if found is None:
        return None
    try:
        key = z85.decode(found.strip())
    except (KeyError, ValueError, ArithmeticError):
        key = b""
    if len(key) != 32:
        raise ConfigError(f"{path}: expected a signing key of {KEY_CHARS} characters")
    return bytes(key)


def _certificate_before(folder: Path, node: str) -> Certificate | None:
    """The certificate that a node was invited with before."""
    path = certificate_path(folder, node)
    try:
        with path.open("rb") as file:
            return from_text(file.read(MAX_TEXT_BYTES).decode("ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; remove it, and invite the node once more") from error


def _public_key(folder: Path, node: str, before: Certificate | None) -> bytes | None:
    """The public key that a node has; None: it has none yet."""
    if before is not None:
        return z85.encode(before.key)
    secret = read_secret(secret_path(folder, node), KEY_CHARS + 1, "remove it, and the node has a new key")
    try:
        return None if secret is None else bytes(zmq.curve_public(secret.strip()))
    except (ValueError, zmq.ZMQError):
        raise ConfigError(f"{secret_path(folder, node)}: expected a secret key of {KEY_CHARS} characters") from None
