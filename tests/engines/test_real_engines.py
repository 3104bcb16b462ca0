"""The same script under engines that are really there: torchrun, and MPICH's mpiexec; on one host, and on two."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine_runs import TRAINER, environment, run, said_in

from dpwa.launch.ports import free_ports
from support import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.slow
@pytest.mark.heavy
def test_torchrun_needs_no_list_of_nodes_and_no_file(tmp_path):
    run(tmp_path, *TORCHRUN, "--standalone", "--nproc-per-node=3", TRAINER, str(tmp_path), "100")
    said = said_in(tmp_path, 3)
    assert [node["local_rank"] for node in said] == [0, 1, 2]
    assert set(said[0]["hosts"]) == {"127.0.0.1"}
    assert not (Path(said[0]["run_dir"]) / "keys").exists(), "the keys of the run end with it"
    print(f"found each other {max(node['found_s'] for node in said):.2f} s after torch was imported")


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_file_without_nodes_has_the_settings_and_one_with_nodes_has_the_addresses(tmp_path):
    (tmp_path / "cluster.yaml").write_text("run: mine\npull_probability: 0.5\n")
    two = [*TORCHRUN, "--standalone", "--nproc-per-node=2", TRAINER, str(tmp_path), "50"]
    run(tmp_path, *two, DPWA_CONFIG="cluster.yaml")
    folder = Path(said_in(tmp_path, 2)[0]["run_dir"])
    assert folder.name.startswith("mine-torchrun-")
    assert "pull_probability: 0.5" in (folder / "config.yaml").read_text()
    ports = free_ports(2)
    nodes = "".join(f"  - {{name: w{number + 1}, port: {port}}}\n" for number, port in enumerate(ports))
    (tmp_path / "cluster.yaml").write_text(f"nodes:\n{nodes}")
    run(tmp_path, *two, DPWA_CONFIG="cluster.yaml", DPWA_RUN_DIR=str(tmp_path / "own"))
    assert said_in(tmp_path, 2)[0]["run_dir"] == str(tmp_path / "own")
    assert f"port: {ports[1]}" in (tmp_path / "own" / "config.yaml").read_text()


@pytest.mark.heavy
@pytest.mark.slow
def test_torchrun_starts_all_again_and_they_go_on_from_their_checkpoints(tmp_path):
    """Without an id of the job, too: the folder of the first start is known to the agent's store."""
    (tmp_path / "cluster.yaml").write_text("checkpoint: {every_s: 0.1}\n")
    run(
        tmp_path,
        *TORCHRUN,
        "--nproc-per-node=2",
        "--max-restarts=1",
        f"--master-port={free_ports(1)[0]}",
        TRAINER,
        str(tmp_path),
        "150",
        "w2",
        DPWA_CONFIG="cluster.yaml",
    )
    said = said_in(tmp_path, 2)
    assert [node["life"] for node in said] == ["1", "1"]
    assert all(node["first"] > 0 for node in said)
    assert len(list((tmp_path / "runs").iterdir())) == 1


def listed(folder: Path, count: int) -> None:
    nodes = "".join(f"  - {{name: w{number + 1}, port: {port}}}\n" for number, port in enumerate(free_ports(count)))
    (folder / "cluster.yaml").write_text(f"checkpoint: {{every_s: 0.1}}\nnodes:\n{nodes}")


@pytest.mark.heavy
@pytest.mark.slow
def test_nodes_of_a_file_that_torchrun_starts_again_find_their_checkpoints(tmp_path):
    """Without an id of the job, the time of the start names the run folder: that of the first process's first life."""
    listed(tmp_path, 2)
    torchrun = [*TORCHRUN, "--nproc-per-node=2", "--max-restarts=1", f"--master-port={free_ports(1)[0]}"]
    run(tmp_path, *torchrun, TRAINER, str(tmp_path), "150", "w2", DPWA_CONFIG="cluster.yaml")
    assert all(node["first"] > 0 for node in said_in(tmp_path, 2))
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.heavy
@pytest.mark.slow
def test_the_sample_for_torchrun_starts_all_again(tmp_path):
    (tmp_path / "settings.yaml").write_text("checkpoint: {every_s: 0.1}\n")
    run(
        tmp_path,
        *["sh", str(ROOT / "samples" / "torchrun.sh"), TRAINER, str(tmp_path), "150", "w2"],
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        HEAD=f"127.0.0.1:{free_ports(1)[0]}",
        JOB="trial",
    )
    said = said_in(tmp_path, 2)
    assert [node["life"] for node in said] == ["1", "1"]
    assert all(node["first"] > 0 for node in said)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["dpwa-torchrun-trial"]


@pytest.mark.slow
@pytest.mark.heavy
def test_mpiexec_of_mpich_needs_no_list_of_nodes(tmp_path):
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert mpiexec is not None, "the extra mpi brings MPICH"
    run(tmp_path, mpiexec, "-n", "3", sys.executable, TRAINER, str(tmp_path), "100")
    assert [node["local_rank"] for node in said_in(tmp_path, 3)] == [0, 1, 2]


@pytest.mark.heavy
@pytest.mark.slow
def test_processes_of_slurm_meet_in_a_folder(tmp_path):
    """SLURM is not here: its variables are, as srun sets them."""
    variables = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURMD_NODENAME": "nowhere"}
    started = [
        subprocess.Popen(
            [sys.executable, TRAINER, str(tmp_path), "100"],
            cwd=tmp_path,
            env=environment(SLURM_PROCID=str(rank), OMP_NUM_THREADS="1", **variables),
        )
        for rank in range(2)
    ]
    assert [process.wait(110.0) for process in started] == [0, 0]
    assert Path(said_in(tmp_path, 2)[0]["run_dir"]).name == "dpwa-slurm-7-0"


@pytest.mark.slow
@pytest.mark.heavy
def test_nodes_of_a_file_that_mpiexec_starts_have_one_run_folder(tmp_path):
    listed(tmp_path, 2)
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    run(tmp_path, mpiexec, "-n", "2", sys.executable, TRAINER, str(tmp_path), "50", DPWA_CONFIG="cluster.yaml")
    assert Path(said_in(tmp_path, 2)[0]["run_dir"]).parent == tmp_path / "runs"


# --- Two hosts --------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.slow
def test_torchrun_on_two_hosts_makes_one_cluster_with_keys(tmp_path, two_hosts):
    port = free_ports(1)[0]
    started = [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", host),
                *(*TORCHRUN, "--nnodes=2", "--nproc-per-node=2", f"--node-rank={number}"),
                *("--master-addr=10.77.0.1", f"--master-port={port}", TRAINER, str(tmp_path), "100"),
            ],
            cwd=tmp_path,
            env=environment(OMP_NUM_THREADS="1"),
        )
        for number, host in enumerate(two_hosts.sides)
    ]
    assert [process.wait(110.0) for process in started] == [0, 0]
    said = said_in(tmp_path, 4)
    assert said[0]["hosts"] == ["10.77.0.1", "10.77.0.1", "10.77.0.2", "10.77.0.2"]
    assert said[0]["keys"] == str(Path(said[0]["run_dir"]) / "keys")
    assert not Path(said[0]["keys"]).exists()
