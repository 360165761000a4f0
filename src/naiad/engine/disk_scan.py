"""Opening a cache folder: every block's header is read, what cannot be used is deleted."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from naiad.engine import disk_folder, disk_format
from naiad.engine.blocks import Entry
from naiad.engine.disk_format import Damaged

logger = logging.getLogger(__name__)


def scan(folder: Path, fingerprint: bytes) -> list[Entry]:
    """The blocks in a fingerprint's folder, as far as their headers tell; none if there is none.

    Files that are no block's and no draft's are left alone. Raises OSError when the folder is not
    this user's.
    """
    if not folder.is_dir():
        return []
    disk_folder.make_private(folder)
    found = [_look_at(file, status, fingerprint) for file, status in disk_folder.files(folder)]
    return [entry for entry in found if entry is not None]


def _look_at(file: os.DirEntry[str], status: os.stat_result, fingerprint: bytes) -> Entry | None:
    key = disk_folder.key_named(file.name)
    try:
        if key is not None:
            head = _read_head(file.path)
            return disk_format.parse_header(
                head, key, fingerprint, status.st_size, status.st_mtime_ns
            )
        if not disk_folder.is_left_behind(file.name, status.st_mtime):
            return None
    except FileNotFoundError:
        return None
    except (OSError, Damaged) as error:
        logger.info("removed from the disk cache: %s: %s", file.path, error)
    unlink(Path(file.path))
    return None


def _read_head(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        head = os.read(descriptor, disk_format.N_HEADER_MOST)
        n_more = disk_format.n_header_of(head) - len(head)
        n_left = os.fstat(descriptor).st_size - len(head)
        return head + os.read(descriptor, max(0, min(n_more, n_left)))
    finally:
        os.close(descriptor)


def unlink(path: Path) -> None:
    """Delete a file; one that is gone or cannot be deleted is no error."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("%s cannot be deleted: %s", path, error)
