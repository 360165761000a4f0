"""KoboldAI Lite's stories on the server, as it asks for them; over the whole app."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes import FakeEngine, FakeRenderer
from http_client import LOCAL, Answer, ask
from naiad.config import Config
from naiad.http.app import build_app
from naiad.service.service import Service

DATA = "/api/extra/data"
PLAY = "/api/extra/multiplayer"


class Lite:
    """A client of one server."""

    def __init__(self, **config: Any) -> None:
        settings = Config(**config)
        self.app = build_app(Service(FakeEngine(), settings, FakeRenderer()), settings)

    async def ask(self, path: str, body: Any = None, headers: Any = LOCAL) -> Answer:
        return await ask(self.app, "GET" if body is None else "POST", path, body, headers)

    async def value(self, path: str, body: Any = None) -> Any:
        return (await self.ask(path, body)).value


async def test_save_list_load_erase(tmp_path: Path) -> None:
    lite = Lite(saves_dir=str(tmp_path))
    done = {"success": True, "error": ""}
    body = {"slot": 1, "format": "kcpp_lzma_b64", "title": "Köln 😀", "data": "abc"}
    assert await lite.value(f"{DATA}/save", body) == done
    assert await lite.value(f"{DATA}/save", {"slot": "2", "data": "x"}) == done
    titles = await Lite(saves_dir=str(tmp_path)).value(f"{DATA}/list", {})
    assert titles == ["", "Köln 😀", "Untitled Save", *[""] * 9]
    story = {"title": "Köln 😀", "format": "kcpp_lzma_b64", "data": "abc"}
    assert await lite.value(f"{DATA}/load", {"slot": 1}) == {"success": True, "data": story}
    assert await lite.value(f"{DATA}/load", {}) == {"success": False, "data": None}
    assert await lite.value(f"{DATA}/save", {"slot": 1, "data": ""}) == done
    assert (await lite.value(f"{DATA}/load", {"slot": 1}))["success"] is False


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"slot": 12, "data": "x"}, "'slot' must be from 0 to 11"),
        ({"slot": -1, "data": "x"}, "'slot' must be an integer from 0"),
        ({"data": "x"}, "'slot' is missing"),
        ({"slot": 0, "data": 5}, "'data' must be a string"),
        ({"slot": 0, "data": "x", "title": "t" * 257}, "'title' must have at most 256"),
    ],
)
async def test_refusals_say_why(body: Any, what: str, tmp_path: Path) -> None:
    answer = await Lite(saves_dir=str(tmp_path)).ask(f"{DATA}/save", body)
    assert answer.status == 400
    assert answer.value["success"] is False
    assert what in answer.value["error"]


async def test_a_shared_story() -> None:
    lite = Lite(multiplayer=True)
    assert (await lite.value("/api/extra/version"))["multiplayer"] is True
    turn = {"turn_major": 1, "turn_minor": 1, "idle": True, "data_format": ""}
    assert await lite.value(f"{PLAY}/status", {}) == turn
    assert (await lite.ask(f"{PLAY}/getstory", {})).body == b""
    body = {"full_update": True, "sender": "ann", "data_format": "f", "data": "abc😀"}
    told = await lite.value(f"{PLAY}/setstory", body)
    now = {"turn_major": 2, "turn_minor": 1, "idle": True, "data_format": "f"}
    assert told == {"success": True, **now}
    answer = await lite.ask(f"{PLAY}/getstory", {})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body == "abc😀".encode()
    asked = {"sender": "bob", "senderbusy": True}
    assert await lite.value(f"{PLAY}/status", asked) == {**now, "idle": False}
    nothing = await lite.ask(f"{PLAY}/setstory", {"sender": "ann"})
    assert (nothing.status, nothing.value["success"]) == (400, False)


async def test_no_shared_story_unless_the_server_wants_one() -> None:
    lite = Lite()
    assert (await lite.value("/api/extra/version"))["multiplayer"] is False
    assert "multiplayer" in (await lite.value(f"{PLAY}/status", {}))["error"]
    assert (await lite.ask(f"{PLAY}/getstory", {})).body == b""
    answer = await lite.ask(f"{PLAY}/setstory", {"data": "x"})
    assert (answer.status, answer.value["success"]) == (400, False)


async def test_a_story_to_begin_with(tmp_path: Path) -> None:
    assert await Lite().value("/api/extra/preloadstory") == {}
    file = tmp_path / "story.json"
    file.write_text('{"prompt": "Once 😀"}')
    lite = Lite(preload_story=str(file))
    assert await lite.value("/api/extra/preloadstory") == {"prompt": "Once 😀"}


async def test_stories_are_behind_the_key_and_what_the_server_is_is_not(tmp_path: Path) -> None:
    lite = Lite(saves_dir=str(tmp_path), multiplayer=True, api_key="secret")
    for path in (f"{DATA}/list", f"{DATA}/load", f"{DATA}/save", f"{PLAY}/getstory"):
        assert (await lite.ask(path, {})).status == 401
    assert (await lite.ask("/api/extra/preloadstory")).status == 401
    key = [*LOCAL, ("authorization", "Bearer secret")]
    assert (await lite.ask(f"{DATA}/list", {}, key)).status == 200
    service = await lite.value("/.well-known/serviceinfo")
    assert service["software"]["name"] == "naiad"
    assert service["api"]["koboldai"]["rel_url"] == "/api"
