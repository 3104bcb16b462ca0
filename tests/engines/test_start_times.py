"""Four nodes are there at most three seconds after four processes that import torch, whatever starts both.

Under SLURM and Ray the same is asked by their own tests. Each prints its figure.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from ssh_server import ADDRESSES, SshServer, loopback_addresses
from start_times import MOST_S, NODES, extra_s

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DPWA = [sys.executable, "-m", "dpwa"]


def test_dpwa_launch(tmp_path):
    (tmp_path / "cluster.yaml").write_text(ClusterConfig.for_localhost(NODES, ports=free_ports(NODES)).to_yaml())

    def nodes(words: list[str]) -> list[list[str]]:
        return [[*DPWA, "launch", "cluster.yaml", "--", *words]]

    assert extra_s(tmp_path, lambda words: [words] * NODES, nodes) <= MOST_S


def test_torchrun(tmp_path):
    def command(words: list[str]) -> list[list[str]]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [[*torchrun, "--nproc-per-node", f"{NODES}", *words[1:]]]

    assert extra_s(tmp_path, command, command) <= MOST_S


def test_mpiexec(tmp_path):
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert mpiexec is not None, "the extra mpi brings MPICH"

    def command(words: list[str]) -> list[list[str]]:
        return [[mpiexec, "-n", f"{NODES}", *words]]

    assert extra_s(tmp_path, command, command) <= MOST_S


def test_dpwa_launch_over_ssh(tmp_path):
    loopback_addresses()
    server = SshServer(tmp_path / "sshd")
    client = server.client(tmp_path / "client")
    hosts = "".join(server.line(each, slots=NODES // 2, dir=tmp_path, python=sys.executable) for each in ADDRESSES)
    (tmp_path / "hosts.txt").write_text(hosts)
    places = zip(ADDRESSES * (NODES // 2), free_ports(NODES), strict=True)
    listed = [{"name": f"w{rank + 1}", "host": host, "port": port} for rank, (host, port) in enumerate(places)]
    (tmp_path / "cluster.yaml").write_text(f"nodes: {json.dumps(listed)}\n")

    def bare(words: list[str]) -> list[list[str]]:
        ssh = [str(client / "ssh"), "-p", f"{server.port}", "-o", "BatchMode=yes"]
        return [[*ssh, address, "OMP_NUM_THREADS=1", *words] for address in ADDRESSES for _ in range(NODES // 2)]

    def nodes(words: list[str]) -> list[list[str]]:
        return [[*DPWA, "launch", "--hosts", "hosts.txt", "cluster.yaml", "--", *words]]

    try:
        assert extra_s(tmp_path, bare, nodes, PATH=f"{client}:{os.environ['PATH']}") <= MOST_S
    finally:
        server.close()
