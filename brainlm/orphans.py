"""Cluster jobs that no run owns any more: ended before others write the same files."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

#: how long cancelled jobs are waited for; SLURM kills what has not ended after KillWait, 30 s
_END_S = 120


def cancel_orphans(prefix: str = "brainlm") -> bool:
    """Cancel this folder's cluster jobs that a killed Snakemake left, and wait until they ended.

    They would write the same files as the jobs that replace them. Called while the folder's lock
    is held, so no living Snakemake owns them.

    Returns
    -------
    bool
        Whether there were any, all of which have ended by now.
    """
    orphans = _jobs_of_folder(prefix)
    if not orphans:
        return False
    print(f"cancelling {len(orphans)} jobs left by an earlier run", file=sys.stderr)
    end = time.monotonic() + _END_S
    while orphans and time.monotonic() < end:
        # again and again: one that was just being requeued comes back
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["scancel", *orphans], capture_output=True, timeout=60, check=False)
        time.sleep(1)
        orphans = _jobs_of_folder(prefix)
    if orphans:
        print(
            f"jobs {', '.join(orphans)} of an earlier run have not ended {_END_S} s after "
            "they were cancelled; their node may be down: see `scontrol show job`",
            file=sys.stderr,
        )
    return not orphans


def _jobs_of_folder(prefix: str) -> list[str]:
    """Ids of the user's cluster jobs that work in this folder, also of those about to end."""
    if shutil.which("squeue") is None:
        return []
    try:
        queue = subprocess.run(
            ["squeue", "--noheader", "--me", "--format=%i|%j|%Z"],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip
    except (subprocess.SubprocessError, OSError):
        return []  # no cluster answers: nothing of ours can be running on it
    here = str(Path.cwd())
    rows = [line.split("|") for line in queue.splitlines()]
    return [row[0] for row in rows if row[1].startswith(prefix) and row[2] == here]


def end_with_daemon(name: str = "slurmstepd") -> None:
    """Inside a cluster job: end this process, and what it runs, when SLURM's daemon above it dies.

    Where a cluster tracks jobs by process groups nothing else would: the job's files would get a
    second writer, and a Snakemake whose messages are lost waits for ever.
    """
    daemon = _find_ancestor(name)
    if daemon is not None:
        threading.Thread(target=_end_after, args=(daemon,), daemon=True).start()


def _find_ancestor(name: str) -> int | None:
    """The nearest process of this name that this one descends from, as far as /proc tells."""
    pid = os.getpid()
    with contextlib.suppress(OSError):  # no /proc, or one that hides other users' processes
        while pid > 1:
            # "pid (name) state parent ...", where the name may hold anything
            head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            if head.partition("(")[2] == name:
                return pid
            pid = int(tail.split()[1])
    return None


def _end_after(pid: int) -> None:
    try:
        select.select([os.pidfd_open(pid)], [], [])  # readable once the process has ended
    except ProcessLookupError:
        pass  # it has
    except OSError:
        return  # an old kernel cannot tell
    os.killpg(0, signal.SIGTERM)  # training saves where it is
    os.kill(os.getpid(), signal.SIGKILL)  # Snakemake would wait for messages that are lost
