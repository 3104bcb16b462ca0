"""Which node a process is that torchrun, mpiexec or srun has started: with a list of nodes or without, and twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dpwa import ClusterConfig, ConfigError
from dpwa.adapters import engine_store, identity
from dpwa.adapters.identity import identity_of
from dpwa.engines.environment import Start
from dpwa.engines.gathering import Gathered
from dpwa.launch.ports import free_ports

NODES = [{"name": "w1", "host": "127.0.0.1", "port": 21000}, {"name": "w2", "host": "127.0.0.1", "port": 21001}]
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    """Nothing was found out yet."""
    monkeypatch.setattr(identity, "_found", {})
    monkeypatch.setattr(identity, "_run_dirs", {})
    monkeypatch.setattr(engine_store, "_opened", [])


@pytest.fixture
def as_process(monkeypatch):
    """Makes this process one that an engine has started, at a moment."""

    def start(moment: str = "20260101-000000", **variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(time, "strftime", lambda _form: moment)

    return start


# --- A second adapter -------------------------------------------------------------------------------------------------


def test_a_second_adapter_of_a_process_has_its_own_settings_and_the_nodes_that_were_found(
    as_process, monkeypatch, tmp_path
):
    as_process(**OPEN_MPI, PMIX_NAMESPACE="job")
    told: list[object] = []

    def gather(_start: Start, _board: object, values: Any, **_: object) -> Gathered:
        told.append(dict(values))
        return Gathered({"nodes": NODES, "keys": str(tmp_path)}, "w1", tmp_path / "run", "launch")

    monkeypatch.setattr(identity, "gather", gather)
    settings: dict[str, object] = {"pull_probability": 0.5}
    first = identity_of(None, settings)
    assert identity_of(None, dict(settings)) is not None
    settings["method"] = "gosgd"  # the same mapping, changed
    second = identity_of(None, settings)
    (tmp_path / "third.yaml").write_text("seed: 7\ninsecure: true\n")
    third = identity_of(None, tmp_path / "third.yaml")
    assert [found.config.method for found in (first, second, third)] == ["pull", "gosgd", "pull"]
    assert (third.config.seed, third.config.pull_probability) == (7, 1.0)
    assert [found.config.keys for found in (first, second, third)] == [str(tmp_path), str(tmp_path), None]
    for found in (first, second, third):
        assert [node.port for node in found.config.nodes] == [21000, 21001]
        assert (found.name, found.run_dir, found.launch_id) == ("w1", tmp_path / "run", "launch")
    assert told == [{"pull_probability": 0.5}], "they find each other once"


def test_a_second_adapter_may_name_other_nodes(as_process):
    as_process(**OPEN_MPI, PMIX_NAMESPACE="job")
    assert identity_of(None, ClusterConfig.for_localhost(2)).name == "w1"
    others = [{**node, "name": f"other{index}"} for index, node in enumerate(NODES)]
    assert identity_of(None, {"nodes": others}).name == "other0"
    with pytest.raises(ConfigError, match="started 2 processes and the cluster file has 3 nodes"):
        identity_of(None, ClusterConfig.for_localhost(3))


# --- The run folder ---------------------------------------------------------------------------------------------------


def test_processes_of_torchrun_have_one_run_folder_whatever_their_clocks_say_and_keep_it(as_process):
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    torchrun["TORCHELASTIC_RUN_ID"] = "none"  # what torchrun calls a job without a name
    as_process("20260101-000000", RANK="0", **torchrun)
    config = ClusterConfig.for_localhost(2)
    first = identity_of(None, config).run_dir
    assert first == Path.cwd() / "runs" / "dpwa-20260101-000000"
    as_process("20260101-000001", RANK="1", **torchrun)
    assert identity_of(None, config).run_dir == first
    for rank in ("0", "1"):
        as_process("20260101-000009", RANK=rank, **{**torchrun, "TORCHELASTIC_RESTART_COUNT": "1"})
        # The agent's store outlives its processes; here it is the first one's, which is still open.
        as_process("20260101-000009", TORCHELASTIC_USE_AGENT_STORE="True")
        assert identity_of(None, config).run_dir == first


@pytest.mark.parametrize("variables", [{"DPWA_RUN_DIR": "/mine"}, {"PMIX_NAMESPACE": "job"}])
def test_a_run_folder_that_has_a_name_needs_no_agreement(as_process, variables):
    as_process(**OPEN_MPI, **variables)
    expected = variables.get("DPWA_RUN_DIR", Path.cwd() / "runs" / "dpwa-openmpi-job")
    assert identity_of(None, ClusterConfig.for_localhost(2)).run_dir == Path(expected)


def test_processes_that_cannot_agree_on_a_run_folder_are_told_to_name_one(as_process):
    as_process(**OPEN_MPI)
    with pytest.raises(ConfigError, match="would each choose a run folder by its own clock; set DPWA_RUN_DIR to one"):
        identity_of(None, ClusterConfig.for_localhost(2))
