"""The log: one line per event on standard error, for people or as JSON."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any, TextIO

#: What every record has; the rest was passed as `extra` and belongs into a JSON line.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A JSON object per line: time (UTC), level, logger, message, and what `extra` held."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in _USUAL}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A line for people: time of day, level, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        extra = {k: v for k, v in vars(record).items() if k not in _USUAL}
        told = " ".join(f"{key}={value}" for key, value in extra.items())
        return super().format(record) + (f" ({told})" if told else "")


class StandardError(logging.StreamHandler[TextIO]):
    """Standard error as it is when a line comes: a bar that is being drawn takes it over."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def start_logging(level: str, *, as_json: bool) -> None:
    """Send the log of the whole process to standard error; replaces what was set up before.

    Args:
        level: debug, info, warning or error.
        as_json: JSON lines instead of text.
    """
    handler = StandardError()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The server's own start and stop lines say what `naiad serve` says better.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, root.level))
