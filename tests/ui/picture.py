"""The picture of the page in the documentation: python -m ui.picture docs/img/page.png

With `tests` in PYTHONPATH and beside a `naiad serve starter`, which answers.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patience import PATIENCE_S
from ui.conftest import ARGUMENTS, BROWSERS
from ui.page import Chat

URL = "http://127.0.0.1:5001"
TALK = (
    "Write a Python function that reverses a string.",
    "How do I check for a palindrome? Just the code.",
)
LOOK: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}


def main(arguments: Sequence[str]) -> None:
    """Take the picture. arguments: the file, and where the server is if not at its usual place."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)))
    file, url = Path(arguments[0]), arguments[1] if len(arguments) > 1 else URL
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        page = browser.new_page(**LOOK)
        page.set_default_timeout(1000 * PATIENCE_S)
        page.goto(url)
        chat = Chat(page).ready()
        page.click("#open-settings")
        page.fill("#set-temperature", "0")  # the same words each time
        page.click("#close-settings")
        for said in TALK:
            chat.ask(said)
        page.screenshot(path=file)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
