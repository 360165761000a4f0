"""How tokens are chosen: what crosses to the worker with a request."""

from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen. Neutral values switch a stage off.

    Crosses the process border inside Submit (what is left at its default is not sent); every range
    is checked by the dialects first. The formulas stand beside the stages, in
    `naiad.engine.sampling`.
    """

    temperature: float = 1.0  # >= 0; 0 is greedy
    dynatemp_range: float = 0.0  # >= 0; the temperature varies by this much up and down; 0 is off
    dynatemp_exponent: float = 1.0  # > 0
    smoothing_factor: float = 0.0  # >= 0; 0 is off
    smoothing_curve: float = 1.0  # [1, 3] is usual; 1 is quadratic
    top_k: int = 0  # >= 0; 0 is off
    top_p: float = 1.0  # (0, 1]; 1 is off
    min_p: float = 0.0  # [0, 1]; 0 is off
    top_a: float = 0.0  # >= 0; 0 is off
    typical_p: float = 1.0  # (0, 1]; 1 is off
    tfs: float = 1.0  # (0, 1]; 1 is off
    epsilon_cutoff: float = 0.0  # [0, 1]; 0 is off
    eta_cutoff: float = 0.0  # [0, 1]; 0 is off
    top_n_sigma: float = 0.0  # >= 0; 0 is off
    repetition_penalty: float = 1.0  # > 0; 1 is off
    penalty_last_n: int = 64  # tokens looked back over; 0 is off, -1 the whole context
    penalty_slope: float = 1.0  # >= 0; how much of it the older half of those tokens gets
    presence_penalty: float = 0.0  # [-2, 2]
    frequency_penalty: float = 0.0  # [-2, 2]
    dry_multiplier: float = 0.0  # >= 0; 0 is off
    dry_base: float = 1.75  # >= 1
    dry_allowed_length: int = 2  # >= 0
    dry_last_n: int = -1  # tokens looked back over; 0 and -1: the whole context
    dry_breakers: tuple[str, ...] = ()
    xtc_probability: float = 0.0  # [0, 1]; 0 is off
    xtc_threshold: float = 0.1  # [0, 1]; above 0.5 is off
    mirostat: int = 0  # version 1 or 2; 0 is off. Replaces every stage that cuts
    mirostat_tau: float = 5.0  # > 0, bits
    mirostat_eta: float = 0.1  # >= 0
    adaptive_target: float = -1.0  # [0, 1]; below 0 is off
    adaptive_decay: float = 0.9  # [0, 0.99]
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit); -inf bans it
    text_bias: tuple[tuple[str, float], ...] = ()  # the same for each token of a text
    ignore_eos: bool = False  # end-of-generation tokens are never chosen
    min_tokens: int = 0  # >= 0; until so many have come they are not, and no stop string ends it
    bypass_eos: bool = False  # they may be chosen, but end nothing
    banned_phrases: tuple[str, ...] = ()  # never said, in any case; see naiad.engine.phrases
    order: tuple[str, ...] = ()  # stages that run, in this order; () is the engine's default
    choice: int = 0  # which of several answers to one prompt this is; keys the draws with the seed
    seed: int = 0  # [0, 2**64): the key of the counter-based draws; the dialect draws one if unset
    n_logprobs: int = -1  # how many of the likeliest tokens to tell of at each place; below 0: none
    logprobs_after: bool = False  # of what the samplers left, not of the model's own distribution


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What the whole answer must follow.

    kind: json_schema, regex, lark or gbnf. text: the schema as JSON, the expression, the rules.
    after: it holds only for what follows this text (the end of a reasoning section), and an answer
        without that text cannot end; None for all of the answer.
    opening: with `after`: only an answer that begins with this text has such a section, and may.
    field: the caller's own name of it, for errors.
    """

    kind: str
    text: str
    after: str | None = None
    opening: str | None = None
    field: str = ""


class ReasoningLimit(msgspec.Struct, frozen=True, array_like=True):
    """How many tokens the reasoning before an answer may have.

    n_tokens: at least 0. opening: what begins the section, at the beginning of the answer; None
    where the prompt has opened it. closing: what ends it. ending: what is said, closing included,
    once the tokens are used up.
    """

    n_tokens: int
    opening: str | None
    closing: str
    ending: str


class Trim(msgspec.Struct, frozen=True, array_like=True):
    """Leave out what is old in a prompt that is too long, instead of refusing it.

    n_total: tokens that prompt and answer may take together; None: the context.
    n_kept_chars: characters at the beginning of the prompt's text that stay.
    """

    n_total: int | None = None
    n_kept_chars: int = 0
