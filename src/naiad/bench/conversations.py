"""Conversations: turn after turn, with a trimmed past, and across a restart of the server.

What is looked at is the time to first token: a server that keeps what it has computed has only the
new turn to compute.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from naiad.bench.client import Client
from naiad.bench.figures import Summary, cached_share, summarize, ttft_ratio
from naiad.bench.load import Sizes, Tick, ask_one, quiet
from naiad.bench.prompts import filler
from naiad.bench.results import StreamResult
from naiad.bench.wire import Ask, Turn
from naiad.errors import ConfigError


@dataclass(slots=True)
class Conversation:
    """A system prompt unlike any other, and what has been said since."""

    system: str
    turns: list[Turn] = field(default_factory=list)

    def ask(self, text: str, max_tokens: int, ignore_eos: bool) -> Ask:
        """The next question, with everything before it."""
        return Ask(text, max_tokens, self.system, ignore_eos, tuple(self.turns))

    def add(self, question: str, answer: str) -> None:
        """Keep an exchange, the answer trimmed as clients trim it."""
        self.turns += [Turn("user", question), Turn("assistant", answer.strip() or "Yes.")]

    def drop_oldest(self) -> None:
        """Forget the oldest exchange."""
        del self.turns[:2]


def new_conversation(sizes: Sizes) -> Conversation:
    """A conversation in which nothing has been said yet."""
    opening = f"Persona {sizes.rng.randrange(10**9)}."
    return Conversation(f"{opening} {filler(sizes.rng, sizes.system_tokens)}")


async def _say(
    client: Client, talk: Conversation, sizes: Sizes, tick: Tick, max_tokens: int
) -> StreamResult:
    """Ask the next question of a conversation and keep the exchange."""
    text = filler(sizes.rng, sizes.turn_tokens)
    result = await ask_one(client, talk.ask(text, max_tokens, sizes.ignore_eos), tick)
    talk.add(text, result.text)
    return result


async def _round(
    client: Client, talks: Sequence[Conversation], sizes: Sizes, tick: Tick
) -> list[StreamResult]:
    """One turn of each conversation, one after the other."""
    return [await _say(client, talk, sizes, tick, sizes.tokens) for talk in talks]


async def multi_turn(client: Client, sizes: Sizes, tick: Tick = quiet) -> list[Summary]:
    """Interleaved conversations: each has others between its turns. A line for each turn."""
    talks = [new_conversation(sizes) for _ in range(sizes.conversations)]
    rounds = [await _round(client, talks, sizes, tick) for _ in range(sizes.turns)]
    lines = [summarize(f"multi-turn, turn {i}", got) for i, got in enumerate(rounds, 1)]
    later = [result for got in rounds[1:] for result in got]
    if not later:
        return lines
    whole = summarize("multi-turn, from turn 2", later)
    whole.extra["ttft_over_first_turn"] = ttft_ratio(whole, lines[0])
    whole.extra["cached_share"] = cached_share(later)
    return [*lines, whole]


async def restart(client: Client, sizes: Sizes, tick: Tick = quiet) -> list[Summary]:
    """Conversations, then a restart of the server, then the next turn of each.

    Raises:
        ConfigError: the sizes do not say how to restart, or the restart failed.
    """
    if sizes.restart is None:
        raise ConfigError(
            "the restart scenario must be told how to restart the server: "
            "--restart-command 'COMMAND', which returns when it has done so",
            param="restart_command",
        )
    talks = [new_conversation(sizes) for _ in range(sizes.conversations)]
    rounds = [await _round(client, talks, sizes, tick) for _ in range(sizes.turns)]
    await sizes.restart()
    results = await _round(client, talks, sizes, tick)
    before = summarize("before the restart", rounds[-1])
    after = summarize("after the restart", results)
    after.extra["ttft_over_before"] = ttft_ratio(after, before)
    after.extra["cached_share"] = cached_share(results)
    return [before, after]


COLD, APPEND, TRIMMED, LORE = "cold", "append", "trimmed", "trimmed, lore"
#: What is done to each conversation, in this order.
KINDS = (COLD, APPEND, APPEND, TRIMMED, TRIMMED, LORE, LORE)


async def trimmed_history(client: Client, sizes: Sizes, tick: Tick = quiet) -> list[Summary]:
    """What chat front ends do when the context is full, against a plain further turn.

    Four lines: a long conversation that is new to the server; a further turn; a further turn for
    which the oldest exchange is dropped, the system prompt kept; the same with a new piece of lore
    in the middle and the last one taken out.
    """
    results: dict[str, list[StreamResult]] = {kind: [] for kind in KINDS}
    for _ in range(sizes.histories):
        talk = _long_conversation(sizes)
        for kind in KINDS:
            if kind in {TRIMMED, LORE}:
                talk.drop_oldest()
            asked = _with_lore(talk, sizes.rng, sizes.turn_tokens) if kind == LORE else talk
            result = await _say(client, asked, sizes, tick, min(sizes.tokens, 16))
            talk.turns += asked.turns[-2:] if asked is not talk else []
            results[kind].append(result)
    lines = {kind: summarize(f"history, {kind}", got) for kind, got in results.items()}
    for kind in (TRIMMED, LORE):
        lines[kind].extra["ttft_over_append"] = ttft_ratio(lines[kind], lines[APPEND])
        lines[kind].extra["ttft_over_cold"] = ttft_ratio(lines[kind], lines[COLD])
    for kind, line in lines.items():
        line.extra["cached_share"] = cached_share(results[kind])
    return list(lines.values())


def _long_conversation(sizes: Sizes) -> Conversation:
    """A conversation of about history_tokens, and at least six exchanges to drop from."""
    talk = new_conversation(sizes)
    for _ in range(max(6, sizes.history_tokens // (2 * sizes.turn_tokens))):
        question, answer = (filler(sizes.rng, sizes.turn_tokens) for _ in range(2))
        talk.add(question, answer)
    return talk


def _with_lore(talk: Conversation, rng: random.Random, n_tokens: int) -> Conversation:
    """The conversation with a piece of lore before the user's turn in the middle.

    The lore goes into that turn, since many chat templates refuse a system turn there.
    """
    turns = list(talk.turns)
    middle = len(turns) // 4 * 2
    lore = f"[Lore: {filler(rng, n_tokens)}]"
    turns[middle] = Turn("user", f"{lore}\n{turns[middle].text}")
    return Conversation(talk.system, turns)
