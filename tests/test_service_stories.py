"""Stories on the server: kept across restarts, replaced as a whole, within their limits."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from naiad.errors import ConfigError, InternalError, InvalidRequest
from naiad.service import stories
from naiad.service.stories import MAX_SAVED_CHARS, N_SLOTS, SaveSlots, SharedStory, Stories
from naiad.types import SavedStory, SharedTurn

TALE = SavedStory("A tale 😀\n", "kcpp_lzma_b64", "Once\nupon 你好")


def names_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


async def test_a_story_is_there_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "saves"
    assert await SaveSlots(folder).titles() == [""] * N_SLOTS
    assert not folder.exists()
    await SaveSlots(folder).save(3, TALE)
    again = SaveSlots(folder)
    assert (await again.titles())[3] == "A tale 😀\n"
    assert await again.load(3) == TALE
    assert await again.load(4) is await again.load(-1) is await again.load(N_SLOTS) is None


async def test_files_are_for_the_user_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    slots = SaveSlots(tmp_path / "saves")
    for _ in range(2):
        await slots.save(0, TALE)
    [file] = (tmp_path / "saves").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "saves").stat().st_mode) == 0o700
    for _ in range(2):
        await slots.save(0, None)  # empty, and empty again
    assert await slots.titles() == [""] * N_SLOTS


async def test_a_save_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = SaveSlots(tmp_path)
    await slots.save(0, TALE)

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InternalError, match="No space left"):
        await slots.save(0, SavedStory("new", "", "new"))
    assert await slots.load(0) == TALE
    assert names_in(tmp_path) == ["slot-0.story"]


@pytest.mark.parametrize("slot", [-1, N_SLOTS])
async def test_there_are_so_many_slots(slot: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="'slot' must be from 0 to 11"):
        await SaveSlots(tmp_path).save(slot, TALE)


async def test_a_story_may_be_so_long(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="'data' must have at most 10485760 characters"):
        await SaveSlots(tmp_path).save(0, SavedStory("t", "", "x" * (MAX_SAVED_CHARS + 1)))


@pytest.mark.parametrize("spoiled", [b"", b"\xff", b'{"title": 5}\nx', b'{"title":"t"}\n\xff'])
async def test_a_spoiled_file_is_an_empty_slot(spoiled: bytes, tmp_path: Path) -> None:
    (tmp_path / "slot-0.story").write_bytes(spoiled)
    slots = SaveSlots(tmp_path)
    assert await slots.load(0) is None
    assert len(await slots.titles()) == N_SLOTS
    await slots.save(0, TALE)
    assert await slots.load(0) == TALE


def test_players_see_turns_and_who_is_busy() -> None:
    now = [0.0]
    story = SharedStory(lambda: now[0])
    assert story.status("ann") == SharedTurn(1, 1, True, "")
    assert story.replace("ann", "Once", "b64") == SharedTurn(1, 2, True, "b64")
    assert story.data == "Once"
    assert not story.status("bob").is_idle  # ann was just here
    assert story.replace("bob", "Once upon", "b64", is_full=True) == SharedTurn(2, 1, False, "b64")
    now[0] = 7.0
    assert story.status("cy", is_busy=True).is_idle
    assert not story.status("").is_idle
    assert story.status("cy").is_idle


def test_players_are_not_remembered_without_end() -> None:
    story = SharedStory(lambda: 1.0)
    for n in range(1000):
        story.status(f"player {n}", is_busy=True)
    assert len(story._busy) == stories._MOST_PLAYERS


def test_the_story_to_begin_with(tmp_path: Path) -> None:
    assert Stories().preloaded == {}
    file = tmp_path / "story.json"
    file.write_text('{"prompt": "Once"}')
    assert Stories(preloaded=str(file)).preloaded == {"prompt": "Once"}
    for spoiled in (b"[1]", b"no", b"\xff", b""):
        file.write_bytes(spoiled)
        with pytest.raises(ConfigError, match="--preload-story"):
            Stories(preloaded=str(file))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Stories(preloaded=str(tmp_path / "missing"))


def test_the_folder_is_the_users_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Stories().slots.folder == tmp_path / "naiad" / "saves"
    assert Stories("/srv/saves").slots.folder == Path("/srv/saves")
