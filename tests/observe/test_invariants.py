"""The nine invariants: they hold in journals that satisfy them, and each violation that is planted is found."""

from __future__ import annotations

import random
from copy import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpwa.observe.continuity import pauses
from dpwa.observe.invariants import INVARIANTS, Check, check_run
from dpwa.observe.lives import Fault, Life, Run, faults_of, lives_of

START_S = 1_700_000_000.0
NODES = ("w1", "w2", "w3")
LONG_S = 200.0  # enough for memory to be looked at


class Journals:
    """The records of a run of three nodes, made so that all nine invariants hold.

    w2 is killed at 60 s and starts again at 63 s; w3 is stopped from 90 s to 95 s; w1 is cut off from 120 s to 130 s.
    At the end the launcher tells all to end.
    """

    def __init__(self, seed: int, pace_s: float) -> None:
        self.rng = random.Random(seed)
        self.pace_s = pace_s
        self.is_second_life = False
        self.events: dict[str, list[dict[str, Any]]] = {name: [] for name in NODES}
        self.metrics: dict[str, list[dict[str, Any]]] = {name: [] for name in NODES}
        self.chaos: list[dict[str, Any]] = []
        self.launches: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {"method": "pull", "factor_max": 0.5, "faults": {"partition": []}}
        self.incarnation: dict[str, str] = {}
        self.version: dict[str, int] = {}
        self.taken: dict[tuple[str, str, str], int] = {}
        for rank, name in enumerate(NODES):
            self._begin(name, START_S + rank * 0.1, 100 + rank)
        moment_s = START_S + 1.0
        while moment_s < START_S + LONG_S:
            for name in NODES:
                self._turn(name, moment_s + self.rng.uniform(0.0, 0.9 * pace_s))
            moment_s += pace_s
        self._record_faults()
        end_s = START_S + LONG_S + 0.5
        self.launches.append({"t": end_s, "event": "told", "signal": 15})
        for rank, name in enumerate(NODES):
            self.events[name].append({"t": end_s + 0.2, "event": "close", "step": 5})
            pid = 202 if name == "w2" else 100 + rank
            self.launches.append({"t": end_s + 0.4, "event": "ended", "node": name, "pid": pid, "exit_code": 143})

    def run(self) -> Run:
        lives = {name: lives_of(name, self.events[name], self.metrics[name]) for name in NODES}
        return Run(lives, faults_of(self.chaos), self.launches, self.settings)

    def copied(self) -> Journals:
        """Another with the same records, which can be changed."""
        other = copy(self)
        other.events = {name: [dict(event) for event in events] for name, events in self.events.items()}
        other.metrics = {name: [dict(line) for line in lines] for name, lines in self.metrics.items()}
        other.chaos, other.launches = [dict(record) for record in self.chaos], [dict(one) for one in self.launches]
        other.settings = dict(self.settings)
        return other

    def blends(self, node: str) -> list[dict[str, Any]]:
        return [event for event in self.events[node] if event["event"] == "exchange"]

    def _begin(self, node: str, moment_s: float, pid: int) -> None:
        incarnation = f"{self.rng.getrandbits(64):016x}"
        self.incarnation[node], self.version[node] = incarnation, 0
        peers = [name for name in NODES if name != node]
        fields = {"incarnation": incarnation, "peers": peers, "layout": "ab" * 16, "pid": pid}
        self.events[node].append({"t": moment_s, "event": "start", "step": 0, **fields})
        self.launches.append({"t": moment_s, "event": "started", "node": node, "pid": pid})

    def _turn(self, node: str, moment_s: float) -> None:
        at_s = moment_s - START_S
        if node == "w2" and 60.0 <= at_s < 63.0:
            return
        if node == "w2" and at_s >= 63.0 and not self.is_second_life:
            self.is_second_life = True
            self._begin("w2", moment_s, 202)
            return
        if node == "w3" and 90.0 <= at_s < 95.0:
            return
        self.version[node] += 1
        version = self.version[node]
        checksum = hash((node, self.incarnation[node], version)) % 2**32
        self.events[node].append({"t": moment_s, "event": "snapshot", "version": version, "checksum": checksum})
        self.metrics[node].append(
            {
                "t": moment_s,
                "step": version,
                "steps_per_s": 1 / self.pace_s,
                "longest_step_s": 1.5 * self.pace_s,
                "longest_held_s": 0.001,
                "descriptors": 30 + self.rng.randint(-2, 2),
                "threads": 6,
                "resident_bytes": 10**8 + version,
            }
        )
        for peer in NODES:
            self._blend(node, peer, moment_s, at_s)

    def _blend(self, node: str, peer: str, moment_s: float, at_s: float) -> None:
        is_gone = (peer == "w2" and 60.0 <= at_s < 64.0) or (peer == "w3" and 90.0 <= at_s < 95.0)
        is_cut = "w1" in (node, peer) and 120.0 <= at_s < 130.0
        if is_cut and node == "w1" and peer != node:
            self.events[node].append({"t": moment_s, "event": "fault", "kind": "partition", "peer": peer})
        key = (node, peer, self.incarnation[peer])
        version = self.version[peer]
        if peer == node or is_gone or is_cut or version == 0 or self.taken.get(key) == version:
            return
        self.taken[key] = version
        self.events[node].append(
            {
                "t": moment_s,
                "event": "exchange",
                "outcome": "blended",
                "peer": peer,
                "duration_s": 0.01,
                "version": version,
                "incarnation": self.incarnation[peer],
                "share": 1.0,
                "peer_clock": 3.0,
                "factor": self.rng.choice([0.0, 0.25, 0.5]),
                "bytes": 8,
                "checksum": hash((peer, self.incarnation[peer], version)) % 2**32,
            }
        )

    def _record_faults(self) -> None:
        for number, (kind, fields, first_s, last_s) in enumerate(
            [
                ("kill", {"node": "w2", "pid": 101, "evidence": "gone"}, 60.0, 63.0),
                ("stop", {"node": "w3", "pid": 102, "evidence": "state T"}, 90.0, 95.0),
                ("partition", {"groups": [["w1"], ["w2", "w3"]]}, 120.0, 130.0),
            ]
        ):
            self.chaos.append({"t": START_S + first_s, "event": "fault", "fault": number, "kind": kind, **fields})
            self.chaos.append({"t": START_S + last_s, "event": "undone", "fault": number})


def verdicts(run: Run) -> dict[str, Check]:
    return {check.invariant.name: check for check in check_run(run)}


SOUND = Journals(seed=1, pace_s=1.0)


@given(seed=st.integers(0, 2**32), pace_s=st.sampled_from([0.5, 1.0]))
def test_all_nine_hold_in_journals_that_satisfy_them(seed, pace_s):
    checks = verdicts(Journals(seed, pace_s).run())
    assert [finding.text for check in checks.values() for finding in check.findings] == []
    assert {name for name, check in checks.items() if check.verdict == "held"} == {f"I{n}" for n in range(1, 10)}
    assert all(check.observations > 0 for check in checks.values())


# --- What is planted --------------------------------------------------------------------------------------------------


def _torn(journals: Journals, place: int) -> None:
    journals.blends("w1")[place]["checksum"] ^= 1


def _never_published(journals: Journals, place: int) -> None:
    blend = journals.blends("w1")[place]
    blend["version"], blend["incarnation"], blend["peer"] = 10**6, journals.incarnation["w3"], "w3"


def _older(journals: Journals, place: int) -> None:
    blends = journals.blends("w1")
    blend = blends[place]
    later = next(i for i in range(place + 1, len(blends)) if blends[i]["peer"] == blend["peer"])
    blend["version"] += 10**6
    blends[later]["incarnation"] = blend["incarnation"]


def _twice(journals: Journals, place: int) -> None:
    blend = journals.blends("w1")[place]
    journals.events["w1"].insert(journals.events["w1"].index(blend), dict(blend))


def _applied_twice(journals: Journals, place: int) -> None:
    blends = journals.blends("w1")
    for blend in (blends[place], blends[place + 1]):
        blend |= {"kind": "push", "exchange_id": "ab" * 8}


def _former_life(journals: Journals, place: int) -> None:
    of_w2 = [blend for blend in journals.blends("w1") if blend["peer"] == "w2"]
    of_w2[-1 - place % 5]["incarnation"] = of_w2[0]["incarnation"]


def _not_finite(journals: Journals, place: int) -> None:
    journals.blends("w1")[place]["peer_clock"] = "inf"


def _nan_published(journals: Journals, place: int) -> None:
    blend = next(blend for blend in journals.blends("w1")[place:] if blend["factor"] > 0)
    for event in journals.events[blend["peer"]]:
        if event["event"] == "snapshot" and event["version"] == blend["version"]:
            event["not_finite"] = "head.weight"


def _other_layout(journals: Journals, place: int) -> None:
    starts = [event for event in journals.events["w2"] if event["event"] == "start"]
    starts[place % 2]["layout"] = "cd" * 16


def _pause(journals: Journals, place: int) -> None:
    near = [line for line in journals.metrics["w1"] if 60.0 <= line["t"] - START_S < 70.0]
    near[place % len(near)]["longest_step_s"] = 30.0


def _held_up(journals: Journals, place: int) -> None:
    journals.metrics["w1"][place]["longest_held_s"] = 30.0


def _standstill(journals: Journals, place: int) -> None:
    journals.events["w1"] = [event for event in journals.events["w1"] if event["event"] != "close"]
    for line in journals.metrics["w1"][-40 - place % 5 :]:
        line["step"] = 40


def _over_the_limit(journals: Journals, place: int) -> None:
    journals.blends("w1")[place]["factor"] = 0.51


def _below_zero(journals: Journals, place: int) -> None:
    journals.blends("w1")[place]["factor"] = -0.01


def _never_met_again(journals: Journals, place: int) -> None:
    """After the partition w1 exchanges with w2 alone, so often that this is no chance."""
    journals.settings["flow_control"] = {"score_min": 500 + place, "score_max": 1000}
    of_w1 = [event for event in journals.events["w1"] if event.get("peer") != "w3" or event["t"] < START_S + 130]
    extra = [
        {**journals.blends("w1")[-1], "t": START_S + 131 + n / 10, "peer": "w2", "version": n, "incarnation": ""}
        for n in range(60)
    ]
    for number, event in enumerate(extra):
        event |= {"kind": "push", "exchange_id": f"{number:016x}", "merged": 1}
        event.pop("checksum")
    journals.events["w1"] = sorted([*of_w1, *extra], key=lambda event: event["t"])


def _descriptors(journals: Journals, place: int) -> None:
    for number, line in enumerate(journals.metrics["w1"]):
        line["descriptors"] += number // (3 + place % 3)


def _threads(journals: Journals, place: int) -> None:
    for number, line in enumerate(journals.metrics["w1"]):
        line["threads"] += number // (10 + place % 10)


def _memory(journals: Journals, place: int) -> None:
    for line in journals.metrics["w1"]:
        line["resident_bytes"] += int((line["t"] - START_S) * (20_000 + place))


def _killed_at_the_end(journals: Journals, place: int) -> None:
    end = journals.launches[-1 - place % 2]
    end |= {"exit_code": -9, "t": end["t"] + 5.0}
    journals.events[end["node"]].pop()


def _no_exit_code(journals: Journals, place: int) -> None:
    journals.launches[-1 - place % 2]["exit_code"] = None


def _survived_kill(journals: Journals, place: int) -> None:
    journals.chaos[0]["t"] -= 5.0 + place % 20


def _ran_while_stopped(journals: Journals, place: int) -> None:
    journals.chaos[2]["t"] -= 5.0 + place % 20


def _crossed_the_partition(journals: Journals, place: int) -> None:
    journals.chaos[4]["t"] -= 5.0 + place % 20


def _met_by_nobody(journals: Journals, place: int) -> None:
    journals.chaos[4] |= {"groups": [["w1"], ["w8"]]}
    journals.events["w1"] = [event for event in journals.events["w1"] if event["event"] != "fault"]
    assert place >= 0


def _never_injected(journals: Journals, place: int) -> None:
    journals.settings["faults"] = {"drop": 0.1 + place / 1000}


PLANTED = [
    ("I1", _torn),
    ("I1", _never_published),
    ("I2", _older),
    ("I2", _twice),
    ("I2", _applied_twice),
    ("I2", _former_life),
    ("I3", _not_finite),
    ("I3", _nan_published),
    ("I3", _other_layout),
    ("I4", _pause),
    ("I4", _held_up),
    ("I4", _standstill),
    ("I5", _over_the_limit),
    ("I5", _below_zero),
    ("I6", _never_met_again),
    ("I7", _descriptors),
    ("I7", _threads),
    ("I7", _memory),
    ("I8", _killed_at_the_end),
    ("I8", _no_exit_code),
    ("I9", _survived_kill),
    ("I9", _ran_while_stopped),
    ("I9", _crossed_the_partition),
    ("I9", _met_by_nobody),
    ("I9", _never_injected),
]


@pytest.mark.parametrize(("name", "plant"), PLANTED, ids=[f"{name}{plant.__name__}" for name, plant in PLANTED])
@settings(max_examples=5)  # each looks at a whole run
@given(place=st.integers(0, 60))
def test_a_violation_that_is_planted_is_found_wherever_it_is(name, plant, place):
    journals = SOUND.copied()
    plant(journals, place)
    check = verdicts(journals.run())[name]
    assert check.verdict == "violated"
    assert all(finding.text and finding.moment_s > 0 for finding in check.findings)


def test_every_invariant_has_a_violation_that_is_planted():
    assert {name for name, _ in PLANTED} == {invariant.name for invariant in INVARIANTS}


# --- What is not there ------------------------------------------------------------------------------------------------


def test_nothing_is_held_where_nothing_was_seen():
    checks = verdicts(Run({"w1": []}))
    assert {check.verdict for check in checks.values()} == {"not checkable"}
    assert all(check.remark for check in checks.values())


def test_without_checksums_the_first_one_says_what_to_set():
    journals = SOUND.copied()
    for name in NODES:
        journals.events[name] = [event for event in journals.events[name] if event["event"] != "snapshot"]
        for blend in journals.blends(name):
            blend.pop("checksum")
    check = verdicts(journals.run())["I1"]
    assert check.verdict == "not checkable"
    assert "journal_checksums" in check.remark


def test_the_last_snapshots_of_a_killed_node_may_be_missing_from_its_journal():
    """A kill loses what was not yet written: a peer's blend of it is no violation."""
    journals = SOUND.copied()
    life = journals.events["w2"][0]["incarnation"]
    of_life = [blend for blend in journals.blends("w1") if blend["incarnation"] == life]
    last = of_life[-1]["version"]
    journals.events["w2"] = [
        event
        for event in journals.events["w2"]
        if event["event"] != "snapshot" or event["t"] > START_S + 60 or event["version"] < last
    ]
    assert verdicts(journals.run())["I1"].verdict == "held"


@given(st.integers(0, 10_000), st.sampled_from(NODES))
def test_journals_that_were_cut_off_anywhere_are_no_violation(cut, node):
    journals = SOUND.copied()
    events = journals.events[node]
    kept = 1 + cut % len(events)
    journals.events[node] = events[:kept]
    checks = verdicts(journals.run())
    for name in ("I1", "I2", "I3", "I4", "I5", "I7", "I8"):
        assert checks[name].findings == (), name


def test_unknown_events_and_broken_records_are_left_out():
    journals = SOUND.copied()
    strange = [{"event": "hail", "t": START_S + 5}, {"event": "exchange"}, {"t": "soon", "event": "start"}, {}]
    journals.events["w1"][3:3] = strange
    journals.metrics["w1"][3:3] = [{"t": START_S}, {"step": 4}, {"t": "x", "step": 1}]
    checks = verdicts(journals.run())
    assert [finding.text for check in checks.values() for finding in check.findings] == []
    assert {check.verdict for check in checks.values()} == {"held"}


def test_a_further_file_of_a_journal_is_no_further_life():
    start = {"t": 1.0, "event": "start", "incarnation": "aa"}
    again = {"t": 5.0, "event": "start", "incarnation": "aa", "continued": True}
    assert len(lives_of("w1", [start, again], [])) == 1
    assert len(lives_of("w1", [start, {**again, "incarnation": "bb"}], [])) == 2


def test_a_script_that_evaluates_for_seconds_is_no_violation_and_the_same_pause_in_dpwa_is_one():
    line = {"steps_per_s": 10.0, "longest_held_s": 0.001}
    lines = [{"t": 100.0 + n, "step": n * 10, "longest_step_s": 8.0 if n % 5 == 0 else 0.2, **line} for n in range(50)]
    life = Life("w1", "aa", 99.0, {"pid": 1}, metrics=list(lines), last_s=150.0, closed_s=150.0)
    killed = Fault("kill", 120.0, float("inf"), "w2", pid=2, evidence="gone")
    assert pauses(Run({"w1": [life]}, [killed])).findings == []
    life.metrics[20] = {**lines[20], "longest_held_s": 8.0}
    assert len(pauses(Run({"w1": [life]}, [killed])).findings) == 1


def test_a_process_that_was_killed_after_its_node_had_closed_is_no_violation():
    journals = SOUND.copied()
    journals.launches[-1]["exit_code"] = -9
    assert verdicts(journals.run())["I8"].verdict == "held"


def test_who_was_stopped_is_no_survivor():
    line = {"steps_per_s": 10.0, "longest_held_s": 0.001, "longest_step_s": 0.1}
    lines = [{"t": 100.0 + n, "step": n * 10, **line} for n in range(50)]
    lines[21] |= {"longest_step_s": 5.1, "longest_held_s": 5.1}
    life = Life("w1", "aa", 99.0, {"pid": 1}, metrics=lines, last_s=150.0, closed_s=150.0)
    stopped = Fault("stop", 116.0, 121.0, "w1", pid=1, evidence="T")
    assert pauses(Run({"w1": [life]}, [stopped])).findings == []
    assert len(pauses(Run({"w1": [life]}, [])).findings) == 1
