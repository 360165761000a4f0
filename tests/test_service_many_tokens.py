"""Batches of several tokens, as drafts and slow readers make them: text, stops and counts."""

from __future__ import annotations

import asyncio

import pytest

from fakes import ALICE, FakeEngine, make_service, request, silent
from naiad.types import FinishReason

TEXT = "one 語🙂 two END three"


@pytest.mark.parametrize("size", [1, 2, 5, 9, 99])
@pytest.mark.parametrize("stop", ["", "END", "🙂 t"])
async def test_text_stops_and_counts_are_the_same_however_tokens_come(size: int, stop: str) -> None:
    """A token is a byte here, so batches end inside characters and inside stop strings."""
    engine, data = FakeEngine(silent), TEXT.encode()
    stops = (stop,) if stop else ()
    async with make_service(engine).generate(request(stop=stops), ALICE) as generation:
        stream, reading = engine.streams[1], asyncio.create_task(generation.whole())
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            stream.put(piece, n_tokens=len(piece))
            for _ in range(3):
                await asyncio.sleep(0)  # the reader takes it
        stream.end(FinishReason.LENGTH)
        completion = await reading
    before, _, after = TEXT.partition(stop) if stop else (TEXT, "", "")
    assert completion.text == before
    assert completion.finished.matched_stop == (stop or None)
    n_before = len(data) - len(after.encode())  # with the stop, without what came after it
    assert completion.finished.usage.completion_tokens == n_before
    assert engine.aborted == ([1] if stop else [])
