"""Processes that tell each other something at the start: by files, by MPICH's manager, by a store."""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch.distributed

from dpwa.engines.boards import FolderBoard, PmiBoard, StoreBoard
from dpwa.engines.environment import Start
from dpwa.errors import ConfigError
from support import wait_until

SIZE = 4
CARDS = [f"card of {rank}".encode() for rank in range(SIZE)]


def start(rank: int, size: int = SIZE) -> Start:
    return Start("SLURM", rank, size, "slurm-7-0")


def exchanged(folder: Path, cards: list[bytes] = CARDS, order: tuple[int, ...] = (0, 1, 2, 3)) -> list[list[bytes]]:
    """What each rank hears, when they come in this order."""
    with ThreadPoolExecutor(SIZE) as pool:
        heard = {
            rank: pool.submit(FolderBoard(folder, start(rank), print).exchange, cards[rank], 20.0) for rank in order
        }
        return [heard[rank].result() for rank in range(SIZE)]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_all_hear_what_each_has_told(tmp_path, order):
    assert exchanged(tmp_path / "new" / "folder", order=order) == [CARDS] * SIZE


def test_what_a_former_start_of_the_same_name_has_left_is_not_believed(tmp_path):
    exchanged(tmp_path, [b"old"] * SIZE)
    assert exchanged(tmp_path) == [CARDS] * SIZE


def test_nobody_goes_on_with_the_old_card_of_one_who_comes_late(tmp_path):
    exchanged(tmp_path, [b"old"] * SIZE)
    with ThreadPoolExecutor(SIZE) as pool:
        boards = [FolderBoard(tmp_path, start(rank), print) for rank in range(SIZE - 1)]
        early = [pool.submit(board.exchange, CARDS[rank], 20.0) for rank, board in enumerate(boards)]
        for rank in range(SIZE - 1):  # they have written theirs, and the first has listed the old one of the last
            wait_until(partial(_listed, tmp_path, rank, CARDS[rank]), "listed")
        assert not any(future.done() for future in early)
        last = FolderBoard(tmp_path, start(SIZE - 1), print).exchange(CARDS[-1], 20.0)
        assert [last, *(future.result() for future in early)] == [CARDS] * SIZE


def _listed(folder: Path, rank: int, card: bytes) -> bool:
    listed = json.loads((folder / "slurm-7-0-0" / "list").read_text())
    return bool(bytes.fromhex(listed[rank][1]) == card)


def test_whoever_is_missing_is_named(tmp_path):
    said: list[str] = []
    words = "expected 4 processes of SLURM within 0.2 s, and still waited for processes 1, 2, 3; set DPWA_RENDEZVOUS"
    with pytest.raises(ConfigError, match=words):
        FolderBoard(tmp_path, start(0), said.append).exchange(b"", 0.2)
    assert said == []


def test_a_folder_that_cannot_be_written_is_reported_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="set DPWA_RENDEZVOUS to a folder that all hosts can write"):
        FolderBoard(tmp_path / "file", start(0), print).exchange(b"", 1.0)


def test_a_job_cannot_lead_out_of_the_folder(tmp_path):
    evil = Start("Open MPI", 0, 1, "../../escaped")
    FolderBoard(tmp_path / "inside", evil, print).exchange(b"", 5.0)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


# --- MPICH's manager --------------------------------------------------------------------------------------------------


class Manager:
    """The other end of PMI-1, for one process; the barrier is all that it shares with the others."""

    def __init__(self, known: dict[str, str], barrier: threading.Barrier) -> None:
        self._known, self._barrier = known, barrier
        self.theirs, self._own = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._own, self._own.makefile("rw", encoding="ascii", newline="\n") as wire:
            for line in wire:
                wire.write(self._answer(dict(word.split("=", 1) for word in line.split())) + "\n")
                wire.flush()

    def _answer(self, asked: dict[str, str]) -> str:
        match asked["cmd"]:
            case "init":
                return "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0"
            case "get_my_kvsname":
                return "cmd=my_kvsname kvsname=kvs_1"
            case "put":
                self._known[asked["key"]] = asked["value"]
                return "cmd=put_result rc=0 msg=success"
            case "barrier_in":
                self._barrier.wait(10.0)
                return "cmd=barrier_out rc=0"
            case "get":
                return f"cmd=get_result rc=0 msg=success value={self._known[asked['key']]}"
        return "cmd=unknown rc=1"

    def close(self) -> None:
        self.theirs.close()
        self._thread.join(10.0)


def test_all_hear_each_other_by_the_manager_of_mpich(monkeypatch):
    monkeypatch.setattr("atexit.register", lambda *_: None)
    known: dict[str, str] = {}
    barrier = threading.Barrier(SIZE)
    managers = [Manager(known, barrier) for _ in range(SIZE)]
    with ThreadPoolExecutor(SIZE) as pool:
        heard = [
            pool.submit(PmiBoard(managers[rank].theirs.fileno(), start(rank)).exchange, CARDS[rank], 10.0)
            for rank in range(SIZE)
        ]
        assert [future.result() for future in heard] == [CARDS] * SIZE
    for manager in managers:
        manager.close()


@pytest.mark.parametrize("answer", [b"", b"cmd=abort rc=1\n", b"x" * 10_000, b"cmd=response_to_init rc=-1\n"])
def test_a_manager_that_answers_something_else_is_reported(answer):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ConfigError, match="MPICH's process manager does not answer as expected"):
            PmiBoard(ours.fileno(), start(0)).exchange(b"", 1.0)


def test_a_descriptor_that_is_none_is_reported():
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(ConfigError, match="MPICH's process manager does not answer"):
        PmiBoard(reading, start(0)).exchange(b"", 1.0)


# --- A store ----------------------------------------------------------------------------------------------------------


def test_all_hear_each_other_by_a_store():
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(SIZE) as pool:
        heard = [pool.submit(StoreBoard(store, start(rank)).exchange, CARDS[rank], 10.0) for rank in range(SIZE)]
        assert [future.result() for future in heard] == [CARDS] * SIZE


def test_a_store_in_which_somebody_is_missing_is_reported():
    with pytest.raises(ConfigError, match="expected 4 processes that all make a node of dpwa"):
        StoreBoard(torch.distributed.HashStore(), start(0)).exchange(b"", 0.1)
