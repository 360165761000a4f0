"""Text to send: ordinary English words, about one token each, and always different. Pure."""

from __future__ import annotations

import random

_WORD_LIST = """
river stone garden letter window market winter summer bridge doctor teacher forest village
engine silver copper paper pencil basket bottle button candle carpet castle cattle circle coffee
corner cotton dinner dragon farmer father finger flower guitar hammer harbor island jacket kettle
ladder leather lemon mirror monkey mother mountain needle number ocean orange palace picture
planet pocket potato rabbit ribbon saddle sailor school shadow sister spider spring square
station storm street string sugar table temple ticket tiger tower train travel turkey valley
velvet violin wagon water weather wheel willow wonder yellow about above after again along always
around because before behind below between beyond carry change close cold early every follow
"""
_MARKER_LIST = """
zebra otter falcon badger walrus lizard pigeon donkey beaver turtle salmon parrot hornet jaguar
ferret magpie camel eagle goose shark panda koala llama moose hyena raven
"""
_WORDS = _WORD_LIST.split()
_MARKERS = _MARKER_LIST.split()


def filler(rng: random.Random, n_tokens: int) -> str:
    """Sentences of about n_tokens tokens; at least one word."""
    words: list[str] = []
    while len(words) < max(1, n_tokens):
        sentence = rng.choices(_WORDS, k=min(rng.randint(6, 12), max(1, n_tokens) - len(words)))
        words += [sentence[0].capitalize(), *sentence[1:]]
        words[-1] += "."
    return " ".join(words)


def marker(i: int) -> str:
    """A word that names request i; no marker is part of another's for i below 900."""
    return f"{_MARKERS[i % len(_MARKERS)]}{100 + i}"


def marked_prompt(rng: random.Random, i: int, n_tokens: int) -> str:
    """A prompt of about n_tokens tokens (at least 40) whose answer should name `marker(i)`."""
    word = marker(i)
    task = f"The code word is {word}. Say the code word again and again: {word} {word} {word}"
    return f"{filler(rng, n_tokens - 36)} {task}"


def story_prompt(rng: random.Random, n_tokens: int) -> str:
    """A prompt of about n_tokens tokens that asks for a long answer; its first words are unique."""
    opening = f"Story {rng.randrange(10**9)}."
    return f"{opening} {filler(rng, n_tokens - 18)} Continue this story at length."


def question(rng: random.Random) -> str:
    """A short question, unlike any other."""
    return f"Question {rng.randrange(10**6)}: what is said about the {rng.choice(_WORDS)}?"
