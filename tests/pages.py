"""The Python blocks of the pages, and a launch of them, so that tests run what people copy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from dpwa.config.cluster import ClusterConfig
from dpwa.launch.ports import free_ports
from support import ROOT

PROCESS_TIMEOUT_S = 100

# Imports take seconds that differ: without this, one node may have trained before the other is there.
_BEGIN_TOGETHER = """
import os
import time
from pathlib import Path

def begin_together(what):
    run_dir, rank = Path(os.environ["DPWA_RUN_DIR"]), os.environ["DPWA_RANK"]
    (run_dir / f"{what}, {rank}").touch()
    while len(list(run_dir.glob(f"{what}, *"))) < int(os.environ["DPWA_WORLD_SIZE"]):
        time.sleep(0.01)

begin_together("imports")
"""


def python_blocks(page: str, section: str) -> list[str]:
    """The Python blocks of one section, as they stand on the page.

    Args:
        page: a file in `docs`.
        section: the words of its heading.
    """
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"```python\n(.*?)```", body, re.DOTALL)


def launched(folder: Path, imports: str, source: str, **settings: object) -> tuple[list[dict[str, Any]], str]:
    """Run a script on two nodes that begin together and wait for their exchanges.

    Args:
        folder: for all files; the nodes run there.
        imports: what takes long; runs before the nodes wait for each other.
        source: the script.
        settings: more keys of the cluster file.

    Returns:
        The last event of each node's journal, and all output.
    """
    ports = free_ports(2)
    patience = {"wait_ms": 2000, "timeout_ms": 10000, "connect_timeout_ms": 10000}
    config = ClusterConfig.for_localhost(2, ports=ports, **{**patience, **settings})
    (folder / "cluster.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (folder / "script.py").write_text(f"{imports}\n{_BEGIN_TOGETHER}\n{source}", encoding="utf-8")
    command = [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--run-dir", "run", "--", sys.executable]
    ended = subprocess.run(
        [*command, "script.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    journals = [folder / "run" / "nodes" / name / "events.jsonl" for name in ("w1", "w2")]
    return [json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) for path in journals], ended.stdout
