"""What nodes see of the launcher's terminal."""

from __future__ import annotations

import fcntl
import os
import signal
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


WAITING = """
import threading
print("waiting", flush=True)
threading.Event().wait()
"""


def _in_a_terminal(
    command: list[str], folder: Path, columns: int, *, interrupt_at: tuple[str, int] | None = None
) -> str:
    """Everything that a command writes to a terminal of its own.

    Args:
        command: program and arguments.
        folder: in which it runs.
        columns: width of the terminal.
        interrupt_at: a text; when it has come so many times, the command is interrupted.
    """
    expected_code = 0 if interrupt_at is None else 130
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=folder,
        env=environment,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        text = b""
        with suppress(OSError):  # raised when nobody holds the other end any more
            while piece := os.read(screen, 4096):
                text += piece
                if interrupt_at is not None and text.count(interrupt_at[0].encode()) >= interrupt_at[1]:
                    process.send_signal(signal.SIGINT)
                    interrupt_at = None
        os.close(screen)
        assert process.wait(60) == expected_code, text.decode()
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


def test_ctrl_c_is_one_line_and_not_a_stack_for_each_node(folder):
    (folder / "script.py").write_text(WAITING)
    command = [sys.executable, "-m", "dpwa", "launch", "cluster.yaml", "--", sys.executable, "script.py"]
    shown = _in_a_terminal(command, folder, columns=101, interrupt_at=("waiting", 2))
    assert shown.count("dpwa: ended by SIGINT") == 1, shown
    assert "Traceback" not in shown
    assert "KeyboardInterrupt" not in shown
    kept = [file.read_text() for file in folder.glob("runs/*/nodes/*/output.log")]
    assert len(kept) == 2
    assert all("KeyboardInterrupt" in text for text in kept), "what is left out of the terminal is in the file"
