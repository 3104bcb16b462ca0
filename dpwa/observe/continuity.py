"""The invariants about time, faults and processes: I4 and I6 to I9. See `invariants.py`.

Must not know: files, processes. Runs in: any thread; pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from dpwa.observe.injected import NEVER_BY_CHANCE, chance_of_none, must_have_struck, possible_peers
from dpwa.observe.lives import Fault, Life, Record, Run, number
from dpwa.observe.observations import Observed

__all__ = ["endings", "growth", "pauses", "reality", "reunions"]

_SIGKILL = 9

# --- I4: survivors go on ----------------------------------------------------------------------------------------------

_LEAST_PAUSE_S = 2.0
_STEPS_PER_PAUSE = 10.0

_AFTERMATH_S = 10.0
"""For how long after its end a fault may be what holds others up."""

_OWN_AFTERMATH_S = 3.0
"""What a node that was stopped itself, or has just started, may take to come back to its own rhythm."""


def pauses(run: Run) -> Observed:
    """No survivor pauses for longer than 10 usual steps, or 2 s.

    A script pauses for its own reasons, too, such as an evaluation. So a pause counts if dpwa held the trainer up for
    so long, or if it is near a fault of another node and longer than all that the script makes away from faults.
    """
    seen = Observed("the metrics have no longest_step_s")
    wait_s = _longest_wait_s(run)
    if wait_s is None:
        seen.missing = "a custom method may let a step wait for as long as it likes"
        return seen
    for life in run.all_lives():
        spans = [span for span in _spans(life) if not _is_hit_itself(run, life, span)]
        step_s = _usual_step_s(life)
        limit_s = max(_LEAST_PAUSE_S, _STEPS_PER_PAUSE * step_s)
        near = [span for span in spans if _is_near_a_fault(run, life, span)]
        habit_s = max((_of(line, "longest_step_s") for _, line in _without(spans, near)), default=0.0)
        for began_s, line in spans:
            seen.count += 1
            paused_s, held_s = _of(line, "longest_step_s"), _of(line, "longest_held_s")
            is_paused = (began_s, line) in near and paused_s > max(limit_s + wait_s, 1.2 * habit_s)
            if held_s > limit_s + wait_s or is_paused:
                text = f"a step took {paused_s:.1f} s, {held_s:.1f} s of it in dpwa; usual are {step_s:.3f} s"
                seen.find(life.node, line, text)
        _look_for_a_standstill(seen, run, life, max(limit_s, 1.2 * habit_s) + wait_s)
    return seen


def _longest_wait_s(run: Run) -> float | None:
    """How long a step may wait for its exchange; None: nothing says it."""
    method = str(run.settings.get("method", "pull"))
    if ":" in method:
        return None
    # The options of a method stand under its name; those of rounds have a deadline.
    return max(run.setting("wait_ms", default=0.0), run.setting(method, "deadline_ms", default=0.0)) / 1000


_Span = tuple[float, Record]
"""A line of metrics, and the time of the line before it."""


def _spans(life: Life) -> list[_Span]:
    lines = [line for line in life.metrics if "longest_step_s" in line]
    began_s = [life.began_s, *(float(line["t"]) for line in lines)]
    return list(zip(began_s, lines, strict=False))


def _without(spans: Sequence[_Span], others: Sequence[_Span]) -> Iterator[_Span]:
    left_out = {began_s for began_s, _ in others}
    return (span for span in spans if span[0] not in left_out)


def _of(line: Record, name: str) -> float:
    return number(line.get(name)) or 0.0


def _usual_step_s(life: Life) -> float:
    rates = [rate for line in life.metrics if (rate := _of(line, "steps_per_s")) > 0]
    return 1.0 / statistics.median(rates) if rates else 0.0


def _is_hit_itself(run: Run, life: Life, span: _Span) -> bool:
    began_s, line = span
    return any(
        fault.node == life.node
        and fault.began_s <= float(line["t"]) + 0.5
        and began_s <= min(fault.ended_s, life.last_s) + _OWN_AFTERMATH_S
        for fault in run.faults
        if fault.node and (fault.pid is None or fault.pid == life.pid)
    )


def _is_near_a_fault(run: Run, life: Life, span: _Span) -> bool:
    began_s, line = span
    ended_s = float(line["t"])
    moments = [
        (fault.began_s, min(fault.ended_s, fault.began_s + _AFTERMATH_S) if fault.kind == "kill" else fault.ended_s)
        for fault in run.faults
        if fault.node != life.node
    ]
    moments += [
        (moment_s, moment_s)
        for other in run.all_lives()
        if other.node != life.node
        for moment_s in (other.began_s, other.last_s)
        if not (moment_s == other.last_s and other.is_closed)
    ]
    return any(first_s <= ended_s and began_s <= last_s + _AFTERMATH_S for first_s, last_s in moments)


def _look_for_a_standstill(seen: Observed, run: Run, life: Life, limit_s: float) -> None:
    """A trainer that never comes back makes no step that could be measured: its process goes on writing metrics."""
    if life.is_closed or life.has_finished or not life.metrics:
        return
    last = life.metrics[-1]
    since = next((line for line in life.metrics if line["step"] == last["step"]), last)
    stood_s = float(last["t"]) - float(since["t"])
    if stood_s > limit_s and float(last["step"]) > 0 and not _is_hit_itself(run, life, (float(since["t"]), last)):
        seen.find(life.node, last, f"no step in its last {stood_s:.1f} s, after step {last['step']}")


# --- I6: together again -----------------------------------------------------------------------------------------------

_REUNION_S = 10.0


def reunions(run: Run) -> Observed:
    """Pairs that a fault kept apart exchange again, at most 10 s after its end.

    With whom a node exchanges is chance, so a pair counts only if it has exchanged before, both live on, and the node
    made so many exchanges with others that one with this peer is certain.
    """
    over = [fault for fault in run.faults if fault.kind in ("partition", "stop") and math.isfinite(fault.ended_s)]
    seen = Observed("no fault that ends is on record" if not over else "too few exchanges after each fault")
    for fault in over:
        for life in run.all_lives():
            if life.began_s > fault.began_s or not _lives_through(run, life.node, fault):
                continue
            before = {str(blend.get("peer")) for blend in life.blends if float(blend["t"]) < fault.began_s}
            after = [
                str(blend.get("peer"))
                for blend in life.blends
                if fault.ended_s < float(blend["t"]) <= fault.ended_s + _REUNION_S
            ]
            apart = [peer for peer in sorted(before) if fault.separates(life.node, peer)]
            for peer in [peer for peer in apart if _lives_through(run, peer, fault)]:
                if peer in after:
                    seen.count += 1
                elif _is_no_chance(run, life, fault, len(after)):
                    seen.count += 1
                    text = f"{len(after)} exchanges in 10 s after the {fault.kind} ended, none with this peer"
                    seen.find(life.node, fault.ended_s + _REUNION_S, text, peer)
    return seen


def _lives_through(run: Run, node: str, fault: Fault) -> bool:
    """Whether a node lives on after a fault, and no other one hits it before the pair must have met."""
    is_there = any(
        life.began_s < fault.began_s and life.last_s > fault.ended_s + _REUNION_S and not life.has_finished
        for life in run.lives.get(node, ())
    )
    return is_there and not any(
        other is not fault
        and other.hits(node)
        and other.began_s < fault.ended_s + _REUNION_S
        and other.ended_s > fault.ended_s
        for other in run.faults
    )


def _is_no_chance(run: Run, life: Life, fault: Fault, others: int) -> bool:
    """Whether a node exchanged so often that it must have met a peer, which it did not within 10 s after a fault.

    Args:
        run: the run.
        life: of the node.
        fault: that has ended.
        others: exchanges that it made with others in these 10 s.
    """
    peers = possible_peers(run, life)
    if peers > 1:
        return chance_of_none(run, peers, others) < NEVER_BY_CHANCE
    # With one peer there are no others: it goes by how often the two exchanged in as many steps before.
    before_s = (fault.began_s - _REUNION_S, fault.began_s)
    blends = sum(before_s[0] <= float(blend["t"]) < before_s[1] for blend in life.blends)
    steps = _steps_within(life, *before_s)
    expected = blends * _steps_within(life, fault.ended_s, fault.ended_s + _REUNION_S) / steps if steps else 0.0
    return math.exp(-min(expected, blends)) < NEVER_BY_CHANCE


def _steps_within(life: Life, first_s: float, last_s: float) -> float:
    steps = [float(line["step"]) for line in life.metrics if first_s <= float(line["t"]) <= last_s]
    return steps[-1] - steps[0] if steps else 0.0


# --- I7: nothing grows ------------------------------------------------------------------------------------------------

_WARM_UP_S = 30.0
_LEAST_S = 120.0
_MOST_BYTES_PER_MIN = 1_000_000.0
_MOST_DESCRIPTORS = 8
_MOST_THREADS = 4
_POINTS = 120


def growth(run: Run) -> Observed:
    """After a warm-up, descriptors and threads stay as many, and memory grows by less than 1 MB/min."""
    seen = Observed("no life of 2 minutes beyond a warm-up of 30 s has its use of the machine on record")
    for life in run.all_lives():
        lines = [line for line in life.metrics if line["t"] >= life.began_s + _WARM_UP_S and "descriptors" in line]
        if not lines or lines[-1]["t"] - lines[0]["t"] < _LEAST_S:
            continue
        seen.count += 1
        peers = life.start.get("peers")
        allowed = _MOST_DESCRIPTORS + 2 * (len(peers) if isinstance(peers, list) else 0)
        for name, most in (("descriptors", allowed), ("threads", _MOST_THREADS)):
            first, last = (statistics.median(_of(line, name) for line in part) for part in _ends(lines))
            if last > first + most:
                seen.find(life.node, lines[-1], f"{first:.0f} {name} have become {last:.0f}")
        per_min = 60.0 * _slope(lines, "resident_bytes")
        if per_min > _MOST_BYTES_PER_MIN:
            text = f"its memory, with all that the script keeps, grows by {per_min / 1e6:.1f} MB/min"
            seen.find(life.node, lines[-1], text)
    return seen


def _ends(lines: Sequence[Record]) -> tuple[Sequence[Record], Sequence[Record]]:
    """The first and the last third."""
    third = max(1, len(lines) // 3)
    return lines[:third], lines[-third:]


def _slope(lines: Sequence[Record], name: str) -> float:
    """The median of the slopes between all points (Theil and Sen), per second: single leaps do not matter."""
    points = lines[:: max(1, len(lines) // _POINTS)]
    slopes = [
        (_of(last, name) - _of(first, name)) / (last["t"] - first["t"])
        for index, first in enumerate(points)
        for last in points[index + 1 :]
        if last["t"] > first["t"]
    ]
    return statistics.median(slopes) if slopes else 0.0


# --- I8: processes end ------------------------------------------------------------------------------------------------

_END_S = 5.0


def endings(run: Run) -> Observed:
    """A node that is told to end closes within 5 s, or its process is gone by then, with an exit code.

    One that saves its model may take longer: then the launcher waits for it. What Python itself takes to end, after
    the node was closed, is no business of dpwa; the launcher kills what takes too long.
    """
    seen = Observed("no launcher told a node to end, or its launch.jsonl is missing")
    told_s: float | None = None
    ends = {}
    longest_s = 0.0
    for record in run.launches:
        moment_s, event = number(record.get("t")), record.get("event")
        if moment_s is None:
            continue
        if event == "started":
            told_s = None  # another launch goes on in the same folder
        elif event == "told":
            told_s = moment_s if record.get("signal") != _SIGKILL else None
        elif event == "ended":
            ends[record.get("pid")] = record
            if told_s is not None:
                longest_s = max(longest_s, _judge_end(seen, run, record, told_s))
    for fault in run.faults:
        if fault.kind == "restart" and fault.pid in ends:
            longest_s = max(longest_s, _judge_end(seen, run, ends[fault.pid], fault.began_s))
    seen.remark = f"the last process was gone after {longest_s:.1f} s"
    return seen


def _judge_end(seen: Observed, run: Run, end: Record, told_s: float) -> float:
    """Look at one end; how long it took in seconds."""
    node, code, took_s = str(end.get("node")), end.get("exit_code"), float(end["t"]) - told_s
    if any(fault.kind == "kill" and fault.pid == end.get("pid") for fault in run.faults):
        return 0.0
    seen.count += 1
    if not isinstance(code, int):
        seen.find(node, end, "it ended without an exit code")
    elif code == -_SIGKILL and took_s > _END_S and not _is_closed_by(run, node, end, told_s + _END_S):
        seen.find(node, end, f"it had not ended after {took_s:.1f} s, and was killed")
    return took_s


def _is_closed_by(run: Run, node: str, end: Record, moment_s: float) -> bool:
    lives = [life for life in run.lives.get(node, ()) if life.pid == end.get("pid")]
    return any(life.closed_s is not None and life.closed_s <= moment_s for life in lives)


# --- I9: the faults were real -----------------------------------------------------------------------------------------

_SETTLE_S = 1.0


def reality(run: Run) -> Observed:
    """Each fault on record had the effect that it must have, and each that the config asks for has occurred."""
    seen = Observed("no fault is on record")
    unclear: list[str] = []
    for fault in run.faults:
        problem = {"kill": _outlives, "restart": _outlives, "stop": _goes_on, "partition": _gets_across}.get(
            fault.kind, _unknown
        )(run, fault)
        seen.count += problem is not None
        if problem is None:
            unclear.append("a partition of which the journals have lost the time")
        elif problem:
            seen.find(fault.node, fault.began_s, f"{fault.kind}: {problem}")
    lives = run.all_lives()
    injected = {str(event.get("kind")) for life in lives for event in life.faults}
    has_all = not any(life.has_losses or life.kept_from_s is not None for life in lives)
    for kind, must_have in must_have_struck(run).items():
        if kind not in injected and not (must_have and has_all):
            unclear.append(f"`faults: {kind}`, which may not have struck yet" if has_all else f"`faults: {kind}`")
            continue
        seen.count += 1
        if kind not in injected:
            moment_s = max((life.last_s for life in lives), default=0.0)
            seen.find("", moment_s, f"`faults: {kind}` is set, and no journal has a fault of this kind")
    if unclear:
        seen.missing = seen.remark = f"nothing shows {', '.join(dict.fromkeys(unclear))}"
    return seen


def _unknown(run: Run, fault: Fault) -> str:  # noqa: ARG001 - one of several
    return "not known to this version"


def _outlives(run: Run, fault: Fault) -> str:
    """How a process went on after its end."""
    grace_s = _SETTLE_S if fault.kind == "kill" else _END_S + _SETTLE_S
    for life in run.lives.get(fault.node, ()):
        if life.pid == fault.pid and life.last_s > fault.began_s + grace_s:
            return f"process {fault.pid} wrote for {life.last_s - fault.began_s:.1f} s more"
    return "" if fault.evidence else "nothing shows that the process ended"


def _goes_on(run: Run, fault: Fault) -> str:
    """What a process did while it was stopped."""
    for life in run.lives.get(fault.node, ()):
        lines = [*life.metrics, *life.blends]
        active = [line for line in lines if fault.began_s + _SETTLE_S < float(line["t"]) < fault.ended_s - 0.1]
        if life.pid == fault.pid and active:
            return f"process {fault.pid} wrote {float(active[0]['t']) - fault.began_s:.1f} s later"
    return "" if fault.evidence else "nothing shows that the process stood still"


def _gets_across(run: Run, fault: Fault) -> str | None:
    """What crossed a partition; or that nobody tried; None: who tried may be lost from the journals."""
    has_met = False
    for life in run.all_lives():
        grace_s = _SETTLE_S + 3.0 * _usual_step_s(life)
        for blend in life.blends:
            began_s = float(blend["t"]) - (number(blend.get("duration_s")) or 0.0)
            is_within = fault.began_s + grace_s < began_s < fault.ended_s - _SETTLE_S / 2
            if is_within and fault.separates(life.node, str(blend.get("peer"))):
                return f"{life.node} blended with {blend.get('peer')} {began_s - fault.began_s:.1f} s later"
        has_met = has_met or any(
            event.get("kind") == "partition"
            and fault.began_s <= (number(event.get("t")) or 0.0) <= fault.ended_s + _SETTLE_S
            for event in life.faults
        )
    if has_met or fault.evidence:
        return ""
    is_lost = any(fault.hits(life.node) and life.may_lack(fault.began_s) for life in run.all_lives())
    return None if is_lost else "nobody met it"
