"""Boards on which processes that an engine has started together tell each other something small, once, at the start.

    FolderBoard   files in a folder that all can write, for engines with nothing better: SLURM, Open MPI
    PmiBoard      MPICH's process manager, by its own protocol (PMI-1), without MPI
    StoreBoard    a store with `set` and `get`, such as torchrun's

Must not know: what is told, the config, torch. Runs in: the trainer's thread, before training.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from dpwa.engines.environment import Start
from dpwa.errors import ConfigError

__all__ = ["MAX_CARD_BYTES", "Board", "FolderBoard", "PmiBoard", "StoreBoard", "file_name"]

MAX_CARD_BYTES = 480
"""Most that each can tell: PMI-1 takes 1,023 characters, and a byte is two."""

_PAUSE_S = 0.05
_SAYS_AFTER_S = 10.0
_LONGEST_LINE = 4096


class Board(Protocol):
    """All tell, and all hear the same."""

    def exchange(self, card: bytes, timeout_s: float) -> list[bytes]:
        """Tell something, and return what each has told, by rank.

        Args:
            card: at most `MAX_CARD_BYTES`.
            timeout_s: how long the others are waited for.

        Raises:
            ConfigError: some have told nothing; the message names them.
        """
        ...


class FolderBoard:
    """Files in a folder.

    A former start may have left files under the same name of a job, if the engine numbers its jobs anew. So what each
    tells has a random number, the first process lists what it has found, and nobody believes a list without its own
    number, or before all have agreed to it.

    Args:
        folder: on a disk that all hosts of the start see.
        start: of this process.
        say: is told, once, when others are waited for.
    """

    def __init__(self, folder: Path, start: Start, say: Callable[[str], None]) -> None:
        self._folder = folder / file_name(f"{start.job or start.engine}-{start.attempt}")
        self._start = start
        self._say = say

    def exchange(self, card: bytes, timeout_s: float) -> list[bytes]:
        """See `Board.exchange`."""
        number = secrets.token_hex(8)
        deadline_s = time.monotonic() + timeout_s
        says_at_s = time.monotonic() + _SAYS_AFTER_S
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(f"card.{self._start.rank}", json.dumps([number, card.hex()]))
            while True:
                cards = self._round(number)
                if cards is not None:
                    return cards
                now_s = time.monotonic()
                if now_s >= deadline_s:
                    raise ConfigError(self._who_is_missing(timeout_s))
                if now_s >= says_at_s:
                    says_at_s = deadline_s
                    self._say(f"waiting for {self._missing()} in {self._folder}")
                time.sleep(_PAUSE_S)
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: {error.strerror or error}; all {self._start.size} processes of {self._start.engine} "
                "tell each other there where they are: set DPWA_RENDEZVOUS to a folder that all hosts can write"
            ) from error

    def _round(self, number: str) -> list[bytes] | None:
        """One look: what all have agreed to; None while they have not."""
        start = self._start
        if start.rank == 0:
            cards = [self._read(f"card.{rank}") for rank in range(start.size)]
            if all(card is not None for card in cards):
                self._write("list", json.dumps([json.loads(card) for card in cards if card is not None]))
        text = self._read("list")
        if text is None:
            return None
        listed = json.loads(text)
        if len(listed) != start.size or listed[start.rank][0] != number:
            return None
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._write(f"agreed.{start.rank}", digest)
        if start.rank == 0 and all(self._read(f"agreed.{rank}") == digest for rank in range(start.size)):
            self._write("done", digest)
        if self._read("done") != digest:
            return None
        return [bytes.fromhex(card) for _, card in listed]

    def _missing(self) -> str:
        ranks = [rank for rank in range(self._start.size) if self._read(f"card.{rank}") is None]
        return f"{'process' if len(ranks) == 1 else 'processes'} {_some(ranks)}" if ranks else "all to agree"

    def _who_is_missing(self, timeout_s: float) -> str:
        return (
            f"{self._folder}: expected {self._start.size} processes of {self._start.engine} within {timeout_s:g} s, "
            f"and still waited for {self._missing()}; set DPWA_RENDEZVOUS to a folder that all hosts see"
        )

    def _write(self, name: str, text: str) -> None:
        if self._read(name) == text:
            return
        draft = self._folder / f".{name}.{self._start.rank}"
        draft.write_text(text, encoding="ascii")
        os.replace(draft, self._folder / name)

    def _read(self, name: str) -> str | None:
        with suppress(FileNotFoundError):
            return (self._folder / name).read_text(encoding="ascii")
        return None


class StoreBoard:
    """A store that all reach, and that belongs to this start alone.

    Args:
        store: has `set(key, bytes)` and `get(key)`, which waits; and `wait(keys, timeout)`, which raises what it likes.
        start: of this process.
    """

    def __init__(self, store: Any, start: Start) -> None:
        self._store = store
        self._start = start

    def exchange(self, card: bytes, timeout_s: float) -> list[bytes]:
        """See `Board.exchange`."""
        keys = [f"dpwa/{rank}" for rank in range(self._start.size)]
        try:
            self._store.set(keys[self._start.rank], card)
            self._store.wait(keys, timedelta(seconds=timeout_s))
            return [self._store.get(key) for key in keys]
        except (RuntimeError, ValueError, OSError) as error:  # torch's DistStoreError among them
            first = str(error).partition("\n")[0][:200]
            raise ConfigError(
                f"{self._start.engine}: expected {self._start.size} processes that all make a node of dpwa, and did "
                f"not hear of all of them within {timeout_s:g} s ({first})"
            ) from error


class PmiBoard:
    """MPICH's process manager: the wire protocol PMI-1 on the descriptor that it gives to each process.

    MPI itself may use the same descriptor later, or has done so: the manager takes a second `init`.

    Args:
        descriptor: a number, from PMI_FD.
        start: of this process.
    """

    def __init__(self, descriptor: int, start: Start) -> None:
        self._descriptor = descriptor
        self._start = start

    def exchange(self, card: bytes, timeout_s: float) -> list[bytes]:  # noqa: ARG002 - the manager ends all if one ends
        """See `Board.exchange`."""
        try:
            self._ask("init pmi_version=1 pmi_subversion=1", "response_to_init")
            space = self._ask("get_my_kvsname", "my_kvsname")["kvsname"]
            self._ask(f"put kvsname={space} key=dpwa-{self._start.rank} value={card.hex()}", "put_result")
            self._ask("barrier_in", "barrier_out")
            atexit.register(self._end, os.getpid())
            return [
                bytes.fromhex(self._ask(f"get kvsname={space} key=dpwa-{rank}", "get_result")["value"])
                for rank in range(self._start.size)
            ]
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(
                f"MPICH's process manager does not answer as expected ({error}); set DPWA_RENDEZVOUS to a folder that "
                "all hosts see, and it is not asked"
            ) from error

    def _end(self, pid: int) -> None:
        """Take leave: else the manager takes the end for a crash. Where MPI is in use, it does so itself."""
        if os.getpid() == pid and "mpi4py.MPI" not in sys.modules:
            with suppress(OSError, ValueError):
                self._ask("finalize", "finalize_ack")

    def _ask(self, command: str, answer: str) -> dict[str, str]:
        os.write(self._descriptor, f"cmd={command}\n".encode("ascii"))
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._descriptor, 1)
            if not byte or len(line) > _LONGEST_LINE:
                raise ValueError(f"after {len(line)} bytes of an answer")
            line += byte
        words = dict(word.partition("=")[::2] for word in line.decode("ascii").split())
        if words.get("cmd") != answer or words.get("rc", "0") != "0":
            raise ValueError(f"answer {line[:100]!r}")
        return words


def file_name(text: str) -> str:
    """The same as a name of a file."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", text)[:120]


def _some(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
