"""The web page in chromium: until it can be used, what it transfers, frames while 200 tokens a
second arrive, and a conversation of 5,000 turns.

Needs the packages of the tests and a chromium; the engine is the scripted one. A frame is late when
it comes more than 50 ms after the one before: a browser without a screen draws 60 a second.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Figure, conclude, options, parse, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: Milliseconds from the navigation until the page says that it can be used, and bytes by then.
OPENED = """() => {
    const all = [...performance.getEntriesByType('resource'),
        performance.getEntriesByType('navigation')[0]];
    const n_bytes = all.reduce((sum, one) => sum + one.transferSize, 0);
    return [performance.getEntriesByName('ready')[0].startTime, n_bytes];
}"""
#: Draws what it can for so many milliseconds; the gaps between frames.
FRAMES = """ms => new Promise(done => {
    const gaps = [];
    let last = performance.now();
    const end = last + ms;
    const frame = now => {
        gaps.push(now - last);
        last = now;
        now < end ? requestAnimationFrame(frame) : done(gaps);
    };
    requestAnimationFrame(now => { last = now; requestAnimationFrame(frame); });
})"""
READY = "html[data-ready]"


def opened(browser: Browser, url: str, repeat: int) -> list[Figure]:
    """First visits, each in a profile of its own."""
    times, sizes = [], []
    for _ in range(repeat):
        page = browser.new_context().new_page()
        page.goto(url, wait_until="commit")
        page.wait_for_selector(READY, state="attached")
        ms, n_bytes = page.evaluate(OPENED)
        times.append(ms)
        sizes.append(n_bytes)
        page.context.close()
    return [
        Figure("first visit, until it can be used", statistics.median(times), "ms", 300, 200),
        Figure("transferred", max(sizes) / 1000, "KB", 200, 150),
    ]


def streaming(page: Page, seconds: float) -> list[Figure]:
    """Frames while an answer comes, plain words first and then Markdown with code."""
    page.fill("#draft", json.dumps({"script": [["emit", 20_000]]}))
    page.press("#draft", "Enter")
    page.locator(".message.assistant .body", has_text=" ").wait_for()
    gaps = page.evaluate(FRAMES, 1000 * seconds)[1:]
    rate = page.locator(".stats").last.inner_text()
    page.click("#stop")
    print(f"the page shows: {rate}", file=sys.stderr)
    late = sum(gap > 50 for gap in gaps)
    return [
        Figure("frames while 200 tokens/s arrive", len(gaps) / seconds, "a second"),
        Figure("late frames among them", 100 * late / len(gaps), "%", 2, 0.5),
        Figure("longest gap between frames", max(gaps), "ms", 200, 50),
    ]


def long_history(page: Page, n: int) -> list[Figure]:
    """A conversation of n messages: until it is shown, and until a typed letter is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.json"
        path.write_text(json.dumps(history(n)), encoding="utf-8")
        page.set_input_files("#import-file", path)
        page.locator(".entry", has_text="A long one").wait_for()
    opening = page.evaluate("""async () => {
        const begun = performance.now();
        [...document.querySelectorAll('.entry')].find(one => one.innerText == 'A long one').click();
        while (!document.querySelector('.message')
            || document.querySelector('h1').innerText != 'A long one')
            await new Promise(requestAnimationFrame);
        return performance.now() - begun;
    }""")
    typing = page.evaluate("""async () => {
        const draft = document.getElementById('draft');
        const times = [];
        for (let n = 0; n < 30; n += 1) {
            const begun = performance.now();
            draft.value += 'x';
            draft.dispatchEvent(new Event('input'));
            await new Promise(requestAnimationFrame);
            times.push(performance.now() - begun);
        }
        return Math.max(...times);
    }""")
    return [
        Figure(f"opening {n:,} turns", opening, "ms", 500, 200),
        Figure("a letter typed there, the slowest of 30", typing, "ms", 100, 34),
    ]


def history(n: int) -> dict[str, Any]:
    """A file of one conversation, as the page imports it."""
    messages = [
        {
            "id": f"m{at}",
            "parent": f"m{at - 1}" if at else None,
            "role": "assistant" if at % 2 else "user",
            "text": f"This is turn number {at}, with a **few** words in it.",
            "created": at + 1,
            "state": "done",
        }
        for at in range(n)
    ]
    one = {"id": "long", "title": "A long one", "leaf": f"m{n - 1}", "messages": messages}
    return {"format": "naiad-conversations", "version": 1, "conversations": [one]}


def main() -> int:
    from playwright.sync_api import sync_playwright

    parser = options(__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=5000)
    args = parse(parser, repeat=1, seconds=1, turns=50)
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit(f"no browser: {', '.join(BROWSERS)}")
    env = {"NAIAD_SCRIPTED_RATE": "200"}
    with serve("--engine", "scripted", env=env) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        figures = opened(browser, server.url, args.repeat)
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector(READY)
        figures += streaming(page, args.seconds)
        figures += long_history(page, args.turns)
        browser.close()
    return conclude(figures, args)


if __name__ == "__main__":
    sys.exit(main())
