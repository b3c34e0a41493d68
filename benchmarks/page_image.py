"""Write the README's image of the leaderboard page of the committed records, docs/images/leaderboard.png.

    python benchmarks/page_image.py

It needs a Chromium, found on the PATH or installed by `playwright install chromium`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from simmim_bench.leaderboard.build import build_leaderboard

HERE = Path(__file__).resolve().parent
IMAGE = HERE.parent / "docs" / "images" / "leaderboard.png"
WIDTH, HEIGHT = 1280, 1080  # pixels


def main() -> None:
    """Build the page, and write an image of its first screen."""
    IMAGE.parent.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        build_leaderboard(HERE / "records", out=folder, quiet=True)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(Path(folder, "leaderboard.html").as_uri())
        page.wait_for_load_state("networkidle")
        page.screenshot(path=IMAGE)
        browser.close()


if __name__ == "__main__":
    main()
