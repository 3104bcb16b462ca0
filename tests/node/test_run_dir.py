"""Before the nodes start: their environment, and the run folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.errors import ConfigError
from dpwa.launch.local import node_commands
from dpwa.launch.run_dir import make_run_dir


@pytest.fixture
def cluster() -> ClusterConfig:
    return ClusterConfig.for_localhost(2, run="try")


def test_a_nodes_environment_names_its_file_itself_and_its_folder(
    cluster: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    names = [node.name for node in cluster.nodes]
    first, second = node_commands(cluster, names, ["run"], tmp_path, config_path=Path("my.yaml"))
    assert first.name == first.environment["DPWA_NODE"] == names[0]
    assert second.environment["DPWA_NODE"] == names[1]
    assert first.environment["DPWA_CONFIG"] == str(Path.cwd() / "my.yaml")
    assert first.environment["DPWA_RUN_DIR"] == str(tmp_path)
    assert first.environment["PYTHONUNBUFFERED"] == "1"
    assert first.environment["DPWA_ON_FAILURE"] == "continue"
    assert first.environment["OMP_NUM_THREADS"] == "3"
    assert first.environment["PATH"] == os.environ["PATH"]
    assert first.output_path == tmp_path / "nodes" / names[0] / "output.log"


def test_the_clusters_limit_bounds_the_kept_output_of_each_node(tmp_path: Path) -> None:
    cluster = ClusterConfig.for_localhost(2, journal_max_mb=100)
    limits = [command.output_max_bytes for command in node_commands(cluster, ["w1", "w2"], ["run"], tmp_path)]
    assert limits == [25_000_000, 25_000_000]


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_users_number_of_threads_is_kept(
    variable: str, cluster: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv(variable, "5")
    (command,) = node_commands(cluster, [cluster.nodes[0].name], ["run"], tmp_path)
    assert command.environment[variable] == "5"
    assert command.environment.get("OMP_NUM_THREADS") in (None, "5")


def test_without_a_file_of_the_user_a_node_reads_the_run_folders_copy(cluster: ClusterConfig, tmp_path: Path) -> None:
    run_dir = make_run_dir(cluster, tmp_path / "run")
    (command,) = node_commands(cluster, [cluster.nodes[0].name], ["run"], run_dir)
    assert ClusterConfig.load(command.environment["DPWA_CONFIG"]) == cluster


def test_new_run_folders_never_meet(cluster: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {make_run_dir(cluster) for _ in range(5)}
    assert len(folders) == 5
    assert {folder.parent for folder in folders} == {tmp_path / "runs"}
    assert all(folder.name.startswith("try-") and (folder / "config.yaml").is_file() for folder in folders)


def test_a_named_run_folder_can_be_used_again_by_the_same_cluster_only(cluster: ClusterConfig, tmp_path: Path) -> None:
    assert make_run_dir(cluster, tmp_path / "a" / "run") == tmp_path / "a" / "run"
    assert make_run_dir(cluster, tmp_path / "a" / "run") == tmp_path / "a" / "run"
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["config.yaml"]
    with pytest.raises(ConfigError, match="holds a run with another config; name an empty or a new folder"):
        make_run_dir(ClusterConfig.for_localhost(3), tmp_path / "a" / "run")


def test_a_run_folder_that_cannot_be_written_is_a_clear_error(cluster: ClusterConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run folder .*file/run: cannot be written: .*; name another with --run-dir"):
        make_run_dir(cluster, tmp_path / "file" / "run")
