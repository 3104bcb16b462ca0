"""The launcher's end of one node that runs on another host: a process that looks to its supervisor like the node.

It sends the errand over a carrier, such as ssh, and then passes on: what the node prints, signals, journals, and the
exit code, or the signal that ended it. When this process is killed the carrier ends with it, and the far end ends the
node.

It imports little, because one is started for each node.

Must not know: which carrier it is, the cluster file. Runs in: the main thread, signal handlers, too; and a thread that
says every few seconds that the launcher is there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn, Protocol

from dpwa._version import __version__
from dpwa.launch.far_words import END, EVENT, FILE, HELLO, OUTPUT, BadWords, Errand, Frames, file_of
from dpwa.launch.patient import write_all
from dpwa.observe.run_record import LAUNCH_FILE, RunRecord

__all__ = ["FAILED", "Carrier", "CarrierFailed", "run_near_end"]

FAILED = 255
"""Exit code where the carrier, and not the command, has failed: that of ssh."""

_PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MOST_NOISE_BYTES = 1 << 20
_EVENTS = ("started", "told", "ended")
_EVENT_BYTES = 4096
_WORDS_PER_LOSS = 4
"""How often it says that it is there, within the time after which it counts as gone."""


class CarrierFailed(Exception):
    """There is no way to the far end; says why."""


class Carrier(Protocol):
    """The way to one far end, and back."""

    def open(self) -> None:
        """Begin.

        Raises:
            CarrierFailed: there is no way.
        """
        ...

    def adapted(self, errand: Errand) -> Errand:
        """The errand, as it is where the way has led to. After `open`.

        Raises:
            CarrierFailed: it cannot be done there.
        """
        ...

    def read(self) -> bytes:
        """What the far end has said next; empty at the end."""
        ...

    def write(self, data: bytes) -> None:
        """Say something to the far end, as far as it is there. Any thread, and signal handlers."""
        ...

    def interrupt(self) -> None:
        """Have `open` and `read` end soon. Signal handlers."""
        ...

    def close(self) -> None:
        """Say that nothing more is said, and wait for the carrier's end."""
        ...

    def why(self, *, is_told: bool) -> str:
        """Why the far end has said no more, in words, after `close`.

        Args:
            is_told: it had its errand.
        """
        ...


def run_near_end(order: Mapping[str, Any], carrier: Carrier) -> NoReturn:
    """Runs the node that an order describes; ends as the node does.

    Args:
        order: `errand` (see `Errand`, without keys), `told` (the host, for people), `keys` (the folder, or null),
            `run_dir` (the launcher's), `node_dir` (the node's in it), `files` (names that may be received),
            `files_max_bytes`, `delay_s`; and what the carrier needs.
        carrier: to the far end.
    """
    _end_as(_NearEnd(order, carrier).run())


def _end_as(exit_code: int) -> NoReturn:
    """End this process with an exit code, or by a signal, where that is negative."""
    if exit_code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-exit_code, signal.SIG_DFL) if -exit_code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -exit_code)
    sys.exit(exit_code)


class _NearEnd:
    """One life of one node; see `run_near_end`."""

    def __init__(self, order: Mapping[str, Any], carrier: Carrier) -> None:
        self._order = order
        self._carrier = carrier
        self._is_told = False
        self._signals: list[int] = []
        self._has_stopped = threading.Event()
        self._exit_code: int | None = None
        self._files: dict[str, BinaryIO] = {}
        self._file_bytes = 0

    def run(self) -> int:
        """From the start of the carrier to the node's exit code."""
        for number in _PASSED:
            signal.signal(number, self._on_signal)
        try:
            errand = self._errand()
        except OSError as error:
            _say(f"{error.filename}: cannot be read ({error.strerror}); the key of each node must be here to be sent")
            return 2
        if self._has_stopped.wait(self._order["delay_s"]):
            return FAILED
        try:
            self._carrier.open()
            try:
                self._converse(errand)
            finally:
                self._carrier.close()
        except CarrierFailed as error:
            problem = str(error)
        else:
            self._keep_files()
            if self._exit_code is not None:
                return self._exit_code
            problem = self._carrier.why(is_told=self._is_told)
        if not self._has_stopped.is_set():
            _say(problem)
        return FAILED

    def _converse(self, errand: Errand) -> None:
        if self._has_stopped.is_set():
            self._carrier.interrupt()
        try:
            errand = self._carrier.adapted(errand)
            if self._hear_hello():
                self._tell(errand)
                self._pass_on()
        except BadWords as error:
            _say(f"{self._order['told']}: {error}")
            self._carrier.interrupt()

    def _errand(self) -> Errand:
        found = dict(self._order["errand"])
        keys = self._order["keys"]
        if keys is not None:
            folder, node = Path(keys), found["node"]
            found["secret"] = (folder / f"{node}.key").read_text(encoding="ascii")
            found["allowed"] = (folder / "allowed.yaml").read_text(encoding="utf-8")
            with suppress(FileNotFoundError):
                found["certificate"] = (folder / f"{node}.cert").read_text(encoding="ascii")
        launch_id = os.environ.get("DPWA_LAUNCH_ID")
        found["is_again"] = bool(os.environ.get("DPWA_IS_AGAIN"))
        if launch_id:  # in the first life of a node of a whole launch
            found["environment"] = {**found["environment"], "DPWA_LAUNCH_ID": launch_id}
        return Errand.from_fields(found)

    def _hear_hello(self) -> bool:
        """Waits for the far end; what the login says before that is shown."""
        noise = b""
        while data := self._carrier.read():
            noise += data
            *lines, noise = noise.split(b"\n")
            for place, line in enumerate(lines):
                if line.startswith(HELLO):
                    version = line[len(HELLO) :].decode(errors="replace").strip()
                    if version != __version__:
                        raise BadWords(f"has dpwa {version}, and here is {__version__}; install the same on all hosts")
                    if lines[place + 1 :] or noise:
                        raise BadWords("said something before it was asked")
                    return True
                _show(line + b"\n")
            if len(noise) > _MOST_NOISE_BYTES:
                raise BadWords("does not end its first line")
        if noise:
            _show(noise + b"\n")
        return False

    def _tell(self, errand: Errand) -> None:
        self._carrier.write(errand.to_line())
        self._is_told = True
        for number in self._signals:
            self._carrier.write(f"signal {number}\n".encode())
        threading.Thread(target=self._say_here, args=(errand.lost_s / _WORDS_PER_LOSS,), daemon=True).start()

    def _pass_on(self) -> None:
        frames = Frames()
        while data := self._carrier.read():
            for kind, payload in frames.feed(data):
                if kind == OUTPUT:
                    _show(payload)
                elif kind == FILE:
                    self._take_file(payload)
                elif kind == EVENT:
                    self._take_event(payload)
                elif kind == END:
                    self._exit_code = _exit_code_of(payload)

    def _say_here(self, interval_s: float) -> None:
        while True:
            time.sleep(interval_s)
            self._carrier.write(b"\n")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in _ENDING:
            self._has_stopped.set()
        if self._is_told:
            self._carrier.write(f"signal {number}\n".encode())
            return
        self._signals.append(number)
        if number in _ENDING:
            self._carrier.interrupt()  # nothing runs there yet

    def _take_file(self, payload: bytes) -> None:
        name, part = file_of(payload)
        self._file_bytes += len(part)
        if name not in self._order["files"] or self._file_bytes > self._order["files_max_bytes"]:
            return
        with suppress(OSError):
            if name not in self._files:
                # A name by which the launcher sees that something is being saved, and waits for it.
                self._files[name] = Path(self._order["node_dir"], f"{name}.partial").open("wb")  # noqa: SIM115
            self._files[name].write(part)

    def _keep_files(self) -> None:
        for name, file in self._files.items():
            with suppress(OSError):
                file.close()
                os.replace(file.name, Path(self._order["node_dir"], name))

    def _take_event(self, payload: bytes) -> None:
        with suppress(ValueError, RecursionError):
            fields = json.loads(payload)
            if isinstance(fields, dict) and len(payload) < _EVENT_BYTES and fields.get("event") in _EVENTS:
                event = fields.pop("event")
                RunRecord(Path(self._order["run_dir"]), LAUNCH_FILE).write(event, **fields)


def _exit_code_of(payload: bytes) -> int:
    try:
        code = json.loads(payload)["exit_code"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadWords("expected an exit code at the end") from error
    if type(code) is not int or not -signal.NSIG < code < 256:
        raise BadWords("expected an exit code at the end, from 0 to 255, or the negative number of a signal")
    return code


def _say(line: str) -> None:
    """Print a line of this end's own, like one of the node."""
    _show(f"[dpwa] {line}\n".encode(errors="replace"))


def _show(data: bytes) -> None:
    write_all(sys.stdout.fileno(), data)
