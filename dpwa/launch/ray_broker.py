"""The process of `dpwa launch --engine ray` that talks to Ray: neither its weight nor its death is the launcher's.

It reserves a place for each node, asks in each where that is, and tells the launcher. Then the near ends of the nodes
come to its socket, and it carries between each of them and a far end, through an actor in the node's place.

    launcher     a line of JSON on standard input: what is wanted. Its end means: give all back, and end
    broker       lines of JSON on standard output: {"say": ...}, then {"cards": ...} or {"problems": [...]}
    near end     a line of JSON on the socket: {"node": NAME}; answered by {"addresses": ...}, or {"problem": ...}
    both         then bytes; the broker's in frames, OUTPUT for what the far end says, END for why it says no more

Must not know: the cluster file, keys, what is carried. Runs in: the main thread, and two threads for each near end.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dpwa.engines.ray_places import START_TIMEOUT_S, PlaceLost, Places, connect, needs_ray
from dpwa.engines.room import Need
from dpwa.errors import ConfigError, DpwaError
from dpwa.launch.far_words import END, MAX_FRAME_BYTES, OUTPUT, frame, main_of
from dpwa.launch.guard import GRACE_S, SAVING_TIMEOUT_S

__all__ = ["main"]

_PART_BYTES = 1 << 16
_CONNECT_TIMEOUT_S = 120.0
"""Ray answers within seconds; a busy machine may need much longer to load it."""

_NEW_PLACE_S = 60.0
"""How long Ray has at least to start something in a place that replaces a lost one."""

_NOTICE_S = 3.0
"""Ray hears of a process that has ended before it knows that its machine is lost."""

_THREADS = 8
"""Of one actor: two for each far end, of which a former life may not have ended."""


def main() -> None:
    """Does what the launcher wants, until that is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the launcher's end is what ends this process
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # Ray may print what it likes
    with suppress(ConfigError):  # while the launcher still looks at the settings
        needs_ray()
    wanted = json.loads(_line_of(0))

    def say(**words: object) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(words), file=out, flush=True)

    folder = Path(wanted["socket"]).parent
    patience = _Patience(lambda text: say(problems=[text]), folder)
    try:
        with patience.of(_CONNECT_TIMEOUT_S, f"no Ray cluster has answered at {wanted['address']}"):
            connect(wanted["address"])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # Ray has taken them
        need = Need(len(wanted["names"]), wanted["cpus"], wanted["gpus"])
        places = Places(need, wanted["wait_s"], lambda text: say(say=text))
    except ConfigError as error:
        say(problems=error.problems)
        return
    except DpwaError as error:
        say(problems=[str(error)])
        return
    try:
        broker = _Broker(places, wanted)
        say(cards=broker.first_cards())
        with broker.serving(wanted["socket"]):
            patience.wait_for_launcher()
        broker.end()
    except (PlaceLost, TimeoutError, OSError) as error:
        say(problems=[f"Ray has lost what was started there: {error}"])
    finally:
        places.close()
        shutil.rmtree(folder, ignore_errors=True)


class _Patience:
    """Ends this process where Ray would wait on: when the launcher is gone before anything is served, or for too long.

    Ray gives back what a process had that has ended.

    Args:
        tell: is told why it ends, when that is of interest to anybody.
        folder: goes with it, because a launcher that was killed has left it behind.
    """

    def __init__(self, tell: Callable[[str], None], folder: Path) -> None:
        self._tell = tell
        self._folder = folder
        self._is_serving = False
        self._has_gone = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.read(0, _PART_BYTES):
            pass
        self._has_gone.set()
        if not self._is_serving:
            shutil.rmtree(self._folder, ignore_errors=True)
            os._exit(1)

    def wait_for_launcher(self) -> None:
        """Waits until the launcher is gone, which from now on is no reason to end on the spot."""
        self._is_serving = True
        self._has_gone.wait()

    @contextmanager
    def of(self, timeout_s: float, why: str) -> Iterator[None]:
        """So long what is done here may take."""

        def end() -> None:
            self._tell(f"{why} within {timeout_s:g} s; does it run, and is this a machine of it?")
            os._exit(1)

        timer = threading.Timer(timeout_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class _Broker:
    """Carries for all nodes."""

    def __init__(self, places: Places, wanted: Mapping[str, Any]) -> None:
        self._places = places
        self._folder: str = wanted["folder"]
        self._wait_s: float = wanted["wait_s"]
        self._numbers = {name: place for place, name in enumerate(wanted["names"])}
        self._lock = threading.Lock()
        self._lives = itertools.count(1)
        self._hands = {name: self._new_hand(name) for name in self._numbers}
        self._cards: dict[str, dict[str, Any]] = {}

    def _new_hand(self, name: str) -> Any:
        return self._places.actor(self._numbers[name], _hand_class(), threads=_THREADS)

    def first_cards(self) -> dict[str, dict[str, Any]]:
        """Where each node has its place."""
        asked = {name: hand.card.remote(self._folder) for name, hand in self._hands.items()}
        self._cards = {name: self._places.ask(card, START_TIMEOUT_S) for name, card in asked.items()}
        return self._cards

    @contextmanager
    def serving(self, path: str) -> Iterator[None]:
        """Carry for the near ends that come."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.bind(path)
            door.listen(len(self._numbers))
            threading.Thread(target=self._welcome, args=(door,), daemon=True).start()
            yield

    def end(self) -> None:
        """Wait until all far ends have ended: a node may be saving its model."""
        timeout_s = GRACE_S + SAVING_TIMEOUT_S
        ended = [hand.end.remote(timeout_s) for hand in self._hands.values()]
        for each in ended:
            with suppress(PlaceLost, TimeoutError):
                self._places.ask(each, timeout_s)

    def _welcome(self, door: socket.socket) -> None:
        while True:
            try:
                near, _ = door.accept()
            except OSError:  # closed: the launcher is gone
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            name = str(json.loads(near.makefile("rb").readline())["node"])
            try:
                hand = self._living_hand(name)
            except (PlaceLost, TimeoutError) as error:
                near.sendall(json.dumps({"problem": self._why_no_place(name, error)}).encode() + b"\n")
                return
            life = next(self._lives)
            addresses = {name: (card["host"], card["port"]) for name, card in self._cards.items()}
            near.sendall(json.dumps({"addresses": addresses}).encode() + b"\n")
            try:
                self._places.ask(hand.begin.remote(life, main_of("far_end"), self._folder))
                threading.Thread(target=self._hear, args=(near, hand, life), daemon=True).start()
                while data := self._places.ask(hand.read.remote(life)):
                    near.sendall(frame(OUTPUT, data))
                words = self._places.ask(hand.last_words.remote(life), START_TIMEOUT_S)
            except (PlaceLost, TimeoutError):
                words = self._why_lost(name)
            near.sendall(frame(END, words.encode()[-MAX_FRAME_BYTES:]))

    def _hear(self, near: socket.socket, hand: Any, life: int) -> None:
        """What the near end says; its end is one for the far end, too."""
        with suppress(PlaceLost):
            while True:
                try:
                    data = near.recv(_PART_BYTES)
                except OSError:  # it was killed
                    data = b""
                self._places.ask(hand.write.remote(life, data))
                if not data:
                    return

    def _living_hand(self, name: str) -> Any:
        """The actor in a node's place, and a new one if that is gone.

        Raises:
            PlaceLost, TimeoutError: there is none.
        """
        with self._lock:
            hand = self._hands[name]
        with suppress(PlaceLost):
            self._places.ask(hand.card.remote(self._folder), START_TIMEOUT_S)
            return hand
        hand = self._new_hand(name)
        try:
            card = self._places.ask(hand.card.remote(self._folder), max(self._wait_s, _NEW_PLACE_S))
        except (PlaceLost, TimeoutError):
            self._places.end(hand)
            raise
        with self._lock:
            self._hands[name], self._cards[name] = hand, card
        return hand

    def _why_no_place(self, name: str, error: Exception) -> str:
        why = self._places.missing(count=1)
        if not why:
            late = isinstance(error, TimeoutError)
            why = f"nothing has started there within {max(self._wait_s, _NEW_PLACE_S):g} s" if late else str(error)
        return f"Ray has no place for {name} now: {why}"

    def _why_lost(self, name: str) -> str:
        host = self._cards[name]["host"]
        if self._places.has_machine(self._cards[name]["machine"], within_s=_NOTICE_S):
            return f"Ray's process for {name} on {host} has ended, or that machine is lost"
        return f"Ray has lost the machine {host}, and {name} with it"


def _line_of(descriptor: int) -> bytes:
    """The first line; what follows stays where it is."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            sys.exit(1)  # the launcher has ended
        line += byte
    return line


def _hand_class() -> type:
    """To be sent as code: a machine may have another dpwa, or none."""
    import ray.cloudpickle  # noqa: PLC0415

    from dpwa.engines import ray_hand  # noqa: PLC0415

    ray.cloudpickle.register_pickle_by_value(ray_hand)
    return ray_hand.Hand
