"""Documents that callers leave with the server: answers to be asked for again. In SQLite.

Each belongs to a key, and no other key can read it. There is a bound to how many there are, how old
they get and how much room they take; the oldest go first. All work on the file is done in a thread
of its own, never on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from naiad.types import Caller

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    owner TEXT NOT NULL, id TEXT NOT NULL, saved_at REAL NOT NULL, size INTEGER NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY (owner, id)
);
CREATE INDEX IF NOT EXISTS documents_by_age ON documents (saved_at);
"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """n_most: documents; days: since they were saved; n_bytes: all together."""

    n_most: int = 10_000
    days: float = 30.0
    n_bytes: int = 512 << 20


class Documents:
    """Saves, loads and deletes. `close` at the end.

    Args:
        path: of the file, made with mode 0600; None: in memory, gone with the process. A file that
            cannot be used is replaced by memory, with a warning.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        path: Path | None = None,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._thread: ThreadPoolExecutor | None = None  # made when first needed
        self._db: sqlite3.Connection | None = None

    async def save(self, caller: Caller, key: str, data: bytes) -> None:
        """Keep a document, in the place of one of the same key. What fails is logged only."""
        try:
            await self._do(lambda db: self._save(db, caller.namespace, key, data))
        except sqlite3.Error as error:
            logger.warning("an answer could not be kept: %s", error)

    async def load(self, caller: Caller, key: str) -> bytes | None:
        """A document of this caller; None when there is none."""
        oldest = self._clock() - self._bounds.days * 86_400

        def find(db: sqlite3.Connection) -> bytes | None:
            wanted = (caller.namespace, key, oldest)
            query = "SELECT data FROM documents WHERE owner = ? AND id = ? AND saved_at >= ?"
            row = db.execute(query, wanted).fetchone()
            return None if row is None else bytes(row[0])

        return await self._do(find)

    async def delete(self, caller: Caller, key: str) -> bool:
        """True when there was one."""

        def drop(db: sqlite3.Connection) -> bool:
            query = "DELETE FROM documents WHERE owner = ? AND id = ?"
            return db.execute(query, (caller.namespace, key)).rowcount > 0

        return await self._do(drop)

    async def close(self) -> None:
        """Finish what was begun. Safe to call twice."""
        if self._thread is None:
            return
        if self._db is not None:
            await self._do(lambda db: db.close())
            self._db = None
        self._thread.shutdown()
        self._thread = None

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "naiad-documents")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._on_file, work)

    # -- in the thread -----------------------------------------------------------------------------

    def _on_file(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._db is None:
            self._db = self._open()
        return work(self._db)

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            try:
                return _open_file(self._path)
            except (OSError, sqlite3.Error) as error:
                logger.warning(
                    "answers are kept in memory only: %s cannot be used (%s)", self._path, error
                )
        return _with_tables(sqlite3.connect(":memory:", isolation_level=None))

    def _save(self, db: sqlite3.Connection, owner: str, key: str, data: bytes) -> None:
        now = self._clock()
        row = (owner, key, now, len(data), data)
        db.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)", row)
        oldest = now - self._bounds.days * 86_400
        db.execute("DELETE FROM documents WHERE saved_at < ?", (oldest,))
        n, n_bytes = db.execute("SELECT COUNT(*), TOTAL(size) FROM documents").fetchone()
        while n > self._bounds.n_most or (n > 1 and n_bytes > self._bounds.n_bytes):
            query = "SELECT rowid, size FROM documents ORDER BY saved_at, rowid LIMIT 1"
            rowid, size = db.execute(query).fetchone()
            db.execute("DELETE FROM documents WHERE rowid = ?", (rowid,))
            n, n_bytes = n - 1, n_bytes - size


def _open_file(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)  # also of a file that was there; SQLite's own files beside it follow it
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = ON")  # what was deleted is not left in the file
        return _with_tables(db)
    except BaseException:
        db.close()
        raise


def _with_tables(db: sqlite3.Connection) -> sqlite3.Connection:
    db.executescript(_SCHEMA)
    return db
