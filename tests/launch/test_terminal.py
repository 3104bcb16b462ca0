"""What nodes see of the launcher's terminal."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from dpwa.launch.ports import free_ports

pytestmark = pytest.mark.heavy

SCRIPT = """
import os
print("size", *os.popen("stty size").read().split())
print("columns", os.environ.get("COLUMNS"))
try:
    input()
except EOFError:
    print("no input")
"""


def _in_a_terminal(command: list[str], folder: Path, columns: int) -> str:
    """Everything that a command writes to a terminal of its own."""
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder, env=environment, start_new_session=True
    ) as process:
        os.close(terminal)
        text = b""
        with suppress(OSError):  # raised when nobody holds the other end any more
            while piece := os.read(screen, 4096):
                text += piece
        os.close(screen)
        assert process.wait(60) == 0, text.decode()
    return text.decode()


@pytest.fixture
def folder(tmp_path):
    ports = free_ports(2)
    nodes = "".join(f"  - {{name: w{index}, port: {port}}}\n" for index, port in enumerate(ports))
    (tmp_path / "cluster.yaml").write_text(f"nodes:\n{nodes}")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def test_a_script_that_asks_for_the_terminals_size_gets_what_is_left_beside_the_prefix(folder):
    command = [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--", sys.executable, "script.py"]
    shown = _in_a_terminal(command, folder, columns=101)
    for line in ("size 33 96", "columns 96", "no input"):
        assert shown.count(line) == 2, shown
