"""One generation: batches of token bytes in, text events out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec

from naiad.chat.channels import Channels
from naiad.chat.output import CallEvent
from naiad.client.base import TokenBatch, TokenStream
from naiad.errors import EngineFailed, NaiadError
from naiad.service.admission import Place
from naiad.service.logprobs import Alignment, ChannelAlignment
from naiad.service.registry import Entry
from naiad.text import StreamText
from naiad.types import (
    Completion,
    Finished,
    FinishReason,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)


class Generation:
    """The events of one accepted request: perhaps Progress, then any number of TextDelta (and, with
    channels, ReasoningDelta and ToolCallDelta), then exactly one Finished.

    Iterate it once; `started` is known from the beginning. The text is assembled here: split
    characters are joined, and a stop string ends the stream and the engine's work.
    """

    __slots__ = (
        "_abort",
        "_alignment",
        "_answer_ids",
        "_began",
        "_channel_alignment",
        "_channels",
        "_cut_off",
        "_end",
        "_entry",
        "_first_text",
        "_has_stops",
        "_is_answering",
        "_is_over",
        "_keeps_stop",
        "_logprobs",
        "_n_cached",
        "_n_held",
        "_n_tokens",
        "_n_unstopped",
        "_place",
        "_prompt_began",
        "_prompt_ids",
        "_settled",
        "_stream",
        "_text",
        "_untaken",
        "finished",
        "started",
    )

    def __init__(
        self,
        stream: TokenStream,
        stops: tuple[str, ...],
        entry: Entry,
        place: Place,
        abort: Callable[[int], None],
        channels: Channels | None = None,
        *,
        keeps_stop: bool = False,
        has_logprobs: bool = False,
        echo: str = "",
        n_unstopped: int = 0,
        prompt_ids: tuple[int, ...] | None = None,
    ) -> None:
        """n_unstopped: tokens within which no stop string ends it."""
        self.started = Started(n_prompt=stream.n_prompt, echo=echo)
        self.finished: Finished | None = None  # set as soon as the end is known
        self._stream = stream
        self._text = StreamText(stops)
        self._has_stops = any(stops)
        self._keeps_stop = keeps_stop
        self._channels = channels
        self._alignment = Alignment() if has_logprobs else None
        self._channel_alignment = ChannelAlignment()
        self._logprobs: tuple[TokenLogprob, ...] = ()  # of the text that was just released
        self._cut_off: tuple[TokenLogprob, ...] = ()  # of a character that the end has cut off
        self._is_answering = channels is None or channels.begins_with_text
        self._n_unstopped = n_unstopped
        self._settled: deque[CallEvent] = deque()  # events of the channels, not yet handed out
        self._untaken: deque[TokenBatch] = deque()  # of a batch that is taken token by token
        self._entry = entry
        self._place = place
        self._prompt_ids = prompt_ids  # None: nobody wants to know the tokens
        self._answer_ids: list[int] = []
        self._abort = abort
        self._end: Finished | None = None  # known, not yet handed out
        self._is_over = False
        self._n_tokens = 0  # chosen by the engine so far
        self._n_held = 0  # of those, not yet told in a delta
        self._n_cached = 0
        self._began = self._prompt_began = time.monotonic()
        self._first_text: float | None = None
        entry.attach(self._stop)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Progress | CallEvent | Finished:
        if self._settled:
            return self._next_settled()
        while self._end is None:
            if self._is_over:
                raise StopAsyncIteration
            batch = await self._next_batch()
            if batch.progress is not None:
                return self._progressed(batch.progress)
            text = self._take(batch)
            if self._channels is not None:
                if self._settle(text, self._channels):
                    return self._next_settled()
            elif text or self._cut_off:
                return self._delta(text)
        end, self._end, self._is_over = self._end, None, True
        return end

    async def whole(self) -> Completion:
        """The fold of all events."""
        parts: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCall] = []
        logprobs: list[TokenLogprob] = []
        n_reasoning = 0
        async for event in self:
            if isinstance(event, TextDelta):
                parts.append(event.text)
                logprobs += event.logprobs
            elif isinstance(event, ReasoningDelta):
                reasoning.append(event.text)
                n_reasoning += event.n_tokens
            elif isinstance(event, ToolCallDelta):
                _add_to(calls, event)
            elif isinstance(event, Finished):
                return Completion(
                    "".join(parts),
                    event,
                    "".join(reasoning),
                    tuple(calls),
                    tuple(logprobs),
                    self.started.echo,
                    n_reasoning,
                )
        raise RuntimeError("the stream had been read to its end before")

    def close(self) -> None:
        """Stop the engine's work unless it is done. Safe to call twice."""
        if self.finished is None:
            self._stop()

    @property
    def usage(self) -> Usage:
        """What was counted so far."""
        return self._usage()

    def outcome(self) -> Finished:
        """How it ended; one that was left before its end counts as cancelled."""
        return self.finished or Finished(FinishReason.CANCELLED, self._usage())

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds from acceptance to the first text, and from there until now."""
        now = time.monotonic()
        first = self._first_text if self._first_text is not None else now
        return first - self._began, now - first

    def _stop(self) -> None:
        self._abort(self._stream.uid)

    async def _next_batch(self) -> TokenBatch:
        """What the engine brought; token by token where a call may end the answer, so that what
        came behind the call's end is neither counted nor told, however tokens came.
        """
        if not self._untaken:
            batch = await self._stream.get()
            if self._channels is None or not self._channels.has_limit or not batch.sizes:
                return batch
            self._untaken.extend(_one_by_one(batch))
        return self._untaken.popleft()

    def _progressed(self, told: Progress) -> Progress:
        """What the engine told, with the times that only the front knows."""
        now = time.monotonic()
        if told.position is None:
            prompt_s = now - self._prompt_began
            progress = msgspec.structs.replace(told, prompt_s=prompt_s)
        else:
            self._prompt_began = now  # it still waits: its prompt begins later
            progress = msgspec.structs.replace(told, eta_s=self._place.eta_s(told.position))
        self._entry.progress = progress
        return progress

    def _take(self, batch: TokenBatch) -> str:
        """Account for a batch and return the text that it releases."""
        if batch.n_cached:
            self._n_cached = batch.n_cached
        n_before = self._n_tokens
        text, stop = self._feed(batch)
        n_tokens = self._n_tokens - n_before
        self._n_held += n_tokens
        if self._prompt_ids is not None:
            self._answer_ids += batch.tokens[:n_tokens]
        if stop is not None:
            if batch.finish is None:
                self._stop()
            self._finish(FinishReason.STOP, stop)
            text += stop if self._keeps_stop else ""
        elif batch.finish is not None:
            text += self._text.finish()
            text += (self._text.matched or "") if self._keeps_stop else ""
            self._finish_as(batch.finish, batch.error)
        if self._alignment is not None:
            for told in batch.logprobs:
                self._alignment.begins(told)
            self._logprobs = self._alignment.released(text)
            if self.finished is not None and self.finished.reason is FinishReason.LENGTH:
                self._cut_off = self._alignment.rest()
        return text

    def _feed(self, batch: TokenBatch) -> tuple[str, str | None]:
        """The text that a batch releases, and the stop string that ended it.

        Where there are stop strings, token by token: what a step or a slow reader brought beyond
        the end does not count, so counts do not depend on how tokens came.
        """
        text = ""
        for n_tokens, data in _pieces(batch, apart=self._has_stops):
            self._n_tokens += n_tokens
            more, stop = self._text.feed(data, may_stop=self._n_tokens > self._n_unstopped)
            text += more
            if stop is not None:
                return text, stop
        return text, None

    def _finish_as(self, reason: FinishReason, error: NaiadError | None) -> None:
        """End as the engine says, unless the text that was held back made up a stop after all."""
        if reason is FinishReason.ERROR:
            self._finish(reason, error=error or EngineFailed("The engine failed on this request."))
        elif self._text.matched is not None and reason is not FinishReason.CANCELLED:
            self._finish(FinishReason.STOP, self._text.matched)
        else:
            self._finish(reason)

    def _finish(
        self, reason: FinishReason, stop: str | None = None, error: NaiadError | None = None
    ) -> None:
        self._end = self.finished = Finished(
            reason,
            self._usage(),
            stop,
            error,
            context=(*self._prompt_ids, *self._answer_ids) if self._prompt_ids else (),
            timings=Timings(*self.seconds),
        )
        self._entry.is_finished = True

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.started.n_prompt,
            completion_tokens=self._n_tokens,
            cached_tokens=self._n_cached,
            dropped_tokens=self._stream.n_dropped,
        )

    def _delta(self, text: str) -> TextDelta:
        self._note(text)
        n_tokens, self._n_held = self._n_held, 0
        told = self._logprobs + self._cut_off
        if self._entry.logprobs is not None:
            self._entry.logprobs += told
        return TextDelta(text, n_tokens, told)

    def _settle(self, text: str, channels: Channels) -> bool:
        """Tell the text's channels apart; True when there are events to hand out."""
        if text:
            self._note(text)
            self._channel_alignment.begins(self._logprobs)
            self._settle_events(channels.feed(text, self._n_held))
            if channels.is_over:
                self._finish_with_call()
        if self._end is not None:
            self._settle_events(channels.finish(self._n_held))
            if self._cut_off and self._is_answering:
                self._settled.append(TextDelta("", 0, self._cut_off))
            self._end = self.finished = replace(self._end, n_tool_calls=channels.n_calls)
        if self._settled:
            self._n_held = 0
        return bool(self._settled)

    def _finish_with_call(self) -> None:
        """The answer ends with its call, whatever the engine has made beyond it."""
        if self._end is None:
            self._stop()
            self._finish(FinishReason.STOP)
        elif self._end.reason in {FinishReason.STOP, FinishReason.LENGTH}:
            self._finish(FinishReason.STOP)

    def _settle_events(self, events: list[CallEvent]) -> None:
        if self._alignment is None:
            self._settled += events
            return
        for event in events:
            self._is_answering = isinstance(event, TextDelta)
            if isinstance(event, TextDelta | ReasoningDelta):
                told = self._channel_alignment.told(event.text)
                self._settled.append(msgspec.structs.replace(event, logprobs=told))
            else:
                self._settled.append(event)

    def _next_settled(self) -> CallEvent:
        event = self._settled.popleft()
        if isinstance(event, TextDelta):  # what the user reads, without marks and reasoning
            self._entry.pieces.append(event.text)
            if self._entry.logprobs is not None:
                self._entry.logprobs += event.logprobs
        return event

    def _note(self, text: str) -> None:
        if self._first_text is None:
            self._first_text = time.monotonic()
            self._entry.progress = None
            self._place.started()
        if self._channels is None:
            self._entry.pieces.append(text)


def _pieces(batch: TokenBatch, *, apart: bool) -> Iterator[tuple[int, bytes]]:
    """(tokens, their bytes): each for itself, or all at once."""
    at = 0
    sizes = batch.sizes[:-1] if apart else ()
    for size in sizes:
        yield 1, batch.data[at : at + size]
        at += size
    yield len(batch.tokens) - len(sizes), batch.data[at:]


def _one_by_one(batch: TokenBatch) -> Iterator[TokenBatch]:
    """A batch for each token that has a size; the last has the rest and the end."""
    at, last = 0, len(batch.sizes) - 1
    for place, size in enumerate(batch.sizes[:-1]):
        tokens, told = batch.tokens[place : place + 1], batch.logprobs[place : place + 1]
        yield TokenBatch(tokens, batch.data[at : at + size], batch.n_cached, logprobs=told)
        at += size
    yield msgspec.structs.replace(
        batch,
        tokens=batch.tokens[last:],
        data=batch.data[at:],
        logprobs=batch.logprobs[last:],
        sizes=batch.sizes[last:],
    )


def _add_to(calls: list[ToolCall], piece: ToolCallDelta) -> None:
    if piece.is_first:
        calls.append(ToolCall(piece.id, piece.name, piece.arguments))
    else:
        calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.arguments)
