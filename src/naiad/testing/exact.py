"""The check that all stream tests share: the answer is exactly this text, and ends exactly once."""

from __future__ import annotations

from dataclasses import dataclass

from naiad.client.base import EngineClient, Job, TokenStream
from naiad.errors import NaiadError
from naiad.testing.scripted import expected_text
from naiad.types import FinishReason, SamplingParams


@dataclass(frozen=True, slots=True)
class Answer:
    """A stream, read to its end."""

    tokens: tuple[int, ...]
    data: bytes
    num_batches: int
    finish: FinishReason
    error: NaiadError | None


async def read_all(stream: TokenStream) -> Answer:
    """Read a stream until its terminal batch."""
    tokens: list[int] = []
    data = bytearray()
    num_batches = 0
    while True:
        batch = await stream.get()
        tokens += batch.tokens
        data += batch.data
        num_batches += 1
        if batch.finish is not None:
            return Answer(tuple(tokens), bytes(data), num_batches, batch.finish, batch.error)


def exact_job(prompt: str, n: int) -> Job:
    """Exactly n tokens, whatever the model's own idea of an end."""
    return Job(prompt, n, SamplingParams(temperature=0, ignore_eos=True))


async def check_exact(
    engine: EngineClient, prompt: str, n: int, *, expected: str | None = None
) -> None:
    """Run one stream of n tokens; AssertionError unless each is there, once, and in its place.

    expected: the text that must come; the scripted engine's when not given.
    """
    answer = await read_all(await engine.submit(exact_job(prompt, n)))
    assert answer.finish is FinishReason.LENGTH, answer
    assert answer.data.decode() == (expected or expected_text(prompt, n)), prompt
    assert len(answer.tokens) == n
