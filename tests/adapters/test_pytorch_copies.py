"""The way of the tensors from and to a GPU, without one.

The order of the streams is tested on a GPU of the imagination that does what it is told as late as it may, and in any
order that its events allow; what is copied and blended, with copies in the processor's memory that end late.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dpwa.adapters import streams
from dpwa.adapters.streams import CudaCopies, HostMemory, LateLosses
from dpwa.adapters.tensors import TorchModel, _runs
from dpwa.config.cluster import ClusterConfig
from dpwa.snapshot.layout import Layout, TensorSpec
from dpwa.snapshot.staging import Staging
from support import DEADLINE_S

# --- The order of things ----------------------------------------------------------------------------------------------


class Event:
    """Counts how often it was recorded, and how often the GPU came by."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.recorded, self.passed = gpu, 0, 0

    def query(self) -> bool:
        return self.passed >= self.recorded

    def synchronize(self) -> None:
        while not self.query():
            self.gpu.do_something()


class Stream:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.queue: deque = deque()
        gpu.streams.append(self)

    def wait_event(self, event: Event) -> None:
        wanted = event.recorded  # of this moment: later records do not count
        self.queue.append((lambda: event.passed >= wanted, lambda: None))

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self.gpu)
        event.recorded += 1
        number = event.recorded
        self.queue.append((lambda: True, lambda: setattr(event, "passed", number)))
        return event


class Gpu:
    """Does one thing at a time, of any stream that need not wait."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.streams: list[Stream] = []
        self.training = self.current = Stream(self)

    def do_something(self) -> None:
        able = [stream for stream in self.streams if stream.queue and stream.queue[0][0]()]
        assert able, "the streams wait for each other, or the host for something that nobody does"
        _, act = self.rng.choice(able).queue.popleft()
        act()

    def do_some(self) -> None:
        for _ in range(self.rng.randrange(8)):
            if any(stream.queue for stream in self.streams):
                self.do_something()

    @contextlib.contextmanager
    def on(self, stream: Stream):
        former, self.current = self.current, stream
        yield
        self.current = former

    def run(self, act) -> None:
        self.current.queue.append((lambda: True, act))


class Cell:
    """A number somewhere, as a tensor."""

    def __init__(self, gpu: Gpu, value: float = float("nan")) -> None:
        self.gpu, self.value = gpu, value

    def copy_(self, source: Cell, *, non_blocking: bool) -> None:
        assert non_blocking
        self.gpu.run(lambda: setattr(self, "value", source.value))

    def record_stream(self, stream: Stream) -> None:
        assert stream in self.gpu.streams


@pytest.fixture
def gpu(request, monkeypatch):
    made = Gpu(request.param)
    cuda = SimpleNamespace(
        current_stream=lambda _device: made.current, stream=made.on, synchronize=None, Stream=None, Event=None
    )
    monkeypatch.setattr(streams, "torch", SimpleNamespace(cuda=cuda, empty=lambda *_, **__: Cell(made)))
    monkeypatch.setattr(streams, "_new_stream", lambda _device: Stream(made))
    monkeypatch.setattr(streams, "_new_event", lambda: Event(made))
    return made


@pytest.mark.parametrize("gpu", range(40), indirect=True)
def test_no_copy_reads_what_is_overwritten_or_writes_what_is_still_read(gpu):
    copies = CudaCopies("cuda:0", None)
    leaving, arriving = copies.staging(1, None), copies.staging(1, None)
    parameter, expected = Cell(gpu, 0.0), 0.0
    values = Cell(gpu)
    published: deque = deque()
    for step in range(30):
        gpu.run(lambda: setattr(parameter, "value", parameter.value + 1.0))
        expected += 1.0
        gpu.do_some()
        # As after an exchange: the values are there, are blended, and stay until the next copy to the host has ended.
        values.value = float(step)
        copies.to_device(
            [(HostMemory(values, values), arriving)],
            lambda: gpu.run(lambda: setattr(parameter, "value", parameter.value + arriving.value)),
        )
        expected += step
        gpu.do_some()
        host = Cell(gpu)
        gather = lambda: gpu.run(lambda: setattr(leaving, "value", parameter.value))  # noqa: E731
        ready = copies.to_host(gather, [(leaving, HostMemory(host, host))])
        published.append((ready, host, expected))
        if gpu.rng.random() < 0.5:  # no exchange: the optimizer goes on, and the next snapshot follows
            gpu.run(lambda: setattr(parameter, "value", parameter.value + 1.0))
            expected += 1.0
            host = Cell(gpu)
            ready = copies.to_host(gather, [(leaving, HostMemory(host, host))])
            published.append((ready, host, expected))
        while published:
            ready, host, wanted = published.popleft()
            ready()
            assert host.value == wanted
    values.value = 0.0
    copies.close()
    while any(stream.queue for stream in gpu.streams):
        gpu.do_something()
    assert parameter.value == expected


@pytest.mark.parametrize("gpu", range(10), indirect=True)
def test_values_do_not_arrive_where_others_are_still_being_read(gpu):
    memory = Cell(gpu)
    streams.torch.empty = lambda *_, **__: memory
    gpu.run(lambda: setattr(memory, "value", -1000.0))  # work on a tensor that was freed, and whose place is taken
    copies = CudaCopies("cuda:0", None)
    arriving = copies.staging(1, None)
    parameter = Cell(gpu, 0.0)
    for value in (1.0, 20.0, 300.0):
        values = Cell(gpu, value)
        copies.to_device(
            [(HostMemory(values, values), arriving)],
            lambda: gpu.run(lambda: setattr(parameter, "value", parameter.value + arriving.value)),
        )
        gpu.do_some()
    while any(stream.queue for stream in gpu.streams):
        gpu.do_something()
    assert parameter.value == 321.0


@pytest.mark.parametrize("gpu", range(3), indirect=True)
def test_the_trainer_hands_copies_to_the_gpu_without_waiting_for_it(gpu):
    copies = CudaCopies("cuda:0", None)
    staging = copies.staging(1, None)
    values, hosts = Cell(gpu, 1.0), [Cell(gpu) for _ in range(5)]
    copies.to_device([(HostMemory(values, values), staging)], lambda: None)
    for host in hosts:
        copies.to_host(lambda: None, [(staging, HostMemory(host, host))])
    assert all(np.isnan(host.value) for host in hosts)  # nothing was done yet: nobody had to wait
    copies.close()
    assert all(host.value == 1.0 for host in hosts)


# --- What is copied and blended ---------------------------------------------------------------------------------------


class LateCopies:
    """Copies between the processor's memory and itself, by way of pinned twins, that end when they are waited for."""

    def __init__(self) -> None:
        self.pinned: dict[int, tuple[np.ndarray, HostMemory]] = {}
        self.closed = False

    def pin(self, array: np.ndarray) -> HostMemory:
        plain = torch.from_numpy(array)
        return self.pinned.setdefault(id(array), (array, HostMemory(plain, torch.zeros_like(plain))))[1]

    def staging(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((size,), torch.nan, dtype=dtype)

    def to_host(self, gather, moves):
        gather()
        gathered = [flat.clone() for flat, _ in moves]

        def ready() -> None:
            for flat, (_, host) in zip(gathered, moves, strict=True):
                host.pinned.copy_(flat)
                host.fill_plain()

        return ready

    def to_device(self, moves, use) -> None:
        for host, flat in moves:
            host.fill_pinned()
            flat.copy_(host.pinned)
        use()

    def close(self) -> None:
        self.closed = True


class Mixed(nn.Module):
    """Every dtype, several memory formats, tied tensors and running statistics."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(8)
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.scalar = nn.Parameter(torch.randn(()))
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            self.register_parameter(f"weight_{str(dtype)[6:]}", nn.Parameter(torch.randn(4, 6).to(dtype).t()))
            self.register_buffer(f"buffer_{str(dtype)[6:]}", torch.randn(3).to(dtype))


@pytest.mark.parametrize("blend", ["delta", "absolute"])
def test_what_goes_by_way_of_flat_memory_is_bit_for_bit_what_goes_directly(blend):
    config = ClusterConfig.for_localhost(1, blend=blend)
    direct, by_staging, peer = Mixed(1), Mixed(1), Mixed(2)
    used = LateCopies()
    models = [TorchModel(direct, config), TorchModel(by_staging, config, lambda _device, _pinned: used)]
    published = np.empty(models[0].layout.total_bytes, np.uint8)
    TorchModel(peer, config).copy_into(published)
    for _ in range(2):  # the second time in the same memory
        snapshots = [np.zeros(models[0].layout.total_bytes, np.uint8) for _ in models]
        ready = [model.copy_into(snapshot) for model, snapshot in zip(models, snapshots, strict=True)]
        assert ready[0] is None
        with torch.no_grad():
            for module in (direct, by_staging):  # the next optimizer step comes before the copy has ended
                module.scalar.add_(1.0)
        assert not snapshots[1].any()
        ready[1]()
        assert snapshots[0].tobytes() == snapshots[1].tobytes()
        for model, snapshot in zip(models, snapshots, strict=True):
            staging = Staging(model.layout, absolute=blend == "absolute")
            staging.reference = snapshot.data
            staging.begin(whole=True)
            staging.accept(0, len(published), published.data)
            assert staging.finish()
            model.blend(staging.values, 0.3)
        for name, tensor in direct.state_dict().items():
            assert torch.equal(tensor, by_staging.state_dict()[name]), name
    assert not torch.equal(direct.scalar, Mixed(1).scalar)
    models[1].close()
    assert used.closed


def test_an_optimizers_state_goes_by_the_same_way_as_the_parameters():
    config = ClusterConfig.for_localhost(2, optimizer_state="blend")
    modules = [Mixed(1), Mixed(1)]
    optimizers = [torch.optim.Adam(module.parameters()) for module in modules]
    copies = [lambda _device, _pinned: None, lambda _device, _pinned: LateCopies()]
    models = [
        TorchModel(module, config, find, optimizer=optimizer)
        for module, find, optimizer in zip(modules, copies, optimizers, strict=True)
    ]
    snapshots = [np.zeros(model.layout.total_bytes, np.uint8) for model in models]
    for module, optimizer, model, snapshot in zip(modules, optimizers, models, snapshots, strict=True):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        model.check()
        ready = model.copy_into(snapshot)
        if ready is not None:
            ready()
        staging = Staging(model.layout, absolute=False)
        staging.reference = snapshot.data
        staging.begin(whole=True)
        staging.accept(0, len(snapshot), np.zeros_like(snapshot).data)
        assert staging.finish()
        model.blend(staging.values, 0.5)
    assert snapshots[0].tobytes() == snapshots[1].tobytes()
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizers[0].state[one][key], optimizers[1].state[other][key])
    first = optimizers[0].state[modules[0].first.weight]["exp_avg"]
    assert first.numpy() == pytest.approx(0.05)  # half of a tenth of the gradient


@pytest.mark.seconds
def test_models_whose_copies_end_late_are_merged_like_others(zeromq):
    modules = [Mixed(seed) for seed in (1, 2, 3)]
    config = ClusterConfig.for_localhost(1)
    models = [TorchModel(module, config, lambda _device, _pinned: LateCopies()) for module in modules]
    nodes = zeromq.start(models, method="adpsgd", pull_probability=0.0)
    before = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]
    threads = [threading.Thread(target=node.finish, kwargs={"merge": True}, daemon=True) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [node.statistics().merged_models for node in nodes] == [3, 3, 3]
    for name, tensor in modules[0].state_dict().items():
        assert all(torch.equal(module.state_dict()[name], tensor) for module in modules), name
        if tensor.is_floating_point():
            total = sum(one[name].double() for one in before)
            assert torch.equal(tensor, (total / 3).to(tensor.dtype)), name


def test_a_model_on_several_devices_is_gathered_device_by_device():
    layout = Layout([TensorSpec(name, (3, 2), "float32") for name in "abcd"])
    devices = ["cpu", "meta", "meta", "cpu"]
    (section,) = layout.sections
    runs = _runs(0, section, [torch.zeros(3, 2, device=device) for device in devices])
    assert [(run.device.type, run.first, run.stop, run.byte_range) for run in runs] == [
        ("cpu", 0, 6, (0, 24)),
        ("meta", 6, 18, (24, 72)),
        ("cpu", 18, 24, (72, 96)),
    ]
    parts = runs[1].views(torch.arange(12.0))
    assert [part.tolist() for part in parts] == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]


def test_memory_that_is_pinned_itself_has_no_twin():
    array = torch.arange(16, dtype=torch.uint8)
    both = HostMemory(array, array).part(8, 16).typed(torch.float32)
    assert both.plain is both.pinned
    assert both.plain.data_ptr() == array.data_ptr() + 8
    both.fill_plain()
    both.fill_pinned()
    assert both.plain.view(torch.uint8).tolist() == list(range(8, 16))


def test_memory_is_registered_once_gets_a_twin_if_that_is_refused_and_is_let_go_of_at_the_end(monkeypatch):
    calls: list[tuple[str, int]] = []
    refused: set[int] = set()

    def register(address: int, size: int, flags: int) -> int:
        assert (size, flags) == (32, 1)
        calls.append(("register", address))
        return 712 if address in refused else 0

    cudart = SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=lambda address: calls.append(("unregister", address))
    )
    empty = torch.empty
    monkeypatch.setattr(streams, "_cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, **_: empty(shape, dtype=dtype))
    pinned = streams.PinnedArrays()
    first, second = np.arange(8, dtype=np.float32), np.arange(8, dtype=np.float32)
    refused.add(second.ctypes.data)
    cpu = torch.device("cpu")
    for _ in range(2):
        there = pinned.pin(first, cpu)
        assert there.plain is there.pinned
        assert there.plain.data_ptr() == first.ctypes.data
        twin = pinned.pin(second, cpu)
        assert twin.pinned.data_ptr() != twin.plain.data_ptr() == second.ctypes.data
    assert calls == [("register", first.ctypes.data), ("register", second.ctypes.data)]
    twin.part(2, 4).fill_pinned()
    assert twin.pinned[2:4].tolist() == [2.0, 3.0]
    twin.pinned[:] = 7.0
    twin.fill_plain()
    assert second.tolist() == [7.0] * 8
    pinned.close()
    pinned.close()
    assert calls[2:] == [("unregister", first.ctypes.data)]


# --- Losses -----------------------------------------------------------------------------------------------------------


def test_a_loss_that_has_not_come_is_not_waited_for_and_the_newest_one_that_has_come_counts():
    has_come: list[bool] = []

    def send(loss: torch.Tensor):
        number = len(has_come)
        has_come.append(False)
        return lambda: has_come[number], loss.to(torch.float64)

    losses = LateLosses(send)
    assert losses.exchange(torch.tensor(5.0)) is None
    assert losses.exchange(torch.tensor(4.0)) is None
    has_come[:] = [True, True]
    assert losses.exchange(torch.tensor(3.0)) == 4.0
    assert losses.exchange(torch.tensor(2.0)) is None  # that of 3.0 is on its way: the node keeps what it knows
    has_come[2:] = [True, True]
    assert losses.exchange(torch.tensor(1.0)) == 2.0


def test_a_gpu_that_is_far_behind_does_not_pile_up_losses():
    sent: list[torch.Tensor] = []

    def send(loss: torch.Tensor):
        sent.append(loss)
        return lambda: False, loss

    losses = LateLosses(send)
    for _ in range(1000):
        assert losses.exchange(torch.tensor(1.0)) is None
    assert 0 < len(sent) <= 16
