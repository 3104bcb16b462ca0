"""What nodes print: cut into lines, made printable, shown with a prefix, never waiting for a reader that stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.launch import output
from dpwa.launch.folding import LINE_LIMIT, LineSplitter
from dpwa.launch.output import LinePrinter, NodeOutput, printable
from dpwa.observe.bounded_file import generations


def lines_of(*chunks: bytes, seconds: Iterator[float] | None = None) -> list[str]:
    splitter = LineSplitter(clock=(lambda: next(seconds)) if seconds else lambda: 0.0)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.finish()


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\n", b"two"], ["one", "two"]),
        ([b"one\r\ntwo\r\n"], ["one", "two"]),
        ([b"one\r", b"\ntwo"], ["one", "two"]),
        ([b"\n\n"], ["", ""]),
        ([b"a\xffb\n"], ["a\ufffdb"]),
        (["é".encode()[:1], "é".encode()[1:] + b"\n"], ["é"]),
        ([b"cut \xc3"], ["cut \ufffd"]),
        ([], []),
    ],
)
def test_bytes_become_lines_however_they_arrive(chunks: list[bytes], expected: list[str]) -> None:
    assert lines_of(*chunks) == expected


def test_a_progress_bar_is_shown_about_once_a_second_and_in_its_last_state() -> None:
    strokes = [f"\r{percent} %".encode() for percent in range(101)]
    # 0.1 s per stroke; the clock is read once for each stroke that the next one takes back.
    shown = lines_of(*strokes, b"\n", seconds=iter(tenth / 10 for tenth in range(101)))
    assert shown == [*(f"{percent} %" for percent in range(0, 100, 10)), "100 %"]


def test_a_line_without_end_is_shown_in_pieces_of_bounded_length() -> None:
    splitter = LineSplitter()
    lines = [line for _ in range(64) for line in splitter.feed(b"x" * 10_000)]
    assert all(len(line) == LINE_LIMIT for line in lines)
    lines += splitter.finish()
    assert "".join(lines) == "x" * 640_000


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_in_any_chunks_give_the_same_lines(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(data)]
    chunks = [data[start:end] for start, end in pairwise(edges)]
    assert lines_of(*chunks) == lines_of(data)
    assert all("\n" not in line for line in lines_of(data))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plain\ttext", "plain\ttext"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("\x1b[2K\x1b[1Aup", "up"),
        ("\x1b[?25lhidden\x1b[?25h", "hidden"),
        ("\x1b]0;title\x07text", "text"),
        ("bell\x07 null\x00 escape\x1b", "bell null escape"),
        ("c1\x9b2J", "c12J"),
    ],
)
def test_only_colours_and_tabs_pass_to_the_terminal(line: str, expected: str) -> None:
    assert printable(line) == expected


def test_a_full_disk_is_told_once_and_the_lines_go_on() -> None:
    lines: list[str] = []
    kept = NodeOutput(Path("/dev/full"), lines.append)
    kept.keep(b"one\n")
    kept.keep(b"two\n")
    kept.say("three")
    assert len(lines) == 2
    assert "not being kept" in lines[0]
    assert lines[1] == "[dpwa] three"


def test_what_a_disk_with_little_room_left_cuts_off_is_counted_and_more_is_kept_when_there_is_room(
    tmp_path: Path,
) -> None:
    script = f"""
import json, resource
from pathlib import Path
from dpwa.launch.output import NodeOutput
from dpwa.observe import steady_file
steady_file._RETRY_S = 0.0
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
lines = []
kept = NodeOutput(Path({str(tmp_path / "output.log")!r}), lines.append)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
kept.keep(b"a" * 600)
kept.keep(b"b" * 600)
kept.keep(b"c" * 600)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
kept.keep(b"d")
kept.close()
print(json.dumps(lines))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, timeout=30)
    lost, resumed = json.loads(done.stdout)
    assert "File too large" in lost, "the fault happened"
    assert "800 bytes are missing" in resumed
    whole, gap, rest = (tmp_path / "output.log").read_text().split("\n")
    assert whole == "a" * 600 + "b" * 400
    assert gap == "[dpwa] 800 bytes of output are missing here: File too large"
    assert rest == "d"


def test_what_a_node_prints_for_weeks_stays_below_its_limit_and_the_newest_half_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    kept = NodeOutput(path, lambda _line: None, max_bytes=10_000)
    for number in range(1000):
        kept.keep(b"%0100d" % number)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 10_000
    kept.close()
    kept.close()
    written = b"".join(file.read_bytes() for file in generations(path))
    assert len(written) >= 5000
    assert written == b"".join(b"%0100d" % number for number in range(1000))[-len(written) :]


def test_a_file_that_cannot_be_opened_is_told_and_the_lines_go_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    NodeOutput(tmp_path / "file" / "output.log", lines.append).say("one")
    assert "is not kept" in lines[0]
    assert lines[1] == "[dpwa] one"


class Terminal:
    """A pipe whose read end the test holds, and a printer on the other."""

    def __init__(self, names: list[str], *, has_colours: bool = False) -> None:
        self.read_end, self.write_end = os.pipe()
        self.reader_gone = threading.Event()
        self.printer = LinePrinter(self.write_end, names, has_colours=has_colours, on_reader_gone=self.reader_gone.set)

    def read_all(self) -> str:
        self.printer.close(timeout_s=5)
        os.close(self.write_end)
        with os.fdopen(self.read_end, "rb") as stream:
            return stream.read().decode()


def test_each_line_has_the_name_of_its_node_in_front() -> None:
    terminal = Terminal(["w1", "worker"])
    terminal.printer.put("w1", "one")
    terminal.printer.put("worker", "two")
    assert terminal.read_all() == "w1     | one\nworker | two\n"


def test_on_a_terminal_each_name_has_its_own_colour() -> None:
    terminal = Terminal(["w1", "w2"], has_colours=True)
    terminal.printer.put("w1", "one")
    terminal.printer.put("w2", "\x1b[1mtwo")
    assert terminal.read_all() == "\x1b[36mw1 | \x1b[0mone\x1b[0m\n\x1b[33mw2 | \x1b[0m\x1b[1mtwo\x1b[0m\n"


def test_a_reader_that_stopped_blocks_nobody_and_missing_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "STUCK_S", 0.05)
    terminal = Terminal(["w1"])
    text = "x" * 100
    while terminal.printer.has_room():  # until the queue is full
        terminal.printer.put("w1", text)
    terminal.printer.close(timeout_s=None)  # gives up, because nothing is read
    for _ in range(3000):
        assert terminal.printer.has_room()  # more are welcome, because they are left out
        terminal.printer.put("w1", text)
    with os.fdopen(terminal.read_end, "rb") as stream:
        assert stream.readline() == f"w1 | {text}\n".encode()
        notice = next(line for line in stream if b"not shown" in line)
    assert 1000 <= int(notice.split()[1]) <= 3000  # the queue took some while there was room
    terminal.printer.close(timeout_s=5)  # ends now, because the pipe is broken
    os.close(terminal.write_end)


def test_a_descriptor_that_ssh_has_made_non_blocking_is_waited_for() -> None:
    terminal = Terminal(["w1"])
    os.set_blocking(terminal.write_end, False)
    for number in range(3000):  # more than a pipe holds
        terminal.printer.put("w1", f"{number} {'x' * 100}")
    terminal.printer.put("w1", "last")
    with os.fdopen(terminal.read_end, "rb") as stream:
        lines = [stream.readline() for _ in range(3001)]
    assert [line.split()[2] for line in lines] == [*(b"%d" % number for number in range(3000)), b"last"]
    terminal.printer.close(timeout_s=5)
    os.close(terminal.write_end)


def test_a_reader_that_went_away_is_reported() -> None:
    terminal = Terminal(["w1"])
    os.close(terminal.read_end)
    terminal.printer.put("w1", "one")
    assert terminal.reader_gone.wait(5)
    terminal.printer.close(timeout_s=5)
    os.close(terminal.write_end)


def test_a_descriptor_that_cannot_be_written_ends_the_showing_only() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    gone = threading.Event()
    printer = LinePrinter(descriptor, ["w1"], has_colours=False, on_reader_gone=gone.set)
    printer.put("w1", "one")
    printer.close(timeout_s=5)
    os.close(descriptor)
    assert not gone.is_set()
