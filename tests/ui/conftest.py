"""A browser, servers with the scripted engine, and pages that forgive no error."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from e2e.client import ServerProcess, free_port
from patience import PATIENCE_S
from ui.page import Chat

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARTEFACTS = Path(__file__).parents[2] / "build" / "browser"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: In a container there may be no other sandbox than the container, and little shared memory.
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
DESKTOP = {"viewport": {"width": 1200, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.soak)


class Server:
    """A `naiad serve` that keeps its port when it is killed and started again."""

    def __init__(self, folder: Path, *args: str, rate: str = "200") -> None:
        self.folder = folder
        self.args = ["--engine", "scripted", *args]
        self.env = {"NAIAD_SCRIPTED_RATE": rate}
        self.port = free_port()
        self.start()

    def start(self) -> None:
        self.process = ServerProcess(self.args, self.folder / "server.log", self.env, self.port)
        self.process.wait_ready()

    def kill(self) -> None:
        self.process.process.kill()
        self.process.process.wait(PATIENCE_S)

    def stop(self) -> None:
        self.process.stop()

    @property
    def url(self) -> str:
        return self.process.url

    def in_flight(self) -> int:
        return int(self.process.get("/health")[1]["in_flight"])


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: page not tested")
    found = [*filter(None, map(shutil.which, BROWSERS))]
    if not found:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}): the page was not tested")
    with api.sync_playwright() as playwright:
        failures = []
        for path in found:
            try:
                browser = playwright.chromium.launch(
                    executable_path=path, args=ARGUMENTS, timeout=1000 * PATIENCE_S
                )
            except api.Error as error:  # a stub that asks to install it, or a library is missing
                failures.append(f"{path}: {str(error).strip().splitlines()[0]}")
                continue
            yield browser
            browser.close()
            return
        pytest.skip(f"no browser starts, so the page was not tested: {'; '.join(failures)}")


@pytest.fixture(scope="package")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("page"))
    yield server
    server.stop()


@pytest.fixture
def start_server(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of the test's own."""
    with contextlib.ExitStack() as stack:

        def start(*args: str, rate: str = "200") -> Server:
            server = Server(tmp_path, *args, rate=rate)
            stack.callback(server.stop)
            return server

        yield start


class Watcher:
    """Everything that went wrong in a page. forgiven: patterns of what a test expects."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.forgiven: list[str] = []

    def watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.wrong.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not re.match(r"http://127\.0\.0\.1:|blob:http://127\.0\.0\.1:", request.url):
            self.wrong.append(f"request: {request.url}")

    def left(self) -> list[str]:
        return [one for one in self.wrong if not any(re.search(p, one) for p in self.forgiven)]


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    assert watcher.left() == []


@pytest.fixture
def open_chat(
    browser: Browser, watcher: Watcher, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Chat]]:
    """Opens the page in a browser profile of its own, or in that of another page (`beside`)."""
    pages: list[Page] = []

    def open_page(url: str, *, beside: Chat | None = None, **options: Any) -> Chat:
        context = beside.page.context if beside else browser.new_context(**(options or DESKTOP))
        context.set_default_timeout(1000 * PATIENCE_S)
        page = context.new_page()
        watcher.watch(page)
        pages.append(page)
        page.goto(url)
        return Chat(page).ready()

    yield open_page
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages):
        page.screenshot(path=ARTEFACTS / f"{request.node.name}-{number}.png")
    for context in {page.context for page in pages}:
        context.close()


@pytest.fixture
def chat(server: Server, open_chat: Callable[..., Chat]) -> Chat:
    return open_chat(server.url)
