"""The terminal that nodes see: its size, and a standard input without a keyboard.

Training scripts ask for the width of the terminal, by COLUMNS, or of their standard input as `stty size` does. If the
launcher runs in a terminal its nodes get one too: a pseudo-terminal as wide as the space beside the prefixes. Reading
from it returns the end of the input at once, as from /dev/null, because N nodes cannot share one keyboard.

Must not know: nodes, processes. Runs in: the launcher's main thread.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import sys
import termios
from collections.abc import Mapping
from contextlib import ExitStack, suppress

__all__ = ["QuietInput", "size_variables", "tell"]

_END_OF_INPUT = b"\x04"
_ENDS = 2000
"""How often a node finds the end of its input before it would wait for more; the kernel's queue holds 4,095."""

_LEAST_COLUMNS = 20


def size_variables(prefix_chars: int, environment: Mapping[str, str]) -> dict[str, str]:
    """COLUMNS and LINES for processes whose lines are shown with a prefix.

    None of them if the output is not a terminal, or if they are set already.

    Args:
        prefix_chars: characters before each line.
        environment: of the launcher.
    """
    if not sys.stdout.isatty() or "COLUMNS" in environment:
        return {}
    columns, lines = shutil.get_terminal_size()
    return {"COLUMNS": str(max(_LEAST_COLUMNS, columns - prefix_chars)), "LINES": str(lines)}


class QuietInput:
    """A standard input for one process: /dev/null, or a pseudo-terminal if the launcher's own is a terminal.

    Args:
        prefix_chars: characters by which it is narrower than the launcher's terminal.

    Raises:
        OSError: the operating system has no descriptor left.
    """

    def __init__(self, prefix_chars: int = 0) -> None:
        self._other_end: int | None = None
        if _is_terminal():
            with suppress(OSError, termios.error):  # no pseudo-terminals here, as in some containers
                self._other_end, self.descriptor = _pseudo_terminal(prefix_chars)
                return
        self.descriptor = os.open(os.devnull, os.O_RDONLY)

    def given(self) -> None:
        """The process has it; the launcher lets go of its copy."""
        os.close(self.descriptor)

    def close(self) -> None:
        """The process has ended."""
        if self._other_end is not None:
            os.close(self._other_end)
            self._other_end = None


def _is_terminal() -> bool:
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def _pseudo_terminal(prefix_chars: int) -> tuple[int, int]:
    with ExitStack() as undo:
        other_end, descriptor = os.openpty()
        for end in (other_end, descriptor):
            undo.callback(os.close, end)
        attributes = termios.tcgetattr(descriptor)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
        columns, lines = shutil.get_terminal_size()
        size = struct.pack("HHHH", lines, max(_LEAST_COLUMNS, columns - prefix_chars), 0, 0)
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, size)  # termios.tcsetwinsize needs Python 3.11
        os.write(other_end, _END_OF_INPUT * _ENDS)
        undo.pop_all()
    return other_end, descriptor


def tell(line: str) -> None:
    """Print a line of the launcher's own."""
    # The nodes' lines go to stdout and the launcher's to stderr, so that both can be used by a script.
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)
