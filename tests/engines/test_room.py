"""What a cluster has room for, in words, and which machines cannot run a node; without Ray."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.engines.room import Machine, Need, card_problems, fitting, what_is_missing
from dpwa.errors import ConfigError

TWO = [Machine("a", {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}), Machine("b", {"CPU": 4.0}, {"CPU": 1.0})]


def test_a_node_has_its_place_on_one_machine_alone():
    assert fitting({"CPU": 7.9}, Need(1, cpus=2)) == 3
    assert what_is_missing(TWO, Need(3, cpus=2)) != "", "three CPUs are free on two machines, two on none of them"


def test_who_has_room_is_told_nothing():
    assert what_is_missing(TWO, Need(5)) == ""
    assert what_is_missing(TWO, Need(1, gpus=1)) == ""


def test_what_is_missing_is_said_with_the_places_of_each_machine_and_why():
    assert what_is_missing(TWO, Need(6)) == (
        "6 nodes with 1 CPU each need room, and Ray has it for 5 now (by machine: a: 4, b: 1); "
        "others use the rest: empty, it would have for 8"
    )
    assert what_is_missing(TWO, Need(2, cpus=2, gpus=1)) == (
        "2 nodes with 2 CPUs and 1 GPU each need room, and Ray has it for 1 now (by machine: a: 1, b: 0); "
        "even empty it would have for 1 only"
    )
    assert "(by machine: none)" in what_is_missing([], Need(1))


def test_many_machines_are_not_all_listed():
    many = [Machine(f"m{number}", {"CPU": 1.0}, {"CPU": 1.0}) for number in range(20)]
    assert "m7: 1 and 12 more)" in what_is_missing(many, Need(21))


@given(
    st.lists(st.integers(0, 8), max_size=6),
    st.integers(1, 30),
    st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]),
)
def test_nothing_is_missing_exactly_where_all_nodes_fit(cpus, count, of_each):
    machines = [Machine(f"m{number}", {"CPU": float(free)}, {"CPU": float(free)}) for number, free in enumerate(cpus)]
    room = sum(int(free // of_each) for free in cpus)
    assert (what_is_missing(machines, Need(count, cpus=of_each)) == "") == (room >= count)


@pytest.mark.parametrize(
    ("need", "told"),
    [
        ({"count": 0}, "nodes: expected 1 to 1024, got 0"),
        ({"count": 1, "gpus": 1.5}, "gpus per node: above 1 expected a whole number, got 1.5"),
        ({"count": 1, "cpus": -1}, "cpus per node: expected 0 to 4096, got -1"),
        ({"count": 1, "cpus": float("nan")}, "cpus per node: expected 0 to 4096, got nan"),
    ],
)
def test_what_nobody_can_need_is_refused(need, told):
    with pytest.raises(ConfigError, match=told):
        Need(**need)


def test_a_place_is_never_empty():
    assert Need(2, cpus=0).bundle == {"CPU": 0.001}
    assert Need(2, cpus=0, gpus=0.5).bundle == {"GPU": 0.5}


def card(**more: object) -> dict[str, object]:
    return {"host": "10.0.0.1", "version": "2.0", "python": "/python", "folder": "/here", "has_folder": True, **more}


def test_machines_with_another_dpwa_or_without_the_folder_are_named_once():
    cards = {
        "w1": card(),
        "w2": card(host="10.0.0.2", version="1.0"),
        "w3": card(host="10.0.0.2", version="1.0"),
        "w4": card(host="10.0.0.3", version=""),
        "w5": card(host="10.0.0.4", has_folder=False),
    }
    assert card_problems(cards, "2.0") == [
        "10.0.0.2 has dpwa 1.0, and here is 2.0; install the same on all machines (for w2, w3)",
        "10.0.0.3 has no dpwa in /python; install dpwa 2.0 there (for w4)",
        "10.0.0.4 has no folder /here, in which the command is to run; put the script there, at the same path on all "
        "machines (for w5)",
    ]
    assert card_problems({"w1": card()}, "2.0") == []
