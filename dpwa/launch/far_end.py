"""The far end of `dpwa launch --hosts`: a process beside each node, on the node's host, which ssh has started.

It starts the node under a supervisor of its own, hands on what the node prints, and passes on signals. It ends the
node, as a Ctrl-C would, when the launcher is gone: at the end of its standard input, or after a time without a word,
because a cable that was pulled says nothing. A guard ends the node when the far end itself is killed.

The key comes through standard input, is a file with mode 0600 in the run folder while the node runs, and is removed
with it.

Must not know: ssh, other nodes. Runs in: the main thread; orders are read in a thread `dpwa-orders`, and what is said
is written in a thread `dpwa-said`, because both can block.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dpwa._version import __version__
from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.commands import command_problems, thread_limits
from dpwa.launch.far_words import END, EVENT, HELLO, MAX_ERRAND_BYTES, OUTPUT, BadWords, Errand, file_frame, frame
from dpwa.launch.guard import GRACE_S, SAVING_TIMEOUT_S
from dpwa.launch.launch_record import NodeLocks
from dpwa.launch.ports import port_problem
from dpwa.launch.processes import NodeCommand, Supervisor
from dpwa.launch.supervision import supervise
from dpwa.observe.bounded_file import generations
from dpwa.observe.journal import EVENTS_FILE, METRICS_FILE, node_folder
from dpwa.observe.run_record import LAUNCH_FILE, RunRecord
from dpwa.transport.key_files import ALLOWED_FILE, certificate_path, secret_path
from dpwa.transport.secret_files import read_secret, write_secret

__all__ = ["LAUNCHER_FILE", "main"]

LAUNCHER_FILE = ".launcher"
"""In the run folder of the launcher: by this a far end sees that its own is the same one, on a shared disk."""

_FIRST_WORD_S = 60.0
_QUEUE_LIMIT = 2000
_PART_BYTES = 1 << 16
_POLL_S = 0.1
_BETWEEN_LAUNCHES_S = 10.0
"""How long the first life of a node waits for one that another launch has just been told to end."""

_KEY_BYTES = 256
_PYTHONS = ("python", "python3")


def main() -> None:
    """Does one errand, from standard input to standard output."""
    said = _Said(os.dup(1))
    os.dup2(2, 1)  # nothing but frames goes to where the launcher reads
    # As if the environment of this Python were activated: the command, and what it starts, find its programs.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    said.put(HELLO + __version__.encode() + b"\n")
    orders = _Orders(0, said.abandon)
    exit_code = 2
    try:
        errand = orders.first()
        if errand is not None:
            exit_code = _Work(errand, orders, said).run()
    except (ConfigError, DpwaError, BadWords) as error:
        problems = error.problems if isinstance(error, ConfigError) else (str(error),)
        for problem in problems:
            said.line(f"[dpwa] {problem}")
    except OSError as error:
        said.line(f"[dpwa] the operating system refused: {error}")
    said.put(frame(END, json.dumps({"exit_code": exit_code}).encode()))
    said.close()


class _Said:
    """Writes what is said, in a thread of its own; when the launcher is gone, nothing."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.is_lost = False
        self._thread = threading.Thread(target=self._run, name="dpwa-said", daemon=True)
        self._thread.start()

    def abandon(self) -> None:
        """The launcher is gone: nothing is written any more, and nobody waits for that."""
        self.is_lost = True

    def put(self, data: bytes) -> None:
        if not self.is_lost:
            self._queue.put(data)

    def line(self, text: str) -> None:
        self.put(frame(OUTPUT, text.encode("utf-8", errors="replace") + b"\n"))

    def has_room(self) -> bool:
        return self.is_lost or self._queue.qsize() < _QUEUE_LIMIT

    def close(self) -> None:
        """Waits until all is written, unless the launcher is gone."""
        self._queue.put(None)
        while self._thread.is_alive() and not self.is_lost:
            self._thread.join(_POLL_S)

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            view = memoryview(data)
            try:
                while view and not self.is_lost:
                    view = view[os.write(self._descriptor, view) :]
            except OSError:
                self.is_lost = True


class _Orders:
    """Reads what the launcher says; calls `on_lost` when it is gone."""

    def __init__(self, descriptor: int, on_lost: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_lost = on_lost
        self._left = b""
        self._lost_s = _FIRST_WORD_S
        self._on_signal: Callable[[int], None] | None = None
        self._waiting: list[int] = []
        self._lock = threading.Lock()
        self.is_over = False
        """The node is to end, or the launcher is gone."""

    def first(self) -> Errand | None:
        """Waits for the errand; None if the launcher went without one. From then on, orders are taken."""
        while b"\n" not in self._left:
            if len(self._left) > MAX_ERRAND_BYTES:
                raise BadWords(f"expected an errand of at most {MAX_ERRAND_BYTES} bytes")
            data = self._read()
            if not data:
                return None
            self._left += data
        line, _, self._left = self._left.partition(b"\n")
        errand = Errand.from_line(line)
        self._lost_s = errand.lost_s
        threading.Thread(target=self._follow, name="dpwa-orders", daemon=True).start()
        return errand

    def pass_to(self, on_signal: Callable[[int], None]) -> None:
        """Have this called with the number of each signal, also of those that have come; in the thread of orders."""
        with self._lock:
            self._on_signal = on_signal
            waiting, self._waiting = self._waiting, []
        for number in waiting:
            on_signal(number)

    def _read(self) -> bytes:
        ready, _, _ = select.select([self._descriptor], [], [], self._lost_s)
        return os.read(self._descriptor, _PART_BYTES) if ready else b""

    def _follow(self) -> None:
        while data := self._read():
            *lines, self._left = (self._left + data).split(b"\n")
            for line in lines:
                word, _, number = line.partition(b" ")
                if word == b"signal" and number.isdigit() and len(number) < 4:
                    self._give(int(number))
            self._left = self._left[-_KEY_BYTES:]
        self._on_lost()
        if not self.is_over:  # else it is ending already: a second signal would end it on the spot
            self._give(signal.SIGTERM)

    def _give(self, number: int) -> None:
        self.is_over = self.is_over or number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with self._lock:
            if self._on_signal is None:
                self._waiting.append(number)
                return
        self._on_signal(number)


class _Work:
    """One life of one node."""

    def __init__(self, errand: Errand, orders: _Orders, said: _Said) -> None:
        self._errand = errand
        self._orders = orders
        self._said = said
        self._run_dir = Path(errand.run_dir).absolute()
        self._folder = node_folder(self._run_dir, errand.node)
        self._own_line = ""
        self._record: RunRecord | None = None

    def run(self) -> int:
        """From the run folder to the exit code."""
        errand = self._errand
        argv = (sys.executable, *errand.argv[1:]) if errand.argv[0] in _PYTHONS else errand.argv
        problems = command_problems(argv)
        if problems:
            raise ConfigError(problems)
        locks = NodeLocks(self._run_dir)
        is_shared = self._prepare_folder()
        self._record = RunRecord(self._run_dir, LAUNCH_FILE)
        try:
            self._take(locks)
            problem = port_problem(errand.host, errand.port) if errand.serves else None
            if problem is not None:
                raise ConfigError(problem)
            with self._keys():
                exit_code = asyncio.run(self._live(argv, is_shared=is_shared))
        finally:
            locks.release_all()
        if not is_shared:
            self._send_journal()
        return exit_code

    def _prepare_folder(self) -> bool:
        """Make the run folder, with the cluster file; whether it is the launcher's own."""
        errand, path = self._errand, self._run_dir / self._errand.config_name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            token = self._run_dir / LAUNCHER_FILE
            if token.exists() and token.read_text(encoding="utf-8") == errand.token:
                return True
            if path.exists() and path.read_text(encoding="utf-8") != errand.config:
                raise ConfigError(
                    f"run folder {self._run_dir}: it holds a run with another config; name an empty or a new folder"
                )
            _replace(path, errand.config)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"run folder {self._run_dir}: cannot be written: {error}; write dir=") from error
        return False

    def _take(self, locks: NodeLocks) -> None:
        """Hold the node; a former life that has lost the launcher has its time to end."""
        patience_s = _BETWEEN_LAUNCHES_S
        if self._errand.is_again:
            patience_s += self._errand.lost_s + GRACE_S + SAVING_TIMEOUT_S
        end_s = time.monotonic() + patience_s
        has_told = False
        while True:
            try:
                locks.take([self._errand.node])
            except ConfigError:
                locks.release_all()
                if time.monotonic() >= end_s or self._orders.is_over:
                    raise
            else:
                return
            if not has_told:
                self._said.line("[dpwa] the former life of this node has not ended; waiting for that")
                has_told = True
            time.sleep(_POLL_S)

    async def _live(self, argv: tuple[str, ...], *, is_shared: bool) -> int:
        errand, loop = self._errand, asyncio.get_running_loop()
        command = NodeCommand(errand.node, argv, self._environment(), output_path=None)
        supervisor = Supervisor(
            [command],
            on_line=lambda _, line: self._show(line),
            has_room=self._said.has_room,
            record=self._note if is_shared else self._note_there_too,
        )

        def order(number: int) -> None:
            if number in (signal.SIGUSR1, signal.SIGUSR2):
                supervisor.send_signal(number)
            else:
                supervisor.stop(number)

        def order_soon(number: int) -> None:
            with suppress(RuntimeError):  # the node has ended, and the loop with it
                loop.call_soon_threadsafe(order, number)

        self._orders.pass_to(order_soon)
        (end,), _ = await supervise(supervisor)
        if self._own_line != f"[dpwa] {end.reason}":  # which the launcher says itself
            self._show("")
        return end.exit_code

    def _environment(self) -> dict[str, str]:
        errand = self._errand
        environment = {**os.environ, **errand.environment}
        environment.update(thread_limits(environment, errand.neighbours))
        environment.setdefault("PYTHONUNBUFFERED", "1")
        environment["DPWA_CONFIG"] = str(self._run_dir / errand.config_name)
        environment["DPWA_RUN_DIR"] = str(self._run_dir)
        return environment

    def _show(self, line: str) -> None:
        """Say a line, but hold back one of the supervisor's: the last of them is not to be said twice."""
        if self._own_line:
            self._said.line(self._own_line)
        self._own_line = line if line.startswith("[dpwa] ") else ""
        if line and not self._own_line:
            self._said.line(line)

    def _note(self, event: str, /, **fields: object) -> None:
        if self._record is not None:
            self._record.write(event, **fields)

    def _note_there_too(self, event: str, /, **fields: object) -> None:
        self._note(event, **fields)
        self._said.put(frame(EVENT, json.dumps({"event": event, **fields}).encode()))

    @contextmanager
    def _keys(self) -> Iterator[None]:
        """The node's keys in the run folder, while it runs; those that are there already stay."""
        errand = self._errand
        if not errand.secret:
            yield
            return
        folder = self._run_dir / "keys"
        path = secret_path(folder, errand.node)
        is_own = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_own = read_secret(path, _KEY_BYTES, "remove it") != errand.secret.encode()
            if is_own:
                path.unlink(missing_ok=True)
                write_secret(path, errand.secret.encode())
            _replace(folder / ALLOWED_FILE, errand.allowed)
            if errand.certificate:
                _replace(certificate_path(folder, errand.node), errand.certificate)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written ({error.strerror}); write dir=") from error
        try:
            yield
        finally:
            if is_own:
                path.unlink(missing_ok=True)
                if not any(folder.glob("*.key")):
                    shutil.rmtree(folder, ignore_errors=True)

    def _send_journal(self) -> None:
        """Hand over the node's two files, which the tools that look at a run read."""
        paths = [path for name in (EVENTS_FILE, METRICS_FILE) for path in generations(self._folder / name)]
        for path in paths:
            with suppress(OSError), path.open("rb") as file:
                self._said.put(file_frame(path.name, b""))
                while part := file.read(_PART_BYTES):
                    while not self._said.has_room():
                        time.sleep(_POLL_S)
                    if self._said.is_lost:
                        return
                    self._said.put(file_frame(path.name, part))


def _replace(path: Path, text: str) -> None:
    """Write a file that others may read at this moment, unless it says that already."""
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
