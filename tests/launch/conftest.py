"""What the tests that print figures share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from steady_cluster import METRICS_MS, SteadyCluster

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports


@pytest.fixture
def steady(tmp_path) -> Any:
    started: list[SteadyCluster] = []

    def start(count: int) -> SteadyCluster:
        config = ClusterConfig.for_localhost(
            count, ports=free_ports(count), metrics_interval_ms=METRICS_MS, journal_checksums=True
        )
        (tmp_path / "cluster.yaml").write_text(config.to_yaml())
        started.append(SteadyCluster(tmp_path, [node.name for node in config.nodes]))
        started[-1].wait_for_training()
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def tell(capsys) -> Callable[[str], None]:
    """Prints a figure."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n    {line}", flush=True)

    return show
