"""A certificate: by the signature of the cluster's signing key, a node of this name with this public key may connect.

    "dpwacrt1" | signer 32 | key 32 | issued 8 | until 8 | length of the name 1 | name | signature 64

Times are Unix seconds, big-endian; the signature (Ed25519, RFC 8032) covers all before it. There is one way to write a
certificate, and nothing else is read. As a file it is one line of base64 below comments for people.

Must not know: files, sockets, which certificates count. Runs in: any thread; pure functions.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import time
from typing import Final, NamedTuple

from dpwa.config.sections import NAME_PATTERN

__all__ = ["MAX_TEXT_BYTES", "Certificate", "from_text", "read_certificate", "to_text"]

MAX_TEXT_BYTES: Final = 2048
"""Of a certificate as a file."""

_MAGIC: Final = b"dpwacrt1"
_HEAD: Final = struct.Struct(">8s32s32sQQB")
_SIGNATURE_BYTES: Final = 64
_LATEST_S: Final = 253402300799  # the end of the year 9999, the last that Python's calendar has

_NAME = re.compile(NAME_PATTERN)


class Certificate(NamedTuple):
    """What a certificate says.

    Attributes:
        signer: the Ed25519 public key that it is signed with, 32 bytes.
        name: of the node.
        key: the node's CURVE public key, 32 bytes.
        issued: when it was signed, in Unix seconds; of two for one name the one that was issued later holds.
        until: when it ends, in Unix seconds.
        signature: Ed25519, 64 bytes; all zero before it is signed.
    """

    signer: bytes
    name: str
    key: bytes
    issued: int
    until: int
    signature: bytes = bytes(_SIGNATURE_BYTES)

    @property
    def signed_part(self) -> bytes:
        """What the signature covers."""
        name = self.name.encode("ascii")
        return _HEAD.pack(_MAGIC, self.signer, self.key, self.issued, self.until, len(name)) + name

    def to_bytes(self) -> bytes:
        """The certificate as it travels."""
        return self.signed_part + self.signature

    @property
    def end(self) -> str:
        """The day on which it ends, in UTC, for people."""
        return time.strftime("%Y-%m-%d", time.gmtime(self.until))


def read_certificate(data: bytes) -> Certificate:
    """Read a certificate. Its signature is not verified.

    Raises:
        ValueError: it is none.
    """
    if len(data) < _HEAD.size + _SIGNATURE_BYTES:
        raise ValueError("is no certificate: it is too short")
    magic, signer, key, issued, until, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or len(data) != _HEAD.size + length + _SIGNATURE_BYTES:
        raise ValueError("is no certificate of this version of dpwa")
    name = data[_HEAD.size : _HEAD.size + length].decode("ascii", "replace")
    if not _NAME.fullmatch(name):
        raise ValueError("has a name that no node can have")
    if not issued <= until <= _LATEST_S:
        raise ValueError("has times that cannot be")
    return Certificate(signer, name, key, issued, until, data[-_SIGNATURE_BYTES:])


def to_text(certificate: Certificate) -> str:
    """A certificate as a file."""
    line = base64.b64encode(certificate.to_bytes()).decode("ascii")
    name = certificate.name
    return f"# {name} may join until {certificate.end} (UTC), with {name}.key. No secret.\n{line}\n"


def from_text(text: str) -> Certificate:
    """Read what `to_text` wrote.

    Raises:
        ValueError: it is none.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        raise ValueError("is no certificate: expected one line beside comments")
    try:
        data = base64.b64decode(lines[0].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("is no certificate: it is not base64") from error
    return read_certificate(data)
