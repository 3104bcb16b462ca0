"""Nodes that share out blocks of data, over each transport, and what strangers can do to that."""

from __future__ import annotations

import threading

import pytest
from fake_peers import Peers, node_with_absent_peer

from dpwa.errors import NodeClosed
from dpwa.exchange.lease_words import MAX_ENTRIES, Block, Entry
from dpwa.exchange.leasing import Leases
from dpwa.exchange.messages import Lease, Leased
from dpwa.transport.wire import decode, encode
from support import VectorModel


def take_in_turns(shared: list[Leases], epoch: int) -> list[list[Block]]:
    """The blocks that each node takes, one after the other."""
    taken: list[list[Block]] = [[] for _ in shared]
    for leases in shared:
        leases.begin(epoch)
    going = dict(enumerate(shared))
    while going:
        for index, leases in list(going.items()):
            block = leases.next_block()
            if block is None:
                leases.end()
                del going[index]
            else:
                taken[index].append(block)
                leases.trained([block])
    return taken


def test_each_block_is_taken_once_over_each_transport(cluster):
    nodes = cluster.start([VectorModel([0.0]), VectorModel([1.0]), VectorModel([2.0])])
    shared = [node.lease_blocks(1000, block_samples=10) for node in nodes]
    for epoch in range(2):
        taken = take_in_turns(shared, epoch)
        assert sorted(block for blocks in taken for block in blocks) == [Block(epoch, number) for number in range(100)]
        assert all(len(blocks) > 20 for blocks in taken)
    rows = [row for number in range(100) for row in shared[0].rows(Block(0, number))]
    assert rows == list(range(1000))


def test_who_holds_blocks_of_many_others_trains_them_before_it_asks_for_more(zeromq):
    nodes = zeromq.start([VectorModel([float(number)]) for number in range(12)])
    shared = [node.lease_blocks(24, block_samples=1) for node in nodes]
    for leases in shared:
        leases.begin(0)
    hungry, held = shared[0], []
    hungry.expect(24)
    while (block := hungry.next_block()) is not None:  # a batch of all blocks that there are
        held.append(block)
    assert not hungry.is_complete(0)
    assert hungry.table.rows_held >= MAX_ENTRIES - 4
    hungry.trained(held)
    assert hungry.next_block() is not None


def test_a_node_that_stands_still_loses_its_blocks_to_the_others(zeromq):
    first, second = zeromq.start([VectorModel([0.0]), VectorModel([1.0])])
    idle, busy = first.lease_blocks(400, block_samples=10), second.lease_blocks(400, block_samples=10)
    taken = take_in_turns([busy], 0)[0]
    assert sorted(taken) == [Block(0, number) for number in range(40)]
    assert take_in_turns([idle], 0) == [[]]


def test_who_waits_for_a_block_learns_that_the_node_was_closed(zeromq):
    first, _ = zeromq.start([VectorModel([0.0]), VectorModel([1.0])])
    leases = first.lease_blocks(100)
    leases.begin(0)
    while leases.next_block() is not None:
        pass  # taken and never trained: the epoch is not complete, and has nothing to give
    ended = threading.Event()

    def train() -> None:
        with pytest.raises(NodeClosed):
            leases.wait_for_all(0)
        ended.set()

    thread = threading.Thread(target=train)
    thread.start()
    first.close()
    thread.join(10.0)
    assert ended.is_set()


@pytest.mark.parametrize("cut", ["its own", "another"])
def test_a_request_from_a_life_that_never_answered_changes_nothing_and_gets_nothing(zeromq, cut):
    peers = Peers()
    try:
        node, _ = node_with_absent_peer(zeromq)
        leases = node.lease_blocks(200, block_samples=1)
        leases.begin(0)
        lies = (Entry(0, 0, b"\xff" * 13, bytes(13)), Entry(0, 1, b"\xff" * 13, bytes(13)))
        lease = Lease(
            7,
            zeromq.config.run_id,
            "w2",
            b"stranger",
            leases.cut if cut == "its own" else bytes(16),
            epoch=0,
            want=16,
            word=1,
            floor=9,
            entries=lies,
        )
        dealer = peers.dealer(zeromq)
        dealer.send(encode(lease))
        answer = decode(dealer.recv(), "w1")
        assert answer.nonce == 7
        if cut == "its own":
            assert isinstance(answer, Leased)
            assert answer.granted == ()
        else:
            assert answer.reason == "this node shares out 200 samples in blocks of 1"
        assert (leases.table.epochs.floor, leases.table.epochs[0].done) == (0, [0, 0])
    finally:
        peers.close()


def test_a_node_of_no_cluster_file_is_refused(zeromq):
    peers = Peers()
    try:
        node, _ = node_with_absent_peer(zeromq)
        leases = node.lease_blocks(200)
        dealer = peers.dealer(zeromq)
        dealer.send(
            encode(Lease(3, zeromq.config.run_id, "w7", b"stranger", leases.cut, 0, 16, word=1, floor=0, entries=()))
        )
        assert "no cluster file" in decode(dealer.recv(), "w1").reason
    finally:
        peers.close()
