"""The strategies over torch.distributed, with real processes over gloo, against closed forms."""

from __future__ import annotations

import time

import numpy as np
import pytest

from collective_support import check_sgd_on_whole_batches, drifted, finish, results, start_ranks, training, wait
from collective_trainer import network
from dpwa.lab.strategies.collective import allreduce_bytes
from support import wait_until

pytestmark = pytest.mark.heavy

SIZE = 3
PARAMETERS = sum(parameter.numel() for parameter in network().parameters())
AVERAGED_BYTES = 4 * (PARAMETERS + 2)

TRAININGS = {
    "ddp": training("ddp", 41, size=SIZE, batch_size=10, n_epochs=5, learning_rate=0.3),
    "mse": training("ddp", 41, size=SIZE, batch_size=10, n_epochs=5, learning_rate=0.01, loss="mse"),
    "tiny_batches": training("ddp", 6, size=SIZE, batch_size=2, n_epochs=2, learning_rate=0.3),
    "incomplete": training("ddp", 4, size=SIZE, batch_size=100, n_epochs=3, learning_rate=0.3),
    # Batches of 8: the processes make 12, 8 and 8 steps.
    "allreduce_every_h": {
        **training("allreduce_every_h", [25, 23, 16], batch_size=8, n_epochs=4, every_steps=5),
        "drifts": True,
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    finish(start_ranks(folder, TRAININGS, SIZE))
    return lambda name: results(folder, name, SIZE)


@pytest.mark.parametrize("name", ["ddp", "mse", "tiny_batches", "incomplete"])
def test_ddp_is_sgd_on_whole_batches_whatever_the_sizes_of_the_parts(trained, name, tmp_path):
    check_sgd_on_whole_batches(trained(name), TRAININGS[name], tmp_path)


def test_allreduce_every_h_takes_the_exact_mean_every_so_many_steps_and_at_the_end(trained):
    found = trained("allreduce_every_h")
    # After 5, 10 and 12 of 12 steps; those with 8 meet after the same shares of theirs, rounded up.
    expected = drifted([12, 8, 8], [[5, 10, 12], [4, 7, 8], [4, 7, 8]])
    for result, models in zip(found, expected, strict=True):
        np.testing.assert_allclose(result.models, np.stack(models), atol=1e-5, rtol=1e-5)
    assert len({result.models[-1].tobytes() for result in found}) == 1
    assert [int(result.counted[0]) for result in found] == [0, 7, 14]
    assert {int(result.bytes_sent) for result in found} == {3 * allreduce_bytes(AVERAGED_BYTES, SIZE)}
    assert {int(result.exchanges) for result in found} == {3}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "size"), [("ddp", 3), ("allreduce_every_h", 2)])
def test_when_a_process_is_killed_the_others_fail_soon(strategy, size, tmp_path):
    made = training(strategy, 80, size=size, batch_size=8, n_epochs=1000, every_steps=3)
    processes = start_ranks(tmp_path, {"trial": {**made, "trouble": "killed", "trouble_at": [1, 40]}}, size)
    wait_until((tmp_path / "trial" / "trouble").exists, "the trouble", 60.0)
    began_s = time.monotonic()
    outputs = [wait(process, 30.0) for process in processes]
    assert time.monotonic() - began_s < 30
    codes = [process.returncode for process in processes]
    assert codes == [-9 if rank == 1 else 1 for rank in range(size)], outputs
    assert all("Error" in output for rank, output in enumerate(outputs) if rank != 1), outputs
    assert not list(tmp_path.glob("trial/*.npz"))


@pytest.mark.slow
def test_when_a_process_hangs_the_others_fail_after_the_timeout(tmp_path):
    made = training("ddp", 80, size=2, batch_size=8, n_epochs=1000)
    trial = {**made, "trouble": "stopped", "trouble_at": [1, 40], "timeout_s": 3}
    waiting, stopped = start_ranks(tmp_path, {"trial": trial}, 2)
    try:
        wait_until((tmp_path / "trial" / "trouble").exists, "the trouble", 60.0)
        output = wait(waiting, 30.0)
        assert waiting.returncode == 1, output
        assert "Timed out" in output or "timeout" in output.lower()
        assert stopped.poll() is None
    finally:
        stopped.kill()
        stopped.communicate()
