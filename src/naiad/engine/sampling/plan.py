"""From parameters to what is done for each token: which stages, in which order, opened how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import msgspec
import numpy as np

from naiad.engine.sampling.dry import Dry, Piece
from naiad.engine.sampling.feedback import AdaptiveP, Feedback, Mirostat, State
from naiad.engine.sampling.history import History
from naiad.engine.sampling.rows import Left, Row, everything, largest, near_top_limit
from naiad.engine.sampling.shaping import Biases, Penalties, Shaper, bans, shape_left
from naiad.engine.sampling.stages import STAGES, Moment, Opening, Step
from naiad.native.sampler import SamplerChain
from naiad.types import SamplingParams

#: Below this temperature logits overflow when divided by it; the draw is the greedy choice anyway.
COLDEST = 1e-5

#: What applies where a request names no order: llama-server's, with the stages it lacks beside
#: their relatives. Biases and bans always come first.
DEFAULT_ORDER: tuple[str, ...] = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "top_a",
    "tfs",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
    "smoothing",
    "adaptive_p",
)
#: Mirostat does all the cutting itself.
MIROSTAT_ORDER: tuple[str, ...] = ("dry", "penalties", "temperature", "smoothing", "mirostat")

_SHAPING = ("penalties", "dry")
_CUTTING = (
    "top_n_sigma",
    "top_k",
    "top_a",
    "tfs",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_p",
    "min_p",
)
#: Stages after which the best token may be another one.
_MOVING_THE_TOP = ("typical_p", "xtc", "smoothing")
#: Adaptive-p draws from far down the list, so the tail must have been cut. KoboldCpp's choice.
_ADAPTIVE_MIN_P = 0.002


@dataclass(frozen=True, slots=True)
class Setting:
    """What a plan is made for, beside the parameters."""

    n_vocab: int
    n_ctx: int
    eog: frozenset[int]
    piece: Piece | None
    state: State


@dataclass(frozen=True, slots=True)
class Plan:
    """How one sequence's tokens are chosen.

    head: written into the row first; early_head: before token `n_early`, instead of it.
    banned: of a head that does nothing but ban, what it bans; None for another head.
    opening: makes the first cut, of logits times `scale`, with columns or not. steps: what is left
    to do. feedback: mirostat or adaptive-p. shapers: all of them, in the head or not.
    is_greedy: the best token is taken. is_whole: the draw is from the whole distribution.
    """

    head: tuple[Shaper, ...]
    early_head: tuple[Shaper, ...]
    n_early: int
    banned: frozenset[int] | None
    shapers: tuple[Shaper, ...]
    opening: Opening
    scale: float
    has_columns: bool
    steps: tuple[Step, ...]
    feedback: Feedback | None
    is_greedy: bool
    is_whole: bool
    chains: tuple[SamplerChain, ...]


def make_plan(p: SamplingParams, history: History, setting: Setting) -> Plan:
    p = _with_tail_cut(p)
    names = [name for name in _order_in_force(p) if _is_on(name, p, setting.n_ctx)]
    feedback = _feedback(names, p, setting)
    shapers = {name: _shaper(name, p, history, setting) for name in names if name in _SHAPING}
    n_head = next((i for i, name in enumerate(names) if name not in _SHAPING), len(names))
    body = names[n_head:]
    opening, scale, rest = _open(body, p, feedback)
    steps, chains = _steps(rest, p, shapers, feedback)
    biases = [*p.logit_bias, *bans(setting.eog if p.ignore_eos else ())]
    at_first = Biases([*biases, *bans(setting.eog)], setting.n_vocab)
    later = Biases(biases, setting.n_vocab)
    head = tuple(shapers[name] for name in names[:n_head])
    return Plan(
        head=(later, *head) if later.is_on else head,
        early_head=(at_first, *head),
        n_early=p.min_tokens,
        banned=None if head else later.banned,
        shapers=tuple(shapers.values()),
        opening=opening,
        scale=scale,
        has_columns=_has_columns(body),
        steps=steps,
        feedback=feedback,
        is_greedy=is_greedy(p),
        is_whole=opening is everything and _is_scaling(rest, p) and feedback is None,
        chains=chains,
    )


def is_greedy(p: SamplingParams) -> bool:
    """Whether chance plays no part."""
    if p.temperature < COLDEST:
        return True
    order = _order(p)
    if p.top_k != 1 or "top_k" not in order:
        return False
    return not any(name in _MOVING_THE_TOP for name in order[: order.index("top_k")])


def _with_tail_cut(p: SamplingParams) -> SamplingParams:
    order = _order(p)
    is_cut = any(name in order and STAGES[name].is_on(p) for name in _CUTTING)
    if p.adaptive_target < 0 or "adaptive_p" not in order or is_cut:
        return p
    at = order.index("adaptive_p")
    longer = tuple(dict.fromkeys((*order[:at], "min_p", *order[at:])))
    return msgspec.structs.replace(p, min_p=_ADAPTIVE_MIN_P, order=longer)


def _order(p: SamplingParams) -> tuple[str, ...]:
    if p.mirostat in (1, 2):
        return MIROSTAT_ORDER
    named = p.order or DEFAULT_ORDER
    # Adaptive-p chooses the token: whatever stands after it would come too late.
    last = tuple(name for name in named if name == "adaptive_p")
    return tuple(dict.fromkeys(name for name in named if name != "adaptive_p")) + last[:1]


def _order_in_force(p: SamplingParams) -> tuple[str, ...]:
    """Without what comes after the one token that top-k leaves."""
    order = _order(p)
    is_decided = is_greedy(p) and p.temperature >= COLDEST
    return order[: order.index("top_k")] if is_decided else order


def _is_on(name: str, p: SamplingParams, n_ctx: int) -> bool:
    if name in STAGES:
        # A greedy choice is made after the penalties, wherever they stand; nothing else matters.
        return STAGES[name].is_on(p) and not is_greedy(p)
    if name == "penalties":
        neutral = (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) == (1, 0, 0)
        return p.penalty_last_n != 0 and n_ctx > 0 and not neutral
    if name == "dry":
        return p.dry_multiplier > 0
    if name == "adaptive_p":
        return p.adaptive_target >= 0 and not is_greedy(p)
    return name == "mirostat" and not is_greedy(p)


def _shaper(name: str, p: SamplingParams, history: History, setting: Setting) -> Shaper:
    if name == "penalties":
        return Penalties(p, history, setting.n_ctx)
    return Dry(p, history, setting.n_ctx, setting.piece)


def _feedback(names: Iterable[str], p: SamplingParams, setting: Setting) -> Feedback | None:
    if "mirostat" in names:
        return Mirostat(p, setting.n_vocab, setting.state)
    return AdaptiveP(p, setting.state) if "adaptive_p" in names else None


def _has_columns(body: list[str]) -> bool:
    first = [name for name in body if name != "temperature"][:2]
    return first[:1] in (["top_k"], ["mirostat"]) or first == ["top_n_sigma", "top_k"]


def _is_scaling(names: list[str], p: SamplingParams) -> bool:
    """Whether all that is left to do is to divide by a temperature."""
    return set(names) <= {"temperature"} and p.dynatemp_range == 0


def _open(
    body: list[str], p: SamplingParams, feedback: Feedback | None
) -> tuple[Opening, float, list[str]]:
    """The opening, the scale it works at, and the stages that are left to run."""
    is_warm_first = body[:1] == ["temperature"] and p.dynatemp_range == 0
    at = 1 if is_warm_first else 0
    scale = 1 / p.temperature if is_warm_first else 1.0
    if at < len(body):
        name = body[at]
        if name == "mirostat" and isinstance(feedback, Mirostat):
            return feedback.open, scale, body[:at] + body[at + 1 :]
        if body[at : at + 2] == ["top_n_sigma", "top_k"]:
            return _near_top_largest(p), scale, body[:at] + body[at + 2 :]
        stage = STAGES.get(name)
        if stage is not None and stage.opening is not None:
            rest = body[:at] + body[at + 1 :] if stage.is_opened_whole else body
            return stage.opening(p), scale, rest
    return everything, scale, body


def _near_top_largest(p: SamplingParams) -> Opening:
    """Both at once: standard deviations of the whole row reach far, the k best do not."""

    def opening(row: Row) -> Left:
        ids, logits = largest(row, p.top_k)
        n = int(np.count_nonzero(logits >= near_top_limit(row, p.top_n_sigma)))
        return Left(ids[:n], logits[:n])

    return opening


def _steps(
    names: list[str], p: SamplingParams, shapers: dict[str, Shaper], feedback: Feedback | None
) -> tuple[tuple[Step, ...], tuple[SamplerChain, ...]]:
    """Neighbours that are llama.cpp's share one chain."""
    steps: list[Step] = []
    chains: list[SamplerChain] = []
    for is_native, group in groupby(names, _is_native):
        if is_native:
            chains.append(_chain(group, p))
            steps.append(_native(chains[-1]))
        else:
            steps += _own(group, p, shapers, feedback)
    return tuple(steps), tuple(chains)


def _is_native(name: str) -> bool:
    return name in STAGES and STAGES[name].native is not None


def _chain(names: Iterable[str], p: SamplingParams) -> SamplerChain:
    chain = SamplerChain()
    for name in names:
        add = STAGES[name].native
        if add is not None:
            add(p, chain)
    return chain


def _native(chain: SamplerChain) -> Step:
    def step(left: Left, moment: Moment) -> Left:
        return Left(*moment.scratch.run(chain, left.ids, left.logits))

    return step


def _own(
    names: Iterable[str],
    p: SamplingParams,
    shapers: dict[str, Shaper],
    feedback: Feedback | None,
) -> Iterator[Step]:
    for name in names:
        if name in shapers:
            yield _shape(shapers[name])
        elif name == "mirostat" and isinstance(feedback, Mirostat):
            yield _cut(feedback)
        elif name in STAGES:
            own = STAGES[name].own
            if own is not None:
                yield _bound(own, p)


def _shape(shaper: Shaper) -> Step:
    return lambda left, _moment: shape_left(left, shaper)


def _cut(mirostat: Mirostat) -> Step:
    return lambda left, _moment: mirostat.cut(left)


def _bound(own: Callable[[SamplingParams, Left, Moment], Left], p: SamplingParams) -> Step:
    return lambda left, moment: own(p, left, moment)
