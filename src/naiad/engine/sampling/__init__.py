"""Choosing tokens: every stage for every sequence, in the order its request asks for.

A row of logits goes through three parts. Biases, bans and the penalties at the head of the order
are written into the row; the order's first cut is made in one pass over the vocabulary; the other
stages run on the few candidates that are left, llama.cpp's in one native chain where they stand
together, ours in NumPy. Then one of them is drawn, with a draw keyed by (seed, choice, position).
"""

from naiad.engine.sampling.batch import BatchSampler
from naiad.engine.sampling.draws import draw, uniform
from naiad.engine.sampling.plan import DEFAULT_ORDER, MIROSTAT_ORDER
from naiad.engine.sampling.sampler import NO_TOKEN, Sampler
from naiad.engine.sampling.stages import STAGES

__all__ = [
    "DEFAULT_ORDER",
    "MIROSTAT_ORDER",
    "NO_TOKEN",
    "STAGES",
    "BatchSampler",
    "Sampler",
    "draw",
    "uniform",
]
