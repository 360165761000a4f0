"""The bare engine: a plain llama_decode loop with no server, the ceiling that ratios are taken of.

    python benchmarks/engine_loop.py MODEL.gguf --threads 2 --batch 1 4 16

For each batch size B, B prompts are prefilled, packed into as few calls as fit, and then B greedy
tokens are decoded at a time. `tok_s` counts generated tokens over the whole time, prefill included;
`decode_tok_s` counts the decoding alone. Prefill is timed for one sequence, best of the repeats in
`best_ms`. `load_ms` is model load and context creation.

With --shared STREAMS PREFIX OWN TOKENS, the streams have a prefix in common: it is computed once
and its cells are shared with each stream (llama_memory_seq_cp), which then computes OWN tokens of
its own and decodes TOKENS. `cold` includes the prefix, `warm` finds it there. Needs room for one
sequence more than there are streams. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import llama_cpp as llama  # before NumPy: some builds crash when its C++ runtime comes first
import numpy as np
from numpy.typing import NDArray

KV_TYPES = {"f16": 1, "q8_0": 8}
N_BATCH = 2048


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _ignore_log(_level: int, _text: bytes, _data: object) -> None:
    """The report is all that is printed."""


class Batch:
    """A llama_batch whose arrays are filled through NumPy views; lives as long as the process."""

    def __init__(self, size: int) -> None:
        self.native: Any = llama.llama_batch_init(size, 0, 1)
        self.tokens = self._view("token", size)
        self.positions = self._view("pos", size)
        self.wants = self._view("logits", size)
        self.sequences = np.zeros(size, np.int32)
        for i in range(size):
            self.native.n_seq_id[i] = 1
            self.native.seq_id[i] = self._pointer(i)

    def _pointer(self, i: int) -> Any:
        """Where sequence i stands: one array of ours instead of an allocation for each."""
        address = self.sequences.ctypes.data + i * self.sequences.itemsize
        return ctypes.cast(address, ctypes.POINTER(ctypes.c_int32))

    def _view(self, name: str, size: int) -> NDArray[Any]:
        return np.ctypeslib.as_array(getattr(self.native, name), shape=(size,))

    def put(self, at: int, tokens: NDArray[np.int32], start: int, sequence: int) -> None:
        """Place a run of one sequence's tokens; only its last one's logits are wanted."""
        end = at + len(tokens)
        self.tokens[at:end] = tokens
        self.positions[at:end] = np.arange(start, start + len(tokens))
        self.wants[at:end] = 0
        self.wants[end - 1] = 1
        self.sequences[at:end] = sequence


class Engine:
    """A model and a context with the settings asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        started = time.perf_counter()
        llama.llama_log_set(_ignore_log, None)
        llama.llama_backend_init()
        self.model: Any = self._load(args)
        self.context: Any = self._make_context(args)
        self.memory: Any = llama.llama_get_memory(self.context)
        self.load_s = time.perf_counter() - started
        self.n_vocab = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model)))
        self.batch = Batch(N_BATCH)
        self.rng = random.Random(args.seed)

    def _load(self, args: argparse.Namespace) -> Any:
        params = llama.llama_model_default_params()
        params.n_gpu_layers = args.gpu_layers
        params.use_extra_bufts = not args.no_extra_buffers
        model = llama.llama_model_load_from_file(args.model.encode(), params)
        if not model:
            raise SystemExit(f"{args.model} cannot be loaded")
        return model

    def _make_context(self, args: argparse.Namespace) -> Any:
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = args.n_ctx, N_BATCH, args.n_ubatch
        params.n_seq_max = args.seqs
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = int(args.fa)
        params.type_k = params.type_v = KV_TYPES[args.kv]
        params.kv_unified = not args.split_kv
        context = llama.llama_init_from_model(self.model, params)
        if not context:
            raise SystemExit("the engine refuses a context with these settings")
        return context

    def prompt(self, n: int) -> NDArray[np.int32]:
        """n random tokens; special tokens are few and stand at the ends."""
        ids = [self.rng.randrange(100, self.n_vocab - 100) for _ in range(n)]
        return np.array(ids, dtype=np.int32)

    def clear(self) -> None:
        llama.llama_memory_clear(self.memory, True)

    def share(self, source: int, target: int) -> None:
        """Let one sequence consist of another's cells, whatever it held before."""
        llama.llama_memory_seq_rm(self.memory, target, -1, -1)
        llama.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def decode(self, n: int) -> None:
        self.batch.native.n_tokens = n
        code = llama.llama_decode(self.context, self.batch.native)
        if code:
            raise SystemExit(f"llama_decode: {code}")
        llama.llama_synchronize(self.context)

    def best(self, place: int) -> int:
        """The likeliest token after the one at this place of the batch."""
        row = llama.llama_get_logits_ith(self.context, place)
        return int(np.argmax(np.ctypeslib.as_array(row, shape=(self.n_vocab,))))


def prefill(engine: Engine, prompt: NDArray[np.int32], sequence: int) -> None:
    """Compute one prompt in an empty sequence."""
    for at in range(0, len(prompt), N_BATCH):
        part = prompt[at : at + N_BATCH]
        engine.batch.put(0, part, at, sequence)
        engine.decode(len(part))
    engine.best(len(part) - 1)


def time_prefill(engine: Engine, n: int) -> float:
    """Seconds to compute one prompt of n tokens in an empty context."""
    prompt = engine.prompt(n)
    engine.clear()
    started = time.perf_counter()
    prefill(engine, prompt, 0)
    return time.perf_counter() - started


def prefill_all(engine: Engine, n_streams: int, n_prompt: int, start: int = 0) -> list[int]:
    """Compute every stream's prompt, packed; returns each stream's first token.

    start: how many tokens each sequence holds already.
    """
    first: list[int] = []
    fill = 0
    ends: list[int] = []

    def flush() -> None:
        engine.decode(fill)
        first.extend(engine.best(place) for place in ends)
        ends.clear()

    for sequence in range(n_streams):
        if fill + n_prompt > N_BATCH:
            flush()
            fill = 0
        engine.batch.put(fill, engine.prompt(n_prompt), start, sequence)
        fill += n_prompt
        ends.append(fill - 1)
    flush()
    return first


def decode_all(engine: Engine, tokens: list[int], start: int, n_tokens: int) -> None:
    """Let every stream, whose next token this is, reach n_tokens tokens of answer."""
    for step in range(n_tokens - 1):
        for sequence, token in enumerate(tokens):
            engine.batch.put(sequence, np.array([token]), start + step, sequence)
        engine.decode(len(tokens))
        tokens = [engine.best(sequence) for sequence in range(len(tokens))]


def time_streams(engine: Engine, n_streams: int, n_prompt: int, n_tokens: int) -> dict[str, float]:
    """Run n streams from prompt to last token, all at once."""
    engine.clear()
    started = time.perf_counter()
    tokens = prefill_all(engine, n_streams, n_prompt)
    prefilled = time.perf_counter()
    decode_all(engine, tokens, n_prompt, n_tokens)
    ended = time.perf_counter()
    return {
        "tok_s": n_streams * n_tokens / (ended - started),
        "decode_tok_s": n_streams * (n_tokens - 1) / (ended - prefilled),
        "prefill_ms": 1000 * (prefilled - started),
    }


def time_sharers(
    engine: Engine, n_streams: int, n_prefix: int, n_own: int, n_tokens: int, *, is_cold: bool
) -> dict[str, float]:
    """Run n streams that share a prefix, all at once; warm, the prefix is there from a cold run."""
    keeper = n_streams
    prefix = engine.prompt(n_prefix)
    started = time.perf_counter()
    if is_cold:
        engine.clear()
        prefill(engine, prefix, keeper)
    for sequence in range(n_streams):
        engine.share(keeper, sequence)
    tokens = prefill_all(engine, n_streams, n_own, start=n_prefix)
    first = time.perf_counter()
    decode_all(engine, tokens, n_prefix + n_own, n_tokens)
    return {"total_s": time.perf_counter() - started, "ttft_ms": 1000 * (first - started)}


def best_shared(engine: Engine, sizes: list[int], repeat: int) -> dict[str, dict[str, float]]:
    """Each figure's best over the repeats, cold and warm."""
    rows: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(repeat):
        for phase, got in rows.items():
            got.append(time_sharers(engine, *sizes, is_cold=phase == "cold"))
    return {
        phase: {name: round(min(row[name] for row in got), 6) for name in got[0]}
        for phase, got in rows.items()
    }


def median_of(run: Callable[[], dict[str, float]], repeat: int) -> dict[str, float]:
    """Each figure's median over the repeats."""
    rows = [run() for _ in range(repeat)]
    return {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}


def report(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, after one warm-up."""
    engine = Engine(args)
    time_prefill(engine, 16)
    prefills = {n: [time_prefill(engine, n) for _ in range(args.repeat)] for n in args.prefill}
    return {
        "load_ms": round(1000 * engine.load_s, 1),
        "prefill": {
            n: {
                "median_ms": round(1000 * statistics.median(times), 2),
                "best_ms": round(1000 * min(times), 2),
                "tok_s": round(n / statistics.median(times), 1),
            }
            for n, times in prefills.items()
        },
        "decode": {
            n: median_of(partial(time_streams, engine, n, args.prompt, args.tokens), args.repeat)
            for n in args.batch
        },
        "shared": best_shared(engine, args.shared, args.repeat) if args.shared else {},
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = made.add_argument
    add("model")
    add("--threads", type=int, default=2)
    add("--fa", choices=["0", "1", "-1"], default="0", help="flash attention; -1 is automatic")
    add("--kv", choices=sorted(KV_TYPES), default="f16", help="type of the KV cache")
    add("--n-ubatch", type=int, default=512)
    add("--n-ctx", type=int, default=8192, help="cells in all")
    add("--seqs", type=int, default=16, help="sequences the context has room for")
    add("--split-kv", action="store_true", help="a cache per sequence instead of one pool")
    add("--gpu-layers", type=int, default=0)
    add("--no-extra-buffers", action="store_true", help="no weights repacked for this processor")
    add("--batch", type=int, nargs="*", default=[1, 4, 16], help="streams at once")
    add("--prompt", type=int, default=121, help="tokens of each stream's prompt")
    add("--tokens", type=int, default=128, help="tokens of each stream's answer")
    add("--prefill", type=int, nargs="*", default=[128, 512], help="prompt lengths to time alone")
    add("--shared", type=int, nargs=4, metavar=("STREAMS", "PREFIX", "OWN", "TOKENS"))
    add("--repeat", type=int, default=3)
    add("--seed", type=int, default=1)
    return made


if __name__ == "__main__":
    print(json.dumps(report(parser().parse_args())))
