"""Which marks of a model's answers are control tokens: those have no text unless asked for."""

from __future__ import annotations

from collections.abc import Sequence

from naiad.client.base import EngineClient
from naiad.types import ModelInfo

#: Marks that are remembered; clients' stop strings may be any.
MOST_KNOWN = 1024
MAX_MARK_CHARS = 64


def may_be_control(text: str) -> bool:
    """Whether a text is written as control tokens are: <...> or [...]."""
    return 2 < len(text) <= MAX_MARK_CHARS and (text[0] + text[-1]) in {"<>", "[]"}


class Controls:
    """Asks the engine once for each mark and model."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._model: ModelInfo | None = None
        self._known: dict[str, int | None] = {}

    async def ids(self, marks: Sequence[str], model: ModelInfo) -> dict[str, int]:
        """The token ids of those marks that are control tokens of the loaded model."""
        if model is not self._model:
            self._model, self._known = model, {}
        if len(self._known) + len(marks) > MOST_KNOWN:
            self._known = {}
        known = self._known
        for mark in marks:
            if mark not in known:
                known[mark] = await self._ask(mark)
        return {mark: found for mark in marks if (found := known[mark]) is not None}

    async def _ask(self, mark: str) -> int | None:
        ids = await self._engine.tokenize(mark, add_special=False, parse_special=True)
        if len(ids) != 1 or await self._engine.detokenize(ids, special=False):
            return None
        return ids[0]
