"""What the two ends of an ssh connection say to each other: the launcher's, and the one beside a node on its host.

    far end          "dpwa far end VERSION", a line; whatever came before it is the login's noise
    launcher's end   the errand, a line of JSON with the secret key, if there is one
    then             lines: "signal N" to pass on, or empty ones, by which the far end knows that the launcher is there
    far end          frames, a kind and a length before each: output, files, events; the last one says how it ended

Standard library only: each connection is a process of its own, which is to start at once.

Must not know: processes, ssh. Runs in: any thread; pure.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = [
    "END",
    "EVENT",
    "FILE",
    "HELLO",
    "MAX_ERRAND_BYTES",
    "MAX_FRAME_BYTES",
    "OUTPUT",
    "BadWords",
    "Errand",
    "Frames",
    "file_frame",
    "file_of",
    "frame",
    "main_of",
]

HELLO = b"dpwa far end "

OUTPUT, FILE, EVENT, END = b"o", b"f", b"e", b"x"
_KINDS = OUTPUT + FILE + EVENT + END

MAX_FRAME_BYTES = 1 << 20
MAX_ERRAND_BYTES = 16 << 20
_HEAD = struct.Struct("!cI")
_NAME_END = b"\0"
_MAIN = "import sys; del sys.path[0]; from dpwa.launch.{} import main; main()"


class BadWords(Exception):
    """The other end says what cannot be."""


@dataclass(frozen=True)
class Errand:
    """What the far end is to do.

    Attributes:
        node: to start.
        argv: the command.
        environment: what of it is the launcher's.
        run_dir: absolute, or in the folder in which the far end is.
        config_name: of the cluster file in the run folder.
        config: its text.
        host: on which the node listens.
        port: of it.
        serves: whether it listens.
        neighbours: nodes of this host, with this one.
        lost_s: without a word for so long, the launcher is gone.
        token: what stands in the run folder's `.launcher` where that is the launcher's own.
        is_again: the node was started before in this launch, and its former life may not be over.
        secret: the node's key; "" for none.
        allowed: the list of keys; "" for none.
        certificate: of the node; "" for none.
    """

    node: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    run_dir: str
    config_name: str
    config: str
    host: str
    port: int
    neighbours: int
    lost_s: float
    token: str
    serves: bool = True
    is_again: bool = False
    secret: str = ""
    allowed: str = ""
    certificate: str = ""

    def to_line(self) -> bytes:
        """As the launcher's end sends it."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_fields(cls, found: Mapping[str, Any]) -> Errand:
        """The errand of such keys and values.

        Raises:
            BadWords: they are none.
        """
        try:
            errand = cls(**{**found, "argv": tuple(found["argv"])})
        except (KeyError, TypeError) as error:
            raise BadWords(f"expected an errand, got {error}") from error
        texts = [getattr(errand, item.name) for item in fields(errand) if item.type == "str"]
        mapping = errand.environment if isinstance(errand.environment, dict) else {"": None}
        if not errand.argv or not all(isinstance(text, str) for text in (*texts, *errand.argv, *mapping.values())):
            raise BadWords("expected an errand of texts")
        if not all(type(number) in (int, float) for number in (errand.port, errand.neighbours, errand.lost_s)):
            raise BadWords("expected an errand with port, neighbours and lost_s of numbers")
        return errand

    @classmethod
    def from_line(cls, line: bytes) -> Errand:
        """The errand in such a line.

        Raises:
            BadWords: there is none.
        """
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadWords(f"expected an errand as JSON, got {error}") from error
        if not isinstance(found, dict):
            raise BadWords("expected an errand as a JSON object")
        return cls.from_fields(found)


def main_of(module: str) -> str:
    """What Python runs, after `-c`, to be one end of a node; without the current folder, in which anything may lie."""
    return _MAIN.format(module)


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame; a payload that is too long is cut."""
    payload = payload[:MAX_FRAME_BYTES]
    return _HEAD.pack(kind, len(payload)) + payload


def file_frame(name: str, part: bytes) -> bytes:
    """The frame of the next part of a file."""
    return frame(FILE, name.encode() + _NAME_END + part)


def file_of(payload: bytes) -> tuple[str, bytes]:
    """Name and part of a file, from the payload of its frame."""
    name, _, part = payload.partition(_NAME_END)
    return name.decode("utf-8", errors="replace"), part


class Frames:
    """Cuts bytes into frames, as they come."""

    def __init__(self) -> None:
        self._left = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Kind and payload of each frame that is complete now.

        Raises:
            BadWords: this is no frame.
        """
        self._left += data
        while len(self._left) >= _HEAD.size:
            kind, size = _HEAD.unpack_from(self._left)
            if kind not in _KINDS or size > MAX_FRAME_BYTES:
                raise BadWords(f"expected a frame of at most {MAX_FRAME_BYTES} bytes, got kind {kind!r} with {size}")
            if len(self._left) < _HEAD.size + size:
                return
            payload = bytes(self._left[_HEAD.size : _HEAD.size + size])
            del self._left[: _HEAD.size + size]
            yield kind, payload
