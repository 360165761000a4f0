"""What a model's text means: reasoning, answer and tool calls, told apart while it streams. Pure.

Which tags mark the reasoning is read off the model's chat template: what the template shows in
old turns is what the model was trained to write.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from naiad.chat.harmony import ANSWER, OPENING, is_harmony, read_harmony
from naiad.chat.harmony import MARKS as HARMONY_MARKS
from naiad.chat.output import CallEvent, Output, random_id
from naiad.chat.source import Reading, Source
from naiad.chat.tool_formats import PLAIN, ToolFormat, format_of
from naiad.types import ChatPrompt, ReasoningDelta, TextDelta


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What stands before and behind a model's reasoning.

    token: the opening's first token, where it is not all of it.
    """

    opening: str
    closing: str
    token: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """What is a control token in some models, and must show as text then."""
        return (self.token or self.opening, self.closing)


#: The first whose opening or closing tag a template shows is the model's.
TAGS = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("<|channel>thought", "<channel|>", "<|channel>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningTags("<thinking>", "</thinking>"),
)
#: What an answer in that form may have before what the caller asked for.
_HARMONY = ReasoningTags(OPENING, ANSWER)


def tags_of(template: str | None) -> ReasoningTags | None:
    """The tags of a model's reasoning; None when its template shows none that are known.

    Models of the harmony form have none: what they write is more than tags around reasoning.
    """
    if is_harmony(template):
        return None
    shown = template or ""
    return next((one for one in TAGS if one.opening in shown or one.closing in shown), None)


class Channels:
    """One answer's text in, events out; whatever the pieces, the events say the same.

    Args:
        tags: of the reasoning, which may stand at the beginning; None: all is text.
        begins_inside: the prompt has opened the reasoning already.
        tools: how calls look; None: no calls.
        names: of the tools that may be called.
        max_calls: after so many the answer is over; None: no limit.
        hidden: control tokens that show for the parsers' sake, and to nobody else.
        harmony: the answer has that form; begins_inside then means inside its final message.
        is_split: reasoning is told apart in that form. is_forced: calls are its final message.
        new_id: makes an id for a call.

    begins_with_text: the first that comes is text of the answer, unless its marks say otherwise.
    """

    def __init__(
        self,
        tags: ReasoningTags | None,
        *,
        begins_inside: bool = False,
        tools: ToolFormat | None = None,
        names: frozenset[str] = frozenset(),
        max_calls: int | None = None,
        hidden: Sequence[str] = (),
        harmony: bool = False,
        is_split: bool = True,
        is_forced: bool = False,
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self._source = Source()
        self._output = Output(new_id, max_calls, hidden)
        self._tags = tags
        self._tools = tools
        self._names = names
        self._is_split = is_split
        self._is_forced = is_forced
        self.begins_with_text = not (begins_inside or harmony or is_forced)
        self._run = self._harmony(begins_inside) if harmony else self._read(begins_inside)

    @property
    def n_calls(self) -> int:
        """Tool calls begun so far."""
        return self._output.n_calls

    @property
    def has_limit(self) -> bool:
        """True when a call may end the answer."""
        return self._output.has_limit

    @property
    def is_over(self) -> bool:
        """True when as many calls are complete as are wanted."""
        return self._output.is_full

    def feed(self, text: str, n_tokens: int) -> list[CallEvent]:
        """The events that this text settles; the first text among them carries n_tokens."""
        self._source.text += text
        return self._resume(n_tokens)

    def finish(self, n_tokens: int = 0) -> list[CallEvent]:
        """The events of what was held back. Nothing may be fed afterwards."""
        self._source.has_ended = True
        events = self._resume(n_tokens)
        self._output.close()
        return events + self._output.take()

    def _resume(self, n_tokens: int) -> list[CallEvent]:
        next(self._run, None)
        events = self._output.take()
        for place, event in enumerate(events):
            if isinstance(event, TextDelta | ReasoningDelta):
                events[place] = msgspec.structs.replace(event, n_tokens=n_tokens)
                break
        return events

    def _read(self, begins_inside: bool) -> Reading[None]:
        if self._tags is not None:
            yield from self._reasoning(self._tags, begins_inside)
        if self._tools is not None:
            yield from self._tools.read(self._source, self._output, self._names)
        yield from self._source.rest(self._output.text)

    def _harmony(self, begins_inside: bool) -> Reading[None]:
        output = self._output
        yield from read_harmony(
            self._source,
            output,
            is_inside=begins_inside,
            reasoning=output.reasoning if self._is_split else output.text,
            has_calls=self._tools is not None,
            answer=self._forced if self._is_forced else None,
        )
        yield from self._source.rest(output.text)

    def _forced(self) -> Reading[None]:
        yield from PLAIN.read(self._source, self._output, self._names)

    def _reasoning(self, tags: ReasoningTags, is_inside: bool) -> Reading[None]:
        source = self._source
        space = yield from source.spaces()
        # Templates that open the reasoning themselves do not keep every model from doing it again.
        opening = yield from source.accept(tags.opening)
        if opening is None and not is_inside:
            source.unread(space)
            return
        yield from source.spaces()
        calls = self._tools.openings if self._tools is not None else ()
        mark = yield from source.until((tags.closing, *calls), self._output.reasoning)
        if mark in calls:
            source.unread(mark or "")  # a call ends the reasoning, also where its end is forgotten
        yield from source.spaces()


def channels_for(
    prompt: ChatPrompt, template: str | None, rendered: str, controls: Collection[str] = ()
) -> Channels | None:
    """The channels of a chat's answer; None when all of it is text.

    rendered: the prompt that the template made, which may have opened the reasoning.
    controls: those of `marks_of` that are control tokens of the model.
    """
    tags = tags_of(template) if prompt.is_split else None
    tools = _format_for(prompt, template)
    harmony = is_harmony(template) and (prompt.is_split or tools is not None)
    if tags is None and tools is None and not harmony:
        return None
    is_inside = tags is not None and _is_open(tags, prompt, rendered)
    goes_on = prompt.continue_final and prompt.messages[-1].content.strip() != ""
    kept = () if prompt.is_split or harmony else _reasoning_marks(template)
    return Channels(
        tags if is_inside or not goes_on else None,  # an answer that has begun has no reasoning
        begins_inside=goes_on if harmony else is_inside,
        tools=tools,
        names=frozenset(tool.name for tool in prompt.tools),
        max_calls=1 if prompt.has_one_call else None,
        hidden=[mark for mark in controls if mark not in kept],
        harmony=harmony,
        is_split=prompt.is_split,
        is_forced=bool(prompt.forced),
    )


def marks_of(prompt: ChatPrompt, template: str | None) -> tuple[str, ...]:
    """The marks that have to show in a chat's answer, should they be control tokens.

    They are needed to tell its channels apart; those of reasoning that is not split off stay in
    the text.
    """
    tools = _format_for(prompt, template)
    marks = _reasoning_marks(template) + (tools.marks if tools is not None else ())
    return tuple(dict.fromkeys(marks))


def _reasoning_marks(template: str | None) -> tuple[str, ...]:
    if is_harmony(template):
        return HARMONY_MARKS
    tags = tags_of(template)
    return tags.marks if tags is not None else ()


def can_reason(template: str | None) -> bool:
    """Whether a model reasons in a way that is known here, by its chat template."""
    return is_harmony(template) or tags_of(template) is not None


def _format_for(prompt: ChatPrompt, template: str | None) -> ToolFormat | None:
    if not prompt.tools:
        return None
    return PLAIN if prompt.forced else format_of(template)  # the grammar of a forced call is JSON


def reasoning_of(
    prompt: ChatPrompt, template: str | None, rendered: str
) -> tuple[ReasoningTags | None, bool]:
    """The tags of the reasoning that may come before the answer, None when none may; and whether
    the prompt has opened it already.
    """
    goes_on = prompt.continue_final and prompt.messages[-1].content.strip() != ""
    if is_harmony(template):
        return (None if goes_on else _HARMONY), False
    tags = tags_of(template)
    if tags is None:
        return None, False
    if _is_open(tags, prompt, rendered):
        return tags, True
    is_over = rendered.rstrip().endswith(tags.closing)  # the template has left it out
    return (None if goes_on or is_over or prompt.thinking is False else tags), False


def _is_open(tags: ReasoningTags, prompt: ChatPrompt, rendered: str) -> bool:
    if prompt.continue_final:
        begun = prompt.messages[-1].content
        return begun.rfind(tags.opening) > begun.rfind(tags.closing)
    return rendered.rstrip().endswith(tags.opening)
