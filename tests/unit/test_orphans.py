"""What a dead daemon leaves ends by itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOB = """
import subprocess, sys, time
from brainlm.orphans import end_with_daemon
end_with_daemon("a (daemon)")
worker = subprocess.Popen(["sleep", "60"])
print(worker.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("is_job", [True, False])
def test_a_job_ends_with_the_daemon_above_it_and_nothing_else_does(is_job, tmp_path):
    daemon = tmp_path / ("a (daemon)" if is_job else "a shell")
    shutil.copy(shutil.which("bash"), daemon)
    command = [daemon, "-c", 'setsid "$@" & wait', "daemon", sys.executable, "-c", JOB]
    above = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(above.stdout.readline())
    try:
        above.send_signal(signal.SIGKILL)
        above.wait()
        end = time.monotonic() + (30 if is_job else 1)
        while is_alive(worker) and time.monotonic() < end:
            time.sleep(0.05)
        assert is_alive(worker) != is_job
    finally:
        if not is_job:
            os.killpg(os.getpgid(worker), signal.SIGKILL)
