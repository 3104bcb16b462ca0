"""Files that are appended to for weeks: bounded, readable after a kill, and going on after a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpwa.observe import bounded_file, steady_file
from dpwa.observe.bounded_file import BoundedFile, UnwrittenError, generations, older_generation, read_records
from dpwa.observe.live import MetricsTail
from dpwa.observe.steady_file import LostBytes, SteadyFile
from support import wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def numbers(path: Path) -> list[int]:
    return [record["n"] for record in read_records(path)]


def line(number: int) -> bytes:
    return b'{"n":%d}\n' % number


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in generations(path))


def test_both_generations_stay_below_the_limit_and_keep_the_newest_half(path: Path) -> None:
    with contextlib.closing(BoundedFile(path, 4000)) as file:
        for number in range(3000):
            file.append(line(number), starts_line=True)
            assert size_of(path) <= 4000
    kept = numbers(path)
    assert kept == list(range(kept[0], 3000))
    assert size_of(path) >= 2000


def test_a_further_generation_begins_with_the_head_and_the_first_does_not_lose_what_was_there(path: Path) -> None:
    path.write_bytes(line(7))
    with contextlib.closing(BoundedFile(path, 400, head=lambda: b'{"head":1}\n')) as file:
        file.append(line(8), starts_line=True)
        assert path.read_bytes() == line(7) + line(8)
        file.append(b" " * 300 + b"\n", starts_line=True)
    assert older_generation(path).read_bytes() == line(7) + line(8)
    assert path.read_bytes().startswith(b'{"head":1}\n')


@pytest.mark.parametrize("fate", ["moved", "removed", "emptied"])
def test_a_file_that_others_moved_removed_or_emptied_is_made_anew(path: Path, fate: str) -> None:
    with contextlib.closing(BoundedFile(path, 4000)) as file:
        file.append(b"cut off", starts_line=True)
        if fate == "moved":
            path.rename(path.with_name("elsewhere"))
        elif fate == "removed":
            path.unlink()
        else:
            os.truncate(path, 0)
        file.append(line(1), starts_line=True)
    assert path.read_bytes() == line(1)


def test_a_line_that_a_kill_cut_off_is_closed_before_the_next(path: Path) -> None:
    path.write_bytes(line(1) + b'{"n":')
    with contextlib.closing(BoundedFile(path, 4000)) as file:
        file.append(line(2), starts_line=True)
        file.append(line(3), starts_line=True)
    assert path.read_bytes() == line(1) + b'{"n":\n' + line(2) + line(3)
    assert numbers(path) == [1, 2, 3]


WRITER = """
import sys
from itertools import count
from pathlib import Path
from dpwa.observe.bounded_file import BoundedFile, read_records
path = Path(sys.argv[1])
file = BoundedFile(path, 2000)
for number in count(max((record["n"] for record in read_records(path)), default=-1) + 1):
    file.append(b'{"n":%d}\\n' % number, starts_line=True)
"""


def test_kills_at_any_moment_leave_files_that_can_be_read_and_continued(path: Path) -> None:
    reached = -1
    for _ in range(5):
        target = reached + 1000
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        try:
            wait_until(lambda target=target: max(numbers(path), default=-1) > target, "generations have changed")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        found = numbers(path)
        assert found == list(range(found[0], found[-1] + 1))
        assert found[-1] > reached
        reached = found[-1]


def test_a_kill_between_the_two_steps_of_a_change_of_generations_loses_nothing(path: Path) -> None:
    older_generation(path).write_bytes(line(1))
    assert numbers(path) == [1]
    with contextlib.closing(BoundedFile(path, 4000)) as file:
        file.append(line(2), starts_line=True)
    assert numbers(path) == [1, 2]


def test_a_live_reader_follows_across_generations_and_sees_each_line_once(path: Path) -> None:
    tail = MetricsTail(path)
    with contextlib.closing(BoundedFile(path, 1000)) as file:
        for number in range(500):
            file.append(line(number), starts_line=True)
            if number % 7 == 0:
                tail.read_new()
    tail.read_new()
    assert older_generation(path).exists(), "generations have changed"
    assert [record["n"] for record in tail.records] == list(range(500))


def test_a_live_reader_that_comes_late_begins_with_the_older_generation(path: Path) -> None:
    with contextlib.closing(BoundedFile(path, 1000)) as file:
        for number in range(150):
            file.append(line(number), starts_line=True)
    tail = MetricsTail(path)
    tail.read_new()
    assert [record["n"] for record in tail.records] == numbers(path)
    assert len(generations(path)) == 2


# --- A disk that is full for a while --------------------------------------------------------------------------------


class Disk:
    """Takes a number of bytes more, and then nothing; in the place of `os.write`."""

    def __init__(self) -> None:
        self.room_bytes = 10**9
        self.errors = 0
        self._write = os.write

    def write(self, descriptor: int, data: bytes) -> int:
        if self.room_bytes <= 0:
            self.errors += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(descriptor, data[: self.room_bytes])
        self.room_bytes -= written
        return written


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(bounded_file.os, "write", disk.write)
    return disk


class Watch:
    """A steady file, what it told, and its clock."""

    def __init__(self, path: Path) -> None:
        self.now_s = 0.0
        self.errors: list[OSError] = []
        self.resumed: list[LostBytes] = []
        self.file = SteadyFile(
            BoundedFile(path, 10**6),
            note=lambda loss: b'{"n":-%d}\n' % loss.count,
            on_lost=self.errors.append,
            on_resumed=self.resumed.append,
        )

    def write(self, number: int, *, must_try: bool = False) -> None:
        data = line(number)
        self.file.write(data, lambda written: int(written < len(data)), starts_line=True, must_try=must_try)


@pytest.fixture
def watch(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch(path)
    monkeypatch.setattr(steady_file.time, "monotonic", lambda: watch.now_s)
    yield watch
    watch.file.close()


def test_lines_that_find_no_room_are_counted_and_told_once_and_writing_resumes(
    path: Path, disk: Disk, watch: Watch
) -> None:
    watch.write(1)
    disk.room_bytes = 3  # the next line is cut off
    for number in range(100, 200):
        watch.write(number)
    assert disk.errors == 1, "it is not tried again at full speed"
    disk.room_bytes, watch.now_s = 10**9, 2.0
    watch.write(2)
    assert numbers(path) == [1, -100, 2]
    assert len(watch.errors) == len(watch.resumed) == 1
    assert path.read_bytes().count(b"\n") == 4


def test_a_folder_that_is_gone_for_a_while_is_found_again(path: Path, watch: Watch) -> None:
    watch.write(1)
    path.parent.rename(path.parent.with_name("away"))
    watch.write(2)
    assert isinstance(watch.errors[0], FileNotFoundError | UnwrittenError)
    path.parent.with_name("away").rename(path.parent)
    watch.now_s = 2.0
    watch.write(3)
    assert numbers(path) == [1, -1, 3]


def test_a_disk_that_is_full_again_and_again_is_asked_less_and_less_often(disk: Disk, watch: Watch) -> None:
    for _ in range(600):
        watch.now_s += 0.1
        disk.room_bytes = 12  # enough for one line, but not for two
        watch.write(1)
        watch.write(2)
    assert 2 <= len(watch.errors) <= 8
    assert disk.errors <= 60


def test_the_last_write_is_tried_without_a_pause(path: Path, disk: Disk, watch: Watch) -> None:
    disk.room_bytes = 0
    watch.write(1)
    disk.room_bytes = 10**9
    watch.write(2)
    watch.write(3, must_try=True)
    assert numbers(path) == [-2, 3]


def test_a_real_limit_of_the_operating_system_costs_lines_for_as_long_as_it_lasts(path: Path) -> None:
    script = f"""
import json, resource, sys
from pathlib import Path
from dpwa.observe import steady_file
from dpwa.observe.bounded_file import BoundedFile
from dpwa.observe.steady_file import SteadyFile
steady_file._RETRY_S = 0.0
told = []
file = SteadyFile(
    BoundedFile(Path({str(path)!r}), 10**6),
    note=lambda loss: b"",
    on_lost=lambda error: told.append(error.errno),
    on_resumed=lambda loss: told.append(loss.count),
)
def write(number):
    data = b'{{"n":%d}}\\n' % number
    file.write(data, lambda written: int(written < len(data)), starts_line=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for number in range(10, 30): write(number)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for number in range(30, 33): write(number)
print(json.dumps(told))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, timeout=30)
    assert json.loads(done.stdout) == [errno.EFBIG, 15]
    assert numbers(path) == [10, 11, 12, 13, 14, 30, 31, 32]
