"""Stories that clients keep on the server: save slots, one to begin with, one that is shared.

They are KoboldCpp's: whoever may use the server may read and replace them, as its clients expect.
What the text holds is the clients' business (mostly a compressed story).
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from naiad.errors import ConfigError, InternalError, InvalidRequest
from naiad.types import SavedStory, SharedTurn

log = logging.getLogger(__name__)

N_SLOTS = 12
MAX_SAVED_CHARS = 10 * 1024 * 1024
MAX_SHARED_CHARS = 3 * 1024 * 1024
MAX_PRELOADED_BYTES = 32 * 1024 * 1024

_BUSY_S = 6.0  # a player who said less than this long ago to be writing still is
_MOST_PLAYERS = 256


class SaveSlots:
    """Save slots 0 to 11, a file each: one line of JSON (title and format), then the story.

    Files are replaced as a whole, so a crash leaves the old story or the new one. They are for the
    server's user alone. Nothing is kept in memory, and the folder is made when it is needed.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: None for one in the user's data folder."""
        self._chosen = folder
        self._lock = asyncio.Lock()

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        if self._chosen is None:
            import platformdirs

            self._chosen = Path(platformdirs.user_data_dir("naiad")) / "saves"
        return self._chosen

    async def titles(self) -> list[str]:
        """The title of each slot; "" for an empty one."""
        return await asyncio.to_thread(lambda: [self._title(slot) for slot in range(N_SLOTS)])

    async def load(self, slot: int) -> SavedStory | None:
        """The story in a slot; None when there is none."""
        return await asyncio.to_thread(self._read, slot) if 0 <= slot < N_SLOTS else None

    async def save(self, slot: int, story: SavedStory | None) -> None:
        """Replace what a slot holds; None empties it.

        Raises InvalidRequest for a slot that does not exist or a story that is too long,
        InternalError when the disk refuses.
        """
        if not 0 <= slot < N_SLOTS:
            raise InvalidRequest(
                f"'slot' must be from 0 to {N_SLOTS - 1}, not {slot}.", param="slot"
            )
        if story is not None and len(story.data) > MAX_SAVED_CHARS:
            raise too_long(len(story.data), MAX_SAVED_CHARS)
        async with self._lock:
            try:
                await asyncio.to_thread(self._write, slot, story)
            except OSError as error:
                log.error("the story of slot %d was not saved: %s", slot, error)
                raise InternalError(
                    f"The story could not be saved: {error.strerror or 'the disk failed'}."
                ) from None

    def _path(self, slot: int) -> Path:
        return self.folder / f"slot-{slot}.story"

    def _title(self, slot: int) -> str:
        try:
            with self._path(slot).open("rb") as file:
                return _head(file.readline()).title
        except FileNotFoundError:
            return ""
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("save slot %d cannot be read: %s", slot, error)
            return ""

    def _read(self, slot: int) -> SavedStory | None:
        try:
            head, _, data = self._path(slot).read_bytes().partition(b"\n")
            return msgspec.structs.replace(_head(head), data=data.decode())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("save slot %d cannot be read: %s", slot, error)
            return None

    def _write(self, slot: int, story: SavedStory | None) -> None:
        if story is None:
            self._path(slot).unlink(missing_ok=True)
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        head = msgspec.json.encode(msgspec.structs.replace(story, data=""))
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:  # mode 0600
            try:
                file.write(head + b"\n" + story.data.encode())
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(self._path(slot))
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


def _head(line: bytes) -> SavedStory:
    return msgspec.json.decode(line, type=SavedStory)


class SharedStory:
    """One story that several players write in turns. In memory only.

    A client sends the whole story after each turn; the counters tell the others to fetch it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.data = ""
        self._clock = clock
        self._turn_major = 1
        self._turn_minor = 1
        self._data_format = ""
        self._busy: dict[str, float] = {}  # player -> when last seen to write, oldest first

    def status(self, sender: str, *, is_busy: bool = False) -> SharedTurn:
        """Whose turn it is, as this player sees it. is_busy: this player is writing."""
        if sender and is_busy:
            self._saw(sender)
        since = self._clock() - _BUSY_S
        others = (when for player, when in self._busy.items() if player != sender)
        is_idle = not any(when > since for when in others)
        return SharedTurn(self._turn_major, self._turn_minor, is_idle, self._data_format)

    def replace(
        self, sender: str, data: str, data_format: str, *, is_full: bool = False
    ) -> SharedTurn:
        """The story as it is after this player's turn. is_full: all of it changed.

        Raises InvalidRequest for a story that is too long.
        """
        if len(data) > MAX_SHARED_CHARS:
            raise too_long(len(data), MAX_SHARED_CHARS)
        self.data, self._data_format = data, data_format
        if is_full:
            self._turn_major, self._turn_minor = self._turn_major + 1, 1
        else:
            self._turn_minor += 1
        return self.status(sender, is_busy=True)

    def _saw(self, player: str) -> None:
        self._busy.pop(player, None)
        self._busy[player] = self._clock()
        while len(self._busy) > _MOST_PLAYERS:
            del self._busy[next(iter(self._busy))]


class Stories:
    """All of them.

    Args:
        folder: of the save slots; None for one in the user's data folder.
        preloaded: path of a story, as JSON, that clients open at first.
        is_shared: players may share one story.

    Raises ConfigError when the story to open at first cannot be read.
    """

    def __init__(
        self, folder: str | None = None, preloaded: str | None = None, *, is_shared: bool = False
    ) -> None:
        self.slots = SaveSlots(Path(folder).expanduser().absolute() if folder else None)
        self.preloaded: Any = _preloaded(Path(preloaded).expanduser()) if preloaded else {}
        self.shared = SharedStory() if is_shared else None


def _preloaded(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_PRELOADED_BYTES:
            raise ConfigError(f"--preload-story: {path} is larger than 32 MiB.")
        story = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--preload-story: {path} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ConfigError(f"--preload-story: {path} holds no JSON.") from None
    if not isinstance(story, dict):
        raise ConfigError(f"--preload-story: {path} must hold a JSON object.")
    return story


def too_long(n_chars: int, most: int) -> InvalidRequest:
    """The refusal of a story."""
    return InvalidRequest(
        f"'data' must have at most {most} characters, not {n_chars}.", param="data"
    )
