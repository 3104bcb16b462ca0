"""What is no violation of I4 and I6 to I9, though it looks like one; and what is one beside it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dpwa.observe.continuity import endings, pauses, reality, reunions
from dpwa.observe.lives import Fault, Life, Run, faults_of, lives_of

START_S = 1_700_000_000.0
PARTED = {"event": "fault", "fault": 1, "kind": "partition", "groups": [["w1"], ["w2"]], "evidence": ""}


def _blends(peer: str, first_s: float, last_s: float, per_s: float = 10.0) -> list[dict[str, Any]]:
    count = round((last_s - first_s) * per_s)
    times_s = [START_S + first_s + n / per_s for n in range(count)]
    common = {"event": "exchange", "outcome": "blended", "peer": peer, "duration_s": 0.001, "late_steps": 1}
    return [{"t": t_s, "step": n + 1, **common} for n, t_s in enumerate(times_s)]


def _start(*peers: str, **fields: Any) -> dict[str, Any]:
    return {"t": START_S, "event": "start", "incarnation": "aa", "pid": 1, "peers": list(peers), **fields}


def _steps(last_s: float, per_s: float = 10.0, **fields: Any) -> list[dict[str, Any]]:
    return [{"t": START_S + n, "step": round(n * per_s), "steps_per_s": per_s, **fields} for n in range(round(last_s))]


# --- I9: what the journals no longer hold -----------------------------------------------------------------------------


def _run_of_a_partition(*, is_continued: bool, first_s: float) -> Run:
    begin = [_start("w2", continued=True)] if is_continued else [_start("w2")]
    life = lives_of("w1", [*begin, *_blends("w2", first_s, 60.0)], [])
    record = [{**PARTED, "t": START_S + 10.0, "until": START_S + 20.0}]
    return Run({"w1": life}, faults_of(record), (), {"faults": {"noise": {"scale": 0.1}}})


def test_a_journal_that_has_lost_its_beginning_says_when_what_is_left_begins():
    (life,) = lives_of("w1", [_start("w2", continued=True), *_blends("w2", 30.0, 31.0)], [])
    assert (life.began_s, life.kept_from_s) == (START_S, START_S + 30.0)
    (life,) = lives_of("w1", _blends("w2", 30.0, 31.0), [])
    assert life.kept_from_s == START_S + 30.0
    (life,) = lives_of("w1", [_start("w2"), {**_start("w2"), "t": START_S + 5.0, "continued": True}], [])
    assert life.kept_from_s is None


def test_a_fault_whose_proof_may_be_in_the_lost_beginning_of_a_journal_is_no_violation():
    seen = reality(_run_of_a_partition(is_continued=True, first_s=30.0))
    assert (seen.count, seen.findings) == (0, [])
    assert "partition of which the journals have lost the time" in seen.missing
    assert "`faults: noise`" in seen.missing


def test_a_fault_without_proof_is_a_violation_where_the_journals_are_whole():
    whole = _run_of_a_partition(is_continued=False, first_s=30.0)
    assert ["nobody met it" in finding.text for finding in reality(whole).findings] == [True, False]
    kept = _run_of_a_partition(is_continued=True, first_s=5.0)  # lost is only what was before the partition
    across = [blend for blend in kept.lives["w1"][0].blends if not 9.0 < blend["t"] - START_S < 21.0]
    kept.lives["w1"][0].blends[:] = across
    assert ["nobody met it" in finding.text for finding in reality(kept).findings] == [True]


@pytest.mark.parametrize(
    ("faults", "blends", "is_missed"),
    [
        ({"drop": 0.001}, 100, False),
        ({"drop": 0.001}, 20_000, True),
        ({"reorder": 0.5}, 20_000, False),  # there are no proposals
        ({"kill": [{"node": "w1", "step": 500}]}, 100, False),
        ({"kill": [{"node": "w1", "step": 90}]}, 100, True),
        ({"partition": [{"groups": [["w1"], ["w2"]], "from_step": 500, "to_step": 600}]}, 100, False),
        ({"partition": [{"groups": [["w1"], ["w2"]], "from_step": 50, "to_step": 600}]}, 100, True),
        ({"lies": [{"node": "w2", "from_step": 500}]}, 100, False),
        ({"lies": [{"node": "w2", "from_step": 50}]}, 100, True),
        ({"bandwidth": "1 MB/s"}, 100, False),  # slower than that by themselves
        ({"bandwidth": "10 kB/s"}, 100, True),
        ({"slow": {"w2": 50}}, 100, False),  # there is no w2
        ({"slow": {"w1": 50}}, 100, True),
        ({"delay_ms": [0, 50]}, 0, False),
        ({"delay_ms": [0, 50]}, 100, True),
    ],
)
def test_a_fault_of_the_config_is_missed_only_where_it_must_have_struck(faults, blends, is_missed):
    lines = [{**blend, "bytes": 100} for blend in _blends("w2", 0.0, blends / 10.0)]
    run = Run({"w1": lives_of("w1", [_start("w2"), *lines], _steps(10.0))}, (), (), {"faults": faults})
    seen = reality(run)
    assert len(seen.findings) == is_missed
    assert seen.count == is_missed
    assert is_missed or "may not have struck yet" in seen.missing


def test_proposals_that_are_never_reordered_are_missed():
    lines = [{**blend, "exchange_id": f"{n:016x}"} for n, blend in enumerate(_blends("w2", 0.0, 10.0))]
    run = Run({"w1": lives_of("w1", [_start("w2"), *lines], [])}, (), (), {"faults": {"reorder": 0.5}})
    assert ["reorder" in finding.text for finding in reality(run).findings] == [True]


# --- I9: a partition whose maker was killed ---------------------------------------------------------------------------


def test_a_partition_whose_maker_was_killed_ends_when_it_was_to_end():
    record = {**PARTED, "t": START_S + 10.0, "until": START_S + 15.0}
    (fault,) = faults_of([record])
    assert fault.ended_s == START_S + 15.0
    (healed,) = faults_of([record, {"t": START_S + 12.0, "event": "undone", "fault": 1}])
    assert healed.ended_s == START_S + 12.0
    lines = [*_blends("w2", 0.0, 9.9), *_blends("w2", 15.1, 40.0)]
    met = {"t": START_S + 12.0, "event": "fault", "kind": "partition", "peer": "w2"}
    run = Run({"w1": lives_of("w1", [_start("w2"), *lines[:99], met, *lines[99:]], [])}, [fault])
    assert reality(run).findings == []


# --- I6 ---------------------------------------------------------------------------------------------------------------


def _parted_run(*before: str, peers: tuple[str, ...], after: str, per_s: float = 10.0, steps_s: float = 60.0) -> Run:
    lines = [blend for peer in before for blend in _blends(peer, 0.0, 20.0, per_s)]
    lines += _blends(after, 25.5, 60.0) if after else []
    lives = {
        "w1": lives_of("w1", [_start(*peers), *lines, {"t": START_S + 60, "event": "joined"}], _steps(steps_s)),
        "w2": [Life("w2", "bb", START_S, last_s=START_S + 60)],
        "w3": [Life("w3", "cc", START_S, last_s=START_S + 60)],
    }
    fault = Fault("partition", START_S + 20, START_S + 25, groups=(frozenset({"w1"}), frozenset({"w2"})))
    return Run(lives, [fault])


def test_a_node_that_had_met_one_of_two_peers_may_meet_the_other_one_after_a_fault():
    assert reunions(_parted_run("w2", peers=("w2", "w3"), after="w3")).findings == []


@pytest.mark.parametrize(
    ("per_s", "steps_s", "is_found"),
    [
        (10.0, 60.0, True),
        (0.5, 60.0, False),  # five exchanges in 10 s: none in the next 10 s may be chance
        (10.0, 26.0, False),  # it makes no more steps: it has nothing to exchange
    ],
)
def test_a_node_with_one_peer_must_meet_it_again_if_it_met_it_often(per_s, steps_s, is_found):
    seen = reunions(_parted_run("w2", peers=("w2",), after="", per_s=per_s, steps_s=steps_s))
    assert len(seen.findings) == is_found


# --- I8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("took_s", "is_found"), [(0.4, False), (5.2, True)])
def test_a_process_that_was_killed_before_its_time_was_over_is_no_violation(took_s, is_found):
    launches = [
        {"t": START_S, "event": "started", "node": "w1", "pid": 1},
        {"t": START_S + 50, "event": "told", "signal": 15},
        {"t": START_S + 50 + took_s, "event": "ended", "node": "w1", "pid": 1, "exit_code": -9},
    ]
    run = Run({"w1": lives_of("w1", [_start("w2")], [])}, (), launches)
    assert len(endings(run).findings) == is_found


# --- I4 ---------------------------------------------------------------------------------------------------------------


def _held_run(method: str, **settings: Any) -> Run:
    lines = [{"t": 100.0 + n, "step": n * 10, "steps_per_s": 10.0, "longest_held_s": 0.001} for n in range(50)]
    lines[20] |= {"longest_step_s": 5.0, "longest_held_s": 4.9}
    lines = [{"longest_step_s": 0.1, **line} for line in lines]
    life = Life("w1", "aa", 99.0, {"pid": 1}, metrics=lines, last_s=150.0, closed_s=150.0)
    killed = Fault("kill", 119.0, math.inf, "w2", pid=2, evidence="gone")
    return Run({"w1": [life]}, [killed], (), {"method": method, **settings})


def test_a_step_of_dpsgd_may_wait_until_the_deadline_of_its_round():
    assert pauses(_held_run("dpsgd", dpsgd={"deadline_ms": 5000})).findings == []
    assert len(pauses(_held_run("dpsgd", dpsgd={"deadline_ms": 1000})).findings) == 1
    assert len(pauses(_held_run("pull", dpsgd={"deadline_ms": 5000})).findings) == 1


def test_how_long_a_custom_method_waits_is_not_judged():
    seen = pauses(_held_run("my_module:MyMethod"))
    assert (seen.count, seen.findings) == (0, [])
    assert "custom method" in seen.missing
