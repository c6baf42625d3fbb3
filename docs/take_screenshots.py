"""Pictures of a finished study's pages for the documentation; needs playwright and chromium.

python docs/take_screenshots.py results/report docs/images
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def take(report: Path, out: Path, browser) -> list[Path]:
    """Write <page>.png of the study's page and of a recording's: the first screen, few colours."""
    from PIL import Image

    recording = min((report.parent / "recordings").rglob("sub-*.html"))
    pages = {"study": report / "index.html", "recording": recording}
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for name, page in pages.items():
        tab = browser.new_page(viewport={"width": 1100, "height": 760}, color_scheme="light")
        tab.goto(page.absolute().as_uri())
        made.append(out / f"{name}.png")
        tab.screenshot(path=made[-1])
        tab.close()
        with Image.open(made[-1]) as image:
            image.convert("RGB").quantize(48).save(made[-1], optimize=True)
    return made


if __name__ == "__main__":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as runner:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        opened = runner.chromium.launch(executable_path=path, args=["--no-sandbox"])
        print(*take(Path(sys.argv[1]), Path(sys.argv[2]), opened))
