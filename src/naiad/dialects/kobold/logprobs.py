"""Logprobs as KoboldCpp tells them: OpenAI's two shapes in one, and token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from naiad.dialects.logprobs import entries
from naiad.dialects.openai.logprobs import TextLogprobs
from naiad.types import TokenLogprob

#: How many of the likeliest tokens `"logprobs": true` asks for.
TRUE_MEANS = 10


class KoboldLogprobs:
    """Of one answer, whose offsets it counts."""

    def __init__(self) -> None:
        self._lists = TextLogprobs()

    def shape(self, told: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Of the next tokens."""
        lists = self._lists.shape(told)
        content = [
            {**one, "token_id": token.token} for one, token in zip(entries(told), told, strict=True)
        ]
        return {"content": content, "token_ids": [one.token for one in told], **lists}
