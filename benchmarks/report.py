"""The report of N recordings: seconds to write, size, and time to interactive in Chromium.

    python benchmarks/report.py [RECORDINGS ...]       (default: 1000 10000 77000)

Time to interactive is from the start of the navigation to the end of the page's own scripts (the
table is there, sorted and filtered by a click); then one sort and one filter over all rows, timed
from the event to the next painted frame. Needs Playwright and a Chromium on PATH.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from brainlm.cohort.splits import split_of
from brainlm.config import parse_config
from brainlm.report import build_report
from brainlm.shards import Recording, ShardInfo, write_shard

_CHUNK = 1000
_CLICK = """(action) => new Promise((done) => {
  const start = performance.now();
  action === "sort" ? document.querySelectorAll("[data-paged] th button")[3].click()
    : Object.assign(document.querySelector("[data-paged] input[type=search]"), {value: "0001"})
        .dispatchEvent(new Event("input"));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""


def make_results(folder: Path, count: int):
    """Index and shards of one cohort, with figures of quality and a few failures."""
    cohort = {"name": "large", "folder": str(folder / "raw"), "layout": "bids"}
    config = parse_config({"results": str(folder / "results"), "cohorts": [cohort], "tasks": []})
    rng, rows = np.random.default_rng(0), []
    info = ShardInfo("demo424", "ab" * 32, 424, 1.0)
    series, coverage = rng.normal(size=(4, 424)), np.ones(424)
    for start in range(0, count, _CHUNK):
        chunk = []
        for number in range(start, min(start + _CHUNK, count)):
            subject = f"sub-{number:06d}"
            facts = {"recording_id": f"{subject}_task-rest", "participant_id": subject,
                     "cohort": "large", "split": split_of(subject)}  # fmt: skip
            good = {"series": series, "coverage": coverage, "sample_period_s": 1.0,
                    "units": "percent", "duration_s": 490 * 0.735, "repetition_time_s": 0.735,
                    "mean_fd_mm": float(rng.gamma(3, 0.07)), "tsnr": float(rng.normal(70, 9)),
                    "mean_dvars": float(rng.gamma(9, 0.1))}  # fmt: skip
            bad = {"status": "unreadable", "reason": "the file ends after 31 of 490 volumes"}
            chunk.append(Recording(**facts, **(bad if number % 100 == 7 else good)))
            rows.append((facts["recording_id"], subject, f"{start // _CHUNK:05d}"))
        write_shard(config.results / f"shards/large/{start // _CHUNK:05d}.parquet", chunk, info)
    index = config.results / "index/large/recordings.tsv"
    index.parent.mkdir(parents=True)
    table = pd.DataFrame(rows, columns=["recording_id", "participant_id", "chunk"])
    table.to_csv(index, sep="\t", index=False)
    return config


def size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    from playwright.sync_api import sync_playwright

    chromium = next(p for n in ("chromium", "google-chrome") if (p := shutil.which(n)))
    counts = [int(n) for n in sys.argv[1:]] or [1000, 10_000, 77_000]
    with sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                config = make_results(Path(folder), count)
                start = time.perf_counter()
                build_report(config)
                took, out = time.perf_counter() - start, config.results / "report"
                page = browser.new_page()
                page.goto((out / "large.html").as_uri())
                ready = page.evaluate("performance.timing.domContentLoadedEventEnd"
                                      " - performance.timing.navigationStart")  # fmt: skip
                sort, find = (page.evaluate(_CLICK, action) for action in ("sort", "filter"))
                page.close()
                print(f"{count:,} recordings: written in {took:.1f} s, {size_mb(out):.1f} MB; "
                      f"interactive after {ready / 1000:.2f} s, sort {sort:.0f} ms, "
                      f"filter {find:.0f} ms", flush=True)  # fmt: skip
        browser.close()


if __name__ == "__main__":
    main()
