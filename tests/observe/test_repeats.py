"""Events that repeat themselves: the first at once, the rest as one line that counts them, and none forgotten."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.observe.repeats import INTERVAL_S, Event, Repeats


def exchange(unix_s: float, outcome: str, peer: str | None = None, **fields: object) -> Event:
    return Event(unix_s, "exchange", {"outcome": outcome, "peer": peer, "step": int(unix_s), **fields})


def counted(events: list[Event]) -> int:
    return sum(event.fields.get("repeats", 1) for event in events)  # type: ignore[misc]


def test_the_first_is_written_at_once_and_those_after_it_as_one_line_with_their_number_and_first_time() -> None:
    repeats = Repeats()
    written = [len(repeats.take(exchange(10 + number, "no_peer"), 0.0)) for number in range(100)]
    assert written == [1, *[0] * 99]
    (line,) = repeats.end()
    assert (line.unix_s, line.fields["step"]) == (109, 109)
    assert (line.fields["repeats"], line.fields["first_t"], line.fields["first_step"]) == (99, 11, 11)


def test_repeats_that_go_on_are_told_every_few_seconds() -> None:
    repeats = Repeats()
    repeats.take(exchange(0, "no_peer"), 0.0)
    repeats.take(exchange(1, "no_peer"), 1.0)
    repeats.take(exchange(2, "no_peer"), 2.0)
    assert repeats.due(INTERVAL_S - 0.01) == []
    assert counted(repeats.due(INTERVAL_S)) == 2
    assert repeats.take(exchange(3, "no_peer"), INTERVAL_S + 1) == []
    assert counted(repeats.due(2 * INTERVAL_S)) == 1
    assert repeats.due(3 * INTERVAL_S) == []
    assert len(repeats.take(exchange(4, "no_peer"), 3 * INTERVAL_S)) == 1, "after a silence it is news again"


def test_what_differs_does_not_end_a_run_of_repeats_and_a_blend_does() -> None:
    repeats = Repeats()
    for second in range(50):
        repeats.take(exchange(second, "no_peer"), 0.0)
        repeats.take(exchange(second, "unreachable", f"w{second % 2}", reason="nobody there"), 0.0)
    blended = exchange(60, "blended", "w1", version=3)
    *lines, last = repeats.take(blended, 0.0)
    assert last is blended
    assert [(line.fields["outcome"], line.fields["peer"], line.fields["repeats"]) for line in lines] == [
        ("unreachable", "w0", 24),
        ("no_peer", None, 49),
        ("unreachable", "w1", 24),
    ]
    assert len(repeats.take(exchange(61, "no_peer"), 0.0)) == 1


@pytest.mark.parametrize(
    "event",
    [
        exchange(1, "blended", "w2", version=1),
        exchange(1, "pushed", "w2", exchange_id="ab"),
        exchange(1, "returned", "w2", exchange_id="ab"),
        exchange(1, "aborted", "w2", exchange_id="ab"),
        exchange(1, "busy", "w2", exchange_id="ab"),
        exchange(1, "rejected", "w2", version=7),
        Event(1.0, "fault", {"kind": "slow"}),
        Event(1.0, "start", {}),
    ],
)
def test_what_has_numbers_of_its_own_stays_one_by_one(event: Event) -> None:
    repeats = Repeats()
    assert [repeats.take(event, 0.0) for _ in range(3)] == [[event]] * 3


def test_many_kinds_of_failures_take_bounded_memory() -> None:
    repeats = Repeats()
    events = [exchange(number, "refused", "w2", reason=f"reason {number // 2}") for number in range(10_000)]
    written = [line for event in events for line in repeats.take(event, 0.0)]
    kept = repeats.end()
    assert 0 < len(kept) <= 1024
    assert counted(written) + counted(kept) == 10_000


@given(st.lists(st.tuples(st.sampled_from(["no_peer", "busy", "blended"]), st.sampled_from("ab"), st.floats(0, 3))))
def test_no_event_is_forgotten_or_counted_twice(steps: list[tuple[str, str, float]]) -> None:
    repeats, now_s, given_out = Repeats(), 0.0, []
    for outcome, peer, pause_s in steps:
        now_s += pause_s
        given_out += repeats.take(exchange(now_s, outcome, peer), now_s)
        given_out += repeats.due(now_s)
    given_out += repeats.end()
    seen: Counter[tuple[object, object]] = Counter()
    for event in given_out:
        seen[event.fields["outcome"], event.fields["peer"]] += event.fields.get("repeats", 1)  # type: ignore[operator]
    assert seen == Counter((outcome, peer) for outcome, peer, _ in steps)
