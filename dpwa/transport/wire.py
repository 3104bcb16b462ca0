"""The messages of protocol version 1: bytes to messages and back, checked field by field.

A message is one msgpack list of at most 4 KiB; `Chunk` and `Mismatch` are followed by one frame of raw bytes. Nothing
here is ever unpickled, and every length, count and number has a limit that is checked before anything is done with it.

Must not know: sockets, threads, time, tensors. Runs in: any thread; pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Final, TypeVar, get_args

import msgpack

from dpwa.errors import RemoteProtocolError
from dpwa.exchange.lease_words import CUT_BYTES, MAX_BLOCKS, MAX_GRANT, are_blocks, are_entries
from dpwa.exchange.member_table import MAX_CLAIMS, are_legal
from dpwa.exchange.messages import (
    EXCHANGE_ID_BYTES,
    FINGERPRINT_BYTES,
    INCARNATION_BYTES,
    LINEAGE_BYTES,
    MAX_CERTIFICATE_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_HEADER_BYTES,
    MAX_MODELS,
    MAX_NAME_CHARS,
    MAX_PRESENT_BYTES,
    MAX_SLOTS,
    MAX_TEXT_CHARS,
    MAX_WINDOW,
    ORIGIN_BYTES,
    PROTOCOL_VERSION,
    TOKEN_BYTES,
    Message,
    MessageKind,
    Present,
    Verdict,
)
from dpwa.snapshot.state import MAX_COUNTER, MAX_MASS, MERGE_ID_BYTES, MergeStage

__all__ = ["decode", "decode_present", "encode"]

# --- Field rules --------------------------------------------------------------------------------------------------

_Rule = Callable[[object], bool]


def _integer(low: int, high: int) -> _Rule:
    return lambda value: type(value) is int and low <= value <= high


def _text(max_chars: int) -> _Rule:
    return lambda value: type(value) is str and len(value) <= max_chars and value.isprintable()


def _bytes(length: int) -> _Rule:
    return lambda value: type(value) is bytes and len(value) == length


def _boolean(value: object) -> bool:
    return type(value) is bool


def _clock(value: object) -> bool:
    return type(value) is float and math.isfinite(value) and 0.0 <= value <= MAX_COUNTER


def _loss(value: object) -> bool:
    return value is None or type(value) is float


_RULES: Final[dict[str, _Rule]] = {
    "nonce": _integer(0, MAX_COUNTER),
    "run": _text(2 * MAX_NAME_CHARS),
    "node": _text(MAX_NAME_CHARS),
    "incarnation": _bytes(INCARNATION_BYTES),
    "lineage": _bytes(LINEAGE_BYTES),
    "fingerprint": _bytes(FINGERPRINT_BYTES),
    "have_incarnation": _bytes(INCARNATION_BYTES),
    "have_version": _integer(0, MAX_COUNTER),
    "version": _integer(1, MAX_COUNTER),
    "codec": _integer(0, 255),
    "finished": _boolean,
    "first": _integer(0, MAX_CHUNKS),
    "count": _integer(1, MAX_WINDOW),
    "index": _integer(0, MAX_CHUNKS),
    "clock": _clock,
    "loss": _loss,
    "total_bytes": _integer(1, MAX_CHUNKS * MAX_CHUNK_BYTES),
    "chunk_bytes": lambda value: _integer(64, MAX_CHUNK_BYTES)(value) and value % 64 == 0,  # type: ignore[operator]
    "shared": _boolean,
    "slot": _integer(-1, MAX_SLOTS - 1),
    "token": _bytes(TOKEN_BYTES),
    "reason": _text(MAX_TEXT_CHARS),
    "exchange_id": _bytes(EXCHANGE_ID_BYTES),
    "previous": _bytes(EXCHANGE_ID_BYTES),
    "is_pair": _boolean,
    "gives_up": _boolean,
    "mass": lambda value: type(value) is float and 0.0 <= value <= MAX_MASS,
    "round": _integer(-1, MAX_COUNTER),
    "step": _integer(0, MAX_COUNTER),
    "origin": _bytes(ORIGIN_BYTES),
    "piece": _integer(0, MAX_CHUNKS),
    "pieces": _integer(0, MAX_CHUNKS),
    "verdict": _integer(0, len(Verdict) - 1),
    "stage": _integer(0, len(MergeStage) - 1),
    "models": _integer(0, MAX_MODELS),
    "merge_id": _bytes(MERGE_ID_BYTES),
    "claims": lambda value: are_legal(value, MAX_CLAIMS),
    "members": are_legal,
    "name": _text(MAX_NAME_CHARS),
    "certificate": lambda value: type(value) is bytes and len(value) <= MAX_CERTIFICATE_BYTES,
    "cut": _bytes(CUT_BYTES),
    "epoch": _integer(0, MAX_COUNTER),
    "want": _integer(0, MAX_GRANT),
    "word": _integer(0, MAX_COUNTER),
    "floor": _integer(0, MAX_COUNTER),
    "entries": are_entries,
    "granted": are_blocks,
    "left": _integer(0, MAX_BLOCKS),
}
"""One rule per field name, whichever message it stands in: one word, one meaning."""

_CLASSES: Final[dict[int, type[Message]]] = {message.KIND: message for message in get_args(Message)}
_FIELDS: Final[dict[int, tuple[str, ...]]] = {
    kind: tuple(field.name for field in fields(message)) for kind, message in _CLASSES.items()
}

_M = TypeVar("_M", bound=Message)


def encode(message: Message) -> bytes:
    """The header frame of a message: a msgpack array of version, kind and the fields in their declared order."""
    names = _FIELDS[message.KIND]
    return bytes(msgpack.packb([PROTOCOL_VERSION, int(message.KIND), *(getattr(message, name) for name in names)]))


# A list of four, the version and the kind: how each `Present` begins.
_PRESENT_BEGINS: Final = bytes([0x94, PROTOCOL_VERSION, MessageKind.PRESENT])


def decode_present(header: bytes, sender: str) -> Present:
    """Read and check the only message that somebody may send whose key nobody knows yet.

    Raises:
        RemoteProtocolError: it is anything else; then nothing of it was decoded.
    """
    if len(header) > MAX_PRESENT_BYTES or not header.startswith(_PRESENT_BEGINS):
        raise RemoteProtocolError(sender, "something else than a certificate from somebody whose key is not known")
    message = decode(header, sender)
    if not isinstance(message, Present):
        raise RemoteProtocolError(sender, f"{type(message).__name__} where a certificate was expected")
    return message


def decode(header: bytes | memoryview, sender: str) -> Message:
    """Read and check a header frame.

    Args:
        header: the frame as received.
        sender: who sent it, for the error's text.

    Raises:
        RemoteProtocolError: it is anything but a legal message. No other error, whatever the bytes.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise RemoteProtocolError(sender, f"header of {len(header)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    try:
        items = msgpack.unpackb(
            header, use_list=False, max_array_len=32, max_map_len=0, max_ext_len=0, max_str_len=1024, max_bin_len=256
        )
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise RemoteProtocolError(sender, f"header is not msgpack: {str(error)[:100]}") from error
    if type(items) is not tuple or len(items) < 2 or type(items[0]) is not int or type(items[1]) is not int:
        raise RemoteProtocolError(sender, "header is not a list that begins with version and kind")
    version, kind, *values = items
    if version != PROTOCOL_VERSION:
        raise RemoteProtocolError(sender, f"protocol version {version}; this node speaks version {PROTOCOL_VERSION}")
    if kind not in _CLASSES:
        raise RemoteProtocolError(sender, f"message of unknown kind {kind}")
    names = _FIELDS[kind]
    if len(values) != len(names):
        raise RemoteProtocolError(sender, f"{MessageKind(kind).name} has {len(values)} fields, expected {len(names)}")
    for name, value in zip(names, values, strict=True):
        if not _RULES[name](value):
            raise RemoteProtocolError(sender, f"{MessageKind(kind).name} has an illegal {name}: {str(value)[:40]!r}")
    return _CLASSES[kind](*values)
