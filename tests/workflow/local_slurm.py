"""A real SLURM on this machine for tests: munged, slurmctld and two slurmd, stopped by pid.

Everything lives in one folder (key, sockets, state, logs, ports of its own) but for one link,
/etc/slurm/slurm.conf, made only where nothing is there and removed afterwards: the executor
plugin strips SLURM_CONF before its inner srun.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from debian import install

PACKAGES = ("slurm-wlm", "munge")
_LINK = Path("/etc/slurm/slurm.conf")


def describe_missing() -> str | None:
    """Why a SLURM cannot be started here, or None. In CI the packages are installed first."""
    if os.geteuid() != 0:
        return "starting a SLURM needs root"
    if not _found():
        install(*PACKAGES)
    if not _found():
        return f"SLURM is not installed (apt-get install {' '.join(PACKAGES)})"
    if _LINK.exists() and not _LINK.is_symlink():
        return f"{_LINK} belongs to another cluster"
    return None


def _found() -> bool:
    return all(_which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch"))


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class LocalSlurm:
    """Two nodes on one host; a context manager.

    A third one, of eight GPUs, is down: jobs for it are taken, and wait.
    """

    def __init__(self, folder: Path, *, nodes: int = 2, cpus: int = 4, memory_mb: int = 16000):
        self.folder, self.nodes, self.cpus, self.memory_mb = folder, nodes, cpus, memory_mb
        self.daemons: list[subprocess.Popen] = []
        self.conf = folder / "slurm.conf"

    def __enter__(self) -> LocalSlurm:
        os.umask(0o022)
        self.folder.mkdir(parents=True)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        ports = _free_ports(3 + self.nodes)
        self._start_munge()
        self._configure(ports)
        _LINK.parent.mkdir(exist_ok=True)
        if _LINK.is_symlink():
            _LINK.unlink()  # left by a test run that was killed
        _LINK.symlink_to(self.conf)
        os.environ["SLURM_CONF"] = str(self.conf)
        self._daemon("slurmctld", "-D", "-f", self.conf)
        self._wait(lambda: "UP" in self._ask("scontrol", "ping"), "slurmctld")
        for number in range(1, self.nodes + 1):
            (self.folder / f"spool-n{number}").mkdir()
            self._daemon("slurmd", "-D", "-N", f"n{number}", "-f", self.conf)
        self._wait(
            lambda: (
                len(set(self._ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()))
                == self.nodes
            ),
            "the nodes",
        )

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o700)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        self.socket = self.folder / "munge.socket"
        self._daemon(
            "munged", "--foreground", f"--key-file={munge / 'key'}", f"--socket={self.socket}",
            f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}",
            f"--seed-file={munge / 'seed'}",
        )  # fmt: skip
        self._wait(self.socket.exists, "munged")

    def _configure(self, ports: list[int]) -> None:
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName=n{k} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1 + k]} "
            f"CPUs={self.cpus} RealMemory={self.memory_mb} State=UNKNOWN"
            for k in range(1, self.nodes + 1)
        )
        mine = ",".join(f"n{k}" for k in range(1, self.nodes + 1))
        (self.folder / "state").mkdir()
        self.conf.write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.socket}
SlurmctldPort={ports[0]}
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
# process groups, not cgroups: works in containers, and finds children whose parent died first
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill,UsePss
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
MinJobAge=3600
KillWait=5
SchedulerParameters=sched_interval=2,bf_interval=5,sched_min_interval=100000
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
GresTypes=gpu
{nodes}
NodeName=g1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[-1]} CPUs=96 RealMemory=1000000 \
Gres=gpu:h100:8 Feature=hopper State=DOWN
PartitionName=gpu Nodes=g1 MaxTime=04:00:00 State=UP
PartitionName=cpu Nodes={mine} Default=YES MaxTime=INFINITE State=UP PriorityTier=10 \
PreemptMode=OFF
PartitionName=spot Nodes={mine} MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
""")
        (self.folder / "gres.conf").write_text("NodeName=g1 Name=gpu Type=h100 Count=8\n")
        (self.folder / "cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.folder}/nocgroup\n"
            "CgroupAutomount=no\n"
        )

    def _daemon(self, name: str, *arguments) -> None:
        log = open(self.folder / f"{name}.out", "ab")  # noqa: SIM115 (the daemon keeps it)
        self.daemons.append(
            subprocess.Popen(
                [_which(name), *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        )  # fmt: skip

    def _ask(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout

    def _wait(self, ready, what: str) -> None:
        for _ in range(600):
            if ready():
                return
            time.sleep(0.2)
        logs = "".join(p.read_text()[-2000:] for p in self.folder.glob("*.log"))
        raise RuntimeError(f"{what} did not come up in 2 min\n{logs}")

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):
            self._ask("scancel", "--user=root")
            time.sleep(1)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
        if _LINK.is_symlink() and os.readlink(_LINK) == str(self.conf):
            _LINK.unlink()
        os.environ.pop("SLURM_CONF", None)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
