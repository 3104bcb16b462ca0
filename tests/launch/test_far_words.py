"""What the two ends of a launch over ssh say to each other: it arrives as it was said, or is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.launch.far_words import (
    END,
    EVENT,
    FILE,
    MAX_FRAME_BYTES,
    OUTPUT,
    BadWords,
    Errand,
    Frames,
    file_frame,
    file_of,
    frame,
)

ERRAND = Errand("w1", ("python", "train.py"), {"A": "b"}, "run", "config.yaml", "nodes: []\n", "h", 1, 2, 3.0, "token")
KINDS = st.sampled_from([OUTPUT, FILE, EVENT, END])


@given(st.lists(st.tuples(KINDS, st.binary(max_size=300))), st.integers(1, 50))
def test_frames_arrive_as_they_were_said_however_they_are_cut(said, cut):
    stream = b"".join(frame(kind, payload) for kind, payload in said)
    frames = Frames()
    heard = [one for at in range(0, len(stream), cut) for one in frames.feed(stream[at : at + cut])]
    assert heard == said


@given(st.binary(min_size=5, max_size=40))
def test_garbage_is_refused_or_waits_and_takes_no_memory(garbage):
    frames = Frames()
    try:
        heard = list(frames.feed(garbage))
    except BadWords:
        return
    assert all(len(payload) <= len(garbage) for _, payload in heard)


def test_a_frame_that_is_too_long_is_refused_before_it_has_come():
    with pytest.raises(BadWords, match="got kind b'o' with 1048577"):
        list(Frames().feed(b"o" + (MAX_FRAME_BYTES + 1).to_bytes(4, "big")))
    (kept,) = Frames().feed(frame(OUTPUT, b"x" * (MAX_FRAME_BYTES + 5)))
    assert kept == (OUTPUT, b"x" * MAX_FRAME_BYTES)


@given(st.text(alphabet="abc.", min_size=1), st.binary())
def test_a_part_of_a_file_keeps_its_name(name, part):
    ((kind, payload),) = Frames().feed(file_frame(name, part))
    assert (kind, *file_of(payload)) == (FILE, name, part)


def test_an_errand_is_one_line_and_arrives():
    line = ERRAND.to_line()
    assert line.count(b"\n") == 1
    assert Errand.from_line(line) == ERRAND


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"node": 7}, "of texts"),
        ({"argv": []}, "of texts"),
        ({"argv": [1]}, "of texts"),
        ({"argv": None}, "expected an errand"),
        ({"environment": ["A"]}, "of texts"),
        ({"environment": {"A": 1}}, "of texts"),
        ({"port": "21000"}, "of numbers"),
        ({"lost_s": None}, "of numbers"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_an_errand_that_is_none_is_refused(change, told):
    fields = json.loads(ERRAND.to_line()) | change
    with pytest.raises(BadWords, match=told):
        Errand.from_line(json.dumps(fields).encode())


@given(st.binary(max_size=60))
def test_no_line_breaks_the_far_end(line):
    with pytest.raises(BadWords):
        Errand.from_line(line)
