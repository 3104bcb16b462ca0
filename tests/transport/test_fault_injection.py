"""Faults on purpose: each kind happens as often as it says, is on record, and spoils nothing that a method promises."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwa.config.cluster import ClusterConfig
from dpwa.config.describe import describe
from dpwa.config.faults import FaultOptions, PartitionOptions
from dpwa.errors import ConfigError, PeerTimeout
from dpwa.exchange.messages import INCARNATION_BYTES, Settle
from dpwa.exchange.proposals import Proposals
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from dpwa.snapshot.layout import Layout, Role, TensorSpec
from dpwa.snapshot.staging import Staging
from dpwa.transport.faults import Faults, Lost
from dpwa.transport.faulty import FaultyWay
from fault_launch import Launch
from support import ROOT, Cluster, VectorModel, events_of, mostly_slow, step_until, wait_until

pytestmark = pytest.mark.seconds

SAMPLES = sorted((ROOT / "samples" / "faults").glob("*.yaml"))
NODES = "nodes: [{name: w1, port: 21000}, {name: w2, port: 21001}, {name: w3, port: 21002}]\n"

# A peer that did not answer is asked again at once, so that a test of a few steps meets many faults.
AT_ONCE = {"probe_s": 1e-6, "probe_max_s": 1e-6}


def faults_of(text: str) -> FaultOptions:
    return ClusterConfig.from_text(f"{NODES}faults: {text}\n").faults


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_text(f"{NODES}faults: {text}\n", "c.yaml")
    return [problem.removeprefix("c.yaml:2:") for problem in caught.value.problems]


# --- In the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("3", ["9: faults: expected a mapping (key: value), got 3"]),
        ("{dorp: 0.1}", ['10: faults.dorp: unknown key, did you mean "drop"?']),
        (
            "{drop: 1.5, duplicate: -1, reorder: x}",
            [
                "16: faults.drop: expected a number from 0 to 1, got 1.5",
                "32: faults.duplicate: expected a number from 0 to 1, got -1",
                '45: faults.reorder: expected a number from 0 to 1, got "x"',
            ],
        ),
        (
            "{delay_ms: [50, 5], bandwidth: 10 MBs}",
            [
                "20: faults.delay_ms: expected milliseconds from 0 to 600000: a number, or two in order, such as "
                "[5, 50], got a list of 2",
                '40: faults.bandwidth: expected a rate above 0 with its unit, such as "20 MB/s" (units B/s, kB/s, '
                'MB/s, GB/s, KiB/s, MiB/s, GiB/s, kbit/s, Mbit/s, Gbit/s), got "10 MBs"; did you mean "10 MB/s"?',
            ],
        ),
        ("{noise: {scale: -1}}", ["25: faults.noise.scale: expected a number from 0 to 1000, got -1"]),
        (
            "{slow: {w9: 3, w1: -4, w2: soon}, kill: [{node: w33, step: 0}]}",
            [
                "28: faults.slow.w1: expected milliseconds from 0 to 600000, got -4",
                '36: faults.slow.w2: expected milliseconds from 0 to 600000, got "soon"',
                "68: faults.kill[0].step: expected a whole number of at least 1, got 0",
            ],
        ),
        (
            "{slow: {w9: 3}, kill: [{node: w33, step: 1}, {node: w1, step: 3}, {node: w1, step: 3}]}",
            [
                '17: faults.slow.w9: expected the name of a node, got "w9"; write the name of one under nodes',
                '39: faults.kill[0].node: expected the name of a node, got "w33"; did you mean "w3"?',
                "75: faults.kill[2]: faults.kill[1] kills w1 in step 3 too; a node dies once in a step",
            ],
        ),
        (
            "{partition: [{groups: [[w1], []], from_step: 3, to_step: 2}, {groups: [[w1]], from_step: 1, to_step: 2}]}",
            [
                "38: faults.partition[0].groups[1]: expected the names of nodes, got an empty group",
                "66: faults.partition[0].to_step: expected from_step <= to_step, got 3 and 2",
                "79: faults.partition[1].groups: expected at least 2 groups, such as [[w1, w2], [w3]], got 1",
            ],
        ),
        (
            "{partition: [{groups: [[w1, w2], [w2, x]], from_step: 0, to_step: 0}]}",
            [
                '43: faults.partition[0].groups[1][0]: "w2" is in groups[0] already; a node belongs to one group',
                '47: faults.partition[0].groups[1][1]: expected the name of a node, got "x"; write the name of one '
                "under nodes",
            ],
        ),
    ],
)
def test_mistakes_are_refused_all_at_once_with_their_places(text, problems):
    assert problems_of(text) == problems


def test_a_config_with_faults_survives_being_written_and_read():
    faults = faults_of(
        "{drop: 0.1, delay_ms: 7, bandwidth: 1 MB/s, noise: {scale: 1}, slow: {w1: 3}, kill: [{node: w2, step: 1}], "
        "partition: [{groups: [[w1], [w2, w3]], from_step: 1, to_step: 2}]}"
    )
    assert faults.delay_s == (0.007, 0.007)
    assert faults.bandwidth_bytes_per_s == 1e6
    config = ClusterConfig.from_text(f"{NODES}faults: {{drop: 0.1, delay_ms: [1, 2]}}\n")
    assert ClusterConfig.from_text(config.to_yaml()) == config
    assert faults.kinds == ("drop", "delay", "bandwidth", "noise", "slow", "kill", "partition")
    assert FaultOptions().kinds == ()


@given(st.integers(0, 600_000), st.integers(0, 600_000))
def test_a_delay_is_two_numbers_in_order_and_nothing_else(first_ms, second_ms):
    if first_ms <= second_ms:
        assert faults_of(f"{{delay_ms: [{first_ms}, {second_ms}]}}").delay_ms == (first_ms, second_ms)
    else:
        assert "faults.delay_ms" in problems_of(f"{{delay_ms: [{first_ms}, {second_ms}]}}")[0]


def test_check_says_what_will_be_injected():
    config = ClusterConfig.from_text(
        f"{NODES}faults: {{drop: 0.1, delay_ms: [5, 50], noise: {{scale: 0.5, relative: true}}, slow: {{w2: 100}}, "
        "kill: [{node: w3, step: 9}], partition: [{groups: [[w1], [w2, w3]], from_step: 1, to_step: 2}]}\n"
    )
    assert describe(config, ["w1"]).splitlines()[-1] == (
        "warning: faults are injected: 10 % of all messages are lost; messages are late by 5 ms to 50 ms; received "
        "parameters get Gaussian noise of 0.5 times the root mean square of what comes; each step of w2 takes 100 ms "
        "longer; w3 is killed in its step 9, once in a run that has a run folder; from step 1 to 2 these groups are "
        "cut off: w1 | w2 w3"
    )
    assert "faults" not in describe(ClusterConfig.from_text(NODES), ["w1"])


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_each_sample_injects_something(path):
    assert ClusterConfig.load(path).faults.kinds


def test_there_are_samples():
    assert {"lossy-links", "noise", "slow-and-dying", "partition"} <= {path.stem for path in SAMPLES}


# --- Without faults ---------------------------------------------------------------------------------------------------


def test_without_faults_nothing_stands_between_a_node_and_its_transport(in_memory):
    (node, _) = in_memory.start([VectorModel([0.0]), VectorModel([1.0])], faults={"seed": 7})
    parts = node._parts
    assert parts.faults is None
    assert parts.wiring.exchanger._through is None
    assert type(parts.context.proposals) is Proposals
    assert [staging.disturb for staging in parts.context.stagings] == [None]
    assert node.statistics().faults == {}


# --- Of messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind", "faults"),
    [
        ("pull", "drop", {"drop": 0.3}),
        ("pull", "duplicate", {"duplicate": 0.5}),
        ("pull", "delay", {"delay_ms": [1, 3]}),
        ("pull", "bandwidth", {"bandwidth": "1 MB/s"}),
        ("pull", "noise", {"noise": {"scale": 0.01}}),
        ("gosgd", "drop", {"drop": 0.3}),
        ("gosgd", "duplicate", {"duplicate": 0.5}),
        ("gosgd", "reorder", {"reorder": 0.3}),
        ("adpsgd", "drop", {"drop": 0.3}),
        ("adpsgd", "duplicate", {"duplicate": 0.5}),
        ("adpsgd", "reorder", {"reorder": 0.3}),
    ],
)
def test_each_fault_of_a_message_happens_is_on_record_and_training_goes_on(cluster, tmp_path, method, kind, faults):
    models = [VectorModel(np.full(1000, float(value))) for value in range(3)]
    cluster.start(
        models,
        run_dir=tmp_path / "run",
        method=method,
        faults=faults,
        timeout_ms=100,
        wait_ms=200,
        flow_control=AT_ONCE,
    )

    def seen() -> bool:
        cluster.step_all()
        happened = sum(node.statistics().faults[kind] for node in cluster.nodes)
        return happened >= 6 and np.ptp(cluster.vectors()[:, 0]) < 0.5

    wait_until(seen, "faults and blends", 60)
    cluster.close()
    for node in cluster.nodes:
        events = events_of(tmp_path / "run", node.name, "fault")
        counted = Counter(event["kind"] for event in events)
        assert counted == Counter({name: count for name, count in node.statistics().faults.items() if count})
        assert all(event["hit"] in ("pull", "proposal", "question", "done") for event in events)
        assert all(event["peer"] != node.name for event in events)


@pytest.mark.heavy
def test_messages_are_lost_as_often_as_the_config_says(in_memory):
    drop, steps = 0.2, 1500
    nodes = in_memory.start(
        [VectorModel([float(value)]) for value in range(4)], faults={"drop": drop, "seed": 3}, flow_control=AT_ONCE
    )
    in_memory.step_all(steps)
    for node in nodes:
        statistics = node.statistics()
        asked = sum(statistics.exchanges.values())
        sigma = math.sqrt(asked * drop * (1 - drop))
        assert abs(statistics.faults["drop"] - asked * drop) < 3 * sigma
        assert statistics.exchanges["timed_out"] == statistics.faults["drop"]


class _Launch(Launch):
    """Ends with its block, whether it has ended by itself or not."""

    def close(self) -> None:
        if self.process.poll() is None:
            self.end()


class _FakeClient:
    """Answers everything, and remembers what it was asked."""

    patience_s = 0.0

    def __init__(self) -> None:
        self.asked: list[int] = []

    def request(self, _peer, message):
        self.asked.append(message.nonce)
        return message


def _questions(options: FaultOptions, count: int):
    """The nonces of questions that arrived, and of those that were answered."""
    faults = Faults(options, "w1", lambda **_: None)
    client = _FakeClient()
    way = FaultyWay(faults, layout=Layout([TensorSpec("vector", (1,), "float64")]), monotonic_s=lambda: 0.0)
    answered = []
    for nonce in range(count):
        question = Settle(nonce, "run", "w1", bytes(INCARNATION_BYTES), bytes(24), False, False)
        with contextlib.suppress(PeerTimeout):
            way.through(client).request("w2", question)
            answered.append(nonce)
    return client.asked, answered, faults.counts()


def test_half_of_the_losses_come_before_the_peer_hears_and_half_after():
    count, drop = 20_000, 0.4
    arrived, answered, counts = _questions(FaultOptions(drop=drop), count)
    assert set(answered) <= set(arrived)
    assert counts["drop"] == count - len(answered)
    for lost in (count - len(arrived), len(arrived) - len(answered)):
        assert abs(lost - count * drop / 2) < 3 * math.sqrt(count * drop / 2 * (1 - drop / 2))


def test_a_message_that_is_repeated_arrives_twice_and_is_answered_once():
    arrived, answered, counts = _questions(FaultOptions(duplicate=0.5), 1000)
    assert answered == list(range(1000))
    assert set(Counter(arrived).values()) == {1, 2}
    assert len(arrived) - len(answered) == counts["duplicate"]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.9]), st.sampled_from([0.0, 0.5]))
@settings(max_examples=25)
def test_faults_repeat_with_their_seed_and_one_kind_does_not_move_another(seed, drop, duplicate):
    def fates(**options):
        faults = Faults(FaultOptions(seed=seed, **options), "w1", lambda **_: None)
        return [faults.fate(can_be_held=True) for _ in range(50)]

    assert fates(drop=drop) == fates(drop=drop)
    both = fates(drop=drop, duplicate=duplicate)
    assert [fate.lost for fate in both] == [fate.lost for fate in fates(drop=drop)]
    assert (Lost.NEITHER in {fate.lost for fate in both}) or drop > 0.5


def test_a_run_in_memory_with_faults_repeats_bit_for_bit():
    def run() -> np.ndarray:
        cluster = Cluster("in_memory")
        cluster.config = ClusterConfig.for_localhost(
            3,
            ports=[21000, 21001, 21002],
            method="gosgd",
            faults={"drop": 0.1, "duplicate": 0.1, "reorder": 0.1, "noise": {"scale": 0.1}},
            flow_control=AT_ONCE,
        )
        for number in (1, 2, 3):
            cluster.add(f"w{number}", VectorModel([float(number)]))
        cluster.step_all(100)
        cluster.close()
        return cluster.vectors()

    assert np.array_equal(run(), run())


def test_a_lost_message_costs_the_asker_its_timeout_on_a_real_transport(zeromq):
    first, _ = zeromq.start([VectorModel([0.0]), VectorModel([1.0])], faults={"drop": 1.0}, timeout_ms=120)
    began_s = time.monotonic()
    step_until(first, lambda: first.statistics().exchanges.get("timed_out", 0) == 1, "a loss")
    assert time.monotonic() - began_s >= 0.12
    assert zeromq.models[0].vector == [0.0]


# --- Bandwidth and noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared_memory", ["auto", "off"])
def test_a_pull_takes_as_long_as_the_rate_says(zeromq, tmp_path, shared_memory):
    size = 375_000  # 3 MB
    models = [VectorModel(np.full(size, float(value))) for value in (0, 4)]
    first, second = zeromq.start(
        models,
        run_dir=tmp_path / "run",
        faults={"bandwidth": "3 MB/s"},
        shared_memory=shared_memory,
        codec="raw",
        timeout_ms=3000,
        wait_ms=5000,
    )
    zeromq.step_all(2)
    step_until(first, lambda: first.statistics().blended >= 1, "a blend")
    zeromq.close()
    durations_s = [event["duration_s"] for event in events_of(tmp_path / "run", "w1", outcome="blended")]
    assert durations_s
    for duration_s in durations_s:
        assert 1.0 <= duration_s <= 1.1
    assert second.statistics().failures == 0


def test_a_pull_that_cannot_end_in_time_times_out_and_changes_nothing(zeromq):
    models = [VectorModel(np.full(100_000, float(value))) for value in (0, 4)]
    first, _ = zeromq.start(models, faults={"bandwidth": "1 MB/s"}, timeout_ms=150, wait_ms=400, codec="raw")
    zeromq.step_all(2)
    step_until(first, lambda: first.statistics().faults["bandwidth"] >= 1, "a slow pull")
    step_until(first, lambda: first.statistics().exchanges.get("timed_out", 0) >= 1, "its end")
    assert first.statistics().blended == 0
    assert not models[0].vector.any()


@pytest.mark.parametrize("blend", ["delta", "absolute"])
@pytest.mark.parametrize(("value", "relative", "sigma"), [(0.0, False, 0.1), (5.0, False, 0.1), (5.0, True, 0.5)])
def test_noise_has_the_scale_that_the_config_says(cluster, value, relative, sigma, blend):
    size = 100_000
    models = [VectorModel(np.zeros(size)), VectorModel(np.full(size, value))]
    noise_options = {"scale": 0.1, "relative": relative}
    first, second = cluster.start(models, faults={"noise": noise_options}, interpolation="loss", blend=blend)

    def blended() -> bool:
        second.step(0.0)  # so that it takes nothing, and gives all
        return first.statistics().blended >= 2

    step_until(first, blended, "two blends")
    assert first.statistics().last_factor == 1.0
    noise = models[0].vector - value
    assert abs(noise.mean()) < 6 * sigma / math.sqrt(size)
    assert noise.std() == pytest.approx(sigma, rel=0.02)
    assert abs(np.mean(noise**4) / noise.var() ** 2 - 3) < 0.2, "Gaussian"
    assert np.ptp(models[1].vector) == 0.0


def test_running_statistics_get_no_noise():
    layout = Layout([TensorSpec("weight", (64,), "float32"), TensorSpec("variance", (64,), "float32", Role.BUFFER)])
    staging = Staging(layout, absolute=True)
    staging.disturb = Faults(FaultOptions(noise={"scale": 1.0}), "w1", lambda **_: None).disturb
    memory = memoryview(bytearray(layout.total_bytes))
    staging.reference = memory
    staging.begin(whole=True)
    staging.accept(0, layout.total_bytes, memory)
    by_name = {values.section.role.value: values.array for values in staging.values}
    assert by_name["parameter"].all()
    assert not by_name["buffer"].any()


# --- Partition --------------------------------------------------------------------------------------------------------


@given(st.permutations(["w1", "w2", "w3", "w4"]), st.integers(1, 3), st.integers(0, 9))
def test_a_partition_separates_what_is_in_different_groups_in_its_steps(names, cut, step):
    partition = PartitionOptions(groups=(names[:cut], names[cut:]), from_step=3, to_step=6)
    for asker in (*names, "other"):
        for peer in (*names, "other"):
            apart = "other" not in (asker, peer) and (asker in names[:cut]) != (peer in names[:cut])
            assert partition.separates(asker, peer, step) == (apart and 3 <= step <= 6)


def test_groups_that_are_cut_off_do_not_blend_and_find_each_other_again(cluster, tmp_path):
    partition = {"groups": [["w1", "w2"], ["w3", "w4"]], "from_step": 1, "to_step": 40}
    models = [VectorModel([value]) for value in (0.0, 1.0, 100.0, 101.0)]
    cluster.start(
        models, run_dir=tmp_path / "run", faults={"partition": [partition]}, flow_control=AT_ONCE, wait_ms=500
    )
    cluster.step_all(40)
    vectors = cluster.vectors().ravel()
    assert max(vectors[:2]) <= 1.0
    assert min(vectors[2:]) >= 100.0
    wait_until(lambda: cluster.step_all() or np.ptp(cluster.vectors()) < 1.0, "all agree")
    cluster.close()
    for node in cluster.nodes:
        events = events_of(tmp_path / "run", node.name, "fault")
        assert len(events) == node.statistics().faults["partition"] > 0
        assert all(event["step"] <= 40 for event in events)
        assert all((event["peer"] in ("w1", "w2")) != (node.name in ("w1", "w2")) for event in events)
        assert node.statistics().exchanges["unreachable"] == len(events)


# --- Nodes ------------------------------------------------------------------------------------------------------------


def test_a_slow_node_takes_longer_for_each_step_and_the_others_do_not(cluster):
    fast, slow = cluster.start([VectorModel([0.0]), VectorModel([1.0])], faults={"slow": {"w2": 30}}, wait_ms=0)

    def duration_s(node: Node) -> float:
        began_s = time.monotonic()
        for _ in range(5):
            node.step(1.0)
        return time.monotonic() - began_s

    assert duration_s(slow) >= 0.15
    assert duration_s(fast) < 0.1
    assert (fast.statistics().faults, slow.statistics().faults) == ({"slow": 0}, {"slow": 5})


def test_a_node_that_is_to_be_killed_needs_a_run_folder():
    config = ClusterConfig.for_localhost(2, faults={"kill": [{"node": "w2", "step": 5}]})
    with pytest.raises(ConfigError, match="w2 kills itself once per run, which needs a run folder"):
        Node(config, "w2", VectorModel([0.0]))
    other = Node(config, "w1", VectorModel([0.0]))
    assert other.statistics().faults == {"kill": 0}
    other.close()


@pytest.mark.slow
@pytest.mark.heavy
def test_a_killed_node_dies_once_and_comes_back_by_the_launcher(tmp_path):
    config = ClusterConfig.for_localhost(
        3,
        ports=free_ports(3),
        timeout_ms=500,
        connect_timeout_ms=200,
        flow_control={"probe_s": 0.2, "probe_max_s": 0.5},
        faults={"kill": [{"node": "w2", "step": 15}]},
    )
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    with contextlib.closing(_Launch(tmp_path, "--on-failure", "restart", steps=60)) as running:
        assert running.wait() == 0, running.lines
    events = events_of(running.run_dir, "w2")
    (killed,) = [event for event in events if event["event"] == "fault"]
    assert (killed["kind"], killed["step"]) == ("kill", 15)
    assert len([event for event in events if event["event"] == "start"]) == 2
    assert events[-1]["event"] == "close"
    assert events[-1]["step"] == 60


# --- What the methods promise, under faults ---------------------------------------------------------------------------

WORST = {"drop": 0.1, "duplicate": 0.1, "reorder": 0.1}


def settle(cluster: Cluster) -> None:
    """Let no new exchange begin, and all that are under way end."""

    def is_settled() -> bool:
        cluster.step_all()
        return all(
            not node._boundary.in_flight
            and not node._parts.context.proposals.has_notice
            and node._parts.context.proposals._pair is None
            and not node._parts.wiring.exchanger.context.results._ended
            for node in cluster.nodes
        )

    for node in cluster.nodes:
        node.method.probability = 0.0
    wait_until(is_settled, "all exchanges end")
    cluster.step_all(3)


def train(cluster: Cluster, count: int, seed: int, **settings: object) -> np.ndarray:
    """Have nodes exchange until they have met many faults, and settle; where they began, shape (count, 5)."""
    start = np.random.default_rng(seed).standard_normal((count, 5))
    if cluster.transport == "zeromq":
        settings |= {"timeout_ms": 50, "wait_ms": 5}
    models = [VectorModel(row) for row in start]
    faults = {**WORST, "seed": seed}
    nodes = cluster.start(models, seed=seed, flow_control=AT_ONCE, faults=faults, **settings)
    if cluster.transport == "in_memory":
        cluster.step_all(300)
    seen: Counter[str] = Counter()

    def have_met_many() -> bool:
        cluster.step_all()
        seen.clear()
        for node in nodes:
            seen.update(node.statistics().faults)
        return min(seen[kind] for kind in WORST) >= 8 and np.ptp(cluster.vectors(), axis=0).max() < 0.05

    wait_until(have_met_many, "many faults, and agreement in spite of them", 60)
    settle(cluster)
    return start


@pytest.mark.parametrize("method", ["gosgd", "sgp"])
@pytest.mark.parametrize(("count", "seed"), mostly_slow([(4, 0), (4, 1), (8, 2), (8, 3)], (4, 0)))
@pytest.mark.heavy
def test_pushes_keep_mass_and_mean_under_all_faults_at_once(cluster, method, count, seed):
    start = train(cluster, count, seed, method=method)
    total = count if method == "sgp" else 1

    def masses() -> np.ndarray:
        cluster.step_all()
        return np.array([node.method.statistics()["mass"] for node in cluster.nodes])

    # A push has ended for its sender a moment before the receiver's trainer can take it.
    wait_until(lambda: masses().sum() == pytest.approx(total, abs=1e-9), "all mass is somewhere")
    statistics, weights = [node.method.statistics() for node in cluster.nodes], masses()
    assert all(each["mass_under_way"] == each["mass_lost"] == 0.0 for each in statistics)
    assert weights @ cluster.vectors() / weights.sum() == pytest.approx(start.mean(0), abs=1e-12)


@pytest.mark.parametrize("method", ["adpsgd", "elastic"])
@pytest.mark.parametrize(("count", "seed"), mostly_slow([(4, 0), (8, 2)], (4, 0)))
@pytest.mark.heavy
def test_pairs_keep_the_mean_to_rounding_under_all_faults_at_once(cluster, method, count, seed):
    start = train(cluster, count, seed, method=method)
    wait_until(
        lambda: cluster.step_all() or cluster.vectors().mean(0) == pytest.approx(start.mean(0), abs=1e-12),
        "the mean is what it was",
    )
