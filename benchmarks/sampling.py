"""What choosing a token costs: ours against llama.cpp's own chain, and a step of 64 streams.

No model is needed: rows are random and peaked, as a model's are (few tokens far above the rest),
and there are more of them than the caches hold. Run: python benchmarks/sampling.py
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np
import numpy.typing as npt

from naiad.engine.sampling import BatchSampler, Sampler
from naiad.native.sampler import Candidates, SamplerChain
from naiad.types import SamplingParams

Rows = list[npt.NDArray[np.float32]]

VOCABULARIES = (49_152, 131_072, 262_144)
N_STREAMS = 64
N_CTX = 4096
N_PROMPT = 600
ENOUGH_S = 0.5

PLAIN = SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
CASES = {
    "greedy": SamplingParams(temperature=0),
    "top-k 40 first, plain chain": PLAIN,
    "min-p 0.05 first": SamplingParams(temperature=0.8, min_p=0.05),
    "top-p 0.95 first": SamplingParams(temperature=0.8, top_p=0.95),
    "nothing cut": SamplingParams(temperature=0.8),
    "every stage": SamplingParams(
        temperature=0.9,
        dynatemp_range=0.3,
        smoothing_factor=0.2,
        top_k=100,
        top_p=0.98,
        min_p=0.01,
        top_a=0.01,
        typical_p=0.98,
        tfs=0.99,
        top_n_sigma=5.0,
        repetition_penalty=1.1,
        penalty_last_n=320,
        penalty_slope=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        dry_multiplier=0.8,
        dry_last_n=320,
        dry_breakers=("\n", ":", '"', "*"),
        xtc_probability=0.5,
        adaptive_target=0.5,
        logit_bias=((5, 1.0), (6, -1.0)),
    ),
}
#: Where the first stage leaves few candidates: microseconds a token at 128 k.
EARLY_CUTS = ("top-k 40 first, plain chain", "min-p 0.05 first")
EARLY_CUT_US = 60.0
#: Milliseconds a step of 64 streams may take at 128 k tokens.
LIMITS = {"top-k 40 first, plain chain": 6.0, "every stage": 16.0}


def peaked_rows(n: int, n_vocab: int) -> Rows:
    rng = np.random.default_rng(n_vocab)
    rows = []
    for _ in range(n):
        row = (rng.standard_normal(n_vocab) * 2.5).astype(np.float32)
        row[rng.integers(0, n_vocab, 12)] += np.linspace(8, 16, 12, dtype=np.float32)
        rows.append(row)
    return rows


def prompt(n_vocab: int) -> list[int]:
    """Tokens of which few come often, so that penalties and DRY find something."""
    draws = np.random.default_rng(1).zipf(1.3, N_PROMPT)
    return [int(token) for token in draws % n_vocab]


def make(params: SamplingParams, n_vocab: int) -> Sampler:
    return Sampler(params, n_vocab, N_CTX, frozenset({2}), prompt(n_vocab), lambda t: b"%d" % t)


def best_us(call: Callable[[], object]) -> float:
    """Microseconds of a call: the best of calls over half a second, and of five at least."""
    call()
    times: list[float] = []
    until = time.perf_counter() + ENOUGH_S
    while time.perf_counter() < until or len(times) < 5:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times) * 1e6


def ours(params: SamplingParams, n_vocab: int, rows: Iterator[npt.NDArray[np.float32]]) -> float:
    sampler, candidates, places = make(params, n_vocab), Candidates(n_vocab), cycle(range(10**6))
    try:
        return best_us(lambda: sampler.sample(next(rows), next(places), candidates))
    finally:
        sampler.close()


def theirs(n_vocab: int, rows: Iterator[npt.NDArray[np.float32]], *, is_full: bool) -> float:
    """llama.cpp's chain over the whole vocabulary."""
    candidates, chain = Candidates(n_vocab), SamplerChain()
    if is_full:
        chain.add_penalties(n_vocab, 320, 1.1, 0.1, 0.1)
        chain.add_top_n_sigma(5.0)
    chain.add_top_k(100 if is_full else 40)
    if is_full:
        chain.add_typical(0.98)
    chain.add_top_p(0.95)
    chain.add_min_p(0.05)
    if is_full:
        chain.add_xtc(0.5, 0.1, 1)
    chain.add_temperature(0.8, 0.3 if is_full else 0.0)
    chain.add_draw(1)
    for token in prompt(n_vocab):
        chain.accept(token)

    def call() -> None:
        candidates.fill(next(rows))
        candidates.apply(chain)

    found = best_us(call)
    chain.close()
    return found


def theirs_cut(n_vocab: int, rows: Iterator[npt.NDArray[np.float32]]) -> float:
    """llama.cpp's plain chain, of candidates cut at the best logit minus 10."""
    candidates, chain = Candidates(n_vocab), SamplerChain()
    chain.add_top_k(40)
    chain.add_top_p(0.95)
    chain.add_min_p(0.05)
    chain.add_temperature(0.8)
    chain.add_draw(1)

    def call() -> None:
        row = next(rows)
        ids = np.flatnonzero(row >= row.max() - 10).astype(np.int32)
        candidates.run(chain, ids, row[ids])

    found = best_us(call)
    chain.close()
    return found


def step_ms(params: SamplingParams, n_vocab: int, rows: Rows, n_threads: int) -> float:
    samplers = [make(params, n_vocab) for _ in rows]
    batch = BatchSampler(n_vocab, n_threads)
    places = cycle(range(10**6))
    try:
        return best_us(lambda: batch.sample(samplers, rows, [next(places)] * len(rows))) / 1000
    finally:
        batch.close()
        for sampler in samplers:
            sampler.close()


def one_by_one(n_vocab: int) -> bool:
    """True when every stage costs no more than llama.cpp's, and an early cut at 128 k 60 us."""
    rows = cycle(peaked_rows(32, n_vocab))
    print(f"\n{n_vocab} tokens, microseconds a token")
    found = {
        "llama.cpp, plain chain": theirs(n_vocab, rows, is_full=False),
        "llama.cpp, cut at max - 10 first": theirs_cut(n_vocab, rows),
        "llama.cpp, its stages but DRY": theirs(n_vocab, rows, is_full=True),
        **{name: ours(params, n_vocab, rows) for name, params in CASES.items()},
    }
    limits = {"every stage": found["llama.cpp, its stages but DRY"]}
    if n_vocab == 131_072:
        limits |= dict.fromkeys(EARLY_CUTS, EARLY_CUT_US)
    for name, cost in found.items():
        limit = f" (at most {limits[name]:.0f})" if name in limits else ""
        print(f"  {name:36s} {cost:9.1f}{limit}")
    return all(found[name] <= limit for name, limit in limits.items())


def steps(n_vocab: int) -> bool:
    rows = peaked_rows(N_STREAMS, n_vocab)
    is_good = True
    print(f"\n{N_STREAMS} streams of {n_vocab} tokens, milliseconds a step")
    for name, limit in LIMITS.items():
        found = [step_ms(CASES[name], n_vocab, rows, n) for n in (1, min(8, os.cpu_count() or 1))]
        is_good &= min(found) <= limit
        print(f"  {name:36s} {found[0]:6.2f}, threaded {found[1]:6.2f} (at most {limit:g})")
    return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, action="append", help="sizes of vocabularies")
    wanted = parser.parse_args()
    is_good = [one_by_one(n_vocab) for n_vocab in wanted.vocab or VOCABULARIES]
    return 0 if all([*is_good, steps(131_072)]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
