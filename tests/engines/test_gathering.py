"""A cluster out of processes that an engine has started."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dpwa.config.cluster import ClusterConfig
from dpwa.engines import gathering
from dpwa.engines.boards import FolderBoard
from dpwa.engines.environment import Start
from dpwa.engines.gathering import Gathered, gather, own_host
from dpwa.errors import ConfigError
from dpwa.transport.key_folder import KeyFolder

SIZE = 3


@pytest.fixture(autouse=True)
def no_ends(monkeypatch):
    """What a process does when it ends would be done by the tests' own."""
    monkeypatch.setattr("atexit.register", lambda *_: None)


def start(rank: int, size: int = SIZE) -> Start:
    return Start("SLURM", rank, size, "slurm-7-0")


def gathered(
    folder: Path,
    values: Any = lambda _: {},
    host: Any = lambda rank: f"10.0.0.{rank + 1}",
    first: Any = lambda _: None,
    part: Any = lambda _: 0,
    size: int = SIZE,
) -> list[Gathered]:
    def one(rank: int) -> Gathered:
        board = FolderBoard(folder / "board", start(rank, size), print)
        return gather(
            start(rank, size),
            board,
            values(rank),
            first=first(rank),
            part=part(rank),
            run_dir=folder / f"run of {rank}",
            host=host(rank),
            timeout_s=20.0,
        )

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def on_hosts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    places = iter(["a", "b", "c"])
    monkeypatch.setattr(gathering, "_place", lambda: next(places))


def test_processes_of_one_host_are_nodes_on_loopback_with_keys_of_their_own(tmp_path):
    found = gathered(tmp_path)
    assert [one.name for one in found] == ["w1", "w2", "w3"]
    assert {one.run_dir for one in found} == {tmp_path / "run of 0"}, "the first one's"
    assert len({one.launch_id for one in found}) == 1
    configs = {ClusterConfig.from_mapping(one.settings).to_yaml() for one in found}
    assert len(configs) == 1
    nodes = ClusterConfig.from_mapping(found[0].settings).nodes
    assert {node.host for node in nodes} == {"127.0.0.1"}
    assert len({node.port for node in nodes}) == SIZE
    keys = [KeyFolder(found[0].run_dir / "keys", f"w{rank}", ["w1", "w2", "w3"]) for rank in (1, 2, 3)]
    assert len({folder.public for folder in keys}) == SIZE
    assert {path.stat().st_mode & 0o777 for path in (found[0].run_dir / "keys").glob("*.key")} == {0o600}


def test_processes_of_several_hosts_name_the_keys_in_their_config(tmp_path, monkeypatch):
    on_hosts_of_their_own(monkeypatch)
    found = gathered(tmp_path)
    config = ClusterConfig.from_mapping(found[1].settings)
    assert [node.host for node in config.nodes] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert config.keys == str(tmp_path / "run of 0" / "keys")


def test_processes_that_share_a_model_are_one_node_with_the_keys_of_the_first(tmp_path, monkeypatch):
    on_hosts_of_their_own(monkeypatch)
    found = gathered(tmp_path, first=[0, 1, 1].__getitem__)
    assert [one.name for one in found] == ["w1", "w2", "w2"]
    assert len({str(one.settings) for one in found}) == 1, "the keys' folder, too, although the third has none there"
    config = ClusterConfig.from_mapping(found[2].settings)
    assert [(node.name, node.host) for node in config.nodes] == [("w1", "10.0.0.1"), ("w2", "10.0.0.2")]
    assert sorted(path.name for path in (tmp_path / "run of 0" / "keys").glob("*.key")) == ["w1.key", "w2.key"]


def test_processes_with_parts_of_a_model_find_those_with_the_same_part_and_have_keys_of_their_own(tmp_path):
    found = gathered(tmp_path, first=[0, 0, 2, 2].__getitem__, part=[0, 1, 0, 1].__getitem__, size=4)
    assert [one.name for one in found] == ["w1", "w1", "w2", "w2"]
    ports = [[node["port"] for node in one.settings["nodes"]] for one in found]
    assert ports[0] == ports[2]
    assert ports[1] == ports[3]
    assert len({*ports[0], *ports[1]}) == 4
    assert {one.run_dir for one in found} == {tmp_path / "run of 0"}
    publics = []
    for folder in (tmp_path / "run of 0" / "keys", tmp_path / "run of 0" / "parts" / "1" / "keys"):
        assert sorted(path.name for path in folder.glob("*.key")) == ["w1.key", "w2.key"]
        publics += [KeyFolder(folder, node, ["w1", "w2"]).public for node in ("w1", "w2")]
    assert len(set(publics)) == 4


def test_islands_that_are_sharded_over_other_numbers_of_processes_are_refused_with_the_numbers(tmp_path):
    with pytest.raises(ConfigError, match=r"in each node \(2 in that of process 0, 1 in that of process 2\); expected"):
        gathered(tmp_path, first=[0, 0, 2].__getitem__, part=[0, 1, 0].__getitem__)


@pytest.mark.parametrize(("first", "rank"), [([0, 0, 1], 2), ([2, 1, 1], 0), ([0, 1, 7], 2), ([0, -1, 2], 1)])
def test_processes_that_do_not_agree_who_is_one_node_are_refused(tmp_path, first, rank):
    with pytest.raises(
        ConfigError, match=rf"process {rank} says that it is one node with process {first[rank]}, which"
    ):
        gathered(tmp_path, first=first.__getitem__)


@pytest.mark.parametrize("values", [{"keys": "folder"}, {"insecure": True}])
def test_a_config_that_says_how_it_is_protected_is_left_as_it_is(tmp_path, monkeypatch, values):
    on_hosts_of_their_own(monkeypatch)
    found = gathered(tmp_path, lambda _: values)
    assert set(found[0].settings) == {"nodes"}
    assert not (tmp_path / "run of 0").exists()


def test_a_second_start_in_the_same_folder_has_new_keys(tmp_path):
    gathered(tmp_path)
    first = KeyFolder(tmp_path / "run of 0" / "keys", "w1", []).public
    gathered(tmp_path)
    assert KeyFolder(tmp_path / "run of 0" / "keys", "w1", []).public != first


def test_other_settings_are_refused_with_whose_they_are(tmp_path):
    with pytest.raises(ConfigError, match=r"process 2 on 10\.0\.0\.3 has other settings than process 0"):
        gathered(tmp_path, lambda rank: {"method": "sgp"} if rank == 2 else {})


def test_another_version_is_refused_with_whose_it_is(tmp_path, monkeypatch):
    versions = iter(["0.1.0", "0.1.0", "0.2.0"])
    written = gathering._written
    monkeypatch.setattr(gathering, "_written", lambda card: written(card._replace(version=next(versions))))
    with pytest.raises(ConfigError, match=r"has dpwa 0\.[12]\.0, and process 0 on 10\.0\.0\.1 has 0\.[12]\.0"):
        gathered(tmp_path)


def test_a_host_that_knows_itself_only_as_loopback_is_named(tmp_path, monkeypatch):
    on_hosts_of_their_own(monkeypatch)
    with pytest.raises(ConfigError, match=r'process 1: its host .* reached at "127\.0\.0\.1".*DPWA_HOST'):
        gathered(tmp_path, host=lambda rank: "127.0.0.1" if rank == 1 else f"10.0.0.{rank}")


@pytest.mark.parametrize(
    "card",
    [
        b"",
        b"[1]",
        b"{}",
        b"[" * 400,
        b'["0.1.0","p","h","21000","k","o","","",0]',
        b'["0.1.0","p","h",0,"k","o","r","n",0]',
        b'["0.1.0","p","h",21000,"0123456789012345678901234567890123456789","o","r","n","0"]',
        b'["0.1.0","p","h",21000,"0123456789012345678901234567890123456789","o","r","n",true]',
    ],
)
def test_what_nobody_could_have_told_is_refused_in_one_line(card):
    with pytest.raises(ConfigError, match="process 2: what it tells of itself") as refused:
        gathering._read(2, card)
    assert "\n" not in str(refused.value)


def test_a_path_that_is_too_long_to_be_told_is_refused_with_what_to_do(tmp_path):
    board = FolderBoard(tmp_path, start(0), print)
    with pytest.raises(ConfigError, match="set DPWA_RUN_DIR to a shorter one"):
        gather(start(0), board, {}, run_dir=Path("/" + 500 * "x"), host="a")


def test_a_host_is_what_the_user_says_or_the_engine_or_the_way_to_another(monkeypatch):
    assert own_host(start(0), "given", None) == "given"
    monkeypatch.setattr(gathering, "_is_elsewhere_too", lambda host: host == "node7")
    assert own_host(Start("SLURM", 0, 2, "", host="node7"), None, None) == "node7"
    assert own_host(start(0), None, ("127.0.0.1", 9)) == "127.0.0.1"
    if socket.has_ipv6:
        assert own_host(start(0), None, ("::1", 9)) in ("::1", "127.0.0.1"), "the latter where nothing has IPv6"
