"""A real SLURM of two hosts on this machine: srun, a task that is killed, and a job that is requeued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_runs import TRAINER, environment, said_in
from slurm_cluster import program, slurm_cluster, why_not
from start_times import MOST_S, NODES, extra_s

from dpwa.observe.bounded_file import read_records
from dpwa.observe.process_use import read_process
from support import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as variables:
        yield environment(SLURM_CONF=variables["SLURM_CONF"], OMP_NUM_THREADS="1")


def nodes_of(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "nodes").glob("w*")) if run_dir.exists() else []


def steps_of(node: Path) -> int:
    lines = list(read_records(node / "metrics.jsonl")) if (node / "metrics.jsonl").exists() else []
    return max((int(line["step"]) for line in lines), default=0)


def test_srun_on_two_hosts_needs_no_list_of_nodes(slurm, tmp_path):
    command = [program("srun"), "-N2", "-n4", sys.executable, TRAINER, str(tmp_path), "100"]
    done = subprocess.run(command, cwd=tmp_path, env=slurm, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert [node["local_rank"] for node in said_in(tmp_path, 4)] == [0, 1, 0, 1]


def test_four_nodes_start_at_most_three_seconds_later_than_four_tasks_that_import_torch(slurm, tmp_path):
    def command(words: list[str]) -> list[list[str]]:
        return [[program("srun"), "-N2", "-n", f"{NODES}", *words]]

    assert extra_s(tmp_path, command, command, SLURM_CONF=slurm["SLURM_CONF"]) <= MOST_S


def test_when_one_task_is_killed_the_others_train_on_to_the_end(slurm, tmp_path):
    command = [program("srun"), "-N2", "-n4", sys.executable, TRAINER, str(tmp_path), "500"]
    with subprocess.Popen(command, cwd=tmp_path, env=slurm, stderr=subprocess.PIPE, text=True) as job:
        runs = tmp_path / "runs"

        def trains() -> bool:
            return len(list(runs.glob("dpwa-slurm-*/nodes/*/process"))) == 4

        wait_until(trains, "all four have begun", 90.0)
        found = read_process(next(runs.glob("dpwa-slurm-*/nodes/w3")))
        assert found is not None
        os.kill(found[0], signal.SIGKILL)
        _, words = job.communicate(timeout=110)
    assert "Killed" in words, "the fault has happened"
    assert job.returncode != 0, "SLURM reports it"
    assert sorted(path.stem for path in tmp_path.glob("w*.json")) == ["w1", "w2", "w4"]
    assert all(json.loads((tmp_path / f"w{number}.json").read_text())["blended"] > 0 for number in (1, 2, 4))


@pytest.mark.timeout(700)  # SLURM waits for two minutes before it starts a job again
def test_a_job_that_is_requeued_goes_on_from_its_checkpoints(slurm, tmp_path):
    (tmp_path / "cluster.yaml").write_text("checkpoint: {every_s: 0.2}\nmetrics_interval_ms: 200\n")
    script = tmp_path / "job.sbatch"
    script.write_text(
        "#!/bin/sh\n#SBATCH --nodes=2\n#SBATCH --ntasks=4\n#SBATCH --requeue\n"
        f"export DPWA_CONFIG=cluster.yaml\nsrun {sys.executable} {TRAINER} {tmp_path} 1500\n"
    )
    asked = subprocess.run(
        [program("sbatch"), str(script)],
        cwd=tmp_path,
        env=slurm,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    job = asked.stdout.split()[-1]
    run_dir = tmp_path / "runs" / f"dpwa-slurm-{job}-0"

    def have_trained() -> bool:
        return [steps_of(node) > 100 for node in nodes_of(run_dir)] == [True] * 4

    wait_until(have_trained, "all four have trained", 90.0)
    subprocess.run([program("scontrol"), "requeue", job], env=slurm, check=True, timeout=30)
    wait_until((tmp_path / "w4.json").exists, "it has trained to the end", 400.0)
    wait_until(lambda: len(list(tmp_path.glob("w*.json"))) == 4, "all have", 30.0)
    said = said_in(tmp_path, 4)
    assert all(node["first"] > 50 for node in said), "none began anew"
    assert said[0]["run_dir"] == str(run_dir)
