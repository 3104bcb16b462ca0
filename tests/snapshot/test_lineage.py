"""Which models may be averaged, and what was taken of a peer before: both pure."""

from __future__ import annotations

from dpwa.exchange.history import History
from dpwa.snapshot.lineage import Relation, Standing
from dpwa.snapshot.state import State


def test_far_apart_means_of_two_lineages_and_fifty_updates():
    own = State(1.0, 100.0, lineage=b"a" * 8)
    standing = Standing(b"a" * 8)
    standing.own = own
    clocks = {50.0: Relation.YOUNGER, 51.0: Relation.NEAR, 149.0: Relation.NEAR, 150.0: Relation.ELDER}
    for clock, relation in clocks.items():
        assert standing.relation(State(1.0, clock, lineage=b"b" * 8)) is relation
        assert standing.relation(State(1.0, clock, lineage=b"a" * 8)) is Relation.SAME
        assert Standing(b"a" * 8, heeds_age=False).relation(State(1.0, clock, lineage=b"b" * 8), own) is Relation.SAME


def test_what_a_peer_has_given_is_told_from_what_it_has_not():
    history = History()
    assert history.have("w2") is None
    assert not history.knows("w2", b"1" * 8)
    assert history.came("w2", b"1" * 8) is None
    history.take("w2", 5, 0.5)
    assert history.have("w2") is None, "only half of it"
    assert not history.has_all("w2", 5)
    history.take("w2", 5, 0.5)
    assert history.have("w2") == (b"1" * 8, 5)
    assert history.has_all("w2", 5)
    assert history.is_older("w2", 4)
    assert not history.has_all("w2", 6)
    history.take("w2", 6, 1.0)
    assert history.have("w2") == (b"1" * 8, 6)


def test_a_new_life_begins_with_nothing_taken_and_a_few_former_ones_are_remembered():
    history = History()
    lives = [bytes([number]) * 8 for number in range(100)]
    for life in lives:
        assert history.came("w2", life) is None
        assert history.have("w2") is None
        history.take("w2", 1, 1.0)
    assert history.knows("w2", lives[-1])
    assert history.came("w2", lives[-2]) is not None
    assert history.came("w2", lives[-1]) is None
    assert len(history._given["w2"].former) <= 8
