"""A SLURM of two "hosts" on this machine, in a folder of its own: munged, slurmctld and two slurmd, as Debian has them.

apt-get install slurmctld slurmd slurm-client munge
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from dpwa.launch.ports import free_ports
from support import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo")
HOSTS = ("host1", "host2")


def program(name: str) -> str:
    """Where one of the programs is."""
    return shutil.which(name) or name


def why_not() -> str | None:
    """Why there can be no cluster here; None if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "several slurmd on one machine need root"


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run the cluster; gives the variables that its commands need."""
    for name in ("state", "spool", "log"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(_config(folder, free_ports(3)))
    daemons = [
        [
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"),
            *(f"--pid-file={folder}/munge.pid", f"--log-file={folder}/log/munge.log"),
            f"--seed-file={folder}/munge.seed",
        ],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", host] for host in HOSTS),
    ]
    environment = os.environ | {"SLURM_CONF": str(config)}
    started: list[subprocess.Popen[bytes]] = []
    log = (folder / "daemons.log").open("wb")
    try:
        for daemon in daemons:
            command = [program(daemon[0]), *daemon[1:]]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if daemon[0] == "munged":
                wait_until((folder / "munge.socket").exists, "munged listens")

        def is_ready() -> bool:
            asked = [program("sinfo"), "--noheader", "--format=%T %D"]
            found = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
            return found.stdout.split() == ["idle", "2"]

        wait_until(is_ready, "both hosts are idle", 60.0)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        _, alive = psutil.wait_procs([psutil.Process(process.pid) for process in started], timeout=15.0)
        for process in alive:
            process.kill()
        log.close()


def _config(folder: Path, ports: list[int]) -> str:
    return f"""\
ClusterName=dpwa
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={HOSTS[0]} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 State=UNKNOWN
NodeName={HOSTS[1]} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
