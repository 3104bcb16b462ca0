"""Nodes that are not in the file join a cluster that trains, over real sockets, and go again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import msgpack
import pytest
import zmq
from fake_peers import Peers, pull_of
from open_clusters import Training, all_know, open_config, until

from dpwa.exchange import members as rules
from dpwa.exchange.member_table import Member, MemberState
from dpwa.exchange.messages import Busy, Meet, Met, Mismatch, NotReady, Offer, Propose, PullRequest, Refused
from dpwa.launch.ports import free_ports
from dpwa.node import belonging
from dpwa.node.node import Node
from dpwa.transport.key_folder import make_keys
from dpwa.transport.wire import decode, encode
from support import VectorModel, events_of, wait_until

pytestmark = pytest.mark.seconds

ALIVE, SUSPECT, LEFT, DEAD = MemberState


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    made.close()


def cluster(train, ports, **settings) -> list[Training]:
    """Three nodes of one file that have trained for a while."""
    config = open_config(["w1", "w2", "w3"], ports, [ports[0]], **settings)
    made = [train(config, name) for name in ("w1", "w2", "w3")]
    wait_until(lambda: all(training.step > 60 for training in made), "they train")
    return made


# --- Joining --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pull", "gosgd", "sgp", "adpsgd", "elastic", "sparta"])
def test_a_newcomer_joins_through_one_member_and_all_exchange_with_it(train, tmp_path, method):
    ports = free_ports(4)
    founders = cluster(train, ports[:3], method=method, pull_probability=0.5)
    newcomer = train(
        open_config(["w9"], ports[3:], [ports[1]], method=method, pull_probability=0.5), "w9", 100.0, tmp_path
    )
    all_know([*founders, newcomer])
    assert newcomer.value_at_start() == pytest.approx(1.0)  # their model, before its first step
    before = {training.node.name: dict(training.node.statistics().exchanges) for training in founders}

    def has_exchanged(training: Training) -> bool:
        score = training.node.statistics().scores.get("w9", 0)
        return training.node.statistics().last_peer == "w9" or score > 500

    wait_until(lambda: all(map(has_exchanged, founders)), f"all exchange with it, after {before}", 20.0)
    newcomer.end()
    first = events_of(tmp_path, "w9")
    (joined,) = [event for event in first if event["event"] == "joined"]
    assert joined["step"] == 0
    assert joined["clock"] > 0


def test_a_single_node_is_enough_to_begin_with(train):
    ports = free_ports(3)
    seed = train(open_config(["w1"], ports[:1], [ports[0]]), "w1")
    wait_until(lambda: seed.step > 20, "it trains alone")
    assert seed.node.statistics().exchanges == {}
    others = [
        train(open_config([name], [port], [ports[0]]), name, 50.0)
        for name, port in (("w2", ports[1]), ("w3", ports[2]))
    ]
    all_know([seed, *others])
    assert [training.value_at_start() for training in others] == pytest.approx([1.0, 1.0])


def test_a_newcomer_gives_nobody_its_untrained_model(train, peers, monkeypatch):
    monkeypatch.setattr(belonging, "_LOOK_FOR_MEMBERS_S", 2.0)
    ports = free_ports(2)
    newcomer = train(open_config(["w9"], ports[1:], [ports[0]]), "w9", 100.0)
    wait_until(lambda: newcomer.node._boundary.joining.is_copying, "it looks")
    dealer = peers._made(zmq.DEALER, lambda made: made.connect(f"tcp://127.0.0.1:{ports[1]}"))
    dealer.send(encode(pull_of(newcomer.node)))
    assert isinstance(decode(dealer.recv(), "w9"), NotReady)
    wait_until(lambda: newcomer.step > 5, "it trains alone")
    dealer.send(encode(pull_of(newcomer.node)))
    assert isinstance(decode(dealer.recv(), "w9"), Offer)


def test_a_newcomer_that_has_copied_a_model_gives_nobody_what_it_had_before(train, peers):
    ports = free_ports(2)
    founder = train(open_config(["w1"], ports[:1], [ports[0]]), "w1")
    wait_until(lambda: founder.step > 20, "it trains alone")
    model = VectorModel([100.0, 100.0])
    newcomer = Node(open_config(["w9"], ports[1:], [ports[0]]), "w9", model)
    try:
        newcomer.start()
        assert model.vector[0] == 1.0
        dealer = peers._made(zmq.DEALER, lambda made: made.connect(f"tcp://127.0.0.1:{ports[1]}"))
        dealer.send(encode(pull_of(newcomer)))
        assert isinstance(decode(dealer.recv(), "w9"), NotReady)
        newcomer.step(1.0)
        dealer.send(encode(pull_of(newcomer)))
        assert isinstance(decode(dealer.recv(), "w9"), Offer)
    finally:
        newcomer.close()


def test_the_one_through_which_it_joined_may_go(train):
    ports = free_ports(4)
    founders = cluster(train, ports[:3])
    newcomer = train(open_config(["w9"], ports[3:], [ports[0]]), "w9", 100.0)
    all_know([*founders, newcomer])
    founders[0].end()
    blended = newcomer.node.statistics().blended
    wait_until(lambda: newcomer.node.statistics().blended > blended + 20, "it goes on with the others")
    wait_until(lambda: set(newcomer.members) == {"w2", "w3"}, "it has forgotten the one that went")
    assert set(founders[1].members) == {"w1", "w3", "w9"}  # of whose file it is one
    late = train(open_config(["w10"], free_ports(1), [ports[3]]), "w10", 100.0)
    wait_until(lambda: {"w2", "w3", "w9"} <= set(late.members), "the next one joins through the newcomer")
    assert late.value_at_start() == pytest.approx(1.0)


def test_one_that_leaves_says_so_and_is_forgotten_at_once(train, caplog):
    ports = free_ports(4)
    founders = cluster(train, ports[:3])
    newcomer = train(open_config(["w9"], ports[3:], [ports[0]]), "w9")
    all_know([*founders, newcomer])
    newcomer.end()
    took_s = until(lambda: not any("w9" in training.members for training in founders), "it is forgotten")
    assert took_s < 5.0 < rules.DEAD_S
    if newcomer.node._belonging._has_left.is_set():  # it had the time to say so
        assert "w9" not in caplog.text  # nobody takes it for a failure
    assert not [training for training in founders if "w9" in training.node.statistics().scores]


def test_one_that_vanishes_is_suspected_and_then_forgotten(train, monkeypatch):
    monkeypatch.setattr(rules, "DEAD_S", 2.0)
    ports = free_ports(4)
    founders = cluster(train, ports[:3])
    newcomer = train(open_config(["w9"], ports[3:], [ports[0]]), "w9")
    all_know([*founders, newcomer])
    monkeypatch.setattr(newcomer.node._belonging, "leave", lambda _wake: None)
    newcomer.end()
    seen: set[str] = set()

    def is_forgotten() -> bool:
        seen.update(training.members.get("w9", "forgotten") for training in founders)
        return not any("w9" in training.members for training in founders)

    took_s = until(is_forgotten, "it is forgotten")
    assert {"alive", "suspect", "forgotten"} <= seen
    assert took_s > 2.0
    # What was remembered of it is gone, too.
    for training in founders:
        context = training.node._parts.context
        assert "w9" not in context.flow_control.scores()
        assert "w9" not in context.membership.peers
        assert "w9" not in context.fetcher.history._given


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_a_node_of_the_file_that_is_lost_comes_back_at_another_address(
    train, tmp_path, monkeypatch, caplog, says_goodbye
):
    """As where its machine is lost: the others have the old address in their files."""
    monkeypatch.setattr(rules, "DEAD_S", 2.0)
    ports = free_ports(4)
    make_keys(tmp_path / "keys", ["w1", "w2", "w3"])
    settings = {"keys": str(tmp_path / "keys")}
    *others, lost = cluster(train, ports[:3], **settings)
    if not says_goodbye:
        monkeypatch.setattr(lost.node._belonging, "leave", lambda _wake: None)
    lost.end()
    again = train(open_config(["w1", "w2", "w3"], [*ports[:2], ports[3]], [ports[0]], **settings), "w3", 1.0)
    known = [training.node._parts.context for training in others]

    def is_met() -> bool:
        at = [training.node._belonging._members._by_name.get("w3") for training in others]
        return all(member is not None and member.port == ports[3] and member.state is ALIVE for member in at)

    until(is_met, "it is met at its new address")
    all_know([*others, again])
    wait_until(lambda: all(context.flow_control.scores().get("w3", 0) > 500 for context in known), "they pull from it")
    assert "nothing leads to it" not in caplog.text, "it is no node behind a router"


def test_a_node_without_a_member_trains_alone_and_joins_when_there_is_one(train, monkeypatch, caplog):
    monkeypatch.setattr(belonging, "_LOOK_FOR_MEMBERS_S", 0.3)
    ports = free_ports(2)
    newcomer = train(open_config(["w9"], ports[1:], [ports[0]]), "w9", 100.0)
    wait_until(lambda: newcomer.step > 20, "it trains alone")
    assert newcomer.value_at_start() == 100.0
    assert "no member answers at any address of `join`" in caplog.text
    seed = train(open_config(["w1"], ports[:1], [ports[0]]), "w1")
    all_know([seed, newcomer], deadline_s=30.0)


def test_a_restarted_newcomer_is_a_member_again(train):
    ports = free_ports(4)
    founders = cluster(train, ports[:3])
    config = open_config(["w9"], ports[3:], [ports[0]])
    for _ in range(3):
        newcomer = train(config, "w9", 100.0)
        all_know([*founders, newcomer])
        assert newcomer.value_at_start() == pytest.approx(1.0)
        newcomer.end()


def test_other_models_and_other_runs_are_not_let_in(train, caplog, monkeypatch):
    monkeypatch.setattr(belonging, "_LOOK_FOR_MEMBERS_S", 1.0)
    ports = free_ports(5)
    founders = cluster(train, ports[:3])
    foreign = train(open_config(["w8"], ports[3:4], [ports[0]], run="another"), "w8", 100.0)
    other = Training(open_config(["w9"], ports[4:], [ports[0]]), "w9", 100.0)
    assert "w8" not in founders[0].members
    wait_until(lambda: foreign.step > 5, "it trains alone")
    assert "a member that it would join by refuses it: the request is of another run" in caplog.text
    assert all(set(training.members) <= {"w1", "w2", "w3"} for training in founders)
    other.node.close()


def test_known_members_can_be_remembered_when_the_seed_is_gone(train):
    ports = free_ports(5)
    founders = cluster(train, ports[:3])
    newcomer = train(open_config(["w9"], ports[3:4], [ports[0]]), "w9")
    all_know([*founders, newcomer])
    kept = newcomer.node.known_members()
    assert {member["name"] for member in kept} == {"w1", "w2", "w3"}
    newcomer.end()
    founders[0].end()
    again = Training(open_config(["w9"], ports[3:4], [ports[0]]), "w9", 100.0)
    again.node.remember_members(kept)
    again.start()
    try:
        wait_until(lambda: {"w2", "w3"} <= set(again.members), "it finds the others")
        assert again.value_at_start() == pytest.approx(1.0)
    finally:
        again.end()


def test_a_newcomer_that_comes_back_is_as_old_as_the_model_that_it_copies_and_not_as_its_checkpoint(train):
    ports = free_ports(4)
    founders = cluster(train, ports[:3])
    newcomer = train(open_config(["w9"], ports[3:], [ports[0]]), "w9")
    all_know([*founders, newcomer])
    state = {**newcomer.node.state_dict(), "clock": 1.0}
    assert {member["name"] for member in state["members"]} == {"w1", "w2", "w3"}
    newcomer.end()
    again = Training(open_config(["w9"], ports[3:], [ports[0]]), "w9", 100.0).node
    again.start()
    try:
        copied = again.statistics().clock
        again.load_state_dict(state)
        assert again.statistics().clock == copied > 1.0
    finally:
        again.close()


@pytest.mark.parametrize("merge", [False, True])
def test_members_finish_with_all_others_whatever_file_they_are_in(train, merge, monkeypatch):
    monkeypatch.setattr(belonging, "_LOOK_FOR_MEMBERS_S", 10.0)  # a model that it trained alone would be far off
    ports = free_ports(4)
    trainings = cluster(train, ports[:3])
    trainings.append(train(open_config(["w9"], ports[3:], [ports[0]]), "w9", 100.0))
    assert trainings[-1].value_at_start() == pytest.approx(1.0)
    all_know(trainings)
    for value, training in enumerate(trainings):
        training.model.vector[1] = value
        training.finish(merge=merge)
    for training in trainings:
        training.end()
    assert [training.has_finished_well for training in trainings] == [True] * 4
    if merge:
        assert [training.node.statistics().merged_models for training in trainings] == [4] * 4
        assert len({training.model.vector.tobytes() for training in trainings}) == 1


def test_two_nodes_of_one_name_are_told_of(train, caplog):
    ports = free_ports(4)
    founders = cluster(train, ports[:3])
    second = train(open_config(["w2"], ports[3:], [ports[0]]), "w2", 100.0)
    wait_until(lambda: f"members know another w2, at localhost:{ports[1]}" in caplog.text, "it is told", 20.0)
    assert second.value_at_start() == pytest.approx(1.0)
    assert founders[0].members["w2"] == "alive"
    assert second.members.keys() <= {"w1", "w3"}


# --- With keys ------------------------------------------------------------------------------------------------------


def test_with_keys_a_newcomer_whose_key_is_on_the_list_joins_and_others_do_not(train, tmp_path, monkeypatch):
    monkeypatch.setattr(belonging, "_LOOK_FOR_MEMBERS_S", 10.0)
    ports = free_ports(5)
    folder = tmp_path / "keys"
    make_keys(folder, [*(f"a{number}" for number in range(40)), "w1", "w2", "w3"])  # any may be at an address of `join`
    founders = cluster(train, ports[:3], keys=str(folder))
    make_keys(folder, ["w9"])  # while they run
    newcomer = train(open_config(["w9"], ports[3:4], [ports[1]], keys=str(folder)), "w9", 100.0)
    all_know([*founders, newcomer], deadline_s=30.0)
    assert newcomer.value_at_start() == pytest.approx(1.0)
    monkeypatch.setattr(belonging, "_LOOK_FOR_MEMBERS_S", 1.0)
    strangers = tmp_path / "strangers"
    make_keys(strangers, ["w1", "w2", "w3", "w8"])
    stranger = train(open_config(["w8"], ports[4:], [ports[1]], keys=str(strangers)), "w8", 100.0)
    wait_until(lambda: stranger.step > 5, "it trains alone")
    plain = train(open_config(["w7"], free_ports(1), [ports[1]]), "w7", 100.0)
    wait_until(lambda: plain.step > 5, "it trains alone")
    assert all(set(training.members) <= {"w1", "w2", "w3", "w9"} for training in [*founders, newcomer])
    assert stranger.members == plain.members == {}


# --- Hostile members ------------------------------------------------------------------------------------------------


class Liar:
    """A socket that is a member, answers meetings with what it likes, and has no snapshot."""

    def __init__(self, peers: Peers, port: int, name: str = "w9") -> None:
        self.name, self.port = name, port
        self.asked = 0
        self.heard: list[Meet] = []
        self.table: tuple[Member, ...] = ()
        self.raw: Callable[[int], bytes] | None = None
        self._router = peers.router(port)
        self._router.setsockopt(zmq.RCVTIMEO, 20)

    @property
    def own(self) -> Member:
        return Member(self.name, "localhost", self.port, 0, ALIVE)

    def serve(self) -> None:
        """Answer what has come."""
        try:
            identity, frame = self._router.recv_multipart()
        except zmq.Again:
            return
        request = decode(frame, "node")
        self.asked += 1
        if isinstance(request, Meet):
            self.heard.append(request)
            honest = encode(Met(request.nonce, b"i" * 8, (self.own, *self.table)))
            answer = honest if self.raw is None else self.raw(request.nonce)
        elif isinstance(request, PullRequest):
            answer = encode(NotReady(request.nonce))
        else:
            answer = encode(Busy(request.nonce))
        self._router.send_multipart([identity, answer])

    def until(self, condition: Callable[[], bool], what: str, deadline_s: float = 20.0) -> None:
        def served() -> bool:
            self.serve()
            return condition()

        wait_until(served, what, deadline_s)


def meet_of(training: Training, name: str, *entries: Member, nonce: int = 1) -> Meet:
    node = training.node
    return Meet(nonce, node.config.run_id, name, b"i" * 8, node._model.layout.fingerprint, entries)


def introduce(peers: Peers, training: Training, liar: Liar) -> zmq.Socket:
    """Have a node hear of a liar, who answers, and is a member."""
    dealer = peers._made(zmq.DEALER, lambda made: made.connect(f"tcp://127.0.0.1:{training.node.config.nodes[0].port}"))
    dealer.send(encode(meet_of(training, liar.name, liar.own)))
    assert isinstance(decode(dealer.recv(), "w1"), Met)
    liar.until(lambda: liar.name in training.members, "it is a member")
    return dealer


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        pytest.param((Member("w2", "127.0.0.1", 9, 5, ALIVE),), "address", id="another address for a name"),
        pytest.param((Member("w2", "10.0.0.1", 21000, 9, DEAD),), "address", id="death at another address"),
        pytest.param((Member("w1", "127.0.0.1", 9, 7, ALIVE),), "own_name", id="the own name elsewhere"),
        pytest.param((Member("w1", "127.0.0.1", 9, 2**53, DEAD),), "number", id="the own name, all numbers used up"),
        pytest.param(
            tuple(Member(f"x{n}", "127.0.0.1", 9, 0, ALIVE) for n in range(31)), "no_room", id="31 made-up names"
        ),
    ],
)
def test_lies_of_a_member_change_nothing_and_are_counted(train, peers, table, reason):
    ports = free_ports(4)
    config = open_config(["w1", "w2"], ports[:2], [ports[0]])
    founders = [train(config, name) for name in ("w1", "w2")]
    all_know(founders)
    liar = Liar(peers, ports[2])
    introduce(peers, founders[0], liar)
    own = founders[0].node._belonging._members.own
    liar.table = table
    liar.until(lambda: founders[0].node.statistics().ignored_entries.get(reason, 0) >= 2, "its lies are counted")
    assert founders[0].members == {"w2": "alive", "w9": "alive"}
    assert founders[0].node._belonging._members.own == own
    known = {member.name: member.address for member in founders[0].node._belonging._members.known}
    assert known["w2"] == ("127.0.0.1", ports[1])


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([["w2", "localhost", 9, 0, 0]] * 2, id="a name twice"),
        pytest.param([["w2", "x" * 3000, 9, 0, 0]], id="a huge host"),
        pytest.param([["x" * 3000, "localhost", 9, 0, 0]], id="a huge name"),
        pytest.param([["w2", "localhost", 9, -1, 0]], id="a negative number"),
        pytest.param([["w2", "localhost", 9, 2**63, 0]], id="a huge number"),
        pytest.param([["w2\x1b[2J", "localhost", 9, 0, 0]], id="a name that is no name"),
        pytest.param([["a", "localhost", 9, 0, 0]] * 1_000_000, id="a million entries"),
    ],
)
def test_a_table_that_is_illegal_is_a_protocol_error_both_ways(train, peers, entries):
    ports = free_ports(3)
    config = open_config(["w1", "w2"], ports[:2], [ports[0]])
    founders = [train(config, name) for name in ("w1", "w2")]
    all_know(founders)
    before = founders[0].node.statistics().protocol_errors
    meet = meet_of(founders[0], "w9", Member("w9", "localhost", ports[2], 0, ALIVE))
    values = [1, 16, 1, meet.run, "w9", meet.incarnation, meet.fingerprint, entries]
    dealer = peers._made(zmq.DEALER, lambda made: made.connect(f"tcp://127.0.0.1:{ports[0]}"))
    dealer.send(msgpack.packb(values))
    if len(msgpack.packb(values)) <= 4096:
        wait_until(lambda: founders[0].node.statistics().protocol_errors > before, "it is counted")
    liar = Liar(peers, ports[2])
    introduce(peers, founders[0], liar)
    liar.raw = lambda nonce: msgpack.packb([1, 17, nonce, b"i" * 8, entries])
    scores = founders[0].node.statistics().scores["w9"]
    liar.until(lambda: founders[0].node.statistics().scores["w9"] < scores, "a failure of that member")
    assert founders[0].members["w2"] == "alive"


def test_a_member_that_is_said_to_be_dead_is_asked_and_refutes(train, peers):
    ports = free_ports(4)
    founders = cluster(train, ports[:3])
    liar = Liar(peers, ports[3])
    introduce(peers, founders[0], liar)
    number = founders[1].node._belonging._members.own.number
    liar.table = (Member("w2", "localhost", ports[1], number, DEAD),)
    liar.until(lambda: founders[1].node._belonging._members.own.number > number, "it hears of it, and refutes")
    liar.table = ()
    liar.until(lambda: founders[0].members["w2"] == "alive", "and is believed")
    liar.until(lambda: founders[2].members["w2"] == "alive", "by all others, too")


def test_whoever_is_no_member_may_pull_and_not_propose(train, peers):
    ports = free_ports(3)
    founders = cluster(train, ports, method="gosgd")
    node = founders[0].node
    dealer = peers._made(zmq.DEALER, lambda made: made.connect(f"tcp://127.0.0.1:{ports[0]}"))
    dealer.send(encode(replace(pull_of(node), node="w77")))
    assert isinstance(decode(dealer.recv(), "w1"), Offer)
    fingerprint = node._model.layout.fingerprint
    propose = Propose(2, node.config.run_id, "w77", b"i" * 8, fingerprint, b"i" * 16, False, 0.5, 1.0, None, 3, 0, 0)
    other = peers._made(zmq.DEALER, lambda made: made.connect(f"tcp://127.0.0.1:{ports[0]}"))
    other.send(encode(propose))
    assert isinstance(decode(other.recv(), "w1"), Busy)
    assert "w77" not in founders[0].members


def test_a_cluster_without_join_refuses_meetings_and_holds_none(zeromq, peers):
    nodes = zeromq.start([VectorModel([0.0]), VectorModel([1.0])])
    zeromq.step_all(3)
    node = nodes[0]
    assert node._parts.wiring.exchanger.meetings is None
    assert node._parts.wiring.service.members is None
    dealer = peers.dealer(zeromq)
    fingerprint = node._model.layout.fingerprint
    own = Member("w9", "localhost", 9, 0, ALIVE)
    dealer.send(encode(Meet(1, node.config.run_id, "w9", b"i" * 8, fingerprint, (own,))))
    answer = decode(dealer.recv(), "w1")
    assert isinstance(answer, Refused)
    assert "has no `join`" in answer.reason
    assert not isinstance(answer, Mismatch)
