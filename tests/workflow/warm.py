"""Snakemake without its two seconds of imports: each run is a fork of one process that has them.

For plans, of which there are many. A run whose own start matters (another PYTHONPATH, a kill) is a
process of its own, as in runs.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


def snakemake(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What ``python -m snakemake --cores 2 OPTIONS`` in `folder` does, with this environment."""
    server = _start()
    with tempfile.TemporaryDirectory() as place:
        request = {
            "folder": str(folder), "arguments": ["--cores", "2", *options], "out": f"{place}/out",
            "error": f"{place}/error", "environment": dict(os.environ),
        }  # fmt: skip
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, error = (Path(request[name]).read_text() for name in ("out", "error"))
    return subprocess.CompletedProcess(request["arguments"], code, out, error)


@cache
def _start() -> subprocess.Popen[str]:
    command = [sys.executable, __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    import gc

    import pandas  # noqa: F401
    import snakemake.cli  # noqa: F401

    import brainlm.workflow  # noqa: F401

    sys.path.pop(0)  # this folder
    gc.freeze()
    for line in sys.stdin:
        process = os.fork()
        if not process:
            _run(json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(code, flush=True)


def _run(request: dict) -> None:
    """In the fork: never returns."""
    import atexit
    import traceback

    import snakemake.cli

    for number, name in enumerate((os.devnull, request["out"], request["error"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    code: int | str | None = 1
    try:
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["snakemake", *request["arguments"]]
        code = snakemake.cli.main()
    except SystemExit as stop:  # which says its words when nobody catches it
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # Snakemake's log ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(bool(code)))


if __name__ == "__main__":
    _serve()
