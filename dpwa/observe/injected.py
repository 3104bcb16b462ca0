"""The faults that a config injects, and which of them must be on record: part of I9, see `continuity.py`.

Faults strike by chance, or in a step that may never come. One that is on no record is missed only where the nodes did
so much that it must have struck, by what their blends and metrics show.

Must not know: files, processes. Runs in: any thread; pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dpwa.config.data_rate import bytes_per_s
from dpwa.observe.lives import Life, Record, Run, number

__all__ = ["NEVER_BY_CHANCE", "chance_of_none", "must_have_struck", "possible_peers"]

NEVER_BY_CHANCE = 1e-6
"""What is less likely than this is no matter of chance."""


def must_have_struck(run: Run) -> dict[str, bool]:
    """The kinds of faults that the config injects, and whether each one must have struck by now."""
    faults = run.settings.get("faults")
    if not isinstance(faults, Mapping):
        return {}
    return {kind: must(run, faults[kind]) for kind, must in _KINDS.items() if _is_wanted(faults.get(kind))} | (
        {"delay": _has_blended(run, None)} if _most(faults.get("delay_ms")) > 0 else {}
    )


def _is_wanted(value: object) -> bool:
    if isinstance(value, Mapping):  # of `noise`, or of `slow`
        return bool(value.get("scale")) if "scale" in value else any(value.values())
    return bool(value)


def _most(delay_ms: object) -> float:
    values = delay_ms if isinstance(delay_ms, (list, tuple)) else [delay_ms]
    return max((number(value) or 0.0 for value in values), default=0.0)


# --- One kind ---------------------------------------------------------------------------------------------------------


def _has_blended(run: Run, _value: object) -> bool:
    """Whether anything was asked for that came."""
    return any(life.blends for life in run.all_lives())


def _by_chance(run: Run, probability: object) -> bool:
    """For what strikes messages: each blend had at least one."""
    return _is_certain(probability, sum(len(life.blends) for life in run.all_lives()))


def _by_chance_of_proposals(run: Run, probability: object) -> bool:
    blends = (blend for life in run.all_lives() for blend in life.blends)
    return _is_certain(probability, len({blend["exchange_id"] for blend in blends if "exchange_id" in blend}))


def _is_certain(probability: object, trials: int) -> bool:
    return float((1.0 - (number(probability) or 0.0)) ** trials) < NEVER_BY_CHANCE


def _is_exceeded(run: Run, rate: object) -> bool:
    """Whether a model came faster over a network than it may."""
    limit_bytes_per_s = bytes_per_s(str(rate))
    return limit_bytes_per_s is not None and any(
        blend.get("merged", 1) == 1
        and (number(blend.get("bytes")) or 0.0) > limit_bytes_per_s * (number(blend.get("duration_s")) or 0.0)
        for life in run.all_lives()
        for blend in life.blends
    )


def _has_slow_steps(run: Run, pauses_ms: Any) -> bool:
    return any(
        number(line.get("step"))
        for life in run.all_lives()
        if number(pauses_ms.get(life.node))
        for line in life.metrics
    )


def _has_deadly_step(run: Run, kills: Any) -> bool:
    return any(
        float(line["step"]) >= (number(kill.get("step")) or 0.0)
        for kill in _entries(kills)
        for life in run.lives.get(str(kill.get("node")), ())
        for line in life.metrics
    )


def _has_been_parted(run: Run, partitions: Any) -> bool:
    """Whether somebody exchanged so often meanwhile that it must have asked somebody beyond."""
    return any(
        chance_of_none(run, possible_peers(run, life), len(_asked_between(life, partition))) < NEVER_BY_CHANCE
        for partition in _entries(partitions)
        for life in run.all_lives()
        if any(life.node in group for group in partition.get("groups") or ())
    )


def _has_asked_a_liar(run: Run, lies: Any) -> bool:
    return any(
        blend.get("peer") == lie.get("node")
        for lie in _entries(lies)
        for life in run.all_lives()
        for blend in _asked_between(life, lie)
    )


_KINDS: Mapping[str, Callable[[Run, Any], bool]] = {
    "drop": _by_chance,
    "duplicate": _by_chance,
    "reorder": _by_chance_of_proposals,
    "bandwidth": _is_exceeded,
    "noise": _has_blended,
    "slow": _has_slow_steps,
    "kill": _has_deadly_step,
    "partition": _has_been_parted,
    "lies": _has_asked_a_liar,
}


def _entries(values: object) -> Iterator[Mapping[str, Any]]:
    for value in values if isinstance(values, (list, tuple)) else ():
        if isinstance(value, Mapping):
            yield value


def _asked_between(life: Life, steps: Record) -> list[Record]:
    """The blends of what a node asked for in these steps of its own, as far as its journal says when it did."""
    first, last = number(steps.get("from_step")) or 0.0, number(steps.get("to_step"))
    found = []
    for blend in life.blends:
        taken, late = number(blend.get("step")), number(blend.get("late_steps"))
        if taken is None or late is None or blend.get("own") is False:
            continue
        if taken - late > first and (last is None or taken <= last):
            found.append(blend)
    return found


# --- Chance -----------------------------------------------------------------------------------------------------------


def possible_peers(run: Run, life: Life) -> int:
    """How many peers a node may exchange with."""
    peers = life.start.get("peers")
    others = len(run.lives) - 1
    if not isinstance(peers, list):
        return others
    return max(len(peers), others) if run.settings.get("join") else len(peers)


def chance_of_none(run: Run, peers: int, exchanges: int) -> float:
    """How likely so many exchanges are all with others, if flow control thinks the worst of this peer.

    Args:
        run: for its flow control.
        peers: that the node may exchange with.
        exchanges: that it has made.
    """
    least = run.setting("flow_control", "score_min", default=10.0)
    most = run.setting("flow_control", "score_max", default=1000.0)
    return float((1.0 - least / (least + max(0, peers - 1) * most)) ** exchanges)
