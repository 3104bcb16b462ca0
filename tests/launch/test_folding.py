"""What is folded of a node's output: bars below other bars, and the stacks of a Ctrl-C."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

from dpwa.launch.folding import InterruptFolder, LineSplitter


class Clock:
    """Stands still unless it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _visible(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip()


def _nested_bars(epochs: int, batches: int) -> Iterator[str]:
    """What tqdm writes for a bar within a bar, stroke by stroke; the lower one is wiped at its end."""
    yield "\repoch 0/5"
    for epoch in range(1, epochs + 1):
        for batch in range(batches + 1):
            yield f"\n\rbatch {batch}/{batches}\x1b[A"
        yield f"\n\r{' ' * 40}\x1b[A"
        yield f"\repoch {epoch}/{epochs}"
    yield "\n"


def test_bars_below_each_other_are_one_line_a_second_and_end_with_the_last():
    splitter, lines = LineSplitter(Clock()), []
    for stroke in [*_nested_bars(5, 40), "after the bars\n"]:
        lines += splitter.feed(stroke.encode())
    shown = [line for line in map(_visible, lines + splitter.finish()) if line]
    assert len(shown) <= 5, shown
    assert shown[-2:] == ["epoch 5/5", "after the bars"]


def test_strokes_of_a_lower_bar_come_once_a_second():
    clock = Clock()
    splitter, shown = LineSplitter(clock), []
    splitter.feed(b"epoch 1")
    for step in range(100):
        clock.now_s = step / 20
        shown += splitter.feed(f"\n\rbatch {step}\x1b[A".encode())
    shown += splitter.feed(b"\n\n") + splitter.finish()
    batches = [line for line in map(_visible, shown) if line.startswith("batch")]
    assert 4 <= len(batches) <= 7
    assert batches[-1] == "batch 99"


def test_lines_after_a_cursor_that_went_up_are_all_shown():
    splitter = LineSplitter(Clock())
    assert splitter.feed(b"one\ntwo\n\x1b[A") == ["one", "two"]
    assert [_visible(line) for line in splitter.feed(b"\nthree\nfour\n")] == ["three", "four"]


def _folded(text: str) -> list[str]:
    folder = InterruptFolder()
    return [shown for line in text.splitlines() for shown in folder.feed(line)] + folder.finish()


def test_the_stack_of_an_interrupt_is_left_out_and_that_of_an_error_is_not():
    script = "import sys\ndef f():\n    {}\nprint('before', flush=True)\nf()\n"
    interrupted = subprocess.run(
        [sys.executable, "-c", script.format("raise KeyboardInterrupt")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout
    assert "Traceback" in interrupted
    assert _folded(interrupted) == ["before"]
    failed = interrupted.replace("KeyboardInterrupt", "ValueError: no")
    assert _folded(failed) == failed.splitlines()


def test_a_stack_that_never_ends_is_shown():
    lines = ["Traceback (most recent call last):", "  File x"]
    assert _folded("\n".join(lines)) == lines
    assert len(_folded("\n".join([lines[0], *["  more"] * 2000]))) == 2001
