"""A record of every token at the moment it is chosen, to compare with what clients received."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from naiad.engine.base import CoreJob
from naiad.ipc.messages import StreamItem


class Journal:
    """JSON lines: {uid, prompt} when a job enters, {uid, seq, tokens, finish} for each item."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def job_added(self, job: CoreJob) -> None:
        self._write({"uid": job.uid, "prompt": job.prompt})

    def item_made(self, item: StreamItem) -> None:
        line = {"uid": item.uid, "seq": item.seq, "tokens": item.tokens, "finish": item.finish}
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
