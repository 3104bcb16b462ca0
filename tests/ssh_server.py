"""A real sshd on two loopback addresses, which are two hosts to whoever logs in; for the tests that launch over ssh."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from dpwa.launch.ports import free_ports

DEADLINE_S = 20.0
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
ADDRESSES = ("127.0.0.2", "127.0.0.3")


class SshServer:
    """Lets this user in with a key that was made for it.

    Args:
        folder: for its files.
        addresses: on which it listens.
        prefix: words before its command, such as those that enter a network namespace.
    """

    def __init__(self, folder: Path, addresses: Sequence[str] = ADDRESSES, prefix: Sequence[str] = ()) -> None:
        if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
            pytest.skip("launching over ssh needs OpenSSH: apt-get install openssh-client openssh-server")
        self.port = free_ports(1)[0]
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "id"):
            if not (folder / name).exists():
                words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
                subprocess.run(words, check=True, capture_output=True)
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/id.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
            f"PasswordAuthentication no\nPermitRootLogin yes\nLogLevel VERBOSE\n"
            + "".join(f"ListenAddress {address}:{self.port}\n" for address in addresses)
        )
        if os.geteuid() == 0:
            with suppress(OSError):
                Path("/run/sshd").mkdir(exist_ok=True)  # where Debian's server, as root, has its empty folder
        with (folder / "sshd.log").open("wb") as log:
            words = [*prefix, SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
            self._process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._wait_until_it_listens()

    def _wait_until_it_listens(self) -> None:
        log = self._folder / "sshd.log"
        deadline_s = time.monotonic() + DEADLINE_S
        while "Server listening on" not in log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.close()
                pytest.skip(f"sshd does not run here: {log.read_text(errors='replace').strip()}")
            time.sleep(0.05)

    def client(self, folder: Path) -> Path:
        """A folder for PATH whose `ssh` is the real one, which knows the key and has no other configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config").write_text(
            f"Host first\n  HostName {ADDRESSES[0]}\n"
            f"Host *\n  IdentityFile {self._folder}/id\n  IdentitiesOnly yes\n  LogLevel ERROR\n"
            f"  UserKnownHostsFile {folder}/known_hosts\n  StrictHostKeyChecking no\n"
        )
        script = folder / "ssh"
        script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
        script.chmod(0o755)
        return folder

    def line(self, address: str, **settings: object) -> str:
        """A line of a file of hosts."""
        words = [f"{getpass.getuser()}@{address}:{self.port}", *(f"{key}={value}" for key, value in settings.items())]
        return " ".join(words) + "\n"

    def close(self) -> None:
        """End the server; connections that stand go on."""
        self._process.terminate()
        self._process.wait(DEADLINE_S)


def loopback_addresses() -> None:
    """Skip where a machine has no second loopback address."""
    try:
        for address in ADDRESSES:
            with socket.socket() as probe:
                probe.bind((address, 0))
    except OSError:
        pytest.skip("two hosts on loopback need the addresses 127.0.0.2 and 127.0.0.3, as Linux has them")
