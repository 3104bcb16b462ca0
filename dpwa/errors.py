"""Every error that dpwa raises, in one tree.

    DpwaError                      catch this to catch everything from dpwa
    ├── ConfigError (ValueError)   the file, an argument or the model is not usable; raised before anything is opened
    ├── NodeClosed                 this node was closed by its own program
    ├── IslandError                the processes of an island, which are one node together, have parted
    ├── TransportError (.peer)     something between this node and one peer; counted, never raised to the trainer
    │   ├── PeerTimeout            the peer was reached but did not answer in time
    │   ├── PeerUnreachable        no connection to the peer
    │   ├── RemoteProtocolError    the peer sent something illegal
    │   └── ModelMismatch          the peer trains a model with another layout
    └── InternalError              a rule of dpwa itself was broken; please report it

Whose fault an error is decides its type, because the right reaction differs: mend the file, stop, lower a
peer's score, refuse a peer, report a bug.

`number_problems` gives the words for a number that a program handed over and that is out of its limits.

Must not know: anything else of dpwa. Runs in: any thread.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = [
    "ConfigError",
    "DpwaError",
    "InternalError",
    "IslandError",
    "ModelMismatch",
    "NodeClosed",
    "PeerTimeout",
    "PeerUnreachable",
    "RemoteProtocolError",
    "TransportError",
    "number_problems",
]


class DpwaError(Exception):
    """Base of all errors of dpwa."""


class ConfigError(DpwaError, ValueError):
    """A configuration, argument or model that cannot be used.

    All problems that were found are reported at once, one per line. What a terminal would not show as it is (control
    characters, marks that turn the direction of writing) is written as an escape: it may come from anybody's file.

    Attributes:
        problems: one line per problem: place, what was expected, what came, what to do.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        lines = (problems,) if isinstance(problems, str) else problems
        self.problems: tuple[str, ...] = tuple(_visible(line) for line in lines)
        super().__init__("\n".join(self.problems))


def _visible(line: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in line)


class NodeClosed(DpwaError):
    """The node was used after its own program had closed it."""


class IslandError(DpwaError):
    """The processes of an island, which are one node together, have parted: one is gone, or did other things."""


class TransportError(DpwaError):
    """An exchange with one peer failed.

    Attributes:
        peer: name of the peer, as in the cluster file.
        late_s: how long after its deadline the exchange was given up: for so long this process did not run itself.
    """

    def __init__(self, peer: str, message: str) -> None:
        self.peer = peer
        self.late_s = 0.0
        super().__init__(f"peer {peer}: {message}")


class PeerTimeout(TransportError):
    """The peer did not answer, or not completely, before the deadline.

    Attributes:
        received_bytes: what had come of a snapshot; 0 if nothing had, or none was under way.
        transfer_s: in how many seconds.
    """

    def __init__(self, peer: str, message: str, *, received_bytes: int = 0, transfer_s: float = 0.0) -> None:
        self.received_bytes = received_bytes
        self.transfer_s = transfer_s
        super().__init__(peer, message)


class PeerUnreachable(TransportError):
    """No connection to the peer could be made before the deadline."""


class RemoteProtocolError(TransportError):
    """The peer sent something that the protocol does not allow."""


class ModelMismatch(TransportError):
    """The peer's model has another layout: names, order, shapes, dtypes or roles of tensors differ."""


class InternalError(DpwaError):
    """A rule of dpwa itself was broken: this is a bug in dpwa, please report it with its cause."""


def number_problems(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> list[str]:
    """What is wrong with a number: nothing, or one line with its name, what was expected and what came.

    Args:
        name: what the line calls it.
        value: anything; only a finite int or float can be right.
        least: smallest value allowed.
        above: lower limit that is not allowed itself.
        most: largest value allowed.
        below: upper limit that is not allowed itself.
    """
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max  # False for NaN and infinity, and for an int that no float can hold
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        return []
    limits = [(least, "of at least"), (above, "above"), (most, "up to"), (below, "below")]
    words = " and ".join(f"{word} {limit:g}" for limit, word in limits if limit is not None)
    return [f"{name}: expected a finite number {words}".rstrip() + f", got {value!r}"]
