"""From timed bytes to what a stream was: pure, and run only after the streams have ended.

Reading nothing while a stream runs keeps the client cheap on the machine it shares with the server.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from naiad.bench.wire import Piece, Wire, error_message, read_line

#: Bytes of a body, and when they came.
TimedBytes = tuple[float, bytes]


class Outcome(enum.StrEnum):
    """How an exchange ended on the wire."""

    COMPLETE = "complete"
    CUT = "cut"  # the connection closed before the answer's end
    DROPPED = "dropped"  # the client hung up on purpose
    TIMEOUT = "timeout"  # the request's deadline passed
    UNREACHABLE = "unreachable"  # no connection
    BROKEN = "broken"  # what came is no HTTP


@dataclass(frozen=True, slots=True)
class Recording:
    """One exchange as it came over the wire; times are seconds of one clock."""

    started_at: float
    ended_at: float
    outcome: Outcome
    status: int = 0
    chunks: tuple[TimedBytes, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One stream as a client saw it.

    event_times: when each event that carries text came; fewer than tokens if the server merges.
    event_texts: what each of them said.
    n_tokens: by the server's own count when it gives one, else max_tokens when it says "length",
        else the number of events.
    n_prompt, n_cached: the prompt's tokens, and how many of them the server had computed before;
        None where it does not say.
    n_finishes: how many finish reasons the stream carried; one is right.
    """

    started_at: float
    ended_at: float
    event_times: tuple[float, ...] = ()
    event_texts: tuple[str, ...] = ()
    n_tokens: int = 0
    n_prompt: int | None = None
    n_cached: int | None = None
    finish: str | None = None
    n_finishes: int = 0
    error: str | None = None

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.event_texts)

    @property
    def is_failed(self) -> bool:
        """True when the stream ended with an error, was cut off, or said nothing."""
        return self.error is not None

    @property
    def ttft(self) -> float | None:
        """Seconds from just before the connection was opened to the first text."""
        return self.event_times[0] - self.started_at if self.event_times else None

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between one text event and the next."""
        return tuple(later - earlier for earlier, later in pairwise(self.event_times))

    @property
    def tail(self) -> float | None:
        """Seconds from the last text to the end of the answer."""
        return self.ended_at - self.event_times[-1] if self.event_times else None


def split_lines(chunks: Iterable[TimedBytes]) -> list[TimedBytes]:
    """Lines, each with the time of the chunk that completed it, wherever the chunks were cut."""
    lines: list[TimedBytes] = []
    rest = b""
    at = 0.0
    for at, data in chunks:
        *complete, rest = (rest + data).split(b"\n")
        lines.extend((at, line.rstrip(b"\r")) for line in complete)
    if rest:
        lines.append((at, rest.rstrip(b"\r")))
    return lines


def read_recording(recording: Recording, wire: Wire, max_tokens: int) -> StreamResult:
    """What the bytes of one exchange say."""
    timed = [(at, read_line(wire, line)) for at, line in split_lines(recording.chunks)]
    pieces = [(at, piece) for at, piece in timed if piece is not None]
    finishes = [piece.finish for _, piece in pieces if piece.finish]
    texts = [(at, piece.text) for at, piece in pieces if piece.text]
    said = [piece for _, piece in pieces]
    return StreamResult(
        started_at=recording.started_at,
        ended_at=recording.ended_at,
        event_times=tuple(at for at, _ in texts),
        event_texts=tuple(text for _, text in texts),
        n_tokens=_count(said, len(texts), max_tokens),
        n_prompt=_last(piece.prompt_tokens for piece in said),
        n_cached=_last(piece.cached_tokens for piece in said),
        finish=finishes[-1] if finishes else None,
        n_finishes=len(finishes),
        error=_problem(recording, said, len(finishes), wire),
    )


def _last(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return known[-1] if known else None


def _count(pieces: Sequence[Piece], n_events: int, max_tokens: int) -> int:
    told = _last(piece.completion_tokens for piece in pieces)
    if told is not None:
        return told
    reached_limit = any(piece.finish == "length" for piece in pieces)
    return max_tokens if reached_limit and n_events else n_events


def _problem(
    recording: Recording, pieces: Sequence[Piece], n_finishes: int, wire: Wire
) -> str | None:
    if recording.outcome is Outcome.DROPPED:
        return None
    if recording.outcome is not Outcome.COMPLETE:
        return recording.problem or recording.outcome.value
    if recording.status != 200:
        body = b"".join(data for _, data in recording.chunks)
        return f"HTTP {recording.status}: {error_message(body)}"
    errors = [piece.error for piece in pieces if piece.error]
    if errors:
        return errors[0]
    if n_finishes > 1 or (wire.needs_finish and not n_finishes):
        return f"{n_finishes} finish reasons in one stream"
    return None if any(piece.text for piece in pieces) else "no text"


def stale_streams(results: Sequence[StreamResult], markers: Sequence[str]) -> int:
    """How many streams carry another request's answer.

    A stream is stale when it names another request's marker and not its own, or when it is the
    previous answer again, all in one event: both are what a server does that hands out text which
    an earlier request left behind.
    """
    return sum(_is_stale(i, results, markers) for i in range(len(results)))


def _is_stale(i: int, results: Sequence[StreamResult], markers: Sequence[str]) -> bool:
    text = results[i].text.lower()
    if not text or results[i].is_failed:
        return False
    others = (marker for j, marker in enumerate(markers) if j != i)
    if markers[i] not in text and any(marker in text for marker in others):
        return True
    repeats = i > 0 and results[i].text == results[i - 1].text
    return repeats and len(results[i].event_times) == 1 and results[i - 1].n_tokens > 1


def lumped_streams(results: Sequence[StreamResult]) -> int:
    """How many answers of at least four tokens came in a single event: streaming in name only."""
    return sum(len(r.event_times) == 1 and r.n_tokens >= 4 for r in results)
