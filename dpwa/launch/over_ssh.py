"""The launcher's end of one node that runs on another host: a process that looks to its supervisor like the node.

It runs ssh, sends the errand, and then passes on: what the node prints, signals, journals, and the exit code, or the
signal that ended it. ssh gets a session of its own, so that a Ctrl-C reaches the node through this process, in order,
and does not cut the connection. When this process is killed, ssh's standard input ends, and the far end ends the node.

It imports little, because one is started for each node.

Must not know: the cluster file. Runs in: the main thread, signal handlers, too; and a thread that says every few
seconds that the launcher is there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from dpwa._version import __version__
from dpwa.launch.far_words import END, EVENT, FILE, HELLO, OUTPUT, BadWords, Errand, Frames, file_of
from dpwa.observe.run_record import LAUNCH_FILE, RunRecord

__all__ = ["FAILED", "main"]

FAILED = 255
"""Exit code where ssh, and not the command, has failed: ssh's own."""

_PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_READ_BYTES = 1 << 16
_MOST_NOISE_BYTES = 1 << 20
_EVENTS = ("started", "told", "ended")
_EVENT_BYTES = 4096
_WORDS_PER_LOSS = 4
"""How often it says that it is there, within the time after which it counts as gone."""


def main() -> NoReturn:
    """Runs the node that a file of `dpwa launch --hosts` describes; ends as the node does."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    exit_code = _Connection(order).run()
    sys.stdout.flush()
    if exit_code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-exit_code, signal.SIG_DFL) if -exit_code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -exit_code)
    sys.exit(exit_code)


class _Connection:
    """One run of ssh.

    Args:
        order: `errand` (see `Errand`, without keys), `ssh` (its command), `told` (the host, for people), `try` (a
            command to try), `keys` (the folder, or null), `run_dir` (the launcher's), `node_dir` (the node's in it),
            `files` (names that may be received), `files_max_bytes`, `delay_s`.
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order = order
        self._ssh: subprocess.Popen[bytes] | None = None
        self._is_told = False
        self._signals: list[int] = []
        self._has_stopped = threading.Event()
        self._exit_code: int | None = None
        self._files: dict[str, BinaryIO] = {}
        self._file_bytes = 0

    def run(self) -> int:
        """From the start of ssh to the node's exit code."""
        for number in _PASSED:
            signal.signal(number, self._on_signal)
        try:
            errand = self._errand()
        except OSError as error:
            _say(f"{error.filename}: cannot be read ({error.strerror}); the key of each node must be here to be sent")
            return 2
        if self._has_stopped.wait(self._order["delay_s"]):
            return FAILED
        with subprocess.Popen(
            self._order["ssh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        ) as self._ssh:
            if self._has_stopped.is_set():
                self._ssh.terminate()
            try:
                if self._hear_hello():
                    self._tell(errand)
                    self._pass_on()
            except BadWords as error:
                _say(f"{self._order['told']}: {error}")
                self._ssh.terminate()
            with suppress(OSError):
                self._ssh.stdin.close()  # type: ignore[union-attr]
        self._keep_files()
        if self._exit_code is not None:
            return self._exit_code
        if not self._has_stopped.is_set():
            self._say_why(self._ssh.returncode)
        return FAILED

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
        while data := self._read():
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
                print(line.decode(errors="replace"), flush=True)
            if len(noise) > _MOST_NOISE_BYTES:
                raise BadWords("does not end its first line")
        if noise:
            print(noise.decode(errors="replace"), flush=True)
        return False

    def _tell(self, errand: Errand) -> None:
        self._write(errand.to_line())
        self._is_told = True
        for number in self._signals:
            self._write(f"signal {number}\n".encode())
        threading.Thread(target=self._say_here, args=(errand.lost_s / _WORDS_PER_LOSS,), daemon=True).start()

    def _pass_on(self) -> None:
        frames = Frames()
        while data := self._read():
            for kind, payload in frames.feed(data):
                if kind == OUTPUT:
                    sys.stdout.buffer.write(payload)
                    sys.stdout.buffer.flush()
                elif kind == FILE:
                    self._take_file(payload)
                elif kind == EVENT:
                    self._take_event(payload)
                elif kind == END:
                    self._exit_code = _exit_code_of(payload)

    def _read(self) -> bytes:
        ssh = self._ssh
        return os.read(ssh.stdout.fileno(), _READ_BYTES) if ssh is not None and ssh.stdout is not None else b""

    def _write(self, data: bytes) -> None:
        ssh = self._ssh
        if ssh is None or ssh.stdin is None or ssh.stdin.closed:
            return
        view = memoryview(data)
        with suppress(OSError):  # ssh has ended; its exit code says so
            while view:
                view = view[os.write(ssh.stdin.fileno(), view) :]

    def _say_here(self, interval_s: float) -> None:
        while True:
            time.sleep(interval_s)
            self._write(b"\n")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in _ENDING:
            self._has_stopped.set()
        if self._is_told:
            self._write(f"signal {number}\n".encode())
            return
        self._signals.append(number)
        if number in _ENDING and self._ssh is not None:
            self._ssh.terminate()  # nothing runs there yet

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

    def _say_why(self, ssh_code: int) -> None:
        told = self._order["told"]
        if self._is_told:
            _say(f"the connection to {told} is lost; the node ends there as soon as that is noticed on its side")
        elif ssh_code == FAILED:
            _say(f"{told} cannot be reached by ssh; try: {self._order['try']}")
        else:
            _say(f"dpwa does not start on {told} (exit code {ssh_code}); try: {self._order['try']}")


def _exit_code_of(payload: bytes) -> int:
    try:
        code = json.loads(payload)["exit_code"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadWords("expected an exit code at the end") from error
    if type(code) is not int or not -signal.NSIG < code < 256:
        raise BadWords("expected an exit code at the end, from 0 to 255, or the negative number of a signal")
    return code


def _say(line: str) -> None:
    print(f"[dpwa] {line}", flush=True)
