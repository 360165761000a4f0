"""What holding an answer to a schema costs, and what forced tokens win: ratios within one run.

    python benchmarks/structured.py MODEL.gguf [--streams N] [--tokens T] [--repeats R]

The engine runs in this process, without a server. Tokens a second of free text (which never ends),
of a list of strings (next to nothing is forced), and of an object with long names and few choices
(most is), in turns; the ratios are the medians over the turns. Prints one JSON object; bars: 0.95
and 1.2 of free.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import cast

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.llama import LlamaBackend, load
from naiad.types import Grammar, SamplingParams

STRINGS = {"type": "array", "items": {"type": "string", "minLength": 40}, "minItems": 100}
FORM = {
    "type": "object",
    "properties": {
        name: {"enum": ["confirmed", "rejected", "undecided"]}
        for name in (
            "customer_identification_status",
            "delivery_address_verification",
            "payment_authorisation_result",
            "warehouse_availability_check",
            "international_customs_clearance",
            "insurance_coverage_evaluation",
        )
    },
    "additionalProperties": False,
}
FORM["required"] = list(FORM["properties"])  # type: ignore[call-overload]
MANY_FORMS = {"type": "array", "items": FORM, "minItems": 100}
CASES = {"free": None, "strings": STRINGS, "forced": MANY_FORMS}
BARS = {"strings": 0.95, "forced": 1.2}
PROMPT = "Answer with JSON that describes some orders of a shop, one after another:\n"


def speed(backend: LlamaBackend, schema: object, n_streams: int, n_tokens: int) -> float:
    """Tokens a second of so many streams; the prompt and the first step do not count."""
    prompt = backend.tokenizer.encode(PROMPT, add_special=True, parse_special=False)
    for uid in range(n_streams):
        grammar = Grammar("json_schema", json.dumps(schema)) if schema else None
        follower = backend.compile_grammar(grammar) if grammar else None
        params = SamplingParams(temperature=0.8, top_k=40, seed=uid, ignore_eos=True)
        backend.core.add(CoreJob(uid, tuple(prompt), n_tokens, params, follower=follower))
    n_begun = 0
    while n_begun < n_streams:
        n_begun += sum(item.seq == 0 for item in backend.core.step())
    began, n = time.perf_counter(), 0
    while backend.core.has_work():
        n += sum(len(item.tokens) for item in backend.core.step())
    return n / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: as the server chooses")
    arguments = parser.parse_args()
    config = EngineConfig(
        model=str(arguments.model),
        parallel=arguments.streams,
        ctx=2048,
        threads=arguments.threads,
        drafts=False,
    )
    backend = cast(LlamaBackend, load(config)(lambda _progress: None))
    turns = [
        {
            name: speed(backend, one, arguments.streams, arguments.tokens)
            for name, one in CASES.items()
        }
        for _ in range(arguments.repeats)
    ]
    backend.core.close()
    backend.close_grammars()
    rates = {name: median(turn[name] for turn in turns) for name in CASES}
    ratios = {name: median(turn[name] / turn["free"] for turn in turns) for name in BARS}
    print(
        json.dumps(
            {
                "tok_s": {name: round(rate, 1) for name, rate in rates.items()},
                "ratio": {name: round(ratio, 3) for name, ratio in ratios.items()},
                "bars": BARS,
                "is_within": all(ratios[name] >= bar for name, bar in BARS.items()),
            }
        )
    )


if __name__ == "__main__":
    main()
