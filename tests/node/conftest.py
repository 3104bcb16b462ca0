"""Nodes that train in threads, for the tests of clusters that nodes may join."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from open_clusters import Training

from dpwa.config.cluster import ClusterConfig


@pytest.fixture
def train() -> Iterator[Callable[..., Training]]:
    """Starts nodes that train in threads; ends those that are left."""
    made: list[Training] = []

    def begin(config: ClusterConfig, name: str, value: float = 1.0, run_dir: Path | None = None) -> Training:
        training = Training(config, name, value, run_dir)
        made.append(training)
        training.start()
        return training

    yield begin
    for training in made:
        training.end()
