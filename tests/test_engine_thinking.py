"""A limit on the reasoning: counted, closed as the template does, and nothing else is changed."""

from __future__ import annotations

import random

import pytest

from channel_cases import Folded, read
from naiad.chat.budget import limit_for
from naiad.chat.channels import TAGS, Channels, ReasoningTags
from naiad.engine.base import CoreJob
from naiad.engine.drafts import NgramDrafter
from naiad.engine.grammar.compiler import GrammarCompiler
from naiad.engine.thinking import ThinkingWatch
from naiad.types import (
    ChatMessage,
    ChatPrompt,
    FinishReason,
    Grammar,
    Prompt,
    ReasoningLimit,
    SamplingParams,
    TextPrompt,
    ThinkingBudget,
)
from test_engine_grammar import NoVetting
from text_engine import (
    EOG,
    PIECES,
    TextExecutor,
    TextVocab,
    always_guess,
    make_core,
    run_all,
    text_of,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("steady_clock")

PROMPT = (0, 1, 2, 3)
#: "[" opens a section, "the" closes it.
INSIDE = ReasoningLimit(5, None, "the", "x the")
OPENED = ReasoningLimit(5, "[ab", "the", "x the")
NO_END = ((EOG, -100.0),)


def ids_of(text: str) -> list[int]:
    return TextVocab().encode(text, add_special=False, parse_special=False)


# -- the watch ----------------------------------------------------------------------------------


def say(watch: ThinkingWatch, text: str) -> None:
    for token in ids_of(text):
        watch.forced()
        watch.accept(token)


@pytest.mark.parametrize(
    ("limit", "said", "forced"),
    [
        (INSIDE, "abcd", ""),  # "ab" is one token
        (INSIDE, "zbcd", ""),
        (INSIDE, "zbcde", "x the"),
        (INSIDE, "zbcdex", " the"),  # the ending has begun
        (INSIDE, "zbcde{", ""),  # it could not be said: given up
        (INSIDE, "z the", ""),
        (INSIDE, "zthedefgh", ""),
        (OPENED, "[abzbcd", ""),
        (OPENED, "[abzbcde", "x the"),
        (OPENED, "  [abzbcde", "x the"),
        (OPENED, "[zbcdefghijk", ""),  # another beginning
        (OPENED, "zbcdefghijk", ""),
        (ReasoningLimit(0, None, "the", "the"), "", "the"),
        (ReasoningLimit(0, "[ab", "the", "the"), "", ""),
        (ReasoningLimit(0, "[ab", "the", "the"), "[ab", "the"),
    ],
)
def test_what_must_come(limit: ReasoningLimit, said: str, forced: str) -> None:
    watch = ThinkingWatch(limit, TextVocab())
    say(watch, said)
    assert watch.forced() == watch.forced() == ids_of(forced)


def test_what_was_forced_is_said_once() -> None:
    watch = ThinkingWatch(INSIDE, TextVocab())
    say(watch, "zbcde")
    for token in watch.forced():
        watch.accept(token)
    say(watch, "zbcdefghij")
    assert watch.forced() == []


def test_going_back_is_as_if_it_had_never_been() -> None:
    rng = random.Random(5)
    for _ in range(300):
        limit = rng.choice([INSIDE, OPENED])
        watch = ThinkingWatch(limit, TextVocab())
        tokens: list[int] = []
        for _ in range(rng.randrange(25)):
            if tokens and rng.random() < 0.25:
                n = rng.randint(1, min(4, len(tokens)))
                watch.rewind(n)
                del tokens[-n:]
            some = [*map(PIECES.index, ("[", "ab", "a", "the", "z")), *watch.forced()[:1]]
            tokens.append(rng.choice(some))
            watch.accept(tokens[-1])
        fresh = ThinkingWatch(limit, TextVocab())
        for token in tokens:
            fresh.forced()
            fresh.accept(token)
        assert watch.forced() == fresh.forced()


def test_a_character_is_finished_first() -> None:
    class Bytes:
        def piece(self, token: int, *, special: bool = False) -> bytes:
            return bytes([token])

        def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            return list(text.encode())

    watch = ThinkingWatch(ReasoningLimit(2, None, "z", "z"), Bytes())
    forced = []
    for byte in "a🙂".encode():
        watch.accept(byte)
        forced.append(watch.forced())
    assert forced == [[], [], [], [], [ord("z")]]


# -- in the core --------------------------------------------------------------------------------


def job(limit: ReasoningLimit | None, **values: object) -> CoreJob:
    params = SamplingParams(temperature=1.0, seed=2, logit_bias=NO_END, **values)  # type: ignore[arg-type]
    return CoreJob(1, PROMPT, 40, params, reasoning=limit)


@pytest.mark.parametrize("drafts", [False, True])
def test_the_answer_goes_on_behind_the_ending(
    drafts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NgramDrafter, "n_worth", always_guess(3))
    core = make_core(TextExecutor(), drafts=drafts)
    free = tokens_of(run_all(core, [job(None)])[1])
    found = tokens_of(run_all(core, [job(INSIDE)])[1])
    assert found[:5] == free[:5]
    assert text_of(found[5:]).startswith("x the")
    assert len(found) == 40
    assert found[7:] != free[7:]
    core.close()


def test_a_ban_on_what_would_be_forced_lets_the_model_speak() -> None:
    core = make_core(TextExecutor())
    found = text_of(tokens_of(run_all(core, [job(INSIDE, banned_phrases=("x t",))])[1]))
    assert "x t" not in found
    core.close()


def test_a_grammar_begins_behind_what_was_forced() -> None:
    compiler = GrammarCompiler(TextVocab(), NoVetting())
    core = make_core(TextExecutor())
    follower = compiler.compile(Grammar("regex", "[0-9]{4}", after="the"))
    params = SamplingParams(temperature=1.0, seed=2)
    items = run_all(core, [CoreJob(1, PROMPT, 40, params, follower=follower, reasoning=INSIDE)])[1]
    assert items[-1].finish is FinishReason.STOP
    assert text_of(tokens_of(items))[-12:-4].endswith("x the")
    assert text_of(tokens_of(items))[-4:].isdigit()
    core.close()


def test_the_end_of_the_answer_cuts_what_is_forced() -> None:
    core = make_core(TextExecutor())
    items = run_all(core, [CoreJob(1, PROMPT, 6, job(None).sampling, reasoning=INSIDE)])[1]
    assert len(tokens_of(items)) == 6
    assert items[-1].finish is FinishReason.LENGTH
    core.close()


# -- from a request and a template to a limit -----------------------------------------------------

QWEN = r"""{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content }}
{{- '\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"""
PLAIN = "{{ content.split('</think>')[-1] }}"


def chat(**fields: object) -> ChatPrompt:
    return ChatPrompt((ChatMessage("user", "hi"),), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "template", "rendered", "limit"),
    [
        (chat(), QWEN, "...", ("<think>", "\n</think>\n\n")),
        (chat(), QWEN, "...<think>\n", (None, "\n</think>\n\n")),
        (chat(), PLAIN, "...", ("<think>", "</think>")),
        (chat(thinking=False), QWEN, "...", None),
        (chat(), "no reasoning", "...", None),
        (chat(), None, "...", None),
        (TextPrompt("x<think>"), QWEN, "x<think>", (None, "\n</think>\n\n")),
        (TextPrompt("x"), QWEN, "x", ("<think>", "\n</think>\n\n")),
    ],
)
def test_the_section_ends_as_the_template_writes_it(
    prompt: Prompt, template: str | None, rendered: str, limit: tuple[str | None, str] | None
) -> None:
    found = limit_for(ThinkingBudget(7), prompt, template, rendered)
    wanted = limit and ReasoningLimit(7, limit[0], "</think>", limit[1])
    assert found == wanted


@pytest.mark.parametrize("tags", TAGS, ids=lambda tags: tags.opening)
def test_each_kind_of_section_is_limited(tags: ReasoningTags) -> None:
    template = f"{tags.opening}{{{{ reasoning }}}}{tags.closing}\n{{{{ content }}}}"
    found = limit_for(ThinkingBudget(7, "Enough."), chat(), template, "...")
    ending = f"\nEnough.{tags.closing}\n"
    assert found == ReasoningLimit(7, tags.opening, tags.closing, ending)
    found = limit_for(ThinkingBudget(7), chat(), template, f"...{tags.opening}")
    assert found == ReasoningLimit(7, None, tags.closing, f"{tags.closing}\n")


@pytest.mark.parametrize("has_grammar", [False, True])
def test_an_analysis_is_ended_and_the_final_message_begun(has_grammar: bool) -> None:
    template = "<|start|>assistant<|channel|>final<|message|>{{ content }}<|end|>"
    found = limit_for(
        ThinkingBudget(7, "Enough."), chat(), template, "...", has_grammar=has_grammar
    )
    assert found is not None
    assert (found.opening, found.closing) == ("<|channel|>analysis<|message|>", "<|end|>")
    written = "<|channel|>analysis<|message|>Well" + found.ending + "yes<|return|>"
    channels = Channels(None, harmony=True, is_split=True)
    assert read(channels, written) == Folded(reasoning="Well\nEnough.", text="yes")


def test_a_message_is_its_last_words_and_a_grammar_begins_at_once() -> None:
    budget = ThinkingBudget(7, " Enough. ")
    found = limit_for(budget, chat(), QWEN, "...", has_grammar=True)
    assert found is not None
    assert found.ending == "\nEnough.\n</think>"
    assert limit_for(None, chat(), QWEN, "...") is None
    assert limit_for(budget, chat(), QWEN, (1, 2)) is None
