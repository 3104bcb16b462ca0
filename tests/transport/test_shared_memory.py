"""Snapshots in shared memory: who may read them, what is refused, and that nothing torn is blended or left behind."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from shared_memory_peer import INCARNATION, train

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.exchange import messages
from dpwa.exchange.slices import Slice
from dpwa.launch.ports import free_ports
from dpwa.node.node import Node
from dpwa.snapshot.layout import ITEM_BYTES, Layout, Role, TensorSpec
from dpwa.snapshot.staging import Staging, Values
from dpwa.transport import shared_memory
from dpwa.transport.conversation import Conversation
from dpwa.transport.reception import Reception
from dpwa.transport.segments import Segments
from dpwa.transport.shared_memory import SEGMENT_FOLDER, Segment, SegmentReader, SegmentUnusable
from support import TESTS, Cluster, VectorModel, events_of, step_until, wait_until

PEER = TESTS / "shared_memory_peer.py"
TRAINER = TESTS / "fault_trainer.py"


@pytest.fixture
def run():
    """Name of a run that no other process has; its segments are gone when the test ends."""
    name = f"shm-test-{os.getpid()}"
    assert _segments(name) == []
    yield name
    left = _segments(name)
    for path in left:
        path.unlink()
    assert left == []


@pytest.fixture
def zeromq(run):
    """As everywhere, but closed before the segments of the run are counted."""
    made = Cluster("zeromq")
    assert run
    yield made
    made.close()


def _segments(run: str) -> list[Path]:
    return sorted(SEGMENT_FOLDER.glob(f"dpwa-{run}-*"))


def _segment(run: str, size_bytes: int = 1000, slots: int = 2, incarnation: bytes = INCARNATION) -> Segment:
    return Segment(run_id=run, node="w1", incarnation=incarnation, size_bytes=size_bytes, slots=slots)


def _reader(run: str, token: bytes, size_bytes: int = 1000) -> SegmentReader:
    return SegmentReader(run_id=run, node="w1", incarnation=INCARNATION, token=token, size_bytes=size_bytes)


@pytest.fixture
def segment(run):
    made = _segment(run)
    yield made
    made.close()


# --- Segment and reader ---------------------------------------------------------------------------------------------


def test_a_segments_name_says_whose_it_is_and_only_its_user_may_read_it(segment, run):
    (path,) = _segments(run)
    assert path.name == f"dpwa-{run}-w1-{INCARNATION.hex()}"
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.getuid()
    assert status.st_size == 4096 + 2 * 4096
    segment.close()
    assert _segments(run) == []


def test_memory_is_taken_slot_by_slot(run):
    size_bytes = 1 << 20
    segment = _segment(run, size_bytes, slots=4)
    (path,) = _segments(run)
    taken = [path.stat().st_blocks * 512]
    for index in range(4):
        segment.slot(index)[:] = 1
        taken.append(path.stat().st_blocks * 512)
    segment.close()
    assert taken == [4096 + slots * size_bytes for slots in range(5)]


def test_a_reader_sees_what_the_owner_wrote_and_cannot_write(segment, run):
    reader = _reader(run, segment.token)
    for index in range(2):
        segment.slot(index)[:] = 10 + index
        segment.mark(index, 5 + index)
    assert [reader.version(index) for index in range(3)] == [5, 6, 0]
    assert bytes(reader.read(1)) == b"\x0b" * 1000
    segment.mark(1, 0)
    assert reader.version(1) == 0
    with pytest.raises(TypeError):
        reader.read(0)[0] = 1


def test_what_was_mapped_stays_readable_after_the_owner_has_left(segment, run):
    segment.slot(0)[:] = 7
    segment.mark(0, 1)
    reader = _reader(run, segment.token)
    segment.close()
    assert bytes(reader.read(0)) == b"\x07" * 1000
    assert reader.version(0) == 1


def _link(path: Path) -> None:
    moved = path.with_name(f"{path.name}-moved")
    path.rename(moved)
    path.symlink_to(moved)


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o600)


_SPOILT = {
    "one byte too many": (lambda path: os.truncate(path, path.stat().st_size + 1), "no number of snapshots"),
    "cut short": (lambda path: os.truncate(path, 100), "no number of snapshots"),
    "empty": (lambda path: os.truncate(path, 0), "no number of snapshots"),
    "more slots than any node has": (lambda path: os.truncate(path, 4096 * 1000), "no number of snapshots"),
    "readable by others": (lambda path: path.chmod(0o644), "not a private file of this user"),
    "executable": (lambda path: path.chmod(0o700), "not a private file of this user"),
    "a symbolic link": (_link, "cannot be opened"),
    "another token": (lambda path: _overwrite(path, 8, b"another token...."), "another token"),
    "another format": (lambda path: _overwrite(path, 0, b"dpwa-s99"), "another token"),
    "removed": (lambda path: path.unlink(), "cannot be opened: No such file"),
}


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(("spoil", "said"), _SPOILT.values(), ids=_SPOILT.keys())
def test_a_segment_that_is_not_what_it_should_be_is_refused(segment, run, spoil, said):
    (path,) = _segments(run)
    spoil(path)
    with pytest.raises(SegmentUnusable, match=said):
        _reader(run, segment.token)
    for left in _segments(run):
        left.unlink()


def test_a_segment_of_another_user_is_refused(segment, run, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: os.stat(SEGMENT_FOLDER).st_uid + 12345)
    with pytest.raises(SegmentUnusable, match="not a private file of this user"):
        _reader(run, segment.token)


def test_a_folder_in_place_of_a_segment_is_refused(segment, run):
    (path,) = _segments(run)
    _replace_by_folder(path)
    with pytest.raises(SegmentUnusable, match="not a private file"):
        _reader(run, segment.token)
    path.rmdir()


def test_the_token_that_the_peer_told_must_be_the_segments(segment, run):
    assert len(segment.token) == messages.TOKEN_BYTES
    with pytest.raises(SegmentUnusable, match="another token"):
        _reader(run, bytes(messages.TOKEN_BYTES))


def test_a_segment_of_another_model_is_refused(segment, run):
    with pytest.raises(SegmentUnusable, match="no number of snapshots"):
        _reader(run, segment.token, size_bytes=1_000_000)


def test_a_segment_that_exists_already_is_not_taken_over(segment, run):
    segment.slot(0)[:] = 5
    with pytest.raises(SegmentUnusable, match="no segment can be made"):
        _segment(run)
    assert _segments(run) != []


# --- In a cluster ---------------------------------------------------------------------------------------------------


def _blends(folder: Path, node: str) -> list[dict]:
    return events_of(folder, node, outcome="blended")


class TypedModel:
    """A parameter and a buffer of each dtype, all values equal, and always a whole number: exact in every dtype."""

    def __init__(self, value: float, dtypes: Sequence[str], size: int = 10_000) -> None:
        specs = [TensorSpec(f"p {dtype}", (size,), dtype) for dtype in dtypes]
        specs += [TensorSpec(f"b {dtype}", (size // 10,), dtype, Role.BUFFER) for dtype in dtypes]
        self.layout = Layout(specs)
        self.arrays = [np.full(section.size, value) for section in self.layout.sections]

    def copy_into(self, buffer: np.ndarray) -> None:
        for section, array in zip(self.layout.sections, self.arrays, strict=True):
            if section.dtype == "bfloat16":
                raw = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            else:
                raw = array.astype(section.dtype)
            assert raw.itemsize == ITEM_BYTES[section.dtype]
            buffer[section.start_byte : section.stop_byte] = raw.view(np.uint8)

    def blend(self, values: Sequence[Values], factor: float) -> None:
        for array, peer in zip(self.arrays, values, strict=True):
            np.add(array, factor * (peer.array if peer.is_difference else peer.array - array), out=array)


@pytest.mark.parametrize(
    "dtypes",
    [["float32"], ["bfloat16"], ["float16"], ["float64"], ["float64", "float32", "bfloat16", "float16"]],
    ids="-".join,
)
@pytest.mark.parametrize("setting", ["auto", "off"])
def test_nodes_of_one_host_read_each_others_memory_unless_told_not_to(zeromq, run, tmp_path, dtypes, setting):
    models = [TypedModel(value, dtypes) for value in (16.0, 32.0)]
    nodes = zeromq.start(models, run=run, shared_memory=setting, constant={"value": 0.25}, run_dir=tmp_path)
    assert len(_segments(run)) == (2 if setting == "auto" else 0)
    wait_until(lambda: zeromq.step_all() or all(node.statistics().blended >= 5 for node in nodes), "blends")
    for model in models:
        whole = np.concatenate(model.arrays)
        assert 16 < whole.min() < whole.max() + 1e-9 < 32
        # Half precision is rounded when it is published; all wide ones agree among themselves.
        for array in model.arrays:
            assert np.ptp(array) == 0
    for node in nodes:
        statistics = node.statistics()
        total_bytes = models[0].layout.total_bytes
        assert statistics.bytes_in == statistics.blended * total_bytes
        assert statistics.failures == 0
        node.close()
    assert _segments(run) == []
    events = _blends(tmp_path, "w1")
    assert {event["via"] for event in events} == {"shared_memory" if setting == "auto" else "stream"}
    assert {event["codec"] for event in events} == {"raw"}
    assert not any("note" in event for event in events)


def test_nodes_in_memory_make_no_segment(in_memory, run):
    in_memory.start([VectorModel([0.0]), VectorModel([4.0])], run=run)
    in_memory.step_all(10)
    assert _segments(run) == []
    assert np.ptp(in_memory.vectors()) < 1e-2


def test_a_node_without_neighbours_makes_no_segment(zeromq, run):
    zeromq.start([VectorModel([1.0])], run=run)
    assert _segments(run) == []


@pytest.mark.seconds
def test_a_partial_exchange_reads_its_part_from_shared_memory(zeromq, run, tmp_path):
    models = [VectorModel(np.full(100_000, value)) for value in (0.0, 4.0)]
    zeromq.start(models, run=run, pull_fraction=0.25, constant={"value": 0.25}, run_dir=tmp_path)
    wait_until(lambda: zeromq.step_all() or np.ptp(zeromq.vectors(), axis=0).max() < 1e-6, "consensus")
    zeromq.close()
    partial = [event for event in _blends(tmp_path, "w1") if event["share"] < 1]
    assert {event["via"] for event in partial} == {"shared_memory"}
    assert {event["share"] for event in partial} == {0.25}
    assert all(event["bytes"] <= 0.26 * 800_000 for event in partial)


def _spoilt_cluster(zeromq, run, tmp_path, **settings) -> Path:
    """Two nodes that have not met; the segment of the second."""
    models = [VectorModel([0.0, 2.0]), VectorModel([8.0, 10.0])]
    zeromq.start(models, run=run, constant={"value": 0.5}, run_dir=tmp_path, **settings)
    return _segments(run)[1]


def _assert_streamed(zeromq, tmp_path, said: str) -> None:
    """The first node blended what the second had, by the stream, and its journal says why."""
    first = zeromq.nodes[0]
    wait_until(lambda: zeromq.step_all() or first.statistics().blended >= 5, "blends by the stream")
    assert first.statistics().failures == 0
    assert np.ptp(zeromq.vectors(), axis=0).max() < 1
    assert (zeromq.vectors() >= 0).all()
    assert (zeromq.vectors() <= 10).all()
    for node in zeromq.nodes:
        node.close()
    events = _blends(tmp_path, "w1")
    assert {event["via"] for event in events} == {"stream"}
    assert said in events[0]["note"]
    assert {event["via"] for event in _blends(tmp_path, "w2")} == {"shared_memory"}


# An owner that publishes gives a file that was cut short its length back; "one byte too many" is what stays.
_SPOILT_FOR_LONG = {name: case for name, case in _SPOILT.items() if name not in ("cut short", "empty")}


@pytest.mark.parametrize(("spoil", "said"), _SPOILT_FOR_LONG.values(), ids=_SPOILT_FOR_LONG.keys())
def test_what_cannot_be_read_from_shared_memory_is_streamed_and_the_journal_says_why(
    zeromq, run, tmp_path, spoil, said
):
    spoil(_spoilt_cluster(zeromq, run, tmp_path))
    _assert_streamed(zeromq, tmp_path, said)
    # It is not tried again in every exchange.
    assert sum("note" in event for event in _blends(tmp_path, "w1")) == 1
    for left in _segments(run):
        left.unlink()


def test_a_slot_with_another_version_than_offered_is_streamed(zeromq, run, tmp_path):
    _spoilt_cluster(zeromq, run, tmp_path)
    segment = zeromq.nodes[1]._publisher._segment
    segment.mark = lambda index, version: Segment.mark(segment, index, version + 1)
    _assert_streamed(zeromq, tmp_path, "holds another version")


def test_a_slot_that_is_overwritten_while_it_is_read_is_streamed_and_its_values_are_not_blended(
    zeromq, run, tmp_path, monkeypatch
):
    _spoilt_cluster(zeromq, run, tmp_path)
    segment, read = zeromq.nodes[1]._publisher._segment, SegmentReader.read

    def overwritten(self: SegmentReader, index: int) -> memoryview:
        memory = read(self, index)
        if bytes(self._memory[8:24]) != segment.token:
            return memory  # of the first node, read by the second
        segment.mark(index, 0)
        return memoryview(np.full(len(memory) // 8, 666.0).tobytes())

    monkeypatch.setattr(SegmentReader, "read", overwritten)
    _assert_streamed(zeromq, tmp_path, "was overwritten while it was read")


def test_without_room_for_a_segment_snapshots_are_private_and_streamed(zeromq, run, tmp_path, monkeypatch, caplog):
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    nodes = zeromq.start([VectorModel([0.0]), VectorModel([4.0])], run=run, run_dir=tmp_path)
    assert _segments(run) == []
    assert caplog.text.count("no room for a segment in /dev/shm: No space left on device") == 2
    wait_until(lambda: zeromq.step_all() or all(node.statistics().blended >= 5 for node in nodes), "blends")
    zeromq.close()
    assert {event["via"] for event in _blends(tmp_path, "w1")} == {"stream"}


def test_without_room_for_the_slots_snapshots_are_private_and_streamed(zeromq, run, tmp_path, monkeypatch):
    reserve = os.posix_fallocate

    def nearly_full(file: int, offset: int, length: int) -> None:
        if offset > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(file, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", nearly_full)
    nodes = zeromq.start([VectorModel([0.0]), VectorModel([4.0])], run=run, run_dir=tmp_path)
    wait_until(lambda: zeromq.step_all() or all(node.statistics().blended >= 5 for node in nodes), "blends")
    zeromq.close()
    assert {event["via"] for event in _blends(tmp_path, "w1")} == {"stream"}
    assert _segments(run) == []


def test_without_a_memory_file_system_snapshots_are_private_and_streamed(zeromq, run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shared_memory, "SEGMENT_FOLDER", tmp_path / "nowhere")
    nodes = zeromq.start([VectorModel([0.0]), VectorModel([4.0])], run=run, run_dir=tmp_path)
    wait_until(lambda: zeromq.step_all() or all(node.statistics().blended >= 5 for node in nodes), "blends")
    zeromq.close()
    assert "no segment can be made" in caplog.text
    assert {event["via"] for event in _blends(tmp_path, "w1")} == {"stream"}


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_a_node_takes_no_more_shared_memory_than_its_slots(zeromq, run, memory):
    size = 100_000
    models = [VectorModel(np.full(size, float(value))) for value in range(3)]
    nodes = zeromq.start(models, run=run, memory=memory, wait_ms=0)
    wait_until(lambda: zeromq.step_all() or all(node.statistics().blended >= 20 for node in nodes), "blends")
    slots = zeromq.config.snapshot_slots
    stride = -(-8 * size // 4096) * 4096
    for path in _segments(run):
        assert path.stat().st_blocks * 512 <= 4096 + slots * stride
        assert path.stat().st_size == 4096 + slots * stride


def test_a_returned_peers_new_segment_is_used(zeromq, run, tmp_path):
    settings = {"flow_control": {"probe_s": 0.05, "probe_max_s": 0.1}, "connect_timeout_ms": 50}
    first, second = zeromq.start([VectorModel([0.0]), VectorModel([4.0])], run=run, run_dir=tmp_path, **settings)
    wait_until(lambda: zeromq.step_all() or first.statistics().blended >= 2, "blends")
    second.close()
    step_until(first, lambda: first.statistics().failures >= 1, "the peer is missed")
    del zeromq.nodes[1], zeromq.models[1]
    zeromq.add("w2", VectorModel([4.0]), run_dir=tmp_path)
    blended = first.statistics().blended
    wait_until(lambda: zeromq.step_all() or first.statistics().blended >= blended + 3, "blends again")
    assert len(_segments(run)) == 2
    zeromq.close()
    assert {event["via"] for event in _blends(tmp_path, "w1")} == {"shared_memory"}


# --- Nothing is left behind -----------------------------------------------------------------------------------------


def test_a_start_that_fails_leaves_no_segment(run):
    ports = free_ports(2)
    config = ClusterConfig.for_localhost(2, ports=ports, run=run)
    holder = Node(config, "w1", VectorModel([1.0]))
    holder.start()
    assert len(_segments(run)) == 1
    with pytest.raises(ConfigError, match="cannot listen"):
        Node(config, "w1", VectorModel([1.0])).start()
    assert len(_segments(run)) == 1, "the segment of the life that holds the port stays"
    holder.close()
    assert _segments(run) == []


def test_an_exception_in_the_training_leaves_no_segment(zeromq, run):
    first, _ = zeromq.start([VectorModel([0.0]), VectorModel([4.0])], run=run)

    def fail(*_args: object) -> None:
        raise RuntimeError("a bug in the model")

    zeromq.models[0].copy_into = fail
    with pytest.raises(RuntimeError, match="a bug"):
        first.step(1.0)
    zeromq.close()
    assert _segments(run) == []


@pytest.fixture
def children():
    started: list[subprocess.Popen] = []

    def start(command: Sequence[object], **options: object) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                **options,
            )
        )
        return started[-1]

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def test_after_kill_9_the_next_start_of_the_node_removes_its_segment(run, tmp_path, children):
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), run=run)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    settings = {"DPWA_CONFIG": tmp_path / "cluster.yaml", "DPWA_NODE": "w1", "DPWA_RUN_DIR": tmp_path / "run"}
    trainer = children([TRAINER, 1000], env={**os.environ, **{name: str(value) for name, value in settings.items()}})
    assert trainer.stdout.readline().startswith("pid")
    (path,) = _segments(run)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait(10)
    assert _segments(run) == [path], "the fault happened"
    node = Node(config, "w1", VectorModel([0.0, 1.0]))
    node.start()
    (new,) = _segments(run)
    assert new != path
    node.close()
    assert _segments(run) == []


@pytest.mark.heavy
def test_after_kill_9_the_launcher_removes_the_nodes_segment(run, tmp_path, children):
    config = ClusterConfig.for_localhost(2, ports=free_ports(2), run=run, timeout_ms=500, connect_timeout_ms=200)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    options = ["--run-dir", tmp_path / "run", "--", sys.executable, TRAINER, 20]
    launcher = children(["-m", "dpwa", "launch", tmp_path / "cluster.yaml", *options])
    pid = None
    while pid is None:
        line = launcher.stdout.readline()
        assert line, "the launcher ended early"
        if "w1 | pid" in line:
            pid = int(line.split()[-1])
    wait_until(lambda: len(_segments(run)) == 2, "both nodes have a segment")
    os.kill(pid, signal.SIGKILL)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "SIGKILL" in output
    assert _segments(run) == []


# --- Torn snapshots -------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_no_read_of_a_slot_that_is_written_at_full_speed_is_torn(run, children):
    """The second lock alone: a writer that has no regard for readers. Many reads fail, and none is a mixture."""
    size = 32_768
    writer = children([PEER, "writer", run, size])
    token = bytes.fromhex(writer.stdout.readline())
    layout = Layout([TensorSpec("pattern", (size,), "float64")])
    segments = Segments(run_id=run, neighbours=["w1"], size_bytes=layout.total_bytes)
    staging = Staging(layout, absolute=True)
    own = np.zeros(layout.total_bytes, np.uint8)
    staging.reference = own.data
    whole = Slice(messages.MAX_CHUNK_BYTES, ((0, 1),), 1.0)
    pull = messages.PullRequest(1, run, "w2", bytes(8), layout.fingerprint, bytes(8), 0, 0, 1 << 20, 0, 1, True, False)
    reception = Reception(Conversation("w1", None, lambda: False, pull, lambda: None), segments, pull, staging, whole)
    slot = segments.reader("w1", INCARNATION, token)
    read, versions, reasons = 0, set(), Counter()
    end_s = time.monotonic() + 2.0
    while time.monotonic() < end_s:
        version = slot.version(0)
        if version == 0:
            continue
        offer = messages.Offer(1, INCARNATION, version, 0.0, None, layout.total_bytes, 0, token, False)
        staging.begin(whole=True)
        try:
            received = reception._read_shared(offer)
        except SegmentUnusable as error:
            reasons[str(error)] += 1
            continue
        values = staging.values[0].array
        assert received == layout.total_bytes
        assert (values == version).all(), f"torn: {set(values)}"
        assert staging.finish()
        read += 1
        versions.add(version)
    output, _ = writer.communicate()
    assert int(output) > 1000, "versions written"
    overwritten = sum(count for reason, count in reasons.items() if "overwritten while it was read" in reason)
    assert overwritten > 50, reasons  # the fault happened
    assert len(versions) > 20
    assert read >= len(versions)


@pytest.mark.heavy
def test_nodes_at_full_speed_never_blend_a_torn_snapshot(run, tmp_path, children):
    size, seconds = 8192, 3.0
    config = ClusterConfig.for_localhost(3, ports=free_ports(3), run=run, blend="absolute", wait_ms=2000)
    (tmp_path / "cluster.yaml").write_text(config.to_yaml())
    others = [children([PEER, "node", tmp_path / "cluster.yaml", name, seconds, size]) for name in ("w2", "w3")]
    model = train(config, "w1", seconds, size)
    results = [(model.blended, model.torn, len(model.seen))]
    for other in others:
        output, _ = other.communicate(timeout=30)
        assert other.returncode == 0
        results.append(tuple(map(int, output.split())))
    assert sum(torn for _, torn, _ in results) == 0
    # Enough of them, and not how fast this machine is.
    assert sum(blended for blended, _, _ in results) > 300, results
    assert all(different > 30 for _, _, different in results), results
