"""The pictures of the page in the documentation: python -m ui.picture docs/img

With `tests` in PYTHONPATH and beside a `naiad serve starter`, which answers.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patience import PATIENCE_S
from ui.conftest import ARGUMENTS, BROWSERS, PHONE
from ui.page import Chat

if TYPE_CHECKING:
    from playwright.sync_api import Page

URL = "http://127.0.0.1:5001"
TALK = (
    "Write a Python function that reverses a string.",
    "How do I check for a palindrome? Just the code.",
)
#: File name and looks of each.
LOOKS: dict[str, dict[str, Any]] = {
    "page.png": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "phone.png": {**PHONE, "device_scale_factor": 1.5, "color_scheme": "dark"},
}


def main(arguments: Sequence[str]) -> None:
    """Take them. arguments: the folder, and where the server is if not at its usual place."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)))
    folder, url = Path(arguments[0]), arguments[1] if len(arguments) > 1 else URL
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        for name, look in LOOKS.items():
            page = browser.new_context(**look).new_page()
            page.set_default_timeout(1000 * PATIENCE_S)
            page.goto(url)
            _talk(page)
            page.screenshot(path=folder / name)
        browser.close()


def _talk(page: Page) -> None:
    chat = Chat(page).ready()
    page.click("#open-settings")
    page.fill("#set-temperature", "0")  # the same words each time
    page.click("#close-settings")
    for said in TALK:
        chat.ask(said)


if __name__ == "__main__":
    main(sys.argv[1:])
