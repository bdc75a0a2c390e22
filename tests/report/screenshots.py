"""Pictures of a report for the docs: `python tests/report/screenshots.py REPORT FOLDER`."""

import sys
from pathlib import Path

from browser import chromium

VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 1600}},
    "dark": {"viewport": {"width": 1280, "height": 1600}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 1600}},
}


def main(report: str, folder: str) -> None:
    """Write `<view>.png` of the report's first screen for each view."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, view in VIEWS.items():
            page = browser.new_page(**view)
            page.goto(Path(report).resolve(strict=True).as_uri())
            page.screenshot(path=Path(folder, f"{name}.png"))
            page.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
