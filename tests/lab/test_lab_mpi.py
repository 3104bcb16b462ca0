"""The strategies over MPI, with real processes of mpiexec, against closed forms."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective_support import (
    TRAINER,
    check_sgd_on_whole_batches,
    drifted,
    finish,
    results,
    start,
    start_mpi,
    training,
    wait,
)
from collective_trainer import network
from dpwa.lab.strategies.collective import allreduce_bytes, meeting_steps
from dpwa.lab.strategies.mpi import relative_distance, weights_by_distance

pytestmark = pytest.mark.heavy

SIZE = 3
PARAMETERS = sum(parameter.numel() for parameter in network().parameters())
AVERAGED_BYTES = 4 * (PARAMETERS + 2)
# Batches of 8: the processes make 3, 2 and 2 steps per epoch.
UNEQUAL = [25, 23, 16]

TRAININGS = {
    "param_avg": {**training("param_avg", UNEQUAL, batch_size=8, n_epochs=5, avg_freq=2), "drifts": True},
    "once": {**training("param_avg", UNEQUAL, batch_size=8, n_epochs=5, avg_freq=0), "drifts": True},
    "w_param_avg": {
        **training("w_param_avg", 24, size=SIZE, batch_size=8, n_epochs=4, **{"lambda": 2.0}),
        "drifts": True,
    },
    "plain": {**training("w_param_avg", 24, size=SIZE, batch_size=8, n_epochs=4, **{"lambda": 0.0}), "drifts": True},
    "parallel_sgd": training("parallel_sgd", 41, size=SIZE, batch_size=10, n_epochs=5, learning_rate=0.3),
    "mse": training("parallel_sgd", 41, size=SIZE, batch_size=10, n_epochs=5, learning_rate=0.01, loss="mse"),
    "tiny_batches": training("parallel_sgd", 6, size=SIZE, batch_size=2, n_epochs=2, learning_rate=0.3),
    "incomplete": training("parallel_sgd", 4, size=SIZE, batch_size=100, n_epochs=3, learning_rate=0.3),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpi")
    finish(start_mpi(folder, TRAININGS, SIZE))
    return lambda name: results(folder, name, SIZE)


def formula_weights(lambda_):
    """The weights as the literature writes them, over the parameters alone."""

    def weights(models, last):
        gammas = []
        for model in models:
            own, old = model[:PARAMETERS], last[:PARAMETERS]
            distance = np.linalg.norm(own - old) / (np.linalg.norm(own) + np.linalg.norm(old))
            gammas.append(np.exp(-lambda_ * distance))
        return np.array(gammas) / sum(gammas)

    return weights


def check_models(found, expected):
    for result, models in zip(found, expected, strict=True):
        np.testing.assert_allclose(result.models, np.stack(models), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_param_avg_takes_the_exact_mean_every_avg_freq_epochs_and_at_the_end(trained):
    # Five epochs, averages after 2, 4 and 5; shards differ so much that the processes make different numbers of steps.
    found = trained("param_avg")
    check_models(found, drifted([15, 10, 10], [[6, 12, 15], [4, 8, 10], [4, 8, 10]]))
    assert len({result.models[-1].tobytes() for result in found}) == 1
    # Whole numbers are not averaged.
    assert [int(result.counted[0]) for result in found] == [0, 9, 18]
    assert {int(result.bytes_sent) for result in found} == {3 * allreduce_bytes(AVERAGED_BYTES, SIZE)}
    assert {int(result.exchanges) for result in found} == {3}


@pytest.mark.slow
def test_param_avg_with_avg_freq_0_averages_once_at_the_end(trained):
    found = trained("once")
    check_models(found, drifted([15, 10, 10], [[15], [10], [10]]))
    assert {int(result.bytes_sent) for result in found} == {allreduce_bytes(AVERAGED_BYTES, SIZE)}


@pytest.mark.slow
def test_w_param_avg_follows_the_formula_with_the_last_average_as_the_old_model(trained):
    found = trained("w_param_avg")
    meetings = [[3, 6, 9, 12]] * SIZE
    check_models(found, drifted([12] * SIZE, meetings, formula_weights(2.0)))
    sent_bytes = 4 * (allreduce_bytes(AVERAGED_BYTES, SIZE) + (SIZE - 1) * 8)
    assert {int(result.bytes_sent) for result in found} == {sent_bytes}


@pytest.mark.slow
def test_w_param_avg_with_lambda_0_is_the_plain_mean(trained):
    check_models(trained("plain"), drifted([12] * SIZE, [[3, 6, 9, 12]] * SIZE))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parallel_sgd", "mse", "tiny_batches", "incomplete"])
def test_parallel_sgd_is_sgd_on_whole_batches_whatever_the_sizes_of_the_parts(trained, name, tmp_path):
    check_sgd_on_whole_batches(trained(name), TRAININGS[name], tmp_path)


@pytest.mark.slow
def test_parts_of_parallel_sgd_differ_by_at_most_one_sample(trained):
    counts = np.stack([result.count for result in trained("parallel_sgd")])
    assert counts.sum(axis=0).tolist() == [10] * counts.shape[1]
    assert (counts.max(axis=0) - counts.min(axis=0)).max() == 1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["param_avg", "parallel_sgd"])
def test_a_killed_process_ends_all_of_them_soon(strategy, tmp_path):
    made = training(strategy, 80, size=2, batch_size=8, n_epochs=100, avg_freq=3)
    (process,) = start_mpi(tmp_path, {"trial": {**made, "trouble": "killed", "trouble_at": [1, 40]}}, 2)
    output = wait(process, 60.0)
    assert (tmp_path / "trial" / "trouble").exists()
    assert process.returncode != 0, output
    assert not list(tmp_path.glob("trial/*.npz"))


@pytest.mark.slow
def test_a_process_with_an_error_tells_it_and_ends_all_of_them(tmp_path):
    made = training("param_avg", 80, size=2, batch_size=8, n_epochs=100)
    (process,) = start_mpi(tmp_path, {"trial": {**made, "trouble": "raises", "trouble_at": [1, 40]}}, 2)
    output = wait(process, 60.0)
    assert "RuntimeError: trouble on purpose" in output
    assert process.returncode != 0
    assert not list(tmp_path.glob("trial/*.npz"))


@pytest.mark.slow
def test_a_place_that_mpi_does_not_know_is_refused(tmp_path):
    # In a process of its own, which MPI takes for the only one.
    made = training("param_avg", 8, size=4, batch_size=8)
    (process,) = start(tmp_path, {"trial": made}, [[sys.executable, TRAINER, str(tmp_path), "2", "4"]])
    output = wait(process)
    assert process.returncode != 0
    assert (
        "ConfigError: MPI: expected to be process 2 of 4, but MPI says 0 of 1; start it with `mpiexec -n 4`" in output
    )


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.floats(0, 1000),
)
def test_weights_are_positive_shares_that_fall_with_the_distance(distances, lambda_):
    weights = weights_by_distance(np.array(distances), lambda_)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    by_distance = weights[np.argsort(distances)]
    assert (np.diff(by_distance) <= 1e-12).all()


def test_a_model_far_off_weighs_less():
    near, far = weights_by_distance(np.array([0.1, 0.9]), 1.0)
    assert near / far == pytest.approx(np.exp(0.8))


def test_the_distance_is_relative_to_the_lengths_of_both_models():
    assert relative_distance(np.float32([3, 4]), np.float32([0, 0])) == pytest.approx(1)
    assert relative_distance(np.float32([3, 4]), np.float32([-3, -4])) == pytest.approx(1)
    assert relative_distance(np.float32([3, 4]), np.float32([3, 4])) == 0
    assert relative_distance(np.float32([0, 0]), np.float32([0, 0])) == 0
    assert relative_distance(np.float32([6, 8]), np.float32([3, 4])) == pytest.approx(5 / 15)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 60), st.integers(1, 60))
def test_processes_with_other_numbers_of_steps_meet_equally_often(own_steps, other_steps, span, every):
    own, other = (meeting_steps(steps, span=span, every=every) for steps in (own_steps, other_steps))
    assert len(own) == len(other) == -(-span // every)
    assert own == sorted(own)
    assert (own[-1], other[-1]) == (own_steps, other_steps)


@given(st.integers(1, 500), st.integers(1, 60))
def test_processes_that_meet_every_0_epochs_meet_at_the_end_only(own_steps, span):
    assert meeting_steps(own_steps, span=span, every=0) == [own_steps]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20))
def test_whole_epochs_meet_at_their_ends(n_epochs, avg_freq, steps_per_epoch):
    ends = [*range(avg_freq, n_epochs, avg_freq), n_epochs]
    found = meeting_steps(n_epochs * steps_per_epoch, span=n_epochs, every=avg_freq)
    assert found == [end * steps_per_epoch for end in ends]
