"""Who trains which block: the table of one node by itself, and whole clusters in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lease_simulation import Cluster

from dpwa.exchange.lease_asking import LeaseAsking
from dpwa.exchange.lease_epochs import MAX_EPOCHS, Epochs
from dpwa.exchange.lease_table import GRACE_S, SILENT_S, LeaseTable
from dpwa.exchange.lease_words import MAX_ENTRIES, MAX_GRANT, Block, Entry, Word

NAMES = ["w1", "w2", "w3", "w4"]
LIVES = {name: name.encode() * 4 for name in NAMES}
NOTHING = Word(1, 0, ())


def table_of(own: str = "w1", blocks: int = 400, names: list[str] = NAMES) -> LeaseTable:
    """A table whose node has heard all others."""
    table = LeaseTable(names, own, blocks, 0.0)
    for name in names:
        if name != own:
            table.hear(name, LIVES[name], NOTHING, 0.0)
    table.epochs.enter(0)
    return table


def ask(asker: LeaseTable, name: str, asked: LeaseTable, peer: str, want: int = MAX_GRANT) -> int:
    """One table asks another; how many blocks it got."""
    word = asker.word_for(peer, 0.0)
    assert asked.is_known(name, LIVES[name])
    is_fresh = asked.is_fresh(name, word.number)
    asked.hear(name, LIVES[name], word, 0.0)
    assert is_fresh
    granted, left = asked.grant(name, 0, want, 0.0)
    asker.hear(peer, LIVES[peer], asked.word_for(name, 0.0), 0.0)
    return asker.received(peer, granted, left, 0)


def take_all(table: LeaseTable) -> list[Block]:
    taken = []
    while (block := table.take(0, 0.0)) is not None:
        taken.append(block)
    return taken


# --- One table ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 40))
def test_each_block_has_one_home_and_its_place_leads_back_to_it(blocks, homes):
    epochs = Epochs(blocks, homes)
    epochs.enter(0)
    seen = []
    for number in range(blocks):
        found, home, bit = epochs.place(Block(0, number))
        assert found is epochs[0]
        assert epochs.block((0, home), bit) == Block(0, number)
        assert bit & epochs.full[home] == bit
        seen.append((home, bit))
    assert len(set(seen)) == blocks
    sizes = [bits.bit_count() for bits in epochs.full]
    assert sum(sizes) == blocks
    assert max(sizes) - min(sizes) <= 1


def test_a_node_takes_from_its_own_home_from_the_front_and_gives_from_the_back():
    first, second = table_of("w1"), table_of("w2")
    assert [first.take(0, 0.0).number for _ in range(3)] == [0, 1, 2]
    assert ask(second, "w2", first, "w1") == 97 // 8
    assert second.take(0, 0.0) == Block(0, 99)  # what was given comes before what is its own
    assert first.take(0, 0.0) == Block(0, 3)


def test_the_last_blocks_are_given_one_by_one():
    first, second = table_of("w1"), table_of("w2")
    sizes = []
    while got := ask(second, "w2", first, "w1"):
        sizes.append(got)
    assert sizes[0] == 100 // 8
    assert sizes[-8:] == [1] * 8
    assert sum(sizes) == 100
    assert first.take(0, 0.0) is None


def test_a_request_that_comes_again_or_late_gets_nothing():
    table = table_of()
    assert table.is_fresh("w2", 5)
    assert table.grant("w2", 0, 4, 0.0)[0]
    assert not table.is_fresh("w2", 5)
    assert not table.is_fresh("w2", 4)
    assert table.is_fresh("w2", 6)


def test_what_was_given_in_an_answer_that_was_lost_is_free_again_with_the_next_request():
    first, second = table_of("w1"), table_of("w2")
    second.word_for("w1", 0.0)
    assert first.is_fresh("w2", 1)
    lost, _ = first.grant("w2", 0, MAX_GRANT, 0.0)
    assert len(lost) == 12
    assert ask(second, "w2", first, "w1") == 12
    assert {block.number for block in take_all(second)[:12]} == {block.number for block in lost}


def test_what_a_peer_says_to_others_before_it_has_an_answer_frees_nothing_of_it():
    first, second = table_of("w1"), table_of("w2")
    word = second.word_for("w1", 0.0)
    assert first.is_fresh("w2", word.number)
    granted, left = first.grant("w2", 0, MAX_GRANT, 0.0)
    first.hear("w2", LIVES["w2"], second.word_for("w1", 0.0), 0.0)  # an answer of its Rx thread, meanwhile
    second.received("w1", granted, left, 0)
    taken = [*take_all(first), *(block for block in take_all(second) if block.number < 100)]
    assert sorted(block.number for block in taken) == list(range(100))


def test_a_word_that_is_older_than_the_last_one_changes_what_is_trained_and_not_what_is_held():
    table = table_of()
    held = Entry(0, 1, bytes(13), b"\1" + bytes(12))
    done = Entry(0, 1, b"\2" + bytes(12), bytes(13))
    table.hear("w2", LIVES["w2"], Word(7, 0, (held,)), 0.0)
    table.hear("w2", LIVES["w2"], Word(6, 0, (done,)), 0.0)
    assert table.peers["w2"].told == {(0, 1): 1}
    assert table.epochs[0].done[1] == 2


@given(st.permutations(range(4)))
def test_what_is_trained_is_the_same_whatever_order_it_is_told_in(order):
    words = [Word(number, 0, (Entry(0, 1, bytes([1 << number]) + bytes(12), bytes(13)),)) for number in range(4)]
    table = table_of()
    for index in order:
        table.hear("w2", LIVES["w2"], words[index], 0.0)
    assert table.epochs[0].done[1] == 0b1111


def test_entries_of_other_clusters_far_epochs_and_bits_beyond_a_home_are_nothing():
    table = table_of()
    entries = (
        Entry(0, 9, b"\xff", b"\xff"),
        Entry(MAX_EPOCHS, 0, b"\xff", b"\xff"),
        Entry(0, 1, b"\xff" * 128, b"\xff" * 128),
    )
    table.hear("w2", LIVES["w2"], Word(9, 0, entries), 0.0)
    assert list(table.epochs) == [0]
    assert table.epochs[0].done == [0, table.epochs.full[1], 0, 0]
    assert table.received("w2", (Block(0, 400), Block(3, 1), Block(0, 100)), 1, 0) == 0


def test_the_next_node_gives_out_the_blocks_of_a_dead_one_when_it_has_heard_what_the_others_hold():
    table = table_of("w2")
    taken = take_all(table)
    assert len(taken) == 100
    table.asked_in_vain("w1", 1.0)
    assert table.warden(0, SILENT_S) == 0
    dead_s = 1.0 + SILENT_S
    assert table.warden(0, dead_s) == 1
    assert table.take(0, dead_s - 0.01) is None
    assert table.take(0, dead_s) is None  # it is the warden now, and has heard nobody since
    assert sorted(table.unheard(dead_s)) == ["w3", "w4"]
    table.hear("w3", LIVES["w3"], Word(2, 0, (Entry(0, 0, bytes(13), b"\1" + bytes(12)),)), dead_s)
    table.hear("w4", LIVES["w4"], Word(2, 0, (Entry(0, 0, b"\2" + bytes(12), bytes(13)),)), dead_s)
    assert table.take(0, dead_s) == Block(0, 2)
    assert table.warden(0, dead_s) == 1
    table.hear("w1", b"new life", NOTHING, dead_s)
    assert table.warden(0, dead_s) == 0


def test_a_warden_waits_no_longer_than_its_grace():
    table = LeaseTable(NAMES, "w1", 400, 0.0)
    table.epochs.enter(0)
    assert table.take(0, GRACE_S / 2) is None
    assert table.take(0, GRACE_S) == Block(0, 0)


def test_a_process_that_stood_still_hears_the_others_before_it_goes_on():
    table = table_of()
    assert table.take(0, 0.0) == Block(0, 0)
    assert table.take(0, 2 * SILENT_S) is None
    for name in NAMES[1:]:
        table.hear(name, LIVES[name], Word(2, 0, (Entry(0, 0, b"\2" + bytes(12), bytes(13)),)), 2 * SILENT_S)
    assert table.take(0, 2 * SILENT_S) == Block(0, 2)


def test_what_a_dead_node_held_is_free_and_what_it_had_told_is_not():
    table = table_of("w1")
    table.hear("w2", LIVES["w2"], Word(2, 0, (Entry(0, 0, b"\1" + bytes(12), b"\2" + bytes(12)),)), 0.0)
    assert table.take(0, 0.0) == Block(0, 2)
    table.asked_in_vain("w2", 0.0)
    for name in ("w3", "w4"):
        table.hear(name, LIVES[name], Word(3, 0, ()), SILENT_S)
    assert table.take(0, SILENT_S + GRACE_S) == Block(0, 1)


def test_an_epoch_that_is_complete_is_forgotten_and_the_floor_says_so():
    table = table_of("w1", blocks=1, names=["w1"])
    block = table.take(0, 0.0)
    table.trained([block], 0.0)
    assert (table.epochs.floor, list(table.epochs)) == (1, [])
    assert table.is_exhausted(0, 0.0)


def test_epochs_that_are_never_completed_are_given_up_in_the_end():
    table = table_of("w1", blocks=2, names=["w1", "w2"])
    for epoch in range(MAX_EPOCHS + 3):
        table.epochs.enter(epoch)
    assert table.epochs.floor == 3
    assert table.epochs.left_out == 6


def test_a_word_names_all_homes_in_which_its_teller_holds_something():
    names = [f"w{number}" for number in range(40)]
    table = LeaseTable(names, "w0", 400, 0.0)
    table.epochs.enter(0)
    table.received("w9", [Block(0, 90), Block(0, 200), Block(0, 390)], 1, 0)
    for _ in range(10):
        entries = table.word_for("w5", 0.0).entries
        assert len(entries) == MAX_ENTRIES
        assert {9, 20, 39} <= {entry.home for entry in entries}


def test_words_tell_of_all_homes_in_turn():
    names = [f"w{number}" for number in range(40)]
    table = LeaseTable(names, "w0", 400, 0.0)
    table.epochs.enter(0)
    told = {entry.home for _ in range(20) for entry in table.word_for("w5", 0.0).entries}
    assert told == set(range(40))


def test_a_state_that_is_restored_knows_what_was_trained():
    table = table_of()
    blocks = [table.take(0, 0.0) for _ in range(5)]
    table.trained(blocks[:3], 0.0)
    restored = LeaseTable(NAMES, "w1", 400, 0.0)
    restored.epochs.restore(table.epochs.state())
    assert restored.take(0, GRACE_S) == Block(0, 3)  # taken is not trained


@pytest.mark.parametrize(
    "state",
    [
        {"floor": 0, "done": {"0": ["1"]}},
        {"floor": 0, "done": {"0": ["-1", "0", "0", "0"]}},
        {"floor": 0, "done": {"0": ["f" * 26, "0", "0", "0"]}},
        {"floor": 0, "done": {"99": ["0", "0", "0", "0"]}},
    ],
)
def test_a_state_of_another_cluster_is_refused(state):
    with pytest.raises(ValueError, match="another cluster"):
        LeaseTable(NAMES, "w1", 400, 0.0).epochs.restore(state)


# --- Whom to ask --------------------------------------------------------------------------------------------------


def test_who_has_enough_asks_for_nothing_and_who_has_not_asks_the_one_with_most():
    table = table_of()
    asking = LeaseAsking(table)
    assert not asking.is_hungry(0, 0.0)
    taken = take_all(table)
    table.trained(taken, 0.0)
    half = b"\xff" * 6 + bytes(7)
    table.hear("w2", LIVES["w2"], Word(2, 0, (Entry(0, 1, half, bytes(13)),)), 0.0)
    table.hear("w4", LIVES["w4"], Word(2, 0, (Entry(0, 3, half, bytes(13)),)), 0.0)
    turn = asking.next(0, 0.0)
    assert (turn.peer, turn.want) == ("w3", MAX_GRANT)
    asking.asks(turn, 0.0)
    table.received("w3", (), 0, 0)
    asking.answered(turn, 0, got=0, left=0, now_s=0.0)
    assert asking.next(0, 0.0).peer in ("w2", "w4")
    assert not asking.is_hungry(None, 0.0)


def test_a_peer_that_is_busy_is_left_in_peace_for_a_moment_and_another_one_asked():
    table = table_of()
    asking = LeaseAsking(table)
    table.trained(take_all(table), 0.0)
    turn = asking.next(0, 0.0)
    asking.asks(turn, 0.0)
    asking.busy(turn, 0.0)
    other = asking.next(0, 0.0)
    assert (other.want, other.due_s <= 0.0) == (MAX_GRANT, True)
    assert other.peer != turn.peer


def test_who_says_that_it_has_blocks_and_never_gives_one_is_left_alone():
    table = table_of(names=["w1", "w2"], blocks=200)
    asking = LeaseAsking(table)
    take_all(table)
    now_s, asked = 0.0, 0
    while not table.is_exhausted(0, now_s):
        turn = asking.next(0, now_s)
        if turn.due_s <= now_s:
            asking.asks(turn, now_s)
            table.hear("w2", LIVES["w2"], Word(asked + 2, 0, ()), now_s)
            asked += turn.want > 0
            asking.answered(turn, 0, got=0, left=5, now_s=now_s)
        now_s += 0.01
    assert 30 <= asked <= 50
    assert now_s < 5.0


def test_a_block_that_is_trained_is_told_soon_to_who_would_take_this_nodes_place():
    table = table_of()
    asking = LeaseAsking(table)
    for name in NAMES[1:]:
        asking.asks(asking.next(0, 0.0)._replace(peer=name), 0.0)
    table.trained([table.take(0, 0.0)], 0.0)
    turn = asking.next(0, 0.1)
    assert (turn.peer, turn.want) == ("w2", 0)
    assert turn.due_s <= 0.1


# --- Whole clusters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2, 4, 7])
def test_nodes_that_all_live_train_each_block_once(nodes):
    cluster = Cluster([0.02] * nodes, 50 * nodes, 2)
    cluster.run()
    assert (len(cluster.missed), cluster.repeated) == (0, 0)
    counts = [life.trained for life in cluster.all_lives]
    assert max(counts) - min(counts) <= 0.1 * max(counts)


def test_a_node_that_is_four_times_slower_costs_a_tenth_at_most_of_what_all_can_do():
    cluster = Cluster([0.05, 0.05, 0.05, 0.2], 400, 3)
    cluster.run()
    assert (len(cluster.missed), cluster.repeated) == (0, 0)
    least_s = 400 * 3 * 0.05 / 3.25
    assert cluster.now_s <= 1.1 * least_s
    slow = cluster.all_lives[3].trained
    assert slow == pytest.approx(1200 / 13, rel=0.1)


@pytest.mark.parametrize("kill_s", [0.05, 1.0, 2.0, 3.9])
def test_what_a_dead_node_leaves_is_trained_by_the_others(kill_s):
    cluster = Cluster([0.02] * 4, 400, 2)
    cluster.at(kill_s, lambda: cluster.kill("w2"))
    cluster.run()
    assert not cluster.lives["w2"].is_alive
    assert cluster.missed == []
    assert cluster.repeated <= 0.02 * 400


def test_a_node_that_is_started_anew_learns_what_is_trained_and_goes_on():
    cluster = Cluster([0.02] * 4, 400, 3)
    cluster.at(3.0, lambda: cluster.kill("w3"))
    cluster.at(3.5, lambda: cluster.start("w3", 0.02))
    cluster.run()
    assert cluster.missed == []
    assert cluster.repeated <= 0.02 * 400
    assert cluster.lives["w3"].trained > 100


def test_a_node_that_hangs_for_a_while_costs_what_it_had_taken_at_most():
    cluster = Cluster([0.02] * 4, 400, 3)
    cluster.at(1.0, lambda: setattr(cluster.lives["w4"], "is_stopped", True))
    cluster.at(9.0, lambda: setattr(cluster.lives["w4"], "is_stopped", False))
    cluster.run()
    assert cluster.missed == []
    assert cluster.repeated <= 0.02 * 400


def test_each_part_of_a_split_network_trains_all_blocks():
    cluster = Cluster([0.02] * 4, 200, 1)
    cluster.cut = {frozenset((one, other)) for one in ("w1", "w2") for other in ("w3", "w4")}
    cluster.run()
    assert set(cluster.trained.values()) == {2}
    assert cluster.missed == []


@st.composite
def troubles(draw):
    """A small cluster with nodes of any speed that come late, are killed, and come back."""
    nodes = draw(st.integers(2, 5))
    cluster = Cluster(
        draw(st.lists(st.sampled_from([0.02, 0.03, 0.08]), min_size=nodes, max_size=nodes)),
        blocks=nodes * draw(st.sampled_from([1, 20, 60])),
        epochs=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 1000)),
        latency_s=draw(st.sampled_from([0.0005, 0.005])),
        loss=draw(st.sampled_from([0.0, 0.0, 0.03])),
        starts_s=draw(st.lists(st.sampled_from([0.0, 0.0, 0.3, 2.0]), min_size=nodes, max_size=nodes)),
    )
    for name in draw(st.lists(st.sampled_from(cluster.names), max_size=nodes - 1, unique=True)):
        dies_s = draw(st.floats(0.0, 4.0))
        cluster.at(dies_s, lambda name=name: cluster.kill(name))
        if draw(st.booleans()):
            block_s = cluster.block_s[cluster.names.index(name)]
            back_s = dies_s + draw(st.floats(0.1, 8.0))
            cluster.at(back_s, lambda name=name, block_s=block_s: back(cluster, name, block_s))
    return cluster


def back(cluster: Cluster, name: str, block_s: float) -> None:
    if name in cluster.lives and not cluster.lives[name].is_alive:
        cluster.start(name, block_s)


@pytest.mark.seconds
@settings(max_examples=30)
@given(troubles())
def test_whatever_happens_each_block_is_trained_while_somebody_lives(cluster):
    cluster.run()
    assert cluster.missed == []
    deaths = sum(not life.is_alive for life in cluster.all_lives)
    if deaths == 0 and cluster.loss == 0 and max(cluster.starts_s) < GRACE_S:
        assert cluster.repeated == 0
