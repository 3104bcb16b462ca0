"""Fixtures that own what they make, and the rule that no test leaves a thread of dpwa behind."""

from __future__ import annotations

import os
import threading

import hypothesis
import pytest
import switch

from support import Cluster

# How long an example takes is a matter of what else the machine does; pytest's own timeout ends what hangs.
hypothesis.settings.register_profile("thorough", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis.settings.load_profile("quick")  # `make test-all` asks for the other one


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    """Nothing of the caller's dpwa settings reaches a test, and nothing of a test lands in the checkout."""
    for name in [name for name in os.environ if name.startswith("DPWA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_thread_left():
    before = set(threading.enumerate())  # what an earlier test has left fails that test alone
    yield
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("dpwa-")]
    assert left == []


@pytest.fixture(params=["in_memory", "zeromq"])
def cluster(request):
    """A cluster over each transport in turn: the conformance suite's subject."""
    made = Cluster(request.param)
    yield made
    made.close()


@pytest.fixture
def in_memory():
    """A cluster over the in-memory transport alone: for results that must be exact."""
    made = Cluster("in_memory")
    yield made
    made.close()


@pytest.fixture
def zeromq():
    """A cluster over real sockets alone: for what the in-memory transport does not have."""
    made = Cluster("zeromq")
    yield made
    made.close()


@pytest.fixture
def two_hosts():
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, and the switch between them."""
    if missing := switch.needs():
        pytest.skip(missing)
    made = switch.Switch()
    try:
        made.build()
        yield made
    finally:
        made.remove()
