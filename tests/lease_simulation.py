"""Nodes that share out the blocks of epochs, in virtual time: tables and questions are the real ones."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from dpwa.exchange.lease_asking import LeaseAsking, Turn
from dpwa.exchange.lease_table import LeaseTable
from dpwa.exchange.lease_words import Block, Word

TIMEOUT_S = 1.0
REFUSED_S = 0.001
PATIENCE_S = 10_000.0


@dataclass
class Life:
    """One life of a node."""

    name: str
    incarnation: bytes
    table: LeaseTable
    asking: LeaseAsking
    block_s: float
    epoch: int | None = None
    is_alive: bool = True
    is_stopped: bool = False
    has_ended: bool = False
    is_asking: bool = False
    trained: int = 0
    ended_s: float = 0.0


@dataclass
class Question:
    """A question on its way."""

    life: Life
    turn: Turn
    word: Word
    changes: int

    def __post_init__(self) -> None:
        self.epoch = self.life.epoch or 0


@dataclass
class Cluster:
    """A cluster; `run` trains to the end.

    Attributes:
        block_s: seconds per block of each node.
        blocks: of an epoch.
        epochs: to train.
        latency_s: of one way.
        loss: share of messages that are lost.
    """

    block_s: list[float]
    blocks: int
    epochs: int
    seed: int = 0
    latency_s: float = 0.001
    loss: float = 0.0
    starts_s: list[float] | None = None
    trained: Counter[Block] = field(default_factory=Counter)
    questions: int = 0

    def __post_init__(self) -> None:
        self.names = [f"w{number + 1}" for number in range(len(self.block_s))]
        self.now_s = 0.0
        self.rng = random.Random(self.seed)
        self.cut: set[frozenset[str]] = set()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.lives: dict[str, Life] = {}
        self.all_lives: list[Life] = []
        for name, block_s, start_s in zip(
            self.names, self.block_s, self.starts_s or [0.0] * len(self.names), strict=True
        ):
            self.at(start_s, lambda name=name, block_s=block_s: self.start(name, block_s))

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(time_s, self.now_s), next(self._order), action))

    def after(self, pause_s: float, action: Callable[[], None]) -> None:
        self.at(self.now_s + pause_s, action)

    def start(self, name: str, block_s: float) -> None:
        """Begin a life that knows nothing."""
        table = LeaseTable(self.names, name, self.blocks, self.now_s)
        life = Life(name, self.rng.randbytes(8), table, LeaseAsking(table), block_s)
        self.lives[name] = life
        self.all_lives.append(life)
        self._enter(life, 0)
        self._think(life)

    def kill(self, name: str) -> None:
        life = self.lives.get(name)
        if life is not None and life.is_alive:
            life.is_alive = False

    def run(self) -> None:
        while self._heap and not (self.lives and all(life.has_ended or not life.is_alive for life in self._present())):
            self.now_s, _, action = heapq.heappop(self._heap)
            assert self.now_s < PATIENCE_S, "no end"
            action()

    def _present(self) -> list[Life]:
        started = [self.lives[name] for name in self.names if name in self.lives]
        return started if len(started) == len(self.names) else [*started, Life("", b"", None, None, 0.0)]

    # --- The trainer --------------------------------------------------------------------------------------------------

    def _enter(self, life: Life, epoch: int) -> None:
        life.epoch = epoch
        life.table.epochs.enter(epoch)
        self._go_on(life)

    def _go_on(self, life: Life) -> None:
        if not life.is_alive or life.epoch is None:
            return
        epoch = life.epoch
        block = life.table.take(epoch, self.now_s)
        if block is not None:
            self.after(life.block_s * self.rng.uniform(0.8, 1.2), lambda: self._end_block(life, block))
        elif not life.table.is_exhausted(epoch, self.now_s):
            self.after(0.002, lambda: self._go_on(life))
        elif epoch + 1 < self.epochs:
            self._enter(life, epoch + 1)
        elif epoch < life.table.epochs.floor:
            life.epoch, life.has_ended, life.ended_s = None, True, self.now_s
        else:
            life.asking.is_at_the_end = True
            life.table.ask_again()
            self.after(0.1, lambda: self._go_on(life))

    def _end_block(self, life: Life, block: Block) -> None:
        if not life.is_alive:
            return
        if life.is_stopped:
            self.after(0.1, lambda: self._end_block(life, block))
            return
        self.trained[block] += 1
        life.trained += 1
        life.table.trained([block], self.now_s)
        self._go_on(life)

    # --- Questions ----------------------------------------------------------------------------------------------------

    def _think(self, life: Life) -> None:
        if not life.is_alive:
            return
        turn = life.asking.next(life.epoch, self.now_s)
        if life.is_stopped or turn.due_s > self.now_s:
            self.after(0.002, lambda: self._think(life))
        else:
            self._ask(life, turn)

    def _ask(self, life: Life, turn: Turn) -> None:
        self.questions += 1
        life.asking.asks(turn, self.now_s)
        question = Question(life, turn, life.table.word_for(turn.peer, self.now_s), life.table.changes)
        peer = self.lives.get(turn.peer)
        if peer is None or not peer.is_alive:
            self.after(REFUSED_S, lambda: self._fail(question))
        elif self.rng.random() < self.loss or frozenset((life.name, turn.peer)) in self.cut:
            self.after(TIMEOUT_S, lambda: self._fail(question))
        else:
            self.after(self.latency_s, lambda: self._arrive(question))

    def _fail(self, question: Question) -> None:
        question.life.asking.failed(question.turn, self.now_s)
        self._think(question.life)

    def _arrive(self, question: Question) -> None:
        asker, turn = question.life, question.turn
        peer = self.lives[turn.peer]
        granted, left, table = (), 1, peer.table
        if not peer.is_stopped and table.is_known(asker.name, asker.incarnation):
            is_fresh = table.is_fresh(asker.name, question.word.number)
            table.hear(asker.name, asker.incarnation, question.word, self.now_s)
            if is_fresh:
                granted, left = table.grant(asker.name, question.epoch, turn.want, self.now_s)
        if peer.is_stopped or self.rng.random() < self.loss:
            self.after(TIMEOUT_S, lambda: self._fail(question))
            return
        said = table.word_for(asker.name, self.now_s)
        self.after(self.latency_s, lambda: self._answer(question, peer.incarnation, said, granted, left))

    def _answer(
        self, question: Question, incarnation: bytes, said: Word, granted: tuple[Block, ...], left: int
    ) -> None:
        life, turn = question.life, question.turn
        if not life.is_alive:
            return
        life.table.hear(turn.peer, incarnation, said, self.now_s)
        got = life.table.received(turn.peer, granted, left, question.epoch) if turn.want else 0
        life.table.was_told(turn.peer, question.changes)
        life.asking.answered(turn, question.epoch, got=got, left=left, now_s=self.now_s)
        self._think(life)

    # --- What came of it ----------------------------------------------------------------------------------------------

    @property
    def missed(self) -> list[Block]:
        """Blocks that nobody has trained."""
        every = (Block(epoch, number) for epoch in range(self.epochs) for number in range(self.blocks))
        return [block for block in every if not self.trained[block]]

    @property
    def repeated(self) -> int:
        """How many blocks were trained once too often."""
        return sum(count - 1 for count in self.trained.values())
