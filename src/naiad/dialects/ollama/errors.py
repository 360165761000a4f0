"""Ollama's error envelope."""

from __future__ import annotations

from typing import Any

from naiad.errors import NaiadError


def error_body(error: NaiadError) -> Any:
    """{"error": message}, and nothing else: its clients show the text."""
    return {"error": error.message}
