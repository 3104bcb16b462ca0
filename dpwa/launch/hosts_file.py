"""The file of `dpwa launch --hosts`: the machines on which ssh starts nodes, one on a line.

    # [user@]host[:port] and, where the default will not do: slots=NODES dir=FOLDER python=PROGRAM address=NAME
    ada@10.0.0.1 slots=2 dir=~/digits python=.venv/bin/python
    gpu-box

Must not know: ssh, nodes. Runs in: the launcher's main thread; pure, except that `read_hosts` reads a file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpwa.config import hosts
from dpwa.errors import ConfigError

__all__ = ["MAX_SLOTS", "Host", "parse_hosts", "read_hosts"]

MAX_SLOTS = 256
_MOST_BYTES = 1 << 20
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")  # also an alias of ssh's own configuration
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%\w+)?")
_KEYS = ("slots", "dir", "python", "address")


@dataclass(frozen=True)
class Host:
    """One line of the file.

    Attributes:
        destination: `host` or `user@host`, as ssh has it.
        port: of its ssh server; None: what ssh's configuration says.
        slots: how many nodes it has; None: not said.
        folder: in which the command is run there; "": that of the launcher.
        python: the program that has dpwa there, and that `python` means in the command.
        address: by which the other nodes reach it; "": as ssh does.
        line: number of its line, from 1.
    """

    destination: str
    port: int | None = None
    slots: int | None = None
    folder: str = ""
    python: str = "python3"
    address: str = ""
    line: int = 0

    @property
    def name(self) -> str:
        """The host without the user."""
        return self.destination.rpartition("@")[2]

    def __str__(self) -> str:
        return self.destination if self.port is None else f"{self.destination}:{self.port}"


def read_hosts(path: Path) -> list[Host]:
    """The hosts of a file, in order.

    Raises:
        ConfigError: it cannot be read; or with every problem, each with its line.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{path}: expected a list of hosts, got more than {_MOST_BYTES} bytes")
        text = content.decode("utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected a file with one host on a line"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected text in UTF-8 with one host on a line, got byte {error.start}") from error
    return parse_hosts(text, str(path))


def parse_hosts(text: str, name: str = "hosts") -> list[Host]:
    """The hosts of such a text.

    Args:
        text: of the file.
        name: what messages call it.

    Raises:
        ConfigError: with every problem, each with its line.
    """
    problems: list[str] = []
    found: list[Host] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            problems.append(f"{name}:{number}: {str(error).lower()}; close the quotation")
            continue
        if not words:
            continue
        wrong = list(_problems(words))
        problems += [f"{name}:{number}: {problem}" for problem in wrong]
        if wrong:
            continue
        host = _host(words, number)
        same = next((other for other in found if str(other) == str(host)), None)
        if same is not None:
            problems.append(f"{name}:{number}: {host} stands in line {same.line} too; name it once, with slots=N")
        found.append(host)
    if not found and not problems:
        problems.append(f"{name}: names no host; write one on a line, such as ada@10.0.0.1 slots=2")
    if problems:
        raise ConfigError(problems)
    return found


def _split(place: str) -> tuple[str, str, str]:
    """User, host and port of `[user@]host[:port]`; an IPv6 address with a port is in brackets."""
    user, _, rest = place.rpartition("@")
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]")
        return user, host, port
    if rest.count(":") > 1:
        return user, rest, ""
    host, colon, port = rest.partition(":")
    return user, host, colon + port


def _problems(words: list[str]) -> Iterator[str]:
    place, *settings = words
    user, host, port = _split(place)
    if "=" in place or not (_NAME.fullmatch(host) or _IPV6.fullmatch(host)) or (user and not _USER.fullmatch(user)):
        yield f'expected [user@]host[:port] at the beginning, got "{place}"'
    elif port and not (port[1:].isascii() and port[1:].isdigit() and len(port) <= 6 and 1 <= int(port[1:]) <= 65535):
        yield f'expected a port from 1 to 65535 behind the colon, got "{port[1:]}"'
    seen = set()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in _KEYS:
            yield f'expected {", ".join(f"{known}=..." for known in _KEYS)} behind the host, got "{setting}"'
        elif key in seen:
            yield f"{key} is set twice; leave one out"
        elif not value or "\0" in value:
            yield f"{key}= has no value; write one, or leave it out"
        elif key == "slots" and not (
            value.isascii() and value.isdigit() and len(value) < 9 and 1 <= int(value) <= MAX_SLOTS
        ):
            yield f"expected slots from 1 to {MAX_SLOTS}, got {value}"
        elif key == "address" and hosts.problem_with(value) is not None:
            yield f'address "{value}": {hosts.problem_with(value)}{hosts.hint_for(value)}'
        seen.add(key)


def _host(words: list[str], number: int) -> Host:
    user, host, port = _split(words[0])
    values = dict(setting.split("=", 1) for setting in words[1:])
    return Host(
        f"{user}@{host}" if user else host,
        port=int(port[1:]) if port else None,
        slots=int(values["slots"]) if "slots" in values else None,
        folder=values.get("dir", ""),
        python=values.get("python", "python3"),
        address=values.get("address", ""),
        line=number,
    )
