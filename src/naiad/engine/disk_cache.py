"""The disk tier of the prefix cache: saved blocks that outlive the process.

The engine's thread asks and hands over; a thread behind its back, which lives only while there is
something to write, does all else. Nothing that goes wrong here reaches a request: what cannot be
written is not kept, what cannot be read back whole is not there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from naiad.engine import disk_folder, disk_format
from naiad.engine.blocks import Entry
from naiad.engine.disk_format import Damaged
from naiad.engine.disk_scan import scan, unlink
from naiad.engine.write_behind import WriteBehind

logger = logging.getLogger(__name__)

S = TypeVar("S")

#: Bytes of state that wait to be written after memory has let go of them.
N_DETACHED_MOST = 256 << 20
#: More blocks are not kept: their headers are all read at the start, some 30 us each.
N_BLOCKS_MOST = 16_384
#: After a failure, nothing is written for so long.
PAUSE_S = 60.0
#: After this share of the bound was written, look again at what others have written.
_LOOK_AGAIN = 16


@dataclass(slots=True)
class _Pending(Generic[S]):
    """What waits to be written. replaces: files to delete once it is."""

    entry: Entry
    state: S
    is_detached: bool = False
    replaces: list[bytes] = field(default_factory=list)


class _Superseded(Exception):
    """What was being written is not to be kept any more."""


class DiskCache(Generic[S]):
    """Implements `naiad.engine.blocks.Store` over a folder. States must be buffers of bytes.

    Args:
        root: the cache folder, made when the first block is written.
        fingerprint: of all that a state depends on, N_KEY bytes; files of any other are not read.
        capacity: bytes that all files in the cache folder may take, those of others included.
        thaw: makes a state of the bytes that were read.
        about: what the folder belongs to, for people; see `disk_folder.write_about`.
    """

    def __init__(
        self,
        root: Path,
        fingerprint: bytes,
        capacity: int,
        thaw: Callable[[memoryview], S],
        about: Mapping[str, str],
    ) -> None:
        self.capacity = capacity
        self.folder = root / fingerprint.hex()
        self.n_bytes = 0
        self._root = root
        self._fingerprint = fingerprint
        self._thaw = thaw
        self._about = about
        self._lock = threading.RLock()  # over all below
        self._held: dict[bytes, int] = {}  # key -> bytes of the file, written or about to be
        self._pending: dict[bytes, _Pending[S]] = {}
        self._touched: dict[bytes, int] = {}
        self._n_detached = 0
        self._paused_until = 0.0
        self._has_warned = False
        self._n_foreign = 0  # bytes of other folders and servers when last looked
        self._n_since_look = capacity
        # Of keys: to write, or to delete when no longer held.
        self._behind = WriteBehind(self._do, self._apply_touches, self._pause)
        self._found = self._scan()

    # -- the engine's thread: see Store ----------------------------------------------------------

    def root_key(self, namespace: str) -> bytes:
        return disk_format.root_key(self._fingerprint, namespace)

    def block_key(self, parent: bytes, tokens: list[int]) -> bytes:
        return disk_format.block_key(parent, tokens)

    def entries(self) -> list[Entry]:
        found, self._found = self._found, []
        return found

    def has_room(self, n_bytes: int) -> bool:
        wanted = self.n_bytes + (n_bytes and n_bytes + disk_format.N_HEADER_MOST)
        return wanted <= self.capacity and len(self._held) + bool(n_bytes) <= N_BLOCKS_MOST

    def fits(self, n_bytes: int) -> bool:
        return n_bytes + disk_format.N_HEADER_MOST <= self.capacity

    def put(self, entry: Entry, state: S) -> bool:
        with self._lock:
            if time.monotonic() < self._paused_until:
                return False
            before = self._pending.get(entry.key)
            self._forget(entry.key)
            # Files that the one before was to replace are as superfluous once this one is written.
            replaces = before.replaces if before else []
            self._pending[entry.key] = _Pending(entry, state, replaces=replaces)
            self._hold(entry)
        self._behind.add(entry.key)
        return True

    def holds(self, key: bytes) -> bool:
        return key in self._held

    def detach(self, key: bytes) -> bool:
        with self._lock:
            pending = self._pending.get(key)
            if pending is not None and not pending.is_detached:
                if self._n_detached + pending.entry.n_bytes > N_DETACHED_MOST:
                    return False
                pending.is_detached = True
                self._n_detached += pending.entry.n_bytes
            return key in self._held

    def get(self, key: bytes) -> S | None:
        with self._lock:
            if key in self._pending:
                return self._pending[key].state
        path = self._path(key)
        try:
            data = _read_whole(path, self._held.get(key, 0))
            return self._thaw(disk_format.parse_file(data, key, self._fingerprint))
        except FileNotFoundError:
            logger.debug("%s is gone", path)  # another server, or `naiad cache --clear`
        except (OSError, Damaged) as error:
            logger.warning("a block of the disk cache cannot be used: %s: %s", path, error)
        self.remove(key)
        return None

    def remove(self, key: bytes) -> None:
        with self._lock:
            self._forget(key)
        self._behind.add(key)

    def replace(self, old: bytes, new: bytes) -> None:
        # Out of the books at once. Where `new` is never written, the file of `old` stays until the
        # next start, or until room is made of what nobody here knows.
        with self._lock:
            before, after = self._pending.get(old), self._pending.get(new)
            if after is None:
                self.remove(old)
                return
            after.replaces += [old, *(before.replaces if before else ())]
            self._forget(old)

    def touch(self, key: bytes, start: int) -> None:
        # A block is always a little older than those it continues, so that it goes before them.
        self._touched[key] = time.time_ns() - start

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is written, at most so long. False: not all of it was."""
        if self._touched:
            self._behind.start()
        return self._behind.finish(timeout_s)

    def _scan(self) -> list[Entry]:
        try:
            entries = scan(self.folder, self._fingerprint)
        except OSError as error:
            self._pause(error, float("inf"))
            return []
        for entry in entries:
            self._hold(entry)
        return entries

    # -- books, under the lock -------------------------------------------------------------------

    def _hold(self, entry: Entry) -> None:
        self._held[entry.key] = disk_format.n_file(entry)
        self.n_bytes += self._held[entry.key]

    def _forget(self, key: bytes) -> None:
        self.n_bytes -= self._held.pop(key, 0)
        self._forget_pending(key)

    def _forget_pending(self, key: bytes) -> None:
        pending = self._pending.pop(key, None)
        if pending is not None and pending.is_detached:
            self._n_detached -= pending.entry.n_bytes

    # -- behind the engine's back ----------------------------------------------------------------

    def _do(self, key: bytes) -> None:
        with self._lock:
            pending = self._pending.get(key)
            is_dropped = key not in self._held
        if pending is not None:
            self._write_block(pending)
            with self._lock:
                if self._pending.get(key) is pending:
                    self._forget_pending(key)
                    self._delete_dropped(pending.replaces)
        elif is_dropped:
            unlink(self._path(key))

    def _delete_dropped(self, keys: list[bytes]) -> None:
        for key in keys:
            if key not in self._held:
                unlink(self._path(key))

    def _write_block(self, pending: _Pending[S]) -> None:
        entry = pending.entry
        self._make_room(disk_format.n_file(entry))
        if entry.start and not self._path(entry.parent).exists():
            self._forget_what_is_gone(entry.key)
            return
        state = memoryview(pending.state).cast("B")  # type: ignore[arg-type]
        header = disk_format.pack_header(entry, self._fingerprint, state)
        if not self.folder.is_dir():
            disk_folder.make_private(self.folder)
            disk_folder.write_about(self.folder, self._about)
        with (
            contextlib.suppress(_Superseded),
            contextlib.ExitStack() as until_replaced,
            disk_folder.drafting(self._path(entry.key)) as descriptor,
        ):
            for data in (memoryview(header), state):
                _write_whole(descriptor, data)
            used_ns = time.time_ns() - entry.start
            os.utime(descriptor, ns=(used_ns, used_ns))
            until_replaced.enter_context(self._lock)
            if self._pending.get(entry.key) is not pending:
                raise _Superseded  # removed, or another thread wrote it while this one was stuck
        self._has_warned = False

    def _make_room(self, n_bytes: int) -> None:
        """Delete what belongs to nobody here before the whole cache folder outgrows the bound."""
        is_over = self.n_bytes + self._n_foreign > self.capacity
        if is_over or self._n_since_look * _LOOK_AGAIN >= self.capacity:
            n_allowed = max(self.capacity - self.n_bytes, 0)
            with self._lock:
                needed = set(self._held)
                needed.update(*(pending.replaces for pending in self._pending.values()))
            self._n_foreign = disk_folder.free(
                self._root, self.folder, needed.__contains__, n_allowed
            )
            self._n_since_look = 0
        self._n_since_look += n_bytes

    def _forget_what_is_gone(self, key: bytes) -> None:
        """Somebody deleted files, and with them the block before `key`: it would never be found.

        What is forgotten here is offered again with the next block that continues it.
        """
        there = {disk_folder.key_named(file.name) for file, _ in disk_folder.files(self.folder)}
        with self._lock:
            gone = self._held.keys() - there - self._pending.keys() | {key}
            for pending in self._pending.values():  # in order: a block after those it continues
                if pending.entry.parent in gone:
                    gone.add(pending.entry.key)
            for each in gone:
                self._forget(each)

    def _apply_touches(self) -> None:
        while True:
            try:
                key, used_ns = self._touched.popitem()
            except KeyError:  # no more of them; another thread may take some too
                return
            if key in self._held and key not in self._pending:
                try:
                    os.utime(self._path(key), ns=(used_ns, used_ns))
                except OSError as error:
                    logger.debug("%s: %s", self._path(key), error)

    def _pause(self, error: Exception, seconds: float = PAUSE_S) -> None:
        """Give up what waits to be written, and write nothing for a while."""
        level = logging.DEBUG if self._has_warned else logging.WARNING
        logger.log(level, "the disk cache cannot be written to %s: %s", self.folder, error)
        with self._lock:
            self._has_warned = True
            self._paused_until = time.monotonic() + seconds
            for key in list(self._pending):
                self._forget(key)

    def _path(self, key: bytes) -> Path:
        return self.folder / disk_folder.block_name(key)


def _read_whole(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise Damaged("its length is not the one it had")
        return file.read()


def _write_whole(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
