"""Which engine has started this process, by its variables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpwa.engines.environment import ENGINES, Start, local_rank, start_of
from dpwa.errors import ConfigError

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "host-a",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "7ce5",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "3", "PMI_FD": "9", "PMI_HOSTNAME": "host-b"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "prterun-1@1"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURMD_NODENAME": "node7",
}


@pytest.mark.parametrize(
    ("environment", "start"),
    [
        ({}, None),
        (TORCHRUN, Start("torchrun", 1, 4, "torchrun-7ce5", "2")),
        (MPICH, Start("MPICH", 2, 3, "", host="host-b")),
        (OPEN_MPI, Start("Open MPI", 0, 2, "openmpi-prterun-1@1")),
        (SLURM, Start("SLURM", 3, 4, "slurm-77-0", host="node7")),
        (SLURM | {"SLURM_RESTART_COUNT": "1"}, Start("SLURM", 3, 4, "slurm-77-0", "1", "node7")),
    ],
    ids=["none", "torchrun", "MPICH", "Open MPI", "SLURM", "SLURM again"],
)
def test_each_engine_is_known_by_its_variables(environment, start):
    assert start_of(environment) == start


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "3"}, 0),  # of something that is no engine
        (TORCHRUN | {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, 3),
        (MPICH | {"MPI_LOCALRANKID": "1"}, 1),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 1),
        (SLURM | {"SLURM_LOCALID": "2"}, 2),
        (SLURM | {"SLURM_LOCALID": "0"} | TORCHRUN | {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, 3),
        ({"DPWA_LOCAL_RANK": "2"}, 2),
        (SLURM | {"SLURM_LOCALID": "1", "DPWA_LOCAL_RANK": "2"}, 2),  # a launch within a task
        # Islands of four under `dpwa launch`: the third of the second one on its machine.
        (TORCHRUN | {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4", "DPWA_LOCAL_RANK": "1"}, 6),
    ],
)
def test_the_place_on_the_machine_is_that_of_the_engine_or_of_the_launch(environment, expected):
    assert local_rank(environment) == expected


def test_a_place_on_the_machine_that_makes_no_sense_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"dpwa launch: expected a whole number in DPWA_LOCAL_RANK, got 'x'"):
        local_rank({"DPWA_LOCAL_RANK": "x"})


def test_an_engine_inside_another_is_the_one_that_counts():
    both = start_of(SLURM | MPICH)
    assert both is not None
    assert (both.engine, both.others) == ("MPICH", ("SLURM",))
    all_of_them = start_of(SLURM | MPICH | OPEN_MPI | TORCHRUN)
    assert all_of_them is not None
    assert (all_of_them.engine, all_of_them.others) == ("torchrun", ("Open MPI", "MPICH", "SLURM"))


def test_a_batch_script_of_slurm_is_one_process_although_the_job_has_many_tasks():
    assert start_of({"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None


def test_pmi_variables_without_a_manager_are_left_over_from_elsewhere():
    assert start_of({"PMI_RANK": "0", "PMI_SIZE": "2"}) is None


def test_one_process_is_alone_whatever_has_started_it():
    assert start_of(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) is None


def test_a_job_that_torchrun_calls_none_has_no_name():
    start = start_of(TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"})
    assert start is not None
    assert start.job == ""


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("WORLD_SIZE", "the environment of torchrun is incomplete: RANK is set, and WORLD_SIZE not"),
        ("RANK", "the environment of torchrun is incomplete: WORLD_SIZE is set, and RANK not"),
        ("MASTER_ADDR", "the environment of torchrun is incomplete: RANK is set, and MASTER_ADDR not"),
    ],
)
def test_half_an_environment_is_refused_with_what_is_missing(missing, words):
    with pytest.raises(ConfigError, match=words):
        start_of({name: value for name, value in TORCHRUN.items() if name != missing})


@pytest.mark.parametrize(
    "wrong",
    [{"RANK": "4"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "5000"}, {"RANK": "-1"}, {"RANK": "1.0"}, {"RANK": "²"}],
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="the environment of torchrun: expected"):
        start_of(TORCHRUN | wrong)


@given(
    st.dictionaries(
        st.sampled_from(sorted({name for engine in ENGINES for name in (engine.rank, engine.size, *engine.marks)})),
        st.text(max_size=12) | st.integers(-2, 9).map(str),
    )
)
def test_whatever_is_in_the_environment_ends_in_a_start_or_in_one_line(environment):
    said, start = "", None
    try:
        start = start_of(environment)
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
    assert start is None or 0 <= start.rank < start.size
