"""How long four processes take to start under an engine, as nodes of dpwa and without it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from engine_runs import environment

NODES, ROUNDS = 4, 3
MOST_S = 3.0
DEADLINE_S = 120.0

# What any training imports and makes; then the node, if it is to be one; then it waits until all are there.
SCRIPT = """
import pathlib, sys, time, uuid, torch
folder = pathlib.Path(sys.argv[1])
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if sys.argv[2] == "dpwa":
    import dpwa
    node = dpwa.attach(model, optimizer)
there = folder / uuid.uuid4().hex
there.with_suffix(".new").write_text(str(time.monotonic()))
there.with_suffix(".new").rename(there.with_suffix(".is_there"))
while len(list(folder.glob("*.is_there"))) < int(sys.argv[3]):
    time.sleep(0.02)
if sys.argv[2] == "dpwa":
    node.close()
"""

Commands = Callable[[list[str]], Sequence[Sequence[str]]]
"""From the words that start a node to the commands that start four."""


def extra_s(folder: Path, bare: Commands, with_dpwa: Commands, **variables: str) -> float:
    """How many seconds later four nodes are there than four processes that import torch: the best of three of each."""
    (folder / "starts.py").write_text(SCRIPT)
    taken_s: dict[str, list[float]] = {"bare": [], "dpwa": []}
    for number in range(ROUNDS):
        for kind, commands in (("bare", bare), ("dpwa", with_dpwa)):
            there = folder / f"{kind}-{number}"
            there.mkdir()
            words = [sys.executable, str(folder / "starts.py"), str(there), kind, str(NODES)]
            taken_s[kind].append(_started_s(folder, there, commands(words), variables))
    extra = min(taken_s["dpwa"]) - min(taken_s["bare"])
    print(f"four processes: {min(taken_s['bare']):.1f} s; four nodes: {extra:.1f} s more (best of {ROUNDS})")
    return extra


def _started_s(folder: Path, there: Path, commands: Sequence[Sequence[str]], variables: dict[str, str]) -> float:
    begin_s = time.monotonic()
    with (folder / "log").open("a+") as log:
        started = [
            subprocess.Popen(
                command, cwd=folder, env=environment(OMP_NUM_THREADS="1", **variables), stdout=log, stderr=log
            )
            for command in commands
        ]
        try:
            codes = [process.wait(DEADLINE_S) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        log.seek(0)
        assert codes == [0] * len(codes), log.read()
    return max(float(path.read_text()) for path in there.glob("*.is_there")) - begin_s
